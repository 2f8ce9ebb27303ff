# inotify with gaps in its numbers; epolls, with numbers closed or used again since; O_ASYNC.
import ctypes, fcntl, select

libc = ctypes.CDLL(None)
def put(path):
    open(path, "a").close()
put("w")
os.mkdir("d")
notify = libc.inotify_init1(os.O_NONBLOCK)
first = libc.inotify_add_watch(notify, b"w", 2)
second = libc.inotify_add_watch(notify, b".", 8)
libc.inotify_rm_watch(notify, second)
os.read(notify, 100)
third = libc.inotify_add_watch(notify, b"d", 0x100 | 0x80000000 | 0x04000000)
fourth = libc.inotify_add_watch(notify, b"/dev/shm", 0x100)

signals = []
SIGNAL = signal.SIGRTMIN + 3
signal.signal(SIGNAL, lambda number, _: signals.append(number))
ar, aw = os.pipe()
fcntl.fcntl(ar, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(ar, 10, SIGNAL)
fcntl.fcntl(ar, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

outer, inner = select.epoll(), select.epoll()
(xr, xw), (yr, yw), (zr, zw), (sr, sw) = (os.pipe() for _ in range(4))
outer.register(xr, select.EPOLLIN | select.EPOLLET)
closed = os.dup(yr)
outer.register(closed, select.EPOLLIN)
os.close(closed)
reused = os.dup(zr)
outer.register(reused, select.EPOLLIN)
os.dup2(yw, reused)
outer.register(inner.fileno(), select.EPOLLIN)
inner.register(xr, select.EPOLLIN)
outer.register(sw, select.EPOLLOUT | select.EPOLLONESHOT)
assert outer.poll(0) == [(sw, select.EPOLLOUT)]

def told(fd, word):
    lines = open("/proc/self/fdinfo/%d" % fd).read().split("\n")
    return sorted(line.split("pos")[0] for line in lines if line.startswith(word))
def state():
    return told(notify, "inotify"), told(outer.fileno(), "tfd"), told(inner.fileno(), "tfd")
before = state()

def check():
    assert state() == before, (state(), before)
    with open("w", "a") as f:
        f.write("q")
    put("d/new")
    events = os.read(notify, 999)
    assert struct.unpack("iIII", events[:16]) == (first, 2, 0, 0)
    assert struct.unpack("iI", events[16:24]) == (third, 0x100)
    name = "/dev/shm/kupgrade-test-%d" % os.getpid()
    put(name)
    os.unlink(name)
    assert struct.unpack("iI", os.read(notify, 999)[:8]) == (fourth, 0x100)
    os.write(aw, b"1")
    time.sleep(0.05)
    assert signals == [SIGNAL]
    assert outer.poll(0) == []
    os.write(yw, b"1")
    assert outer.poll(0) == [(closed, 1)]
    os.read(yr, 1)
    os.write(zw, b"1")
    assert outer.poll(0) == [(reused, 1)]
    os.read(zr, 1)
    os.write(xw, b"1")
    assert sorted(outer.poll(0)) == sorted([(xr, 1), (inner.fileno(), 1)])
    os.read(xr, 1)
    os.close(sr)
    assert outer.poll(0) == [], "the spent entry told of an error"
