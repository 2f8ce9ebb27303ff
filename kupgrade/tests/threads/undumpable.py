# A process that has changed users for a while, on a host that dumps such ones for root alone (fs.suid_dumpable 2).
import ctypes
SETTING = "/proc/sys/fs/suid_dumpable"
before = open(SETTING).read()
open(SETTING, "w").write("2")
libc = ctypes.CDLL(None)
libc.setfsuid(1)
libc.setfsuid(0)
dumpable = lambda: libc.prctl(3, 0, 0, 0, 0)
assert dumpable() == 2, dumpable()
def check():
    open(SETTING, "w").write(before)
    assert dumpable() == 2, dumpable()
