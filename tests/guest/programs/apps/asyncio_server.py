"""A Python server on asyncio: timers, a thread pool, a child, connections over unix and TCP."""
import asyncio
import concurrent.futures
import hashlib
import json
import os
import signal
import time

import kit

SOCKET = kit.path("server.sock")
PORT = 8290
PERIOD = 0.1
FACTS = kit.facts(PORT)


class Server:
    def __init__(self):
        self.facts = {"pid": os.getpid(), "token": os.urandom(8).hex(), "ticks": 0, "hashed": 0, "lines": 0, "signals": 0, "errors": []}
        self.pool = concurrent.futures.ThreadPoolExecutor(3)
        self.queue = asyncio.Queue(20)

    async def tick(self):
        while True:
            await asyncio.sleep(PERIOD)
            self.facts["ticks"] += 1

    async def produce(self):
        number = 0
        while True:
            await self.queue.put(number)
            number += 1
            await asyncio.sleep(0.05)

    async def hash(self):
        """What comes through the queue is hashed in threads, in order."""
        loop, due = asyncio.get_running_loop(), 0
        while True:
            number = await self.queue.get()
            digest = await loop.run_in_executor(self.pool, lambda: hashlib.pbkdf2_hmac("sha256", b"%d" % number, b"salt", 50).hex())
            if number != due or len(digest) != 64:
                self.facts["errors"].append(f"number {number} instead of {due}")
            due = number + 1
            self.facts["hashed"] = due

    async def child(self):
        """A child echoes lines over its pipes."""
        child = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        self.facts["child"] = child.pid
        while True:
            line = b"line %d\n" % self.facts["lines"]
            child.stdin.write(line)
            await child.stdin.drain()
            answer = await child.stdout.readline()
            if answer != line:
                self.facts["errors"].append(f"the child said {answer!r} for {line!r}")
            self.facts["lines"] += 1
            await asyncio.sleep(0.05)

    async def serve(self, reader, writer):
        while line := await reader.readline():
            word, _, rest = line.decode().strip().partition(" ")
            if word == "facts":
                answer = json.dumps({**self.facts, "now": time.time()})
            elif word == "late":
                await asyncio.wait_for(asyncio.sleep(float(rest)), 3600)
                answer = f"late {rest}"
            else:
                answer = line.decode().strip()[::-1]
            writer.write(answer.encode() + b"\n")
            await writer.drain()
        writer.close()

    def hup(self):
        self.facts["signals"] += 1

    async def run(self):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.hup)
        # The log is standard error: asyncio tells there what goes wrong.
        async with await asyncio.start_unix_server(self.serve, SOCKET), await asyncio.start_server(self.serve, "127.0.0.1", PORT):
            await asyncio.gather(self.tick(), self.produce(), self.hash(), self.child())


def server():
    asyncio.run(Server().run())


def start():
    kit.save("pid", kit.client("server"))
    kit.until("the server answers", lambda: kit.listens(PORT))
    for word in ("talker", "sleeper"):
        kit.client(word)
    kit.beats("talker")


def verify(blackout):
    facts, answers = kit.verify_server(FACTS, PERIOD, blackout, ("pid", "token", "child"), ("ticks", "hashed", "lines"))
    print(f"process {facts['pid']}, {facts['ticks']} ticks, {facts['hashed']} hashes, {answers} answers over one connection")


kit.main(start=start, note=lambda: kit.note_server(FACTS), verify=verify, server=server,
         talker=lambda: kit.talker(SOCKET), sleeper=lambda: kit.sleeper(SOCKET))
