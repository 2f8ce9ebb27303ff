//! Processes to stop and describe.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use freezer::{PageRun, PageSink, capture, capture_pages, freeze};
use persist_mem::manifest::{Extent, Manifest};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::Pid;

#[derive(Default)]
pub(crate) struct Pages(pub(crate) Vec<u8>);

impl Pages {
    pub(crate) fn page(&self, frame: u64) -> &[u8] {
        &self.0[frame as usize * 4096..][..4096]
    }
}

impl PageSink for Pages {
    fn wants_frames(&self) -> bool {
        false
    }
    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>> {
        let (va, pages, frame) = (run.va, run.pages, self.0.len() as u64 / 4096);
        self.0.extend(run.read()?);
        Ok(vec![Extent { va, pages, frame }])
    }
}

/// A child without terminals or outer pipes; ended when dropped.
pub(crate) struct Subject(pub(crate) Child);

impl Subject {
    pub(crate) fn start(script: &str) -> Subject {
        // Whatever the test was started with must not be handed on.
        let close =
            "for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done;";
        let script = format!("{close} {script}");
        let out = std::fs::File::create("/dev/null").unwrap();
        let child = Command::new("/bin/bash")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let subject = Subject(child);
        until("it sleeps", || subject.sleeps());
        subject
    }

    /// Whether it does nothing for a while.
    fn sleeps(&self) -> bool {
        let first = self.activity();
        first.is_some()
            && (0..6).all(|_| {
                std::thread::sleep(Duration::from_millis(50));
                self.activity() == first
            })
    }

    /// Its processes with the processor time they have used, when all of them sleep.
    fn activity(&self) -> Option<Vec<(Pid, i64, i64)>> {
        let pids = freezer::proc::tree(self.pid()).ok()?;
        let of = |pid: Pid| {
            let stat = freezer::proc::Stat::read(pid, "stat").ok()?;
            matches!(stat.state(), 'S' | 'T' | 'Z').then(|| (pid, stat.field(14), stat.field(15)))
        };
        pids.into_iter().map(of).collect()
    }

    /// Runs a Python program.
    pub(crate) fn python(name: &str, program: &str) -> Subject {
        let file = std::env::temp_dir().join(format!("freezer-{name}-{}", std::process::id()));
        std::fs::write(&file, program).unwrap();
        let subject = Subject::start(&format!("exec /usr/bin/python3 {}", file.display()));
        let _ = std::fs::remove_file(&file);
        subject
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.0.id() as i32)
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for pid in freezer::proc::tree(self.pid())
            .unwrap_or_default()
            .into_iter()
            .rev()
        {
            let _ = sys::process::kill(pid, 9);
        }
        let _ = self.0.wait();
    }
}

pub(crate) fn describe(pid: Pid) -> (Manifest, Pages) {
    let mut pages = Pages::default();
    let frozen = freeze(pid).unwrap();
    let (mut manifest, objects) = capture(&frozen).unwrap();
    capture_pages(&mut manifest, &objects, &mut pages).unwrap();
    drop(frozen);
    (manifest, pages)
}
