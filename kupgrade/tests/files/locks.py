# Locks of the three interfaces, and a lease.
import fcntl

F_OFD_GETLK, F_OFD_SETLK, F_SETLEASE, F_GETLEASE = 36, 37, 1024, 1025
def flock(kind, start, length):
    return struct.pack("hhqqi4x", kind, 0, start, length, 0)
def fresh(name):
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o644)

posix = fresh("posix")
fcntl.fcntl(posix, fcntl.F_SETLK, flock(fcntl.F_WRLCK, 5, 10))
copy = os.dup(posix)
whole = fresh("whole")
fcntl.flock(whole, fcntl.LOCK_SH)
ofd = fresh("ofd")
fcntl.fcntl(ofd, F_OFD_SETLK, flock(fcntl.F_WRLCK, 3, 4))
lease = os.open("lease", os.O_RDONLY | os.O_CREAT, 0o644)
fcntl.fcntl(lease, F_SETLEASE, fcntl.F_RDLCK)

def held(name, command):
    answer = fcntl.fcntl(fresh(name), command, flock(fcntl.F_WRLCK, 0, 0))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", answer)
    return kind, start, length, pid

def other():
    assert held("posix", fcntl.F_GETLK) == (fcntl.F_WRLCK, 5, 10, os.getppid())
    assert held("ofd", F_OFD_GETLK) == (fcntl.F_WRLCK, 3, 4, -1)
    mine = fresh("whole")
    fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    raise AssertionError("nobody holds a shared lock")

def check():
    child = os.fork()
    if child == 0:
        try:
            other()
        except BaseException as e:
            print("Traceback:", repr(e), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert fcntl.fcntl(lease, F_GETLEASE) == fcntl.F_RDLCK
