"""What the scripts of the real programs share.

Each script is called with a word: `start` brings the program up and puts load on it, `note` takes down what must
be the same after the next upgrade (and may begin something that lasts through it), `verify MS` compares and tries it
out, MS being how long everything stood still. A script may have more words for clients that live as long as the
program. `verify` prints one line; what is wrong is printed and ends with status 1."""
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time

NAME = os.path.splitext(os.path.basename(sys.argv[0]))[0]
HOME = os.path.join(os.environ.get("APPS_DIR", "/var/lab/apps"), NAME)
SCRIPT = os.path.abspath(sys.argv[0])

# A longer pause than the upgrade's is explained by a host whose processors are translated and shared.
HICCUP = 4.0

COMPLAINT = re.compile(r"\b(error|warn(ing)?|fatal|panic|fail(ed|ure)?|crit|alert|emerg|traceback|exception|corrupt\w*|abort\w*|segfault)\b|SIG(SEGV|BUS|ILL|ABRT)", re.I)


class Wrong(Exception):
    """Something is not as it should be."""


def main(**verbs):
    os.makedirs(HOME, exist_ok=True)
    os.chdir(HOME)
    try:
        verbs[sys.argv[1]](*sys.argv[2:])
    except Wrong as wrong:
        print(f"{NAME}: {wrong}")
        sys.exit(1)


def path(name):
    return os.path.join(HOME, name)


def same(what, before, now):
    if before != now:
        raise Wrong(f"{what} was {before!r} and is {now!r}")


def until(what, test, limit=300):
    """Waits until a function returns something true, and returns that."""
    end = time.time() + limit
    while True:
        found = test()
        if found:
            return found
        if time.time() > end:
            raise Wrong(f"{what}: not within {limit} s")
        time.sleep(0.1)


def spawn(args, log="log", user=None, env=None):
    """Starts a program that outlives this script, in a session of its own. Its output goes to a log."""
    account = pwd.getpwnam(user) if user else None
    with open(path(log), "ab") as out:
        if account:
            os.fchown(out.fileno(), account.pw_uid, account.pw_gid)
        return subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True,
            user=account and account.pw_uid, group=account and account.pw_gid, extra_groups=[] if account else None,
            env={**os.environ, **(env or {})}).pid


def client(word, *args):
    """Starts this script again as a client that stays."""
    return spawn([sys.executable, "-u", SCRIPT, word, *map(str, args)], log=f"{word}.log")


def run(*args, limit=300, **more):
    """Runs a program that must succeed and returns what it printed."""
    done = subprocess.run(args, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL, **more)
    if done.returncode:
        raise Wrong(f"{' '.join(args)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def save(name, value):
    """Writes a value in one step."""
    with open(path(name + ".new"), "w") as out:
        json.dump(value, out)
    os.rename(path(name + ".new"), path(name))


def load(name):
    try:
        with open(path(name)) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def read(name):
    with open(path(name), errors="replace") as file:
        return file.read()


def stat(pid):
    """Name, parent, group, session and terminal of a process."""
    with open(f"/proc/{pid}/stat") as file:
        text = file.read()
    name = text[text.index("(") + 1:text.rindex(")")]
    state, parent, group, session, tty = text[text.rindex(")") + 2:].split()[:5]
    return {"pid": pid, "name": name, "parent": int(parent), "group": int(group), "session": int(session), "tty": int(tty), "zombie": state == "Z"}


def family(root):
    """A process and all that descend from it, threads counted."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found[int(entry)] = stat(int(entry))
            except OSError:
                pass
    members = [root]
    for pid in members:
        members += sorted(p for p, s in found.items() if s["parent"] == pid)
    if root not in found:
        raise Wrong(f"process {root} is gone")
    return [found[pid] for pid in members]


def same_family(before):
    """The processes of a note are all there, as they were."""
    for member in before:
        try:
            now = stat(member["pid"])
        except OSError:
            raise Wrong(f"process {member['pid']} ({member['name']}) is gone") from None
        same(f"process {member['pid']}", member, now)


def connect(where, limit=300):
    """A stream to a unix socket (a name) or a TCP port of this host (a number)."""
    if isinstance(where, int):
        stream = socket.create_connection(("127.0.0.1", where), timeout=limit)
    else:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(limit)
        stream.connect(where if where.startswith("/") else path(where))
    return stream


def ask(where, line, limit=300):
    """Sends a line over a connection of its own and returns the line that comes back."""
    with connect(where, limit) as stream:
        stream.sendall(line.encode() + b"\n")
        answer = stream.makefile().readline()
    if not answer.endswith("\n"):
        raise Wrong(f"{where} closed the connection instead of an answer to {line!r}: {answer!r}")
    return answer.strip()


def listens(where):
    try:
        connect(where, 5).close()
        return True
    except OSError:
        return False


def beat(word, step, pause=0.2):
    """The life of a client: makes a step again and again, and tells how often. An exception is told and ends it."""
    count = 0
    while True:
        try:
            step(count)
        except Exception as error:  # whatever it is, `verify` must hear of it
            save(f"{word}.beats", {"count": count, "error": f"{type(error).__name__}: {error}"})
            raise
        count += 1
        save(f"{word}.beats", {"count": count, "error": None})
        time.sleep(pause)


def beats(word, limit=300):
    """How often a client made its step; it must still be at it."""
    def count():
        found = load(f"{word}.beats")
        if found and found["error"]:
            raise Wrong(f"client {word} after {found['count']} steps: {found['error']}")
        return found and found["count"]
    first = until(f"a step of client {word}", count, limit)
    return until(f"more steps of client {word}", lambda: (count() > first + 2) and count(), limit)


def witness():
    """Notes the longest time in which everything stood still."""
    longest, last = 0, time.time()
    while True:
        time.sleep(0.1)
        now = time.time()
        if os.path.exists("witness.forget"):
            os.remove("witness.forget")
            longest = 0
        if now - last > max(longest, 0.5):
            longest = now - last
            save("witness.gap", [last, now])
        last = now


def forget():
    """Has the witness begin anew."""
    open(path("witness.forget"), "w").close()
    until("the witness forgets", lambda: not os.path.exists("witness.forget"), 30)
    if os.path.exists("witness.gap"):
        os.remove("witness.gap")


def lasted(what, begin, end):
    """Something must have been under way when everything stood still."""
    gap = load("witness.gap")
    if gap is None:
        raise Wrong("nothing stood still")
    if not begin <= gap[0] or not gap[1] <= end:
        raise Wrong(f"{what} lasted from {begin:.1f} to {end:.1f}, the upgrade from {gap[0]:.1f} to {gap[1]:.1f}")


def clean(log, but=()):
    """A log must not complain, but for lines that are known to mean nothing."""
    for line in read(log).splitlines():
        if COMPLAINT.search(line) and not any(re.search(known, line) for known in but):
            raise Wrong(f"{log} says: {line.strip()}")


def pace(what, ticks, seconds, blackout, period):
    """A timer must have fired about as often as its period says while things ran, and not made up for the rest."""
    runs = f"{ticks} times in {seconds:.1f} s, {blackout:.1f} s of it still, {period} s apart"
    if ticks > (seconds - blackout + HICCUP) / period:
        raise Wrong(f"{what} fired {runs}")
    if ticks < (seconds - blackout - HICCUP) / period / 4:
        raise Wrong(f"{what} fired only {runs}")


# Servers that answer "facts" with what they count, "late N" after N seconds, and anything else backwards; a line each.

LATE = 20


def talker(where):
    """A client that talks over one connection."""
    stream = connect(where, 120)
    file = stream.makefile("r")

    def step(count):
        stream.sendall(b"hello %d\n" % count)
        same("the answer", f"hello {count}"[::-1], file.readline().strip())
    beat("talker", step, 0.1)


def sleeper(where):
    """A client whose answer is due after some seconds, again and again."""
    stream = connect(where, None)
    file = stream.makefile("r")
    while True:
        begin = time.time()
        stream.sendall(b"late %d\n" % LATE)
        same("the late answer", f"late {LATE}", file.readline().strip())
        save("sleeper.took", [begin, time.time()])


def facts(port):
    """A function that asks a server what it counts."""
    return lambda: json.loads(ask(port, "facts"))


def note_server(facts):
    save("note", {"family": family(load("pid")), "facts": facts()})


def verify_server(facts, period, blackout, kept, counts, hup=signal.SIGHUP):
    """The process is the same one and goes on in all its threads; returns what it says of itself, and of its client."""
    note, blackout = load("note"), float(blackout) / 1000
    same_family(note["family"])
    before, now = note["facts"], facts()
    for word in kept:
        same(word, before[word], now[word])
    pace("a timer", now["ticks"] - before["ticks"], now["now"] - before["now"], blackout, period)
    os.kill(now["pid"], hup)
    until("the signal is handled", lambda: facts()["signals"] == now["signals"] + 1)
    later = until("all goes on", lambda: (f := facts()) and all(f[word] > now[word] + 3 for word in counts) and f)
    same("errors", [], later["errors"])
    answers = beats("talker")
    if os.path.exists("sleeper.log"):
        late_answer(before["now"], now["now"], blackout)
    for log in (name for name in os.listdir() if name.endswith(".log") and name != "gc.log"):
        same(f"what {log} holds", "", read(log))
    return later, answers


def late_answer(noted, verified, blackout):
    """An answer that was due during the upgrade may stand still as long as everything, and no longer."""
    begin, end = until("the late answer", lambda: (t := load("sleeper.took")) and t[1] > verified and t, 60 + blackout)
    if begin > noted and not LATE - 0.5 <= end - begin <= LATE + blackout + HICCUP:
        raise Wrong(f"an answer due in {LATE} s took {end - begin:.1f} s")
