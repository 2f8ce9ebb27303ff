//! Python programs that build some state, are saved, ended and rebuilt, and check that all of it is there.

use nix::sys::wait::WaitStatus;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

struct Subject {
    child: Child,
    dir: PathBuf,
}

impl Subject {
    fn start(kind: &str, name: &str) -> Subject {
        // Whoever loses its parent comes to this process, which waits for it.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = std::env::temp_dir().join(format!("{kind}-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("work")).unwrap();
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let script = scripts.join(kind).join(format!("{name}.py"));
        let out = std::fs::File::create(dir.join("out")).unwrap();
        let child = Command::new("python3")
            .args([scripts.join("frame/frame.py"), script])
            .current_dir(dir.join("work"))
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let subject = Subject { child, dir };
        subject.wait_for("ready");
        subject
    }

    fn wait_for(&self, word: &str) {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.join("out")).unwrap();
            if text.lines().any(|line| line == word) {
                return;
            }
            assert!(!text.contains("Traceback"), "{text}");
            assert!(begun.elapsed() < BOUND, "it never said {word}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has it check what it has, and waits for its end.
    fn check(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        self.wait_for("good");
        reap_everyone();
        std::fs::remove_dir_all(&self.dir).unwrap();
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // Nothing is left when all went well.
        let _ = Command::new("kill")
            .args(["-9", &self.pid()])
            .stderr(Stdio::null())
            .status();
    }
}

fn kupgrade(args: &[&str]) {
    let (code, said) = status_of(args);
    assert!(code == Some(0), "kupgrade {args:?}: {said}");
}

/// Exit status, and what was said.
fn status_of(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kupgrade"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// As [`status_of`], while this process waits for whoever ends meanwhile, as init does.
#[allow(dead_code, reason = "not every test binary needs it")]
fn status_while_reaping(args: &[&str]) -> (i32, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kupgrade"));
    let command = command.args(args).stdin(Stdio::null()).stderr(writer);
    let child = command.spawn().unwrap().id().cast_signed();
    let code = loop {
        match nix::sys::wait::wait().unwrap() {
            WaitStatus::Exited(pid, code) if pid.as_raw() == child => break code,
            _ => {}
        }
    };
    command.stderr(Stdio::null());
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    (code, said)
}

fn reap_everyone() {
    while nix::sys::wait::wait().is_ok() {}
}

/// Carries `tests/KIND/NAME.py`. One at a time in a process, since children are waited for without asking
/// whose they are.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn carry(kind: &str, name: &str) {
    carry_with(kind, name, &[]);
}

/// As [`carry`], with more options for the checkpoint. Without them it is refused.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn carry_with(kind: &str, name: &str, options: &[&str]) {
    let subject = Subject::start(kind, name);
    let image = subject.dir.join("image");
    let image = image.to_str().unwrap();
    let pid = subject.pid();
    let plain = ["checkpoint", "--pid", &pid, "--dir", image];
    if !options.is_empty() {
        let status = Command::new(env!("CARGO_BIN_EXE_kupgrade"))
            .args(plain)
            .stderr(Stdio::null())
            .status();
        assert!(!status.unwrap().success(), "refused without {options:?}");
    }
    kupgrade(&[&plain, options].concat());
    reap_everyone();
    kupgrade(&["restore", "--dir", image]);
    subject.check();
}

/// Carries `tests/KIND/NAME.py` without its file `gone`, for which `lost` of its processes cannot be rebuilt.
#[allow(dead_code, reason = "not every test binary needs it")]
pub(crate) fn carry_partly(kind: &str, name: &str, lost: usize) {
    let subject = Subject::start(kind, name);
    let image = subject.dir.join("image");
    let image = image.to_str().unwrap();
    kupgrade(&["checkpoint", "--pid", &subject.pid(), "--dir", image]);
    reap_everyone();
    std::fs::remove_file(subject.dir.join("work/gone")).unwrap();
    let (code, said) = status_of(&["restore", "--dir", image]);
    assert_eq!(code, Some(1), "{said}");
    reap_everyone();
    let (code, said) = status_while_reaping(&["restore", "--partial", "--dir", image]);
    assert_eq!(code, 4, "{said}");
    let named = said.lines().filter(|line| line.contains(" is lost: "));
    assert_eq!(named.count(), lost, "{said}");
    subject.check();
}
