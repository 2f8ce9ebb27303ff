//! POSIX semaphores with a name (sem_open(3)). The C library maps a file of /dev/shm under a name for the moment,
//! gives it its own name then, and removes the first one.

use std::ffi::CString;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};
use libc::{O_CREAT, O_EXCL, sem_t};

use crate::kit::{SOON, Setting, Watch, not_here, same, sys, until};

/// A semaphore that is open in this process.
#[derive(Clone, Copy)]
struct Semaphore(*mut sem_t);

// SAFETY: semaphores are made to be used by many threads.
unsafe impl Send for Semaphore {}

impl Semaphore {
    /// A new one.
    fn create(name: &str, value: u32) -> Result<Semaphore> {
        let name = CString::new(name)?;
        // SAFETY: the name is a C string; with O_CREAT mode and value follow.
        let opened = unsafe {
            libc::sem_unlink(name.as_ptr());
            libc::sem_open(name.as_ptr(), O_CREAT | O_EXCL, 0o600, value)
        };
        if opened == libc::SEM_FAILED {
            bail!("sem_open: {}", std::io::Error::last_os_error());
        }
        Ok(Semaphore(opened))
    }

    fn value(self) -> Result<i32> {
        let mut value = 0;
        // SAFETY: it is open, and never closed.
        sys("sem_getvalue", unsafe {
            libc::sem_getvalue(self.0, &raw mut value)
        })?;
        Ok(value)
    }

    fn post(self) -> Result<()> {
        // SAFETY: it is open, and never closed.
        sys("sem_post", unsafe { libc::sem_post(self.0) }).map(drop)
    }

    fn take(self) -> Result<()> {
        // SAFETY: it is open, and never closed.
        sys("sem_trywait", unsafe { libc::sem_trywait(self.0) }).map(drop)
    }

    /// Waits in a thread for ever and counts what it got.
    fn waiter(self) -> Arc<AtomicU32> {
        let got = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&got);
        std::thread::spawn(move || {
            let this = self;
            // SAFETY: it is open, and never closed.
            while unsafe { libc::sem_wait(this.0) } == 0 {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        got
    }
}

/// What the file of this name says the value is (the lower half of the first word, glibc's struct new_sem).
fn in_file(name: &str) -> Result<u32> {
    let bytes = fs::read(format!("/dev/shm/sem.{}", &name[1..]))?;
    let Some(Ok(word)) = bytes.get(..4).map(<[u8; 4]>::try_from) else {
        bail!("the file is too short");
    };
    Ok(u32::from_ne_bytes(word))
}

/// Values, the name, and who waits.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    if !fs::read_to_string("/proc/mounts")?.contains(" /dev/shm tmpfs") {
        return not_here("no tmpfs on /dev/shm");
    }
    let name = |what: &str| format!("/kupgrade-{what}-{}", std::process::id());
    let (kept, gone, awaited) = (name("kept"), name("gone"), name("awaited"));
    let named = Semaphore::create(&kept, 3)?;
    let unnamed = Semaphore::create(&gone, 5)?;
    let bell = Semaphore::create(&awaited, 0)?;
    for name in [&gone, &awaited] {
        let name = CString::new(name.as_str())?;
        // SAFETY: the name is a C string.
        sys("sem_unlink", unsafe { libc::sem_unlink(name.as_ptr()) })?;
    }
    let (got, mut rung) = (bell.waiter(), 0);
    Ok(Watch::new(move || {
        same("the value", &3, &named.value()?)?;
        same("its file", &3, &in_file(&kept)?)?;
        named.post()?;
        same("its file after a post", &4, &in_file(&kept)?)?;
        named.take()?;
        same("the value of the removed one", &5, &unnamed.value()?)?;
        rung += 1;
        bell.post()?;
        until("the waiter wakes", SOON, || {
            got.load(Ordering::SeqCst) == rung
        })
    })
    .spoiled_by(move || named.take()))
}
