//! Policies of AppArmor (apparmor(7)): read as they were loaded before the jump, and loaded again before the processes
//! are built, which enter their profiles by name.

use crate::mounts::support::show;
use persist_mem::manifest::Policies;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

/// The file system that shows them.
const KIND: &CStr = c"securityfs";
/// Whether AppArmor is at work.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";

/// Where policies are read and loaded.
struct Folder {
    path: PathBuf,
    _mount: Option<OwnedFd>,
}

impl Folder {
    /// None where AppArmor is not at work.
    fn open() -> io::Result<Option<Folder>> {
        let enabled = std::fs::read(ENABLED).unwrap_or_default();
        if !enabled.starts_with(b"Y") {
            return Ok(None);
        }
        let mount = sys::mountapi::detached(KIND)?;
        let path = format!("/proc/self/fd/{}/apparmor", mount.as_raw_fd());
        Ok(Some(Folder {
            path: path.into(),
            _mount: Some(mount),
        }))
    }

    fn policy(&self) -> PathBuf {
        self.path.join("policy")
    }

    /// Names of all profiles.
    fn profiles(&self) -> io::Result<BTreeSet<Vec<u8>>> {
        let text = std::fs::read(self.path.join("profiles"))?;
        let lines = text.split(|byte| *byte == b'\n');
        let names = lines.map(|line| sys::lsm::profile(line).to_vec());
        Ok(names.filter(|name| !name.is_empty()).collect())
    }

    /// What was loaded and is in use, the first at the start.
    fn loaded(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut loaded = Vec::new();
        for entry in std::fs::read_dir(self.policy().join("raw_data"))? {
            let path = entry?.path();
            let revision = std::fs::read_to_string(path.join("revision"))?;
            let revision: u64 = revision.trim().parse().map_err(io::Error::other)?;
            loaded.push((revision, std::fs::read(path.join("raw_data"))?));
        }
        loaded.sort();
        Ok(loaded.into_iter().map(|(_, policy)| policy).collect())
    }

    /// What of it cannot be carried, in words.
    fn problems(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.policy().join("namespaces"))? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            found.push(format!(
                "the policies of AppArmor in the namespace {name} cannot be carried"
            ));
        }
        for entry in std::fs::read_dir(self.policy().join("profiles"))? {
            let path = entry?.path();
            if std::fs::symlink_metadata(path.join("raw_data")).is_err() {
                let name = std::fs::read(path.join("name")).unwrap_or_default();
                found.push(format!(
                    "the kernel does not show the profile {} of AppArmor (its parameter apparmor.export_binary)",
                    show(name.trim_ascii_end())
                ));
            }
        }
        Ok(found)
    }
}

/// Policies that cannot be carried, in words.
#[must_use]
pub fn check() -> Vec<String> {
    let problems =
        Folder::open().and_then(|folder| folder.map_or(Ok(Vec::new()), |it| it.problems()));
    problems.unwrap_or_else(|error| vec![unreadable(&error)])
}

fn unreadable(error: &io::Error) -> String {
    format!("the policies of AppArmor cannot be read: {error}")
}

/// Reads them.
///
/// # Errors
/// When a file that shows one cannot be read.
pub fn capture() -> io::Result<Policies> {
    let Some(folder) = Folder::open()? else {
        return Ok(Policies::default());
    };
    Ok(Policies {
        profiles: folder.profiles()?.into_iter().collect(),
        loaded: folder.loaded()?.into_iter().map(Into::into).collect(),
    })
}

/// Loads them. Returns what could not be done, in words.
#[must_use]
pub fn restore(policies: &Policies) -> Vec<String> {
    if policies.loaded.is_empty() {
        return Vec::new();
    }
    match Folder::open() {
        Ok(Some(folder)) => load(&folder, policies),
        Ok(None) => vec!["policies of AppArmor: it is not at work here".to_owned()],
        Err(error) => vec![format!("policies of AppArmor: {error}")],
    }
}

fn load(folder: &Folder, policies: &Policies) -> Vec<String> {
    let mut failed = Vec::new();
    let mut write = |file: &str, bytes: &[u8], what: &dyn Fn() -> String| {
        if let Err(error) = std::fs::write(folder.path.join(file), bytes) {
            failed.push(format!("{} of AppArmor: {error}", what()));
        }
    };
    for (number, policy) in policies.loaded.iter().enumerate() {
        // Of a profile that is in several the last one counts.
        write(".replace", policy, &|| format!("policy {number}"));
    }
    // They were removed from policies whose other profiles are left.
    let wanted: BTreeSet<&Vec<u8>> = policies.profiles.iter().collect();
    for name in folder.profiles().unwrap_or_default() {
        if !wanted.contains(&name) {
            write(".remove", &name, &|| format!("profile {}", show(&name)));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    fn folder(tmp: &TestDir) -> Folder {
        Folder {
            path: tmp.path().to_path_buf(),
            _mount: None,
        }
    }

    #[test]
    fn policies_are_loaded_in_their_order_and_what_was_removed_is_removed() {
        let tmp = TestDir::new("policies");
        for (name, revision, policy) in [("3", "12\n", "later"), ("10", "4\n", "first")] {
            tmp.write(&format!("policy/raw_data/{name}/revision"), revision);
            tmp.write(&format!("policy/raw_data/{name}/raw_data"), policy);
        }
        tmp.write(
            "profiles",
            "shop (enforce)\nshop//hat (complain)\nold (enforce)\n",
        );
        let folder = folder(&tmp);
        let loaded = folder.loaded().unwrap();
        assert_eq!(loaded, [b"first".to_vec(), b"later".to_vec()]);
        let policies = Policies {
            profiles: vec![b"shop".to_vec(), b"shop//hat".to_vec()],
            loaded: loaded.into_iter().map(Into::into).collect(),
        };
        let failed = load(&folder, &policies);
        assert!(failed.is_empty(), "{failed:?}");
        let written = |name: &str| std::fs::read(tmp.path().join(name)).unwrap();
        assert_eq!(written(".replace"), b"later");
        assert_eq!(written(".remove"), b"old");
    }

    #[test]
    fn what_the_kernel_does_not_show_is_told() {
        let tmp = TestDir::new("policies-hidden");
        tmp.write("policy/namespaces/guest/.load", "");
        tmp.write("policy/profiles/shop.1/name", "shop\n");
        tmp.write("policy/profiles/inn.2/name", "inn\n");
        tmp.write("policy/profiles/inn.2/raw_data", "");
        let problems = folder(&tmp).problems().unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("guest") && problems[1].contains("shop"));
    }
}
