# Files under their path, another one, or none; O_PATH; flags and offsets.
import ctypes, fcntl, shutil, stat

def put(path, text):
    with open(path, "w") as f:
        f.write(text)

put("a", "hello world")
a = os.open("a", os.O_RDWR | os.O_APPEND)
os.lseek(a, 3, 0)
direct = os.open("a", os.O_RDONLY | os.O_DIRECT | os.O_SYNC | os.O_NOATIME)
by_path = os.open("a", os.O_PATH)
os.symlink("a", "l")
link = os.open("l", os.O_PATH | os.O_NOFOLLOW)
# Removed, with two descriptions and a hole.
put("gone", "x" * 5000)
gone = [os.open("gone", os.O_RDWR), os.open("gone", os.O_RDONLY)]
os.lseek(gone[1], 17, 0)
os.pwrite(gone[0], b"end", (1 << 20) - 3)
os.fchmod(gone[0], 0o4751)
os.unlink("gone")
os.utime(gone[0], ns=(111, 222000000333))
# Without a name from the beginning.
unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
os.write(unnamed, b"tmpdata")
# Replaced by another one.
put("replaced", "old")
old = os.open("replaced", os.O_RDONLY)
put("new", "new!")
os.rename("new", "replaced")
# With another name left, on disk and in memory.
memory = "/dev/shm/kupgrade-test-%d" % os.getpid()
os.mkdir(memory)
os.mkdir("deep")
linked = []
for one, two in (("h1", "deep/h2"), (memory + "/h1", memory + "/h2")):
    put(one, "hard")
    os.link(one, two)
    linked.append((os.open(one, os.O_RDWR), two))
    os.unlink(one)
os.mkdir("left")
left = os.open("left", os.O_RDONLY)
os.rmdir("left")
status = os.open("/proc/self/status", os.O_RDONLY)
os.read(status, 10)
pages = os.open("/sys/kernel/mm/transparent_hugepage/enabled", os.O_RDONLY)
every = [a, direct, by_path, link, *gone, unnamed, old, left, status, pages] + [f for f, _ in linked]
def seen(fd):
    opaque = fd in (by_path, link)
    offset = None if opaque else os.lseek(fd, 0, 1)
    return fcntl.fcntl(fd, fcntl.F_GETFL), offset
before = [seen(fd) for fd in every]
named = [a, direct, by_path, link, *gone, left, status, pages]
where = [os.readlink("/proc/self/fd/%d" % fd) for fd in named]

def check():
    assert [seen(fd) for fd in every] == before
    assert [os.readlink("/proc/self/fd/%d" % fd) for fd in named] == where
    os.write(a, b"!")
    assert open("a").read() == "hello world!"
    assert os.fstat(by_path).st_ino == os.stat("a").st_ino
    assert stat.S_ISLNK(os.fstat(link).st_mode)
    s = os.fstat(gone[0])
    assert (s.st_nlink, s.st_size, s.st_mode, s.st_mtime_ns) == (0, 1 << 20, 0o104751, 222000000333), s
    assert s.st_blocks * 512 < 100000
    os.pwrite(gone[0], b"Y", 18)
    assert os.read(gone[1], 3) == b"xYx"
    assert os.pread(gone[0], 3, (1 << 20) - 3) == b"end"
    os.write(unnamed, b"+")
    name = b"/proc/self/fd/%d" % unnamed
    assert ctypes.CDLL(None).linkat(-100, name, -100, b"named", 0x400) == 0
    assert open("named").read() == "tmpdata+"
    assert os.pread(old, 9, 0) == b"old" and open("replaced").read() == "new!"
    for fd, other in linked:
        os.pwrite(fd, b"H", 0)
        assert open(other).read() == "Hard"
    shutil.rmtree(memory)
    assert os.fstat(left).st_nlink == 0 and os.listdir(left) == []
    assert b"Umask" in os.read(status, 1000)
    assert b"madvise" in os.read(pages, 1000)
