//! Mappings larger than the memory there is so far.
//!
//! While processes are rebuilt most of the memory still belongs to nobody. The kernel refuses mappings that are
//! larger than what it has (vm/overcommit-accounting.rst), and processes have such: what they have mapped fitted on
//! the old kernel, which had all of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

const SETTING: &str = "/proc/sys/vm/overcommit_memory";
/// `OVERCOMMIT_ALWAYS`
const ALWAYS: &str = "1";

/// Every mapping is allowed until this is dropped.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Open all the time: `/proc` is not everywhere meanwhile.
    setting: File,
    before: String,
}

/// Allows every mapping. Without it only mappings that fit are made, so a failure is told and borne.
pub(super) fn allow() -> Option<Allowed> {
    let allow = || {
        let mut setting = File::options().read(true).write(true).open(SETTING)?;
        let mut before = String::new();
        setting.read_to_string(&mut before)?;
        setting.write_all_at(ALWAYS.as_bytes(), 0)?;
        Ok(Allowed { setting, before })
    };
    let told = |error: std::io::Error| log::warn!("{SETTING}: {error}");
    allow().map_err(told).ok()
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let before = self.before.trim().as_bytes();
        if let Err(error) = self.setting.write_all_at(before, 0) {
            log::warn!("{SETTING}: {error}");
        }
    }
}
