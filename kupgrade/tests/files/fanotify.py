# A fanotify group with a mark on a directory and one, with an ignored event, on a file.
import ctypes

libc = ctypes.CDLL(None)
FAN_NONBLOCK, FAN_CLOSE_WRITE, FAN_OPEN, ON_CHILD = 2, 8, 0x20, 0x08000000
ADD, IGNORED, SURVIVES = 1, 0x20, 0x40
group = libc.fanotify_init(FAN_NONBLOCK, os.O_RDONLY)
assert group >= 0
os.mkdir("d")
open("f", "w").close()
def mark(path, flags, mask):
    assert libc.fanotify_mark(group, flags, ctypes.c_uint64(mask), -100, path) == 0
mark(b"d", ADD, FAN_CLOSE_WRITE | ON_CHILD)
mark(b"f", ADD, FAN_OPEN | FAN_CLOSE_WRITE)
mark(b"f", ADD | IGNORED | SURVIVES, FAN_OPEN)
def told():
    lines = open("/proc/self/fdinfo/%d" % group).read().split("\n")
    return sorted(line for line in lines if line.startswith("fanotify"))
before = told()

def event():
    try:
        data = os.read(group, 24)
    except BlockingIOError:
        return None
    _, _, _, _, mask, fd, _ = struct.unpack("IBBHQii", data)
    name = os.path.basename(os.readlink("/proc/self/fd/%d" % fd))
    os.close(fd)
    return mask, name

def check():
    assert told() == before, (told(), before)
    for name in ("d/new", "f"):
        open(name, "w").close()
    assert [event(), event(), event()] == [(FAN_CLOSE_WRITE, "new"), (FAN_CLOSE_WRITE, "f"), None]
