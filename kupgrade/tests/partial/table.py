# Two processes share a table of descriptors in which a file is that will be gone: both are lost.
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CLONE_FILES, CLONE_PARENT = 0x400, 0x8000
ready, done = os.pipe()
child = os.fork()
if child == 0:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    gone = open("gone", "w+")
    other = libc.syscall(ctypes.c_long(56), ctypes.c_long(CLONE_FILES | CLONE_PARENT | 17), 0, 0, 0, 0)
    if other > 0:
        os.write(done, b"%d" % other)
    while True:
        time.sleep(100)
other = int(os.read(ready, 20))

def check():
    both = {os.waitpid(-1, 0) for _ in range(2)}
    assert both == {(child, 9), (other, 9)}, both
