"""PostgreSQL with sessions in the middle of transactions, one that waits for a lock, one that listens, and a load."""
import hashlib
import os
import time

import kit

BIN = "/usr/lib/postgresql/15/bin/"
DATA = kit.path("data")
PORT = "5440"
USER = "postgres"


def command(name, *args):
    return ["runuser", "-u", USER, "--", BIN + name, "-h", kit.HOME, "-p", PORT, *args]


def sql(text):
    return kit.run(*command("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "lab", "-c", text))


class Session:
    """A psql that lives on: what it is to do comes through a FIFO, what it says goes to a file."""

    def __init__(self, name):
        self.name = name

    def open(self):
        os.mkfifo(self.name)
        os.chmod(self.name, 0o666)
        # The shell holds the FIFO open for reading and writing, so that psql never sees its end.
        program = " ".join(f"'{word}'" for word in [BIN + "psql", "-h", kit.HOME, "-p", PORT, "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "lab"])
        kit.spawn(["sh", "-c", f"exec {program} 0<> {self.name}"], log=f"{self.name}.out", user=USER)

    def said(self):
        return kit.read(f"{self.name}.out")

    def send(self, text):
        with open(self.name, "w") as fifo:
            fifo.write(text + "\n")

    def do(self, text, limit=60):
        """Sends statements and returns what they print."""
        before, mark = len(self.said()), f"mark {time.time_ns()}"
        self.send(f"{text}\n\\echo {mark}")
        kit.until(f"session {self.name} answers to {text}", lambda: mark in self.said()[before:], limit)
        return self.said()[before:].split(mark)[0].strip()


WRITER, WAITER, LISTENER = Session("writer"), Session("waiter"), Session("listener")


def start():
    os.makedirs(DATA)
    kit.run("chown", USER, kit.HOME, DATA)
    kit.run("runuser", "-u", USER, "--", BIN + "initdb", "-D", DATA, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C", limit=600)
    kit.spawn([BIN + "postgres", "-D", DATA, "-k", kit.HOME, "-p", PORT, "-c", "shared_buffers=64MB", "-c", "max_wal_size=128MB",
               "-c", "checkpoint_timeout=30s", "-c", "autovacuum_naptime=5s", "-c", "log_min_messages=info", "-c", "max_parallel_workers=2"], log="postgres.log", user=USER)
    kit.until("postgres answers", lambda: "ready to accept connections" in kit.read("postgres.log"))
    kit.run(*command("createdb", "lab"))
    kit.run(*command("pgbench", "-q", "-i", "lab"), limit=600)
    sql("CREATE TABLE notes (id serial PRIMARY KEY, text text, amount int); INSERT INTO notes(text, amount) SELECT 'row ' || n, 100 FROM generate_series(1, 500) n; CHECKPOINT")
    for session in (WRITER, WAITER, LISTENER):
        session.open()
    LISTENER.do("LISTEN news; CREATE TEMP TABLE own AS SELECT n, md5(n::text) AS hash FROM generate_series(1, 3000) n; PREPARE hash(int) AS SELECT hash FROM own WHERE n = $1;")
    kit.spawn(command("pgbench", "-n", "-c", "3", "-j", "2", "-R", "20", "-P", "1", "-T", "86400", "lab"), log="pgbench.log")
    kit.until("pgbench is at work", lambda: "progress:" in kit.read("pgbench.log"))
    kit.save("start", {"postmaster": int(kit.read("data/postmaster.pid").split()[0]), "rounds": 0})


def backends():
    return sql("SELECT string_agg(pid || ' ' || backend_type || ' ' || coalesce(application_name, '') || ' ' || backend_start, ', ' ORDER BY pid) "
               "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type NOT IN ('autovacuum worker', 'parallel worker')")


def note():
    state = kit.load("start")
    rounds = state["rounds"] + 1
    total = int(sql("SELECT sum(amount) FROM notes"))
    WRITER.do("BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE notes SET amount = amount + 10 WHERE id = 1; SAVEPOINT one; "
              "UPDATE notes SET amount = 0 WHERE id = 2; ROLLBACK TO one; INSERT INTO notes(text, amount) VALUES ('uncommitted', 7); "
              "SELECT pg_advisory_lock(4711); DECLARE walk CURSOR WITH HOLD FOR SELECT id FROM notes WHERE id <= 500 ORDER BY id;")
    first = WRITER.do("FETCH 3 FROM walk;").split()
    kit.same("the cursor's first rows", ["1", "2", "3"], first)
    WAITER.send("BEGIN; UPDATE notes SET amount = amount * 2 WHERE id = 1; COMMIT;\n\\echo waited " + str(rounds))
    kit.until("the second session waits for the first", lambda: sql("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'") != "0")
    amount = int(sql("SELECT amount FROM notes WHERE id = 1"))
    members = kit.family(state["postmaster"])
    kit.save("start", {**state, "rounds": rounds})
    kit.save("note", {"backends": backends(), "total": total, "amount": amount, "postmaster": members[:1], "snapshot": sql("SELECT count(*) FROM notes"),
                      "history": int(sql("SELECT count(*) FROM pgbench_history")), "started": sql("SELECT pg_postmaster_start_time()")})


def verify(blackout):
    note, state = kit.load("note"), kit.load("start")
    kit.same_family(note["postmaster"])
    kit.same("the backends", note["backends"], backends())
    kit.same("the start of the server", note["started"], sql("SELECT pg_postmaster_start_time()"))
    check_transactions(note, state["rounds"])
    kit.same("a prepared statement on a temporary table", hashlib.md5(b"42").hexdigest(), LISTENER.do("EXECUTE hash(42);"))
    sql(f"NOTIFY news, 'round {state['rounds']}'")
    heard = LISTENER.do("SELECT 1;")
    if f"round {state['rounds']}" not in heard:
        raise kit.Wrong(f"the listener heard: {heard}")
    check_load(note)
    kit.clean("postgres.log")
    kit.clean("pgbench.log", [r"\b0 failed"])
    print(f"postmaster {state['postmaster']}, transactions went on and committed, {kit.load('counts')['history']} of the load's")


def check_transactions(note, rounds):
    """The first transaction sees what it saw and commits, the one that waits for it goes on then."""
    kit.same("rows that others see", note["snapshot"], sql("SELECT count(*) FROM notes"))
    kit.same("the amount that others see", str(note["amount"]), sql("SELECT amount FROM notes WHERE id = 1"))
    kit.same("the amount that the first sees", str(note["amount"] + 10), WRITER.do("SELECT amount FROM notes WHERE id = 1;"))
    kit.same("the cursor's next rows", ["4", "5"], WRITER.do("FETCH 2 FROM walk;").split())
    kit.same("who holds the lock", "f", sql("SELECT pg_try_advisory_lock(4711)"))
    if f"waited {rounds}" in WAITER.said():
        raise kit.Wrong("the second session did not wait for the first")
    WRITER.do("COMMIT;")
    kit.until("the second session goes on", lambda: f"waited {rounds}\n" in WAITER.said())
    kit.same("the cursor past the end of its transaction", ["6"], WRITER.do("FETCH 1 FROM walk; CLOSE walk; SELECT pg_advisory_unlock(4711) \\g /dev/null").split())
    amount = 2 * (note["amount"] + 10)
    kit.same("the amount in the end", str(amount), sql("SELECT amount FROM notes WHERE id = 1"))
    kit.same("the total", str(note["total"] - note["amount"] + amount + 7), sql("SELECT sum(amount) FROM notes"))


def check_load(note):
    """No transaction of the load is lost or counted twice."""
    def history():
        return int(sql("SELECT count(*) FROM pgbench_history"))
    count = history()
    kit.until("the load goes on", lambda: history() > count + 5)
    if count < note["history"]:
        raise kit.Wrong(f"there were {note['history']} transactions, there are {count}")
    sums = sql("SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), "
               "(SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)").split("|")
    if len(set(sums)) != 1:
        raise kit.Wrong(f"the books of the load differ: {sums}")
    sql("CHECKPOINT")
    sql("SET max_parallel_workers_per_gather = 2; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SELECT count(*) FROM pgbench_accounts WHERE filler LIKE '%x%'")
    kit.save("counts", {"history": count})


kit.main(start=start, note=note, verify=verify)
