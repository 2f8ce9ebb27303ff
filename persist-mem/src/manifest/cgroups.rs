//! Control groups (cgroups(7)).

use serde::{Deserialize, Serialize};

/// Where something is in one hierarchy, as `/proc/PID/cgroup` tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Membership {
    /// The hierarchy's controllers or name, empty for that of version 2.
    #[serde(with = "serde_bytes")]
    pub hierarchy: Vec<u8>,
    /// The group's path in it.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// A group that something is in, or one above it; of a whole host every one of version 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Which it is.
    pub place: Membership,
    /// Names of its files and what they held, of version 2 only.
    pub settings: Vec<(String, String)>,
    /// Who may use its directory, whose name is empty, and files of it that are not root's, of version 2 only.
    pub access: Vec<Access>,
    /// Names and values of its extended attributes (xattr(7)).
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Who may use a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Its name in its group.
    pub name: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}
