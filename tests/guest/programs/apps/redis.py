"""Redis with a child that saves, a client that blocks, one in a transaction, one that writes without pause."""
import os
import random
import subprocess
import time

import kit

SOCKET = kit.path("redis.sock")
KEYS = 12000
# Seconds that the child is at work at least, since a translated machine takes long to get ready for the upgrade; and
# how many times a look at all processes it takes, where the machine is busy with others.
SAVE, LOOKS = 180, 15


class Redis:
    """A connection that speaks RESP."""

    def __init__(self, where=SOCKET, limit=300):
        self.stream = kit.connect(where, limit)
        self.file = self.stream.makefile("rb")

    def send(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.stream.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def reply(self):
        line = self.file.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:].decode()
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self.file.read(int(rest) + 2)[:-2].decode("latin-1")
        if kind == b"*":
            return None if rest == "-1" else [self.reply() for _ in range(int(rest))]
        raise kit.Wrong(f"redis answers {line!r}")

    def __call__(self, *words):
        self.send(*words)
        return self.reply()

    def info(self, section):
        return dict(line.split(":", 1) for line in self("INFO", section).splitlines() if ":" in line)


def value(key):
    return random.Random(key).randbytes(40 + key % 200).hex()


def start():
    kit.spawn(["redis-server", "--port", "6390", "--bind", "127.0.0.1", "--unixsocket", SOCKET, "--save", "", "--appendonly", "no",
               "--enable-debug-command", "local", "--dir", kit.HOME, "--loglevel", "notice"], log="redis.log")
    kit.until("redis answers", lambda: kit.listens(SOCKET) and Redis()("PING") == "PONG")
    redis = Redis()
    for first in range(0, KEYS, 500):
        words = ["MSET"]
        for key in range(first, first + 500):
            words += [f"key:{key}", value(key)]
        redis(*words)
    redis("ZADD", "scores", *[word for n in range(200) for word in (n * 3, f"member{n}")])
    redis("HSET", "hash", *[word for n in range(200) for word in (f"field{n}", n)])
    redis("RPUSH", "list", *range(500))
    redis("SET", "short", "x", "PX", 3_600_000)
    for word in ("witness", "blocked", "transaction", "writer", "subscriber"):
        kit.client(word)
    kit.beats("writer")


def blocked():
    """Waits in BLPOP for what comes into the queue and tells the list of it."""
    redis, got = Redis(limit=None), []
    while True:
        redis.send("BLPOP", "queue", 0)
        got.append(redis.reply()[1])
        kit.save("blocked.got", got)


def subscriber():
    redis, got = Redis(limit=None), []
    redis("SUBSCRIBE", "news")
    kit.save("subscriber.got", got)
    while True:
        got.append(redis.reply()[2])
        kit.save("subscriber.got", got)


def transaction():
    """Has commands queued behind MULTI until the file `exec` is there."""
    redis, done = Redis(limit=None), 0
    while True:
        redis("WATCH", "key:1")
        redis("MULTI")
        redis("INCRBY", "sum", 5)
        redis("LRANGE", "list", 0, 2)
        kit.save("transaction.state", {"queued": True, "done": done})
        while not os.path.exists("exec"):
            time.sleep(0.05)
        answer = redis("EXEC")
        done += 1
        os.remove("exec")
        kit.save("transaction.state", {"queued": False, "done": done, "answer": answer})
        while not os.path.exists("again"):
            time.sleep(0.05)
        os.remove("again")


def writer():
    redis = Redis()

    def step(count):
        kit.same("the count", count + 1, redis("INCR", "count"))
        key = count % KEYS
        kit.same(f"key {key}", value(key), redis("GET", f"key:{key}"))
        redis("SET", f"written:{count % 100}", count)
    kit.beat("writer", step)


def note():
    redis = Redis()
    kit.forget()
    queued = kit.load("transaction.state")
    if queued and not queued["queued"]:
        open("again", "w").close()
    kit.until("a transaction is open", lambda: (kit.load("transaction.state") or {}).get("queued"))
    redis("CONFIG", "SET", "rdb-key-save-delay", int(save_time() / KEYS * 1_000_000))
    # No write between the digest and the fork.
    redis("CLIENT", "PAUSE", 60_000, "WRITE")
    digest = redis("DEBUG", "DIGEST")
    kit.same("the answer to BGSAVE", "Background saving started", redis("BGSAVE"))
    redis("CLIENT", "UNPAUSE")
    server = redis.info("server")
    pid = int(server["process_id"])
    child = kit.until("the child saves", lambda: [m for m in kit.family(pid) if m["parent"] == pid])
    for key in range(0, KEYS, 7):
        redis("APPEND", f"key:later:{key}", "after the fork")
    saves = int(redis.info("stats")["total_forks"])
    kit.save("note", {"run_id": server["run_id"], "digest": digest, "family": [kit.stat(pid)], "child": child, "saves": saves,
                      "sum": int(redis("GET", "sum") or 0), "ttl": [redis("PTTL", "short"), time.time()], "done": (queued or {}).get("done", 0)})


def save_time():
    """How long the child shall be at work, in seconds."""
    begin = time.time()
    subprocess.run(["/opt/kupgrade/kupgrade", "check"], capture_output=True, check=False)
    return max(SAVE, LOOKS * (time.time() - begin))


def verify(blackout):
    note, redis = kit.load("note"), Redis()
    kit.same("the run id", note["run_id"], redis.info("server")["run_id"])
    kit.same_family(note["family"])
    if redis.info("persistence")["rdb_bgsave_in_progress"] == "1":
        kit.same_family(note["child"])
    kit.beats("writer")
    check_clients(redis, note)
    left, when = note["ttl"]
    passed, now = (time.time() - when) * 1000, redis("PTTL", "short")
    if abs(left - passed - now) > 1000:
        raise kit.Wrong(f"a key had {left} ms to live, has {now} ms, {passed:.0f} ms later")
    check_dump(redis, note)
    for key in random.sample(range(KEYS), 500):
        kit.same(f"key {key}", value(key), redis("GET", f"key:{key}"))
    kit.clean("redis.log", [r"overcommit_memory", r"no config file specified", r"TCP backlog", r"Transparent Huge"])
    print(f"process {note['family'][0]['pid']}, {redis('DBSIZE')} keys; its child {note['child'][0]['pid']} wrote a good dump")


def check_clients(redis, note):
    got = kit.load("blocked.got") or []
    kit.same("the clients that block", "1", redis.info("clients")["blocked_clients"])
    kit.same("who got the push", 1, redis("RPUSH", "queue", f"pushed {len(got)}"))
    kit.until("the blocked client wakes", lambda: kit.load("blocked.got") == got + [f"pushed {len(got)}"])
    news = kit.load("subscriber.got")
    kit.same("the number of subscribers", 1, redis("PUBLISH", "news", f"news {len(news)}"))
    kit.until("the subscriber hears", lambda: kit.load("subscriber.got") == news + [f"news {len(news)}"])
    kit.same("the sum before EXEC", note["sum"], int(redis("GET", "sum") or 0))
    open("exec", "w").close()
    state = kit.until("the transaction is done", lambda: (s := kit.load("transaction.state")) and not s["queued"] and s)
    kit.same("the answer to EXEC", [note["sum"] + 5, ["0", "1", "2"]], state["answer"])


def check_dump(redis, note):
    """The child ends well, and a second server with its dump has what the first had at the fork."""
    kit.until("the child is done", lambda: redis.info("persistence")["rdb_bgsave_in_progress"] == "0", 1200)
    kit.lasted("the save", note["ttl"][1], redis("LASTSAVE"))
    kit.same("the state of the save", "ok", redis.info("persistence")["rdb_last_bgsave_status"])
    kit.same("the number of forks", note["saves"], int(redis.info("stats")["total_forks"]))
    kit.run("redis-check-rdb", "dump.rdb")
    other = kit.path("other.sock")
    kit.spawn(["redis-server", "--port", "0", "--unixsocket", other, "--save", "", "--enable-debug-command", "local", "--dir", kit.HOME], log="other.log")
    kit.until("the second server answers", lambda: kit.listens(other))
    # It answers nobody while it loads, which takes minutes where processors are translated and shared.
    second = Redis(other, 600)
    kit.until("it has loaded", lambda: second.info("persistence")["loading"] == "0", 600)
    kit.same("the digest of the dump", note["digest"], second("DEBUG", "DIGEST"))
    second.send("SHUTDOWN", "NOSAVE")
    second.file.read()


kit.main(start=start, note=note, verify=verify, witness=kit.witness, blocked=blocked, subscriber=subscriber, transaction=transaction, writer=writer)
