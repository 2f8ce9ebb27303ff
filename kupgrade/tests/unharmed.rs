//! `kupgrade checkpoint` is killed at random moments, and the processes do not notice: the command and its group, whose
//! worker lets them go on in order, or the worker too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMBERS: [&str; 12] = [
    "naps",
    "polls",
    "epolls",
    "sigtimedwaits",
    "longnaps",
    "longpolls",
    "longepolls",
    "longsigtimedwaits",
    "sums",
    "pingpong",
    "signals",
    "children",
];
const KILLS: u32 = 150;
/// Where both are killed, of four threads in such calls; without any repair it is some hundreds.
const MAY_BE_SEEN: usize = 20;
const BOUND: Duration = Duration::from_secs(20);

struct Family {
    child: Child,
    dir: PathBuf,
}

impl Family {
    fn start() -> Family {
        let dir = std::env::temp_dir().join(format!("unharmed-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/restless.py");
        let child = Command::new("setsid")
            .arg("python3")
            .args([script, dir.join("complaints")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let family = Family { child, dir };
        let begun = Instant::now();
        while !family.dir.join("complaints.longpolls").exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "no start");
            std::thread::sleep(Duration::from_millis(20));
        }
        family
    }

    fn counts(&self) -> Vec<u64> {
        let count = |name| {
            let path = self.dir.join(format!("complaints.{name}"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.parse().unwrap_or(0)
        };
        MEMBERS.into_iter().map(count).collect()
    }

    /// What is wrong, and how often what cannot be ruled out has happened: a call that the kernel lets
    /// fail at every stop failed, because its thread was stopped but its call not repaired yet; a
    /// wait was begun again that had been interrupted before, or whose rest was not told to it yet.
    /// Each moment lasts as long as a thread takes to wake up on a busy host and be met.
    fn complaints(&self) -> (String, usize) {
        let text = std::fs::read_to_string(self.dir.join("complaints")).unwrap_or_default();
        let (known, others): (Vec<_>, Vec<_>) = text
            .lines()
            .partition(|line| line.ends_with("EINTR") || line.ends_with("LATE"));
        (others.join("\n"), known.len())
    }

    /// Where each thread stands, for the message of a failure.
    fn states(&self) -> String {
        let mut states = String::new();
        let pids = freezer::proc::tree(sys::Pid(self.child.id() as i32)).unwrap_or_default();
        for pid in pids {
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let read = |name| std::fs::read_to_string(task.path().join(name));
                let status = read("status").unwrap_or_default();
                let kept = [
                    "State",
                    "Pid",
                    "PPid",
                    "TracerPid",
                    "SigPnd",
                    "ShdPnd",
                    "SigBlk",
                ];
                let lines = status
                    .lines()
                    .filter(|line| kept.iter().any(|kept| line.starts_with(kept)));
                states.extend(lines.map(|line| line.replace('\t', " ") + "; "));
                states += &read("syscall").unwrap_or_default();
                states += &read("stack").unwrap_or_default();
            }
        }
        states
    }

    fn checkpoint(&self) -> Child {
        let image = self.dir.join("image");
        let _ = std::fs::remove_dir_all(&image);
        Command::new(env!("CARGO_BIN_EXE_kupgrade"))
            .args(["checkpoint", "--leave-running", "--pid"])
            .arg(self.child.id().to_string())
            .arg("--dir")
            .arg(image)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    /// Kills checkpoints until the time is over; returns how many there were.
    fn kill(&self, mut whole: Duration, how: Kill) -> u32 {
        let begun = Instant::now();
        let mut killed = 0;
        for round in 0..KILLS {
            let mut command = self.checkpoint();
            std::thread::sleep(whole.mul_f64(spread(round) * 1.1));
            // How long one takes depends on what else the host does just then.
            if command.try_wait().unwrap().is_none() {
                killed += 1;
                whole = whole.mul_f64(1.01);
            } else {
                whole = whole.mul_f64(0.9);
            }
            if how == Kill::Both {
                let pid = sys::Pid(command.id().cast_signed());
                for worker in freezer::proc::children(pid).unwrap_or_default() {
                    let _ = sys::process::kill(worker, 9);
                }
            }
            let group = sys::Pid(-command.id().cast_signed());
            let _ = sys::process::kill(group, 9);
            command.wait().unwrap();
            let (complaints, seen) = self.complaints();
            assert_eq!(complaints, "", "round {round}");
            let most = if how == Kill::Both { MAY_BE_SEEN } else { 0 };
            assert!(seen <= most, "{seen} in round {round}");
            if begun.elapsed() > BOUND {
                break;
            }
        }
        killed
    }
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kill {
    Command,
    Both,
}

impl Drop for Family {
    fn drop(&mut self) {
        let pids = freezer::proc::tree(sys::Pid(self.child.id() as i32)).unwrap_or_default();
        for pid in pids {
            let _ = sys::process::kill(pid, 9);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A number that differs from round to round, spread evenly over 0..1.
fn spread(round: u32) -> f64 {
    (f64::from(round) * 0.618_033_988_749_895).fract()
}

#[test]
fn killed_at_any_moment_it_harms_nobody() {
    let family = Family::start();
    // How long an undisturbed run takes.
    let begun = Instant::now();
    let out = family.checkpoint().wait_with_output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let whole = begun.elapsed();
    assert_eq!(
        family.complaints(),
        (String::new(), 0),
        "after an undisturbed run"
    );
    for how in [Kill::Command, Kill::Both] {
        let killed = family.kill(whole, how);
        // On a machine with other things to do it may be far from KILLS when the time is over.
        assert!(killed > 10, "only {killed} were killed in time");
    }
    let before = family.counts();
    std::thread::sleep(Duration::from_millis(6500));
    let after = family.counts();
    for ((name, before), after) in MEMBERS.into_iter().zip(before).zip(after) {
        assert!(
            after > before,
            "{name} does not go on ({after})\n{}",
            family.states()
        );
    }
    assert_eq!(family.complaints().0, "");
}
