"""nginx with two workers, a client that keeps its connection, one with a slow download under way."""
import hashlib
import http.client
import os
import random
import signal
import time

import kit

SOCKET = kit.path("nginx.sock")
PORT = 8190
BIG = 12_000_000

CONFIG = """
user www-data;
worker_processes 2;
pid {home}/nginx.pid;
error_log {home}/error.log info;
events {{ worker_connections 64; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    keepalive_timeout 3600; keepalive_requests 1000000; send_timeout 3600;
    gzip on; gzip_types text/plain; sendfile on;
    open_file_cache max=20;
    server {{
        listen 127.0.0.1:{port}; listen unix:{socket};
        root {home}/www;
        location /answer {{ return 200 "answer $arg_n"; }}
    }}
}}
"""


class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = kit.connect(SOCKET, 120)


def content(n):
    return random.Random(n).randbytes(3000 + 100 * n)


def get(connection, target, **headers):
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    kit.same(f"the status of {target}", 200, answer.status)
    return body


def start():
    os.makedirs("www")
    for n in range(50):
        with open(f"www/{n}", "wb") as out:
            out.write(content(n))
    with open("www/big", "wb") as out:
        out.write(random.Random("big").randbytes(BIG))
    with open("nginx.conf", "w") as out:
        out.write(CONFIG.format(home=kit.HOME, port=PORT, socket=SOCKET))
    kit.spawn(["nginx", "-p", kit.HOME, "-c", kit.path("nginx.conf"), "-e", kit.path("error.log")], log="nginx.log")
    kit.until("nginx answers", lambda: os.path.exists("nginx.pid") and kit.read("nginx.pid") and kit.listens(PORT))
    kit.client("keepalive")
    kit.client("download")
    kit.beats("keepalive")


def keepalive():
    connection = Unix("nginx")
    connection.connect()
    first = connection.sock

    def step(count):
        n = count % 50
        kit.same(f"file {n}", content(n), get(connection, f"/{n}"))
        kit.same("an answer", b"answer %d" % count, get(connection, f"/answer?n={count}"))
        if connection.sock is not first:
            raise kit.Wrong("the connection did not last")
    kit.beat("keepalive", step)


def download():
    """Fetches a big file slowly, again and again, so that the server waits for it, and tells how far it is. Hurries when
    the file `hurry` is there."""
    connection, rounds = Unix("nginx"), 0
    right = hashlib.sha256(random.Random("big").randbytes(BIG)).hexdigest()
    while True:
        connection.request("GET", "/big")
        answer, digest, size = connection.getresponse(), hashlib.sha256(), 0
        while block := answer.read1(20_000):
            time.sleep(0 if os.path.exists("hurry") else 0.2)
            digest.update(block)
            size += len(block)
            kit.save("download.state", {"rounds": rounds, "size": size, "wrong": False})
        answer.close()
        if digest.hexdigest() != right:
            kit.save("download.state", {"rounds": rounds, "size": size, "wrong": True})
            return
        rounds += 1


def note():
    if os.path.exists("hurry"):
        os.remove("hurry")

    def under_way():
        state = kit.load("download.state")
        return state and BIG / 10 < state["size"] < BIG / 2 and state
    state = kit.until("a download is under way", under_way, 300)
    kit.save("note", {"family": kit.family(int(kit.read("nginx.pid"))), "download": state, "requests": len(kit.read("access.log").splitlines())})


def verify(blackout):
    note = kit.load("note")
    kit.same_family(note["family"])
    workers = [m for m in note["family"] if m["parent"] == note["family"][0]["pid"]]
    kit.same("the number of workers", 2, len(workers))
    for n in range(50):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
        kit.same(f"file {n}", content(n), get(connection, f"/{n}", Connection="close"))
        connection.close()
    count = kit.beats("keepalive")
    check_download(note["download"])
    check_reopen(note)
    kit.clean("error.log")
    kit.clean("nginx.log")
    if any(line.split('" ')[1].split()[0] != "200" for line in kit.read("access.log.old").splitlines()):
        raise kit.Wrong("access.log has an answer that is not 200")
    print(f"master {note['family'][0]['pid']} with workers {[w['pid'] for w in workers]}, {count} rounds over one connection, a download went on")


def check_download(before):
    """The download that was under way ends with the right bytes."""
    def done():
        state = kit.load("download.state")
        if state["wrong"]:
            raise kit.Wrong("the big file came with other bytes")
        return state["rounds"] > before["rounds"]
    open("hurry", "w").close()
    kit.until("the download ends", done, 200)


def check_reopen(note):
    """The master still hears signals and tells its workers, who are the same."""
    seen = len(kit.read("access.log").splitlines())
    if seen <= note["requests"]:
        raise kit.Wrong("access.log does not grow")
    os.rename("access.log", "access.log.old")
    os.kill(note["family"][0]["pid"], signal.SIGUSR1)
    kit.until("the log is opened again", lambda: os.path.exists("access.log") and kit.read("access.log"), 60)
    kit.same_family(note["family"])


kit.main(start=start, note=note, verify=verify, keepalive=keepalive, download=download)
