# Pseudo terminals: settings, unread input and output, packet mode, exclusive and locked ones, closed and
# hung-up slaves, and a session with a job in the foreground.
import fcntl, pty, select, termios, tty

TIOCSPTLCK, TIOCGPTLCK, TIOCGEXCL = 0x40045431, 0x80045439, 0x80045440
spare = [pty.openpty() for _ in range(2)]
m, s = pty.openpty()
raw_m, raw_s = pty.openpty()
bye_m, bye_s = pty.openpty()
for pair in spare:
    for fd in pair:
        os.close(fd)
fcntl.ioctl(m, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 5, 6))
settings = termios.tcgetattr(s)
settings[3] &= ~termios.ECHO
settings[6][termios.VINTR] = b"\x07"
settings[4] = settings[5] = termios.B19200
termios.tcsetattr(s, termios.TCSANOW, settings)
os.write(m, b"line one\nline two\npart")
os.write(s, b"output\n")
tty.setraw(raw_s)
every_byte = bytes(range(256))
os.write(raw_m, every_byte)
os.write(raw_s, b"raw\x00\xff")
fcntl.ioctl(raw_m, termios.TIOCPKT, struct.pack("i", 1))
fcntl.ioctl(raw_s, termios.TIOCEXCL)
fcntl.ioctl(raw_m, TIOCSPTLCK, struct.pack("i", 1))
bye_name = os.ttyname(bye_s)
os.write(bye_s, b"bye")
os.close(bye_s)
fresh_m = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
dead_m, dead_s = pty.openpty()
os.close(dead_m)
time.sleep(0.1)

# A session whose leader has let a job into the foreground, and a member without its terminal.
def session(report):
    def job(body):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            body()
            while True:
                time.sleep(100)
        time.sleep(0.1)
        return pid
    os.setsid()
    fcntl.ioctl(s, termios.TIOCSCTTY, 0)
    own = os.open("/dev/tty", os.O_RDWR)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    front = job(lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.tcsetpgrp(own, front)
    without = job(lambda: fcntl.ioctl(own, termios.TIOCNOTTY))
    os.write(report, struct.pack("iii", own, front, without))
    while True:
        time.sleep(100)
answer, report = os.pipe()
leader = os.fork()
if leader == 0:
    session(report)
own, front, without = struct.unpack("iii", os.read(answer, 12))
os.close(answer)
os.close(report)

def stat_of(pid):
    return open("/proc/%d/stat" % pid).read().rsplit(")")[-1].split()
def link(fd, pid="self"):
    return os.readlink("/proc/%s/fd/%d" % (pid, fd))
def hung_up(fd):
    try:
        termios.tcgetattr(fd)
    except termios.error as e:
        return e.args[0] == 5
    return False
def flag(fd, request):
    return struct.unpack("i", fcntl.ioctl(fd, request, b"1234"))[0]
def state():
    every = (m, s, raw_m, raw_s, bye_m, fresh_m, dead_s)
    return (
        termios.tcgetattr(s), fcntl.ioctl(m, termios.TIOCGWINSZ, b"12345678"),
        [link(fd) for fd in every], [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in every],
        [os.fstat(fd).st_rdev for fd in (s, raw_s)], os.stat(bye_name).st_mode, os.fstat(s).st_mode,
        [stat_of(pid)[2:6] for pid in (leader, front, without)],
        link(own, leader), os.stat("/proc/%d/fd/%d" % (leader, own)).st_rdev,
        flag(raw_m, TIOCGPTLCK), flag(raw_s, TIOCGEXCL), flag(fresh_m, TIOCGPTLCK),
        hung_up(dead_s),
    )
before = state()
assert before[-1]

def check():
    assert state() == before, (state(), before)
    assert os.read(dead_s, 9) == b""
    assert os.read(m, 99) == b"output\r\n"
    assert os.read(raw_m, 99) == b"\0raw\0\xff" and os.read(raw_s, 999) == every_byte
    assert os.read(bye_m, 3) == b"bye"
    try:
        os.read(bye_m, 3)
        raise AssertionError("the closed slave is open")
    except OSError as e:
        assert e.errno == 5
    assert select.select([fresh_m], [], [], 0)[0] == []
    assert [os.read(s, 99), os.read(s, 99)] == [b"line one\n", b"line two\n"]
    os.write(m, b"ial\n")
    assert os.read(s, 99) == b"partial\n"
    # The interrupt character reaches the job in the foreground, and nobody else.
    os.write(m, b"\x07")
    time.sleep(0.3)
    assert stat_of(front)[0] == "Z" and stat_of(leader)[0] == "S"
    for pid in (leader, front, without):
        os.kill(pid, 9)
