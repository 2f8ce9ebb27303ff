//! A running tree is stopped, described and let go, and does not notice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use freezer::{capture, check, freeze};
use persist_mem::manifest::{Backing, DescriptionKind, Manifest};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use sys::Pid;

use common::{Subject, describe};

#[test]
fn a_pipeline_is_described_and_goes_on() {
    let subject =
        Subject::start("trap 'x=1' USR1; umask 0027; ulimit -n 77; (sleep 1000; :) | cat; :");
    assert_eq!(check::check(subject.pid()).unwrap(), []);
    let (manifest, _) = describe(subject.pid());
    assert_eq!(manifest.processes.len(), 4, "shell, subshell, sleep, cat");
    let shell = manifest.processes[0].live().unwrap();
    assert_eq!((shell.directories.umask, shell.limits[7].0), (0o027, 77));
    assert!(shell.actions[9].handler > 1, "SIGUSR1 has a handler");
    assert_eq!(manifest.pipes.len(), 1);
    let ends = manifest.descriptions.iter();
    assert_eq!(
        ends.filter(|d| matches!(d.kind, DescriptionKind::Pipe(_)))
            .count(),
        2
    );
    let sleeper = manifest
        .processes
        .iter()
        .find_map(|p| p.live()?.threads[0].sleep);
    let left = sleeper
        .expect("sleep(1) sleeps with a known rest")
        .remaining
        / 1_000_000_000;
    assert!((990..1000).contains(&left), "{left} s of 1000 remain");
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
    let state = std::fs::read_to_string(format!("/proc/{}/status", subject.pid())).unwrap();
    assert!(state.contains("TracerPid:\t0"), "{state}");
}

/// Its mappings but for the stack, which may have grown.
fn maps(pid: Pid) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let lines = text.lines().filter(|line| !line.ends_with("[stack]"));
    lines.map(str::to_owned).collect()
}

#[test]
fn stopping_shows_no_interrupted_call_and_leaves_no_mapping() {
    let mut child = Command::new("/usr/bin/env")
        .args(["python3", "-c"])
        .arg("import select,sys\ne=select.epoll()\nprint('ready',flush=True)\nprint(e.poll(3),flush=True)\nprint('end',flush=True)\n")
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    std::thread::sleep(std::time::Duration::from_millis(200));
    let pid = Pid(child.id() as i32);
    let before = maps(pid);
    assert!(
        check::check_tree(pid)
            .unwrap()
            .iter()
            .any(|r| r.reason.contains("not part"))
    );
    let frozen = freeze(pid).unwrap();
    // The pipe to this test is refused by name, whatever was done before that is undone.
    let refused = capture(&frozen).unwrap_err().to_string();
    assert!(
        refused.contains("not part of the tree") || refused.contains("pipe"),
        "{refused}"
    );
    drop(frozen);
    assert_eq!(maps(pid), before);
    assert_eq!(
        lines.next().unwrap().unwrap(),
        "[]",
        "epoll returned by its time-out"
    );
    assert_eq!(lines.next().unwrap().unwrap(), "end");
    child.wait().unwrap();
}

#[test]
fn saved_pages_are_the_process_s_pages() {
    let dir = std::env::temp_dir().join(format!("freezer-pages-{}", std::process::id()));
    let mut file = std::fs::File::create(&dir).unwrap();
    let script = "import time\nneedle=bytes(range(1,251))*4000\ntime.sleep(1000)\n";
    file.write_all(script.as_bytes()).unwrap();
    let subject = Subject::start(&format!("exec python3 {}", dir.display()));
    let (manifest, pages) = describe(subject.pid());
    let _ = std::fs::remove_file(&dir);
    let mm = &manifest.processes[0].live().unwrap().mm;
    assert!(mm.vmas.iter().any(|v| v.backing == Backing::Vdso) && !mm.vdso.is_empty());
    let total: u64 = mm.extents.iter().map(|e| e.pages).sum();
    assert_eq!(total * 4096, pages.0.len() as u64);
    let needle: Vec<u8> = (1..=250).collect();
    let hits = pages.0.windows(250).filter(|w| *w == needle).count();
    assert!(
        hits > 3000,
        "only {hits} of 4000 repetitions of the pattern were saved"
    );
}

/// Makes a ring of io_uring that only its maker may submit to. The maker is a leader that ends before its other thread,
/// or a parent whose child alone keeps the ring.
const RING_WITHOUT_ITS_SUBMITTER: &str = "
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
CQSIZE, SINGLE_ISSUER = 1 << 3, 1 << 12
params = (ctypes.c_uint32 * 30)(0, 8, CQSIZE | SINGLE_ISSUER)
fd = libc.syscall(425, 4, params)
if fd < 0: os._exit(7)
if how == 'leader':
    threading.Thread(target=time.sleep, args=(1000,)).start()
    time.sleep(0.2)
    libc.syscall(60, 0)
if os.fork() > 0: os.close(fd)
time.sleep(1000)
";

#[test]
fn a_ring_of_io_uring_needs_the_thread_that_submits() {
    for (how, words) in [
        ("leader", "is not there any more"),
        ("parent", "is not part of the tree"),
    ] {
        let script = format!("how = '{how}'{RING_WITHOUT_ITS_SUBMITTER}");
        let mut subject = Subject::python(how, &script);
        if subject.0.try_wait().unwrap().is_some() {
            return;
        }
        let holder = freezer::proc::tree(subject.pid()).unwrap().pop().unwrap();
        let found = check::check_tree(holder).unwrap();
        let told: Vec<_> = found.iter().map(|one| &one.reason).collect();
        assert!(
            told.len() == 1 && told[0].contains(words),
            "{how}: {told:?}"
        );
        let frozen = freeze(holder).unwrap();
        let refused = capture(&frozen).map(drop).unwrap_err().to_string();
        assert!(refused.contains(words), "{how}: {refused}");
    }
}

/// Sends what is not carried from one socket to another, and keeps the sockets only.
const REFUSED_IN_FLIGHT: &str = "
import array, ctypes, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(430, b'tmpfs', 0)
if fd < 0: os._exit(7)
pair = socket.socketpair(socket.AF_UNIX, kind)
rights = lambda fd: [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))]
event = os.eventfd(0)
for one in (event, fd):
    pair[0].sendmsg([b'x'], rights(one))
    os.close(one)
time.sleep(1000)
";

#[test]
fn what_is_in_flight_is_looked_at_before_anything_stops() {
    for kind in ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"] {
        let script = REFUSED_IN_FLIGHT.replace("kind", &format!("socket.{kind}"));
        let mut subject = Subject::python(kind, &script);
        if subject.0.try_wait().unwrap().is_some() {
            return;
        }
        let found = check::check(subject.pid()).unwrap();
        let told: Vec<_> = found.iter().map(|one| &one.reason).collect();
        let words = "in flight in its queue: half-made mounts";
        assert!(
            told.len() == 1 && told[0].contains(words),
            "{kind}: {told:?}"
        );
        let frozen = freeze(subject.pid()).unwrap();
        let refused = capture(&frozen).map(drop).unwrap_err().to_string();
        assert!(refused.contains("half-made mounts"), "{kind}: {refused}");
    }
}
