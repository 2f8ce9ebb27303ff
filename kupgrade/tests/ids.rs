//! Ids that are given back while a tree is rebuilt.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Starts a program that ends with what runs it, and waits until it says a line.
fn start(words: &[&str]) -> (Child, String) {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.as_mut().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

fn kupgrade(words: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kupgrade"));
    let done = command
        .args(words)
        .args(["--external", "fd[1]"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "kupgrade {words:?}: {said}");
}

#[test]
fn a_session_that_ends_meanwhile_is_waited_for() {
    // Whoever runs the tests may have left it ends of pipes.
    let quiet =
        "import os, time; os.closerange(2, 4096); print(os.getpid(), flush=True); time.sleep(60)";
    is_waited_for("process", quiet);
}

#[test]
fn the_id_of_a_thread_is_waited_for() {
    let threaded = r#"
import os, threading, time
os.closerange(2, 4096)
def wait():
    print(threading.get_native_id(), flush=True)
    time.sleep(60)
[threading.Thread(target=wait).start() for _ in range(2)]
"#;
    is_waited_for("thread", threaded);
}

/// A restore of `program` that begins while a session still has the id that the program says.
fn is_waited_for(name: &str, program: &str) {
    let (mut saved, id) = start(&["setsid", "python3", "-c", program]);
    let pid = saved.id().to_string();
    let dir = std::env::temp_dir().join(format!("kupgrade-ids-{name}-{}", std::process::id()));
    let dir = dir.to_str().unwrap();
    kupgrade(&["checkpoint", "--pid", &pid, "--dir", dir]);
    saved.wait().unwrap();
    // A process of a session whose leader, with the id of who is to come back, is gone.
    let session = r#"
import ctypes, os, struct, sys, time
pid = int(sys.argv[1])
call = ctypes.CDLL(None).syscall
call(157, 36, 1, 0, 0, 0)
ids = (ctypes.c_int * 1)(pid)
args = bytearray(88)
struct.pack_into("=Q", args, 32, 17)
struct.pack_into("=QQ", args, 64, ctypes.addressof(ids), 1)
if call(435, (ctypes.c_char * 88).from_buffer(args), ctypes.c_size_t(88)) == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.5)
    os._exit(0)
os.waitpid(pid, 0)
print(flush=True)
os.wait()
"#;
    let (mut held, _) = start(&["python3", "-c", session, &id]);
    let back = Command::new(env!("CARGO_BIN_EXE_kupgrade"))
        .args(["restore", "--dir", dir])
        .stdout(Stdio::null())
        .output();
    held.wait().unwrap();
    let _ = Command::new("kill").args(["-9", &pid]).status();
    std::fs::remove_dir_all(dir).unwrap();
    let back = back.unwrap();
    let said = String::from_utf8_lossy(&back.stderr);
    assert!(back.status.success(), "{said}");
}
