# A description on a file that will be gone is shared by two children; one of them got it through a socket. A third has
# it only in an epoll, which can be without it.
import array, select

gone = open("gone", "w+")
out, into = socket.socketpair()
out.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [gone.fileno()]))])
gone.close()
children = []
def born(body):
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.close(ready)
        mine = body()
        os.write(done, b"x")
        os.close(done)
        while True:
            time.sleep(100)
    os.close(done)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    children.append(child)
def takes():
    _, data, _, _ = into.recvmsg(1, 100)
    return data[0][2]
def both():
    fd = takes()
    if os.fork() == 0:
        while True:
            time.sleep(100)
    return fd
libc = __import__("ctypes").CDLL(None)
libc.prctl(36, 1)
born(both)
out.close(), into.close()
born(lambda: None)

def check():
    assert os.waitpid(children[0], 0)[1] == 9
    # The one it had forked has come to this one, killed as well.
    pid, status = os.waitpid(-1, 0)
    assert pid not in children and status == 9
    os.kill(children[1], 9)
    assert os.waitpid(children[1], 0)[1] == 9
