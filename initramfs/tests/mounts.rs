//! Mounts of a little world of its own are recorded, made again elsewhere, and recorded again:
//! both records must agree. Needs root; does nothing without.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test program")]

use initramfs::mounts::{Phase, capture, restore};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};
use persist_mem::mounts::MountTable;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const LIMIT: u64 = 1 << 20;
/// Names the child's directory.
const HOME: &str = "KUPGRADE_TEST_MOUNTS";

fn make(kind: &str, point: &str, flags: MsFlags, data: &str) {
    std::fs::create_dir_all(point).unwrap();
    mount(Some(kind), point, Some(kind), flags, Some(data)).unwrap();
}

fn change(point: &str, flags: MsFlags) {
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).unwrap();
}

fn bind(from: &str, to: &str) {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// A root in memory with mounts of every sort that needs no disk.
fn build() {
    let (nosuid, nodev) = (MsFlags::MS_NOSUID, MsFlags::MS_NODEV);
    make("proc", "/proc", nosuid | nodev | MsFlags::MS_NOEXEC, "");
    make("tmpfs", "/run", nosuid | nodev, "size=1024k,mode=755");
    make(
        "tmpfs",
        "/run/lock",
        nodev | MsFlags::MS_NOATIME,
        "size=512k",
    );
    make("devpts", "/pts", nosuid, "gid=5,mode=620,ptmxmode=000");
    make("tmpfs", "/tmp", MsFlags::empty(), "");
    std::fs::write("/tmp/hidden", "below").unwrap();
    make("tmpfs", "/tmp", MsFlags::empty(), "mode=1777");
    std::fs::create_dir_all("/run/a/b").unwrap();
    std::fs::write("/run/a/b/file", "text").unwrap();
    std::fs::hard_link("/run/a/b/file", "/run/again").unwrap();
    symlink("a/b", "/run/link").unwrap();
    for point in ["/part", "/peer", "/slave"] {
        std::fs::create_dir(point).unwrap();
    }
    std::fs::write("/run/over", "").unwrap();
    bind("/run/a", "/part");
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    change("/part", read_only | MsFlags::MS_RELATIME);
    bind("/run/a/b/file", "/run/over");
    change("/", MsFlags::MS_SHARED | MsFlags::MS_REC);
    bind("/run/lock", "/peer");
    bind("/run/lock", "/slave");
    change("/slave", MsFlags::MS_SLAVE);
    change("/part", MsFlags::MS_PRIVATE);
    make("tmpfs", "/sealed", MsFlags::MS_RDONLY, "");
    change("/sealed", MsFlags::MS_UNBINDABLE);
}

/// A record without the numbers that may differ: one line a mount, sorted.
fn lines(table: &MountTable) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let members = |group: Option<u32>| {
        let points = table
            .mounts
            .iter()
            .filter(|m| group.is_some() && m.shared == group);
        let mut points: Vec<String> = points.map(|m| text(&m.point)).collect();
        points.sort();
        points.join("+")
    };
    let mut lines: Vec<String> = table
        .mounts
        .iter()
        .map(|m| {
            let parent = table.mounts.iter().find(|p| p.id == m.parent);
            let tree = table.trees.iter().find(|t| t.device == m.device);
            let files: Vec<String> = tree.into_iter().flat_map(|t| &t.tree.inodes)
                .map(|i| format!("{:?} {:?} {:o}", i.names, i.kind, i.mode))
                .collect();
            format!(
                "{} on {:?}: {} of {} flags {:#x} options {} peers {} masters {} unbindable {} files {}",
                text(&m.point), parent.map(|p| text(&p.point)), text(&m.root), m.kind, m.flags,
                text(&m.super_options), members(m.shared), members(m.master), m.unbindable,
                files.join(";"),
            )
        })
        .collect();
    lines.sort();
    lines
}

fn enter(root: &Path) {
    chroot(root).unwrap();
    chdir("/").unwrap();
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("mounts: skipped, needs root");
        return;
    }
    // The part that changes its root runs as a child, so that the directory can be removed.
    if let Some(home) = std::env::var_os(HOME) {
        return round_trip(Path::new(&home));
    }
    let home = std::env::temp_dir().join(format!("kup-mounts-{}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .env(HOME, &home)
        .status();
    std::fs::remove_dir(&home).unwrap();
    assert!(status.unwrap().success());
}

fn round_trip(home: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    change("/", MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    make("tmpfs", home.to_str().unwrap(), MsFlags::empty(), "");
    enter(home);
    build();
    let before = capture(LIMIT).unwrap();
    let problems = initramfs::mounts::check(&before);
    assert_eq!(
        problems.len(),
        1,
        "only what is hidden under /tmp: {problems:#?}"
    );
    assert!(problems[0].to_string().contains("hidden"));
    assert_eq!(before.mounts.len(), 12, "{:#?}", lines(&before));

    // Elsewhere, where nothing of it is below.
    change("/", MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    make("tmpfs", "/tmp", MsFlags::empty(), "");
    std::fs::create_dir("/tmp/again").unwrap();
    let target = Path::new("/tmp/again");
    for phase in [Phase::Outside, Phase::Inside] {
        let failed = restore(&before, target, phase).unwrap();
        assert!(failed.is_empty(), "{phase:?}: {failed:#?}");
    }
    enter(target);
    let after = capture(LIMIT).unwrap();
    assert_eq!(lines(&before), lines(&after));
    assert!(std::fs::write("/part/x", "x").is_err(), "read-only");

    eprintln!(
        "mounts: {} mounts came back as they were",
        after.mounts.len()
    );
}
