# pidfds of a child that runs, one that has ended, and one that is gone.
import select

def child(code):
    pid = os.fork()
    if pid:
        return pid
    while code is None:
        time.sleep(100)
    os._exit(code)

running, gone, ended = child(None), child(3), child(4)
pidfds = [os.pidfd_open(pid) for pid in (running, gone, gone, ended)]
time.sleep(0.1)
os.waitpid(gone, 0)

def check():
    assert select.select(pidfds, [], [], 0)[0] == pidfds[1:]
    assert os.waitid(os.P_PIDFD, pidfds[3], os.WEXITED).si_status == 4
    for pidfd in pidfds[1:3]:
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            continue
        raise AssertionError("a process is there")
    signal.pidfd_send_signal(pidfds[0], 9)
    assert os.waitid(os.P_PIDFD, pidfds[0], os.WEXITED).si_pid == running
