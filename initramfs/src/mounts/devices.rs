//! Device numbers (`st_dev`) of file systems without a device.
//!
//! The kernel gives a new one the lowest that is free (fs/super.c, `get_anon_bdev`). So all that are free up to the
//! highest that is wanted are taken by empty file systems, and each is let go just before the mount that is to get it.

use persist_mem::mounts::{DeviceNumber, Mount};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// On hosts where a higher number is wanted all get others.
const MOST: u32 = 1024;

/// Numbers that nobody else gets.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    last: u32,
    held: BTreeMap<u32, OwnedFd>,
}

impl Devices {
    /// Takes all that are free up to the highest that these mounts want.
    pub(super) fn of<'a>(mounts: impl Iterator<Item = &'a Mount>) -> Devices {
        let wanted = mounts.filter_map(|mount| number(mount.device)).max();
        Devices::up_to(wanted.filter(|last| *last <= MOST).unwrap_or(0))
    }

    /// Takes all that are free up to `last`.
    pub(crate) fn up_to(last: u32) -> Devices {
        let mut devices = Devices {
            last,
            held: BTreeMap::new(),
        };
        devices.fill();
        devices
    }

    fn fill(&mut self) {
        while self.last > 0 {
            match take() {
                Ok((number, fd)) if number <= self.last => self.held.insert(number, fd),
                Ok(_) => return,
                Err(errno) => {
                    log::info!("file systems in memory get other device numbers: {errno}");
                    *self = Devices::default();
                    return;
                }
            };
        }
    }

    /// Makes a file system, which gets this number when nobody else has it.
    pub(super) fn give<T>(&mut self, to: DeviceNumber, make: impl FnOnce() -> T) -> T {
        let held = number(to).and_then(|number| self.held.remove(&number));
        if held.is_none() {
            return make();
        }
        drop(held);
        let made = make();
        // It may have one already: some file systems are there once only.
        self.fill();
        made
    }
}

/// The lowest number that is free, and what holds it.
fn take() -> sys::Result<(u32, OwnedFd)> {
    let held = sys::mountapi::detached_tmpfs()?;
    let minor = nix::sys::stat::minor(nix::sys::stat::fstat(&held)?.st_dev);
    Ok((u32::try_from(minor).unwrap_or(u32::MAX), held))
}

/// The number of a file system without a device.
fn number(device: DeviceNumber) -> Option<u32> {
    (device.major == 0).then_some(device.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_system_gets_the_number_that_is_wanted() {
        let (lowest, held) = take().unwrap();
        drop(held);
        let wanted = [lowest + 7, lowest + 2];
        let right = |_: &u32| {
            let mut devices = Devices::up_to(lowest + 20);
            let mut got = wanted.map(|minor| {
                let to = DeviceNumber { major: 0, minor };
                devices.give(to, take).unwrap()
            });
            got.each_mut().map(|(number, _held)| *number) == wanted
        };
        // Somebody else on the host may take a number between.
        assert!((0..50).any(|again| right(&again)));
    }
}
