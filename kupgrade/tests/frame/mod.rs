//! Python programs that build some state, are saved, ended and rebuilt, and check that all of it is there.

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
    let output = Command::new(env!("CARGO_BIN_EXE_kupgrade"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kupgrade {args:?}: {text}");
}

fn reap_everyone() {
    while nix::sys::wait::wait().is_ok() {}
}

/// Carries `tests/KIND/NAME.py`. One at a time in a process, since children are waited for without asking
/// whose they are.
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
    let pid = nix::unistd::Pid::from_raw(subject.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    subject.wait_for("good");
    reap_everyone();
    std::fs::remove_dir_all(&subject.dir).unwrap();
}
