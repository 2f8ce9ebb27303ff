"""A Go program, statically linked, with goroutines, timers and a garbage collector at work: server.go."""
import os

import kit

PROGRAM = os.path.join(os.environ.get("APPS_BUILT", "/opt/apps"), "go-server")
SOCKET = kit.path("go.sock")
PORT = 8590
PERIOD = 0.1
FACTS = kit.facts(PORT)
COUNTS = ("ticks", "hashed", "handed", "lines", "rounds")


def start():
    kit.save("pid", kit.spawn([PROGRAM, SOCKET, str(PORT), str(int(PERIOD * 1000))], log="go.log", env={"GOTRACEBACK": "all"}))
    kit.until("the server answers", lambda: kit.listens(PORT))
    for word in ("talker", "sleeper"):
        kit.client(word)
    kit.beats("talker")


def verify(blackout):
    before = FACTS()["collections"]
    kit.same("the answer to gc", "done", kit.ask(PORT, "gc"))
    facts, answers = kit.verify_server(FACTS, PERIOD, blackout, ("pid", "token", "child"), COUNTS)
    if facts["collections"] <= before:
        raise kit.Wrong(f"it does not collect its garbage: {before} times, then {facts['collections']}")
    print(f"process {facts['pid']}, {facts['goroutines']} goroutines, {facts['collections']} collections, {answers} answers over one connection")


kit.main(start=start, note=lambda: kit.note_server(FACTS), verify=verify,
         talker=lambda: kit.talker(SOCKET), sleeper=lambda: kit.sleeper(SOCKET))
