"""Counts for ever; one line each step: count, wall clock, monotonic clock, a token that only its memory holds."""
import os
import sys
import time

token = os.urandom(8).hex()
count = 0
with open(sys.argv[1], "a", buffering=1) as out:
    while True:
        count += 1
        out.write(f"{count} {time.time():.6f} {time.monotonic():.6f} {token} {os.getpid()}\n")
        time.sleep(0.05)
