//! Where hierarchies of control groups are mounted (cgroups(7)).

use crate::{Pid, Tid, procdir};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Those that are mounted as a whole: type, options of the file system, place.
#[derive(Debug, Default, PartialEq)]
pub struct Hierarchies(Vec<(String, String, PathBuf)>);

impl Hierarchies {
    /// Those that this process sees; none where it cannot tell.
    #[must_use]
    pub fn find() -> Hierarchies {
        let me = Pid(nix::unistd::getpid().as_raw());
        let text = procdir::read(me, "mountinfo").unwrap_or_default();
        Hierarchies::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(mountinfo: &str) -> Hierarchies {
        let mount = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(3);
            let (root, place) = (fields.next()?, fields.next()?);
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            let whole = root == "/" && kind.starts_with("cgroup");
            whole.then(|| (kind.to_owned(), options.to_owned(), place.into()))
        };
        Hierarchies(mountinfo.lines().filter_map(mount).collect())
    }

    /// The directory of a group, named by the second and third fields of a line of `/proc/PID/cgroup`: the
    /// controllers of its hierarchy, none for version 2, and its path. None when the hierarchy is not mounted.
    #[must_use]
    pub fn directory(&self, controllers: &[u8], path: &[u8]) -> Option<PathBuf> {
        let is = |(kind, options, _): &&(String, String, PathBuf)| {
            let has = |what: &[u8]| options.split(',').any(|option| option.as_bytes() == what);
            match controllers {
                b"" => kind == "cgroup2",
                names => kind == "cgroup" && names.split(|byte| *byte == b',').all(has),
            }
        };
        let (_, _, place) = self.0.iter().find(is)?;
        let below = path.strip_prefix(b"/").unwrap_or(path);
        Some(place.join(OsStr::from_bytes(below)))
    }
}

/// The setting by which a group of version 2 holds its threads still.
pub const FREEZE: &str = "cgroup.freeze";

/// Whether a group of version 2 is to hold its threads still, by itself.
#[must_use]
pub fn holds(directory: &Path) -> bool {
    std::fs::read(directory.join(FREEZE)).is_ok_and(|text| text == b"1\n")
}

/// Has a group hold its threads, or let them go.
///
/// # Errors
/// As the file tells.
pub fn hold(directory: &Path, still: bool) -> std::io::Result<()> {
    let mut file = File::options().write(true).open(directory.join(FREEZE))?;
    file.write_all(if still { b"1" } else { b"0" })
}

/// The groups right below one.
#[must_use]
pub fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).collect()
}

/// The threads in a group of version 2 and in those below it.
#[must_use]
pub fn threads(directory: &Path) -> Vec<Tid> {
    let text = std::fs::read_to_string(directory.join("cgroup.threads")).unwrap_or_default();
    let mut found: Vec<Tid> = text
        .lines()
        .filter_map(|n| n.parse().ok().map(Tid))
        .collect();
    for below in below(directory) {
        found.extend(threads(&below));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";

    #[test]
    fn groups_have_directories() {
        let mounts = Hierarchies::parse(MOUNTS);
        let place = |controllers: &str, path: &str| {
            mounts.directory(controllers.as_bytes(), path.as_bytes())
        };
        let found = |path: &str| Some(PathBuf::from(path));
        assert_eq!(place("", "/a/b"), found("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(
            place("cpu,cpuacct", "/a"),
            found("/sys/fs/cgroup/cpu,cpuacct/a")
        );
        assert_eq!(place("name=systemd", "/"), found("/sys/fs/cgroup/systemd/"));
        assert_eq!(place("memory", "/a"), None);
    }
}
