"""A family that watches itself: each member complains in FILE when something is not as it should be.

Usage: restless.py FILE. Counts its work in FILE.NAME, one file for each member.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PATH = sys.argv[1]
# What the test itself was started with must not be held here.
os.closerange(3, 1024)
LATE = 1.5
libc = ctypes.CDLL(None, use_errno=True)


def complain(text):
    with open(PATH, "a", encoding="ascii") as out:
        out.write(f"{os.getpid()}: {text}\n")


def work(name, once):
    count = 0
    while True:
        once(count)
        count += 1
        if count % 8 == 0 or name.startswith("long"):
            with open(f"{PATH}.{name}.new", "w", encoding="ascii") as out:
                out.write(str(count))
            os.replace(f"{PATH}.{name}.new", f"{PATH}.{name}")


class Running:
    """A clock that stands still while this process does."""

    def __init__(self):
        self.now = 0.0
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self):
        last = time.monotonic()
        while True:
            time.sleep(0.01)
            now = time.monotonic()
            self.now += min(now - last, 0.05)
            last = now

    def __call__(self):
        return self.now


def timed(what, seconds, call, clock):
    begun, begun_here = time.monotonic(), clock()
    result = call()
    took, took_here = time.monotonic() - begun, clock() - begun_here
    if result == -1 and ctypes.get_errno() == 4 and what in ("epoll_wait", "sigtimedwait"):
        complain("EINTR")
        return
    if result != 0:
        complain(f"{what} returned {result}, errno {ctypes.get_errno()}")
    if took_here > seconds + LATE:
        complain(f"{took} LATE")
    elif took < seconds - 0.005:
        complain(f"{what} of {seconds} s took {took} s ({took_here} s)")


class Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def naps(seconds):
    whole, rest = divmod(seconds, 1)
    wanted = Timespec(int(whole), int(rest * 1e9))
    running = Running()
    call = lambda: libc.nanosleep(ctypes.byref(wanted), None)
    return lambda _: timed("nanosleep", seconds, call, running)


def polls(seconds):
    running = Running()
    call = lambda: libc.poll(None, 0, int(seconds * 1000))
    return lambda _: timed("poll", seconds, call, running)


# The rest of these is kept by nobody while the process stands still.


def epolls(seconds):
    epoll = libc.epoll_create1(0)
    room = ctypes.create_string_buffer(12)

    def call():
        return libc.epoll_wait(epoll, room, 1, int(seconds * 1000))

    running = Running()
    return lambda _: timed("epoll_wait", seconds, call, running)


def sigtimedwaits(seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    wanted = ctypes.create_string_buffer(128)
    wanted[1] = 8  # SIGUSR2 is number 12
    whole, rest = divmod(seconds, 1)
    limit = Timespec(int(whole), int(rest * 1e9))

    def call():
        done = libc.sigtimedwait(wanted, None, ctypes.byref(limit))
        return 0 if done == -1 and ctypes.get_errno() == 11 else done

    running = Running()
    return lambda _: timed("sigtimedwait", seconds, call, running)


def sums(_):
    total = 0.0
    for i in range(3000):
        total += i * 0.5
    if total != 2249250.0:
        complain(f"a sum is {total}")


def ping_pong():
    there, back = os.pipe(), os.pipe()

    def answer():
        while True:
            data = os.read(there[0], 8)
            if len(data) != 8:
                complain(f"read {data!r}")
            os.write(back[1], data)

    threading.Thread(target=answer, daemon=True).start()

    def once(count):
        sent = count.to_bytes(8, "little")
        os.write(there[1], sent)
        if os.read(back[0], 8) != sent:
            complain("an answer is wrong")

    return once


def signals():
    """Sends itself queued signals and counts them; all kinds have handlers but one."""
    got = []
    for number in [5, 10, 12, 17, 23, 28, 40]:
        signal.signal(number, lambda n, _: got.append(n))

    def once(_):
        for number in [10, 12, 40, 40, 28]:
            del got[:]
            os.kill(os.getpid(), number)
            if got != [number]:
                complain(f"sent {number}, got {got}")

    return once


def children(_):
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    if os.waitpid(pid, 0) != (pid, 7 << 8):
        complain("a child's end is not as it was")


# The short waits begin and end often; the long ones are interrupted many times.
MEMBERS = {
    "naps": lambda: naps(0.04),
    "polls": lambda: polls(0.03),
    "epolls": lambda: epolls(0.035),
    "sigtimedwaits": lambda: sigtimedwaits(0.03),
    "longnaps": lambda: naps(3),
    "longpolls": lambda: polls(3),
    "longepolls": lambda: epolls(3),
    "longsigtimedwaits": lambda: sigtimedwaits(3),
    "sums": lambda: sums,
    "pingpong": ping_pong,
    "signals": signals,
    "children": lambda: children,
}

for name, member in MEMBERS.items():
    if os.fork() == 0:
        try:
            work(name, member())
        except BaseException as error:
            complain(f"{name}: {error!r}")
        os._exit(1)
while True:
    pid, status = os.wait()
    complain(f"member {pid} ended with {status:#x}")
