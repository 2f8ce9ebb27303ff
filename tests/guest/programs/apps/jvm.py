"""A JVM with threads, timers, monitors and a garbage collector at work: Jvm.java."""
import os
import signal

import kit

CLASSES = os.environ.get("APPS_BUILT", "/opt/apps")
SOCKET = kit.path("jvm.sock")
PORT = 8490
PERIOD = 0.1
FACTS = kit.facts(PORT)
COUNTS = ("ticks", "parks", "handed", "collected", "turns")


def start():
    kit.save("pid", kit.spawn(["java", "-XX:+UseG1GC", "-Xms96m", "-Xmx96m", "-Xlog:gc:file=gc.log", "-Xlog:safepoint=warning", "-cp", CLASSES,
                               "Jvm", SOCKET, str(PORT), str(int(PERIOD * 1000))], log="java.log"))
    kit.until("the server answers", lambda: kit.listens(PORT), 240)
    kit.client("talker")
    kit.beats("talker")


def verify(blackout):
    before = FACTS()["collections"]
    kit.same("the answer to gc", "done", kit.ask(PORT, "gc"))
    facts, answers = kit.verify_server(FACTS, PERIOD, blackout, ("pid", "token"), COUNTS, signal.SIGUSR2)
    if facts["collections"] <= before:
        raise kit.Wrong(f"it does not collect its garbage: {before} times, then {facts['collections']}")
    # A fresh tool attaches over a socket that the JVM makes when a signal asks for it.
    if '"turn 5"' not in (stacks := kit.run("jcmd", str(facts["pid"]), "Thread.print")):
        raise kit.Wrong(f"jcmd sees other threads: {stacks[:300]}")
    kit.clean("gc.log")
    print(f"process {facts['pid']}, {facts['threads']} threads, {facts['collections']} collections, {answers} answers over one connection")


kit.main(start=start, note=lambda: kit.note_server(FACTS), verify=verify, talker=lambda: kit.talker(SOCKET))
