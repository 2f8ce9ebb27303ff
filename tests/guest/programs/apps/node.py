"""Node.js with a worker thread, a child and clients: node_server.js."""
import http.client
import json
import os
import time

import kit

SOCKET = kit.path("node.sock")
PORT = 8390
PERIOD = 0.1


class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = kit.connect(SOCKET, self.timeout)


def get(connection, target):
    connection.request("GET", target)
    answer = connection.getresponse()
    kit.same(f"the status of {target}", 200, answer.status)
    return answer.read().decode()


def talker():
    connection = Unix("node", timeout=300)
    connection.connect()
    first = connection.sock

    def step(count):
        kit.same("the answer", f"hello{count}"[::-1], get(connection, f"/echo/hello{count}"))
        if connection.sock is not first:
            raise kit.Wrong("the connection did not last")
    kit.beat("talker", step, 0.1)


def sleeper():
    connection = Unix("node", timeout=None)
    while True:
        begin = time.time()
        kit.same("the late answer", "late 20", get(connection, "/late/20"))
        kit.save("sleeper.took", [begin, time.time()])


def start():
    script = os.path.join(os.path.dirname(kit.SCRIPT), "node_server.js")
    kit.save("pid", kit.spawn(["node", "--max-old-space-size=128", script, SOCKET, str(PORT), str(int(PERIOD * 1000))], log="node.log"))
    kit.until("the server answers", lambda: kit.listens(PORT))
    for word in ("talker", "sleeper"):
        kit.client(word)
    kit.beats("talker")


def facts():
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    found = json.loads(get(connection, "/facts"))
    connection.close()
    return found


def verify(blackout):
    facts_now, answers = kit.verify_server(facts, PERIOD, blackout, ("pid", "token", "child"), ("ticks", "sums", "hashes", "lines"))
    print(f"process {facts_now['pid']}, {facts_now['ticks']} ticks, {facts_now['sums']} sums of its worker, {answers} answers over one connection")


kit.main(start=start, note=lambda: kit.note_server(facts), verify=verify, talker=talker, sleeper=sleeper)
