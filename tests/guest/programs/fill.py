"""Fills the Redis on port 6379 with MIB mebibytes of values that do not repeat: fill.py MIB"""
import random
import socket
import sys

VALUE = 16000  # with Redis' header just below a size class of its allocator
BATCH = 64

mib = int(sys.argv[1])
source = random.Random(20)
pool = source.randbytes((1 << 20) + VALUE)
link = socket.create_connection(("127.0.0.1", 6379))


def command(*words):
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(parts)


def send(commands):
    link.sendall(b"".join(commands))
    lines = 0
    while lines < len(commands):
        chunk = link.recv(65536)
        if not chunk or b"-" in chunk:
            sys.exit("redis refused: %r" % chunk[:200])
        lines += chunk.count(b"\r\n")


def blob(number):
    at = source.randrange(1 << 20)
    return b"%016d" % number + pool[at : at + VALUE - 16]


total = mib * (1 << 20) // VALUE
for first in range(0, total, BATCH):
    send([command(b"SET", b"blob:%07d" % n, blob(n)) for n in range(first, min(first + BATCH, total))])
# Redis' other kinds of values, with small allocations and pointers between them.
for first in range(0, 2000, BATCH):
    batch = []
    for n in range(first, min(first + BATCH, 2000)):
        key = b"%d" % n
        batch.append(command(b"HSET", b"hash:%d" % (n % 50), b"field" + key, b"value" + key))
        batch.append(command(b"RPUSH", b"list:%d" % (n % 20), b"item" + key))
        batch.append(command(b"ZADD", b"sorted", key, b"member" + key))
        batch.append(command(b"SADD", b"set:%d" % (n % 10), b"member" + key))
    send(batch)
print("filled", total, "values")
