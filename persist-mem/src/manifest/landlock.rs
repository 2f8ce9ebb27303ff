//! What threads have forbidden themselves (landlock(7)).

use serde::{Deserialize, Serialize};

/// Rights of each kind, as in `struct landlock_ruleset_attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rights {
    /// `LANDLOCK_ACCESS_FS_*`
    pub fs: u64,
    /// `LANDLOCK_ACCESS_NET_*`
    pub net: u64,
    /// `LANDLOCK_SCOPE_*`
    pub scope: u64,
}

/// One layer of a domain: a ruleset that a thread has enforced on itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layer {
    /// What is denied where no rule allows it.
    pub handled: Rights,
    /// What is denied without a word in the log of audit, for the objects of quiet rules.
    pub quiet: Rights,
    /// `LANDLOCK_RESTRICT_SELF_*` flags: what is logged.
    pub log: u32,
    /// What is allowed.
    pub rules: Vec<LayerRule>,
}

/// A rule of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRule {
    /// What it is about.
    pub object: LayerObject,
    /// Rights that the layer handles.
    pub allowed: u64,
    /// `LANDLOCK_ADD_RULE_QUIET`
    pub quiet: bool,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LayerObject {
    /// A file, or a directory with all below it, by its path.
    Path(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A port.
    Port(u16),
}
