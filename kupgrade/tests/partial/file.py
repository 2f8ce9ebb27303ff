# A child has a file that will be gone. It has a child of its own, the other ends of a pipe and of a socket, a
# semaphore to be undone, and is watched by a pidfd and through an epoll.
import select

libc = __import__("ctypes").CDLL(None, use_errno=True)
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1
assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
read, write = os.pipe()
ours, theirs = socket.socketpair()
ours.send(b"unread")
theirs.send(b"from it")
up, down = os.pipe()
semaphore = libc.semget(0, 1, 0o600)
told = []
signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
def undone():
    operation = struct.pack("Hhh", 0, 3, 0x1000)
    assert libc.semop(semaphore, operation, 1) == 0
child = os.fork()
if child == 0:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    gone = open("gone", "w+")
    os.close(read), ours.close(), os.close(up)
    undone()
    grandchild = os.fork()
    if grandchild == 0:
        gone.close(), os.close(write), theirs.close()
        parent, told = os.getppid(), 0
        while True:
            if os.getppid() != parent:
                os.write(down, b"orphan")
                os._exit(7)
            time.sleep(0.01)
    os.write(write, b"%d" % grandchild)
    while True:
        time.sleep(100)
os.close(write), theirs.close(), os.close(down)
grandchild = int(os.read(read, 20))
while libc.semctl(semaphore, 0, 12) != 3:
    time.sleep(0.01)
pidfd = os.pidfd_open(child)
epoll = select.epoll()
epoll.register(pidfd, select.EPOLLIN)
epoll.register(read, select.EPOLLIN)
# One more that has nothing to do with it.
brother = os.fork()
while brother == 0:
    time.sleep(100)

def check():
    end = time.monotonic() + 30
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    assert told, "nobody said that a child has ended"
    ready = dict(epoll.poll(5))
    assert set(ready) == {pidfd, read}, ready
    info = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert (info.si_code, info.si_status) == (os.CLD_KILLED, 9), info
    assert os.waitpid(child, 0)[1] == 9
    assert os.read(read, 10) == b""
    assert ours.recv(20) == b"from it"
    try:
        # It had not read what was sent.
        assert ours.recv(20) == b"never" or True
    except ConnectionResetError:
        pass
    assert os.read(up, 10) == b"orphan"
    assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
    assert libc.semctl(semaphore, 0, 12) == 0, "it is not undone"
    libc.semctl(semaphore, 0, 0)
    os.kill(brother, 0)
    os.kill(brother, 9)
    assert os.waitpid(brother, 0) == (brother, 9)
