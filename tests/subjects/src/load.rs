//! Processes of a given size, for measuring: `load:KIND:NUMBER`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;

use anyhow::{Context, Result, bail};
use libc::{MADV_HUGEPAGE, MADV_NOHUGEPAGE, PROT_READ};

use crate::kit::{Area, Setting, Watch, fork, sys, until};

/// Pages of a MiB.
const MIB: usize = 256;

/// Builds it; its check is a look at what is cheap to look at.
pub(crate) fn start(kind: &str, setting: &Setting) -> Result<Watch> {
    let (kind, number) = kind.split_once(':').context("KIND:NUMBER")?;
    let number: usize = number.parse()?;
    match kind {
        "memory" => memory(number, MADV_NOHUGEPAGE),
        "huge" => memory(number, MADV_HUGEPAGE),
        "processes" => processes(number),
        "threads" => threads(number),
        "vmas" => vmas(number),
        "descriptors" => descriptors(number, setting),
        "beside" => beside(number),
        _ => bail!("memory, huge, processes, threads, vmas, descriptors or beside, not {kind}"),
    }
}

fn memory(mib: usize, advice: i32) -> Result<Watch> {
    let area = Area::anonymous(mib * MIB)?;
    area.advise(advice)?;
    area.fill(1);
    Ok(Watch::new(move || area.check(1)))
}

fn processes(count: usize) -> Result<Watch> {
    let mut children = Vec::new();
    for _ in 1..count {
        children.push(fork(|| {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
        })?);
    }
    Ok(Watch::new(move || {
        until("every child is there", std::time::Duration::ZERO, || {
            let there = |pid: &i32| std::fs::exists(format!("/proc/{pid}")).unwrap_or(false);
            children.iter().all(there)
        })
    }))
}

fn threads(count: usize) -> Result<Watch> {
    for _ in 1..count {
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(|| std::thread::sleep(std::time::Duration::from_secs(3600)))?;
    }
    Watch::keep(|| crate::kit::procfs::status("self", "Threads"))
}

fn vmas(count: usize) -> Result<Watch> {
    let area = Area::anonymous(count)?;
    area.fill(2);
    for page in (0..count).step_by(2) {
        area.part(page, 1).protect(PROT_READ)?;
    }
    Ok(Watch::new(move || area.check(2)))
}

fn descriptors(count: usize, setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    std::fs::write(&path, "text")?;
    for _ in 0..count {
        let _ = File::open(&path)?.into_raw_fd();
    }
    Watch::keep(|| Ok(std::fs::read_dir("/proc/self/fd")?.count()))
}

/// Descriptors of each process of a busy host.
const EACH: usize = 50;

/// A small process with a pipe on a host with others, which are not part of its tree.
fn beside(count: usize) -> Result<Watch> {
    let others = fork(|| {
        // Not in our session, whose id is that of our first process.
        // SAFETY: no arguments.
        if unsafe { libc::setsid() } == -1 {
            std::process::exit(1);
        }
        for _ in 0..EACH {
            let Ok(file) = File::open("/dev/null") else {
                std::process::exit(1)
            };
            let _ = file.into_raw_fd();
        }
        for _ in 0..count {
            if fork(|| {
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(3600));
                }
            })
            .is_err()
            {
                std::process::exit(1);
            }
        }
        std::process::exit(0);
    })?;
    // They are orphans now, and their session's processes but not ours.
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    sys("waitpid", unsafe {
        libc::waitpid(others, &raw mut status, 0)
    })?;
    if status != 0 {
        bail!("the others could not be made: status {status:#x}");
    }
    let (mut reader, mut writer) = std::io::pipe()?;
    Ok(Watch::new(move || {
        let mut seen = [0];
        writer.write_all(&[7])?;
        reader.read_exact(&mut seen)?;
        crate::kit::same("a byte sent through the pipe", &[7], &seen)
    }))
}
