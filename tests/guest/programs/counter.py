"""Counts for ever; one line each step: count, wall clock, monotonic clock, a token that only its memory holds."""
import os
import sys
import time


def both():
    """Wall clock and monotonic clock of one moment: nothing stood still between the two."""
    while True:
        wall, monotonic, later = time.time(), time.monotonic(), time.time()
        if 0 <= later - wall < 0.02:
            return wall, monotonic


token = os.urandom(8).hex()
count = 0
with open(sys.argv[1], "a", buffering=1) as out:
    while True:
        count += 1
        wall, monotonic = both()
        out.write(f"{count} {wall:.6f} {monotonic:.6f} {token} {os.getpid()}\n")
        time.sleep(0.05)
