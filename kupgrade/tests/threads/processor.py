# What a thread may do with the processor, and what its memory is registered for.
import ctypes, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
libc = ctypes.CDLL(None, use_errno=True)
PRCTL, MEMBARRIER, SETATTR, GETATTR = 157, 324, 314, 315
def call(*args):
    return libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
def attr():
    got = (ctypes.c_ulonglong * 6)()
    assert call(GETATTR, 0, ctypes.byref(got), 48, 0) == 0
    return list(got)
registered = [bit for bit in (4, 6, 8) if call(MEMBARRIER, 1 << bit, 0, 0) == 0]
# Store bypass, where the processor lets it be switched off.
call(PRCTL, 53, 0, 4, 0, 0)
speculation = [call(PRCTL, 52, what, 0, 0, 0) for what in range(3)]
results = []
def deadlines():
    wanted = (ctypes.c_ulonglong * 6)(48 | 6 << 32, 1, 0, 2_000_000, 50_000_000, 100_000_000)
    made = call(SETATTR, 0, ctypes.byref(wanted), 0) == 0
    before = attr()
    asked.wait()
    results.append((made, before, attr()))
asked = threading.Event()
thread = threading.Thread(target=deadlines)
thread.start()
time.sleep(0.3)
def check():
    for bit in registered:
        assert call(MEMBARRIER, 1 << bit - 1, 0, 0) == 0, f"membarrier {bit}"
    now = [call(PRCTL, 52, what, 0, 0, 0) for what in range(3)]
    assert now == speculation, (speculation, now)
    asked.set()
    thread.join()
    made, before, after = results[0]
    assert before == after, (before, after)
    assert not made or after[3:] == [2_000_000, 50_000_000, 100_000_000], after
