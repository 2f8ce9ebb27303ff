"""tmux with a client attached; in it bash with jobs, and vim with changes that are not written."""
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time

import kit

TMUX = ["tmux", "-S", kit.path("tmux.sock"), "-f", "/dev/null"]
RC = "PS1='ready> '; unset PROMPT_COMMAND HISTFILE; set -o history"


def tmux(*args):
    return kit.run(*TMUX, *args)


def screen(window):
    return tmux("capture-pane", "-p", "-t", window).rstrip("\n")


def history(window):
    return tmux("capture-pane", "-p", "-S", "-", "-t", window).rstrip("\n")


def keys(window, *words):
    tmux("send-keys", "-t", window, *words)


def shows(window, text, limit=60):
    """Waits until a screen shows what a pattern asks for."""
    return kit.until(f"window {window} shows {text!r}; it shows {screen(window)!r}", lambda: re.search(text, screen(window), re.M), limit)


def start():
    with open("rc", "w") as rc:
        rc.write(RC)
    with open("text", "w") as text:
        text.write("".join(f"line {n}\n" for n in range(1, 301)))
    env = {"TERM": "xterm", "LANG": "C.UTF-8", "HOME": kit.HOME}
    os.environ.update(env)
    kit.run(*TMUX, "new-session", "-d", "-s", "main", "-n", "shell", "-x", "100", "-y", "30", f"bash --rcfile {kit.path('rc')}")
    tmux("set-option", "-g", "history-limit", "5000")
    tmux("new-window", "-n", "editor", "vim -u NONE -N -n --cmd 'set ruler undolevels=1000' text")
    kit.client("attached")
    kit.until("the client is attached", lambda: tmux("list-clients"))
    start_jobs()
    start_vim()
    kit.save("server", int(tmux("display-message", "-p", "#{pid}")))


def attached():
    """The person's terminal: a pty with tmux's client in it. What comes to it goes to a file."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(TMUX[0], [*TMUX, "attach"])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    with open("typescript", "ab", buffering=0) as out:
        while True:
            out.write(os.read(master, 4096))


def start_jobs():
    shows("shell", r"^ready>$")
    keys("shell", "for n in $(seq 1 60); do echo old $n; done", "Enter")
    shows("shell", r"^old 60\nready>")
    keys("shell", "cat > typed", "Enter")
    keys("shell", "first line", "Enter")
    kit.until("cat writes", lambda: os.path.exists("typed") and kit.read("typed") == "first line\n")
    keys("shell", "C-z")
    shows("shell", r"\[1\]\+ +Stopped")
    keys("shell", "(while :; do date +%s > beat; sleep 0.3; done) &", "Enter")
    shows("shell", r"^\[2\] [0-9]+")
    keys("shell", "secret=$RANDOM$RANDOM; echo $secret > secret; shout() { echo loud $1; }; cd /usr", "Enter")
    kit.until("the variable is there", lambda: os.path.exists("secret") and kit.read("secret"))


def start_vim():
    """Three changes, the last one undone: it can be redone."""
    shows("editor", r"^line 1$")
    keys("editor", "200G", "0")
    keys("editor", "cwchanged", "Escape")
    keys("editor", "oinserted", "Escape")
    keys("editor", "yy3p")
    keys("editor", "u")
    keys("editor", ":let @q = 'register'", "Enter", "ma")
    shows("editor", r"^changed 200\ninserted\nline 201")
    time.sleep(1)


def note():
    members = kit.family(kit.load("server"))
    # The job in the background has a new child all the time.
    members = [m for m in members if m["name"] not in ("sleep", "date")]
    note = {"family": members, "windows": tmux("list-windows", "-F", "#{window_id} #{window_name} #{window_layout} #{pane_pid} #{pane_tty} #{history_size}"),
            "clients": tmux("list-clients"), "clock": time.time()}
    for window in ("shell", "editor"):
        note[window] = screen(window)
    note["history"] = history("shell")
    kit.save("note", note)


def verify(blackout):
    note = kit.load("note")
    for window in ("shell", "editor"):
        kit.same(f"the screen of {window}", note[window], screen(window))
    kit.same("what was scrolled away", note["history"], history("shell"))
    kit.same("the windows", note["windows"], tmux("list-windows", "-F", "#{window_id} #{window_name} #{window_layout} #{pane_pid} #{pane_tty} #{history_size}"))
    kit.same("the clients", note["clients"], tmux("list-clients"))
    kit.same_family(note["family"])
    verify_client()
    verify_jobs()
    verify_vim()
    kit.same("what the client's log holds", "", kit.read("attached.log"))
    print(f"tmux {note['family'][0]['pid']} with {len(note['family'])} processes: screens, jobs and undo are as they were")


def verify_client():
    """What changes on the screen comes to the client's terminal."""
    size = os.path.getsize("typescript")
    tmux("select-window", "-t", "shell")
    keys("shell", "clear; shout $secret", "Enter")
    shows("shell", r"^loud " + kit.read("secret").strip())
    kit.until("the client sees it", lambda: os.path.getsize("typescript") > size and "loud " + kit.read("secret").strip() in kit.read("typescript")[-4000:])


def verify_jobs():
    before = kit.read("beat")
    kit.until("the job in the background goes on", lambda: kit.read("beat") not in (before, ""))
    keys("shell", "clear; jobs", "Enter")
    shows("shell", r"^\[1\]\+ +Stopped +cat > typed")
    shows("shell", r"^\[2\]- +Running ")
    # In the foreground it reads again; control-Z stops it again.
    keys("shell", "fg %1", "Enter")
    typed = kit.read("typed")
    keys("shell", f"line {len(typed)}", "Enter")
    kit.until("cat writes again", lambda: kit.read("typed") == f"{typed}line {len(typed)}\n")
    keys("shell", "C-z")
    shows("shell", r"\^Z\n\[1\]\+ +Stopped")
    keys("shell", "clear; pwd; kill -0 $!; echo status $?; sleep 98765", "Enter")
    shows("shell", r"^/usr\nstatus 0")
    # Control-C reaches the foreground group only.
    kit.until("the sleep is in the foreground", lambda: subprocess.run(["pgrep", "-f", "^sleep 98765$"], stdout=subprocess.DEVNULL).returncode == 0)
    keys("shell", "C-c")
    shows("shell", r"^\^C$")
    keys("shell", "echo interrupted $?; jobs", "Enter")
    shows("shell", r"^ready> echo.*\ninterrupted 130\n\[1\]\+ +Stopped.*\n\[2\]- +Running")


def verify_vim():
    """Undo and redo all changes, write, and bring it back to where it was."""
    kit.same("the file", kit.read("text"), "".join(f"line {n}\n" for n in range(1, 301)))
    keys("editor", "C-r")
    shows("editor", r"^changed 200\ninserted\ninserted\ninserted\ninserted\nline 201")
    keys("editor", "uuu")
    shows("editor", r"^line 200\nline 201")
    keys("editor", "C-r", "C-r")
    shows("editor", r"^changed 200\ninserted\nline 201")
    keys("editor", ":w! written", "Enter")
    right = "".join(f"line {n}\n" for n in range(1, 200)) + "changed 200\ninserted\n" + "".join(f"line {n}\n" for n in range(201, 301))
    kit.until("vim writes", lambda: os.path.exists("written") and kit.read("written") == right)
    os.remove("written")
    keys("editor", ":echo 'it is '.@q.line(\"'a\")", "Enter")
    shows("editor", r"it is register201")
    keys("editor", ":", "Escape")
    time.sleep(1)


kit.main(start=start, note=note, verify=verify, attached=attached)
