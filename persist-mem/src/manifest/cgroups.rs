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

/// A group that something is in, or one above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Which it is.
    pub place: Membership,
    /// Names of its files and what they held, of version 2 only.
    pub settings: Vec<(String, String)>,
}
