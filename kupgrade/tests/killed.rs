//! `kupgrade restore` is killed at random moments: nothing is left of what it had begun, and the image is as good
//! as before.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::Pid;

/// Processes with threads, a socket in common and a terminal, which end when there is `end` in their directory.
const FAMILY: &str = r#"
import os, pty, socket, sys, threading, time
os.closerange(3, 4096)
ours, theirs = socket.socketpair()
master, slave = pty.openpty()
for n in range(6):
    if os.fork() == 0:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        if n == 0:
            os.setsid()
            os.close(os.open(os.ttyname(slave), os.O_RDWR))
            terminal = os.open("/dev/tty", os.O_RDWR)
        while not os.path.exists("end"):
            time.sleep(0.02)
        os._exit(0)
open("ready", "w").close()
while not os.path.exists("end"):
    time.sleep(0.02)
open("good", "w").close()
"#;
const KILLS: u32 = 100;
const BOUND: Duration = Duration::from_secs(25);

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn start(dir: &Path) -> Child {
    let child = Command::new("setsid")
        .args(["python3", "-c", FAMILY])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is never ready", || dir.join("ready").exists());
    child
}

fn kupgrade(words: &[&str], image: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kupgrade"))
        .args(words)
        .arg("--dir")
        .arg(image)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn succeed(words: &[&str], image: &Path) {
    let out = kupgrade(words, image).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{words:?}: {said}");
}

/// Waits for all children that have ended.
fn reap() {
    while matches!(sys::wait::poll_children(), Ok(Some(_))) {}
}

/// Everybody below this process, who adopts orphans.
fn family() -> Vec<Pid> {
    let me = Pid(std::process::id().cast_signed());
    let mut pids = freezer::proc::tree(me).unwrap_or_default();
    pids.retain(|pid| *pid != me);
    pids
}

fn command_of(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// Nobody is left but who goes on by itself: all of them where the restore was over, some where it was letting them
/// go just then.
fn left_alone(round: u32, dir: &Path) {
    let (end, good) = (dir.join("end"), dir.join("good"));
    std::fs::write(&end, "").unwrap();
    let begun = Instant::now();
    loop {
        reap();
        let left = family();
        if left.is_empty() {
            break;
        }
        let named: Vec<_> = left.iter().map(|pid| (*pid, command_of(*pid))).collect();
        let late = begun.elapsed() > Duration::from_secs(10);
        assert!(!late, "round {round}: {named:?} are left");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::remove_file(end).unwrap();
    let _ = std::fs::remove_file(good);
}

fn end_family() {
    eventually("somebody does not end", || {
        for pid in family() {
            let _ = sys::process::kill(pid, 9);
        }
        reap();
        family().is_empty()
    });
}

/// Until it has just made somebody, who is nothing yet.
fn wait_for_child_of(restore: &mut Child) {
    let pid = restore.id();
    let path = format!("/proc/{pid}/task/{pid}/children");
    while restore.try_wait().unwrap().is_none() {
        if std::fs::read_to_string(&path).is_ok_and(|pids| !pids.is_empty()) {
            break;
        }
    }
}

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        for pid in family() {
            let _ = sys::process::kill(pid, 9);
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn killed_at_any_moment_it_leaves_nobody_behind() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let dir = std::env::temp_dir().join(format!("killed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let dir = Dir(dir);
    let image = dir.0.join("image");
    let mut saved = start(&dir.0);
    let pid = saved.id().to_string();
    succeed(&["checkpoint", "--pid", &pid], &image);
    saved.wait().unwrap();
    end_family();
    let begun = Instant::now();
    let mut restore = kupgrade(&["restore"], &image);
    wait_for_child_of(&mut restore);
    let first = begun.elapsed();
    assert!(restore.wait().unwrap().success());
    let takes = begun.elapsed();
    end_family();
    let begun = Instant::now();
    for round in 0..KILLS {
        let mut restore = kupgrade(&["restore"], &image);
        // Spread evenly over the time that it takes, and over that in which it makes the first process.
        let part = (f64::from(round) * 0.618_033_988_749_895).fract();
        std::thread::sleep(if round % 2 == 0 {
            takes.mul_f64(part * 1.1)
        } else {
            first.mul_f64(0.7 + part * 0.35)
        });
        restore.kill().unwrap();
        restore.wait().unwrap();
        left_alone(round, &dir.0);
        if begun.elapsed() > BOUND {
            break;
        }
    }
    succeed(&["restore"], &image);
    std::fs::write(dir.0.join("end"), "").unwrap();
    eventually("it does not go on", || dir.0.join("good").exists());
    eventually("it does not end", || {
        reap();
        family().is_empty()
    });
}
