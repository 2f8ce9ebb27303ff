# Pipes in packet mode and with several readers, FIFOs with data, without writers, and widowed.
import fcntl, select

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
for name in "fgh":
    os.mkfifo(name)
fr = os.open("f", os.O_RDONLY | os.O_NONBLOCK)
fw = os.open("f", os.O_WRONLY)
os.write(fw, b"fifodata")
fcntl.fcntl(fw, F_SETPIPE_SZ, 1 << 17)
lonely = os.open("g", os.O_RDONLY | os.O_NONBLOCK)
widow = os.open("h", os.O_RDONLY | os.O_NONBLOCK)
w = os.open("h", os.O_WRONLY)
os.write(w, b"left")
os.close(w)
pr, pw = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
packets = [b"one", b"twotwo", b"x"]
for packet in packets:
    os.write(pw, packet)
qr, qw = os.pipe()
os.write(qw, b"abc")
other = os.open("/proc/self/fd/%d" % qr, os.O_RDONLY)
every = (fr, fw, lonely, widow, pr, pw, qr, qw, other)
flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in every]

def said(fd):
    p = select.poll()
    p.register(fd, 0)
    return [what for _, what in p.poll(0)]

def check():
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in every] == flags
    assert fcntl.fcntl(fw, F_GETPIPE_SZ) == 1 << 17
    assert os.read(fr, 99) == b"fifodata"
    assert said(lonely) == [] and said(widow) == [select.POLLHUP]
    assert os.read(widow, 9) == b"left" and os.read(widow, 9) == b""
    assert [os.read(pr, 99) for _ in packets] == packets
    os.write(pw, b"more")
    assert os.read(pr, 99) == b"more"
    assert os.read(other, 2) == b"ab" and os.read(qr, 9) == b"c"
