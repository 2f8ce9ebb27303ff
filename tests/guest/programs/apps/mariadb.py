"""MariaDB, whose InnoDB reads and writes by io_uring: sessions in a transaction and waiting for its lock, and a load."""
import os
import time

import kit

DATA = kit.path("data")
SOCKET = kit.path("s")
USER = "nobody"
ACCOUNTS = 200
CLIENT = ["mariadb", "--no-defaults", "-S", SOCKET, "-uroot", "-N", "-B", "--unbuffered"]


def sql(text):
    return kit.run(*CLIENT, "-e", text)


class Session:
    """A client that lives on: what it is to do comes through a FIFO, what it says goes to a file."""

    def __init__(self, name):
        self.name = name

    def open(self):
        os.mkfifo(self.name)
        # The shell holds the FIFO open for reading and writing, so that the client never sees its end.
        program = " ".join(f"'{word}'" for word in [*CLIENT, "--force", "lab"])
        kit.spawn(["sh", "-c", f"exec {program} 0<> {self.name}"], log=f"{self.name}.out")

    def said(self):
        return kit.read(f"{self.name}.out")

    def send(self, text):
        with open(self.name, "w") as fifo:
            fifo.write(text + "\n")

    def do(self, text, limit=120):
        """Sends statements and returns what they print."""
        before, mark = len(self.said()), f"mark{time.time_ns()}"
        self.send(f"{text}\nSELECT '{mark}';")
        kit.until(f"session {self.name} answers to {text}", lambda: mark in self.said()[before:], limit)
        return self.said()[before:].split(mark)[0].strip()


WRITER, WAITER = Session("writer"), Session("waiter")


def start():
    os.makedirs(DATA)
    kit.run("chown", f"{USER}:", kit.HOME, DATA)
    kit.run("mariadb-install-db", "--no-defaults", f"--datadir={DATA}", f"--user={USER}", "--auth-root-authentication-method=normal", limit=900)
    server = kit.spawn(["mariadbd", "--no-defaults", f"--datadir={DATA}", f"--socket={SOCKET}", "--skip-networking", "--innodb-use-native-aio=1",
                        "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=10000"], log="server.log", user=USER)
    kit.until("the server answers", lambda: "ready for connections" in kit.read("server.log"), 600)
    if "uring" not in kit.read("server.log"):
        raise kit.Wrong("it does not use io_uring")
    # What it has to say of the machine.
    os.truncate("server.log", 0)
    sql("CREATE DATABASE lab; USE lab; CREATE TABLE accounts (id int PRIMARY KEY, amount int) ENGINE=InnoDB; "
        f"INSERT INTO accounts SELECT seq, 100 FROM seq_1_to_{ACCOUNTS}; "
        "CREATE TABLE notes (id int PRIMARY KEY, amount int) ENGINE=InnoDB; INSERT INTO notes SELECT seq, 100 FROM seq_1_to_50; "
        # More than its memory holds, so that it reads and writes.
        "CREATE TABLE big (id int PRIMARY KEY, text varchar(1000)) ENGINE=InnoDB; INSERT INTO big SELECT seq, repeat(md5(seq), 30) FROM seq_1_to_20000; "
        "CREATE TABLE history (id int AUTO_INCREMENT PRIMARY KEY, text varchar(1000)) ENGINE=InnoDB")
    for session in (WRITER, WAITER):
        session.open()
    kit.save("start", {"server": server, "rounds": 0, "big": sql("SELECT count(*), sum(crc32(text)) FROM lab.big")})
    kit.client("load")
    kit.beats("load")


def load():
    """Moves money, and reads and writes more than the server's memory holds."""
    def step(count):
        one, other = count % ACCOUNTS + 1, count * 7 % ACCOUNTS + 1
        sql(f"USE lab; BEGIN; UPDATE accounts SET amount = amount - 1 WHERE id = {one}; UPDATE accounts SET amount = amount + 1 WHERE id = {other}; "
            f"INSERT INTO history(text) SELECT text FROM big WHERE id BETWEEN {count * 97 % 19000} AND {count * 97 % 19000 + 60}; COMMIT; "
            "DELETE FROM history WHERE id % 2 = 0 LIMIT 50")
    kit.beat("load", step, 0.1)


def note():
    state = kit.load("start")
    rounds = state["rounds"] + 1
    WRITER.do("BEGIN; UPDATE notes SET amount = amount + 10 WHERE id = 1; SET @mine = 4711; "
              "CREATE TEMPORARY TABLE IF NOT EXISTS own AS SELECT seq FROM seq_1_to_1000;")
    amount = int(sql("SELECT amount FROM lab.notes WHERE id = 1"))
    WAITER.send(f"UPDATE notes SET amount = amount * 2 WHERE id = 1; SELECT 'waited {rounds}';")
    kit.until("the second session waits for the first", lambda: sql("SELECT count(*) FROM information_schema.innodb_lock_waits") != "0")
    kit.save("start", {**state, "rounds": rounds})
    kit.save("note", {"family": kit.family(state["server"])[:1], "amount": amount, "threads": sql("SELECT group_concat(id ORDER BY id) FROM "
                      "information_schema.processlist WHERE db = 'lab' AND command = 'Sleep' AND user = 'root' AND time > 2")})


def verify(blackout):
    note, state = kit.load("note"), kit.load("start")
    kit.same_family(note["family"])
    kit.same("the amount that others see", str(note["amount"]), sql("SELECT amount FROM lab.notes WHERE id = 1"))
    if f"waited {state['rounds']}" in WAITER.said():
        raise kit.Wrong("the second session did not wait for the first")
    kit.same("what the first sees", f"{note['amount'] + 10}\t4711\t500500",
             WRITER.do("SELECT amount, @mine, (SELECT sum(seq) FROM own) FROM notes WHERE id = 1;").splitlines()[-1])
    WRITER.do("COMMIT;")
    kit.until("the second session goes on", lambda: f"waited {state['rounds']}\n" in WAITER.said())
    kit.same("the amount in the end", str(2 * (note["amount"] + 10)), sql("SELECT amount FROM lab.notes WHERE id = 1"))
    kit.same("what is read", state["big"], sql("SELECT count(*), sum(crc32(text)) FROM lab.big"))
    steps = kit.beats("load")
    kit.same("the money", str(100 * ACCOUNTS), sql("SELECT sum(amount) FROM lab.accounts"))
    sql("SET GLOBAL innodb_max_dirty_pages_pct = 0; FLUSH TABLES")
    for table in ("accounts", "notes", "big", "history"):
        said = sql(f"CHECK TABLE lab.{table} EXTENDED")
        if not said.endswith("status\tOK"):
            raise kit.Wrong(f"{table}: {said}")
    kit.clean("server.log")
    print(f"server {state['server']}, transactions went on and committed, {steps} of the load's, all tables are sound")


kit.main(start=start, note=note, verify=verify, load=load)
