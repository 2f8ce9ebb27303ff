# A periodic timer whose signal is blocked when it is saved goes on once the signal is taken.
import signal
seen = []
signal.signal(signal.SIGALRM, lambda n, f: seen.append(n))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
time.sleep(0.2)
def check():
    assert signal.sigpending() == {signal.SIGALRM}
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.05
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    time.sleep(0.5)
    assert len(seen) > 4, len(seen)
