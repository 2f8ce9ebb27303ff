//! Where and when a system was saved.

use serde::{Deserialize, Serialize};

/// The saved host.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Host {
    /// `uname -r` of the kernel it was saved on.
    pub release: String,
    /// `/proc/sys/kernel/random/boot_id` of that boot: whether its clocks still run.
    pub boot_id: String,
    /// Version of the kupgrade that saved it.
    pub kupgrade: String,
    /// Its clocks when it was frozen.
    pub clocks: Clocks,
    /// Bytes of one page record in the page store; 4096.
    pub page_size: u32,
}

/// Clock readings taken together, in nanoseconds, as the saved processes saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_REALTIME.
    pub realtime: i64,
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
    /// Time stamp counter, which runs on across a kexec.
    pub tsc: u64,
}
