"""memcached: one server on a unix socket with a client that stays, one on TCP; items that expire on time."""
import random
import time

import kit

SOCKET = kit.path("memcached.sock")
PORT = 11311
ITEMS = 4000


class Memcached:
    def __init__(self, where):
        self.stream = kit.connect(where)
        self.file = self.stream.makefile("rb")

    def store(self, key, value, life=0):
        self.stream.sendall(b"set %s 7 %d %d\r\n%s\r\n" % (key.encode(), life, len(value), value))
        kit.same(f"the answer to set {key}", b"STORED", self.file.readline().rstrip())

    def get(self, key):
        self.stream.sendall(b"get %s\r\n" % key.encode())
        return self.value()

    def value(self):
        line = self.file.readline().split()
        if line == [b"END"]:
            return None
        kit.same("the flags of an item", b"7", line[2])
        value = self.file.read(int(line[3]) + 2)[:-2]
        kit.same("the end of an item", b"END", self.file.readline().rstrip())
        return value

    def word(self, line):
        self.stream.sendall(line.encode() + b"\r\n")
        return self.file.readline().rstrip().decode()

    def life(self, key):
        """Seconds that an item has left."""
        answer = self.word(f"mg {key} t")
        return int(answer.split("t")[1]) if answer.startswith("HD") else None

    def stats(self):
        self.stream.sendall(b"stats\r\n")
        found = {}
        while (line := self.file.readline().split()) != [b"END"]:
            found[line[1].decode()] = line[2].decode()
        return found


def value(key):
    return random.Random(key).randbytes(20 + key % 900)


def start():
    common = ["memcached", "-u", "root", "-m", "64", "-t", "4", "-v"]
    pids = [kit.spawn([*common, "-s", SOCKET], log="unix.log"), kit.spawn([*common, "-l", "127.0.0.1", "-p", str(PORT)], log="tcp.log")]
    for where in (SOCKET, PORT):
        kit.until("memcached answers", lambda: kit.listens(where))
        server = Memcached(where)
        for key in range(ITEMS):
            server.store(f"key:{key}", value(key))
    Memcached(SOCKET).store("count", b"0")
    kit.save("pids", pids)
    kit.client("load")
    kit.beats("load")


def load():
    server = Memcached(SOCKET)

    def step(count):
        kit.same("the count", str(count + 1), server.word("incr count 1"))
        key = count * 31 % ITEMS
        kit.same(f"key {key}", value(key), server.get(f"key:{key}"))
        server.store(f"kept:{count % 50}", b"%d" % count, 3600)
    kit.beat("load", step)


def note():
    note = {"families": [kit.family(pid) for pid in kit.load("pids")], "when": time.time(), "items": []}
    for where in (SOCKET, PORT):
        server = Memcached(where)
        server.store("soon", b"x", 2)
        server.store("later", b"y", 900)
        note["items"].append(server.life("later"))
    kit.save("note", note)


def verify(blackout):
    note = kit.load("note")
    for where, life, family in zip((SOCKET, PORT), note["items"], note["families"]):
        kit.same_family(family)
        server = Memcached(where)
        check_lives(server, life, time.time() - note["when"], float(blackout) / 1000)
        for key in range(0, ITEMS, 7):
            kit.same(f"key {key}", value(key), server.get(f"key:{key}"))
        server.store("fleeting", b"z", 3)
        kit.same("a new item", b"z", server.get("fleeting"))
        kit.until("a new item expires", lambda: server.get("fleeting") is None, 15)
        stats = server.stats()
        kit.same("threads", "4", stats["threads"])
        if int(stats["evictions"]) or int(stats["curr_items"]) < ITEMS:
            raise kit.Wrong(f"items are missing: {stats}")
    count = kit.beats("load")
    for log in ("unix.log", "tcp.log"):
        kit.clean(log)
    print(f"processes {kit.load('pids')}, {ITEMS} items each, a client made {count} rounds")


def check_lives(server, life, passed, blackout):
    """Its clock may stand still during the upgrade, and may not do anything else."""
    if passed > blackout + 5:
        kit.same("an item that has expired", None, server.get("soon"))
    kit.same("an item that lives", b"y", server.get("later"))
    left = server.life("later")
    if not life - passed - kit.HICCUP <= left <= life - passed + blackout + kit.HICCUP:
        raise kit.Wrong(f"an item had {life} s to live and has {left} s, {passed:.1f} s later")


kit.main(start=start, note=note, verify=verify, load=load)
