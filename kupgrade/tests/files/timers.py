# timerfds of several clocks, absolute and relative, periodic, expired, not armed.
import ctypes

libc = ctypes.CDLL(None)
ABSOLUTE, CANCEL = 1, 2
SECOND = 10**9
def timer(clock, flags, value, interval=0):
    fd = libc.timerfd_create(clock, os.O_NONBLOCK)
    spec = struct.pack("4q", interval // SECOND, interval % SECOND, value // SECOND, value % SECOND)
    assert libc.timerfd_settime(fd, flags, spec, None) == 0
    return fd
def told(fd, key):
    lines = open("/proc/self/fdinfo/%d" % fd).read().split("\n")
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
def due(fd, clock):
    # Whoever stands between the two readings finds it later than it is.
    def once():
        seconds, rest = told(fd, "it_value").strip("()").split(",")
        return time.clock_gettime_ns(clock) + int(seconds) * SECOND + int(rest)
    return min(once() for _ in range(5))

REAL, MONO, BOOT = 0, 1, 7
at = {clock: time.clock_gettime_ns(clock) for clock in (REAL, MONO, BOOT)}
timers = {
    timer(MONO, ABSOLUTE, at[MONO] + 60 * SECOND): MONO,
    timer(REAL, ABSOLUTE | CANCEL, at[REAL] + 60 * SECOND): REAL,
    timer(BOOT, ABSOLUTE, at[BOOT] + 60 * SECOND, 5 * SECOND): BOOT,
    timer(MONO, 0, 60 * SECOND, SECOND): MONO,
    timer(REAL, ABSOLUTE, at[REAL] + 3600 * SECOND): REAL,
}
idle = timer(MONO, 0, 0)
fast = timer(MONO, 0, 10**6, 10**6)
time.sleep(0.05)
before = {fd: (due(fd, clock), told(fd, "settime flags")) for fd, clock in timers.items()}

def check():
    for fd, clock in timers.items():
        then, flags = before[fd]
        assert abs(due(fd, clock) - then) < 5 * 10**6, (clock, due(fd, clock) - then)
        assert told(fd, "settime flags") == flags
    assert told(idle, "it_value") == "(0, 0)"
    assert struct.unpack("Q", os.read(fast, 8))[0] > 40
