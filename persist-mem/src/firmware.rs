//! The firmware's memory map: what a kernel that was started cold was told, whichever kernel runs.
//!
//! A kernel started by kupgrade was told a map of ours. The true one travels with it as an entry
//! of `setup_data` (Documentation/arch/x86/boot.rst) whose type the kernel does not know and shows
//! in `/sys/kernel/boot_params/setup_data`; so it is there also when the manifest is lost.

use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::ranges::RangeSet;

/// e820 types (arch/x86/include/asm/e820/types.h).
pub mod kind {
    /// RAM.
    pub const RAM: u32 = 1;
    /// Reserved.
    pub const RESERVED: u32 = 2;
    /// ACPI tables.
    pub const ACPI: u32 = 3;
    /// ACPI non-volatile storage.
    pub const NVS: u32 = 4;
    /// Unusable.
    pub const UNUSABLE: u32 = 5;
    /// Persistent memory.
    pub const PMEM: u32 = 7;
    /// Persistent memory, the legacy type.
    pub const PRAM: u32 = 12;
    /// Memory set aside for a driver.
    pub const SOFT_RESERVED: u32 = 0xefff_ffff;
}

/// Type of the `setup_data` entry that carries the map: "kup1" as a little-endian number.
pub const SETUP_DATA_TYPE: u32 = u32::from_le_bytes(*b"kup1");

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareRange {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// e820 type, see [`kind`].
    pub kind: u32,
}

/// Why the map cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// A file of sysfs cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// A file holds something else than expected.
    #[error("{}: unexpected contents `{text}`", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// Nothing was found.
    #[error("the firmware's memory map names no RAM")]
    NoRam,
}

/// The map, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareMap {
    /// Its ranges.
    pub ranges: Vec<FirmwareRange>,
}

impl FirmwareMap {
    /// The true map: the one that travelled, else `/sys/firmware/memmap`.
    ///
    /// # Errors
    /// As the variants of [`FirmwareError`] say.
    pub fn read(sys: &Path) -> Result<FirmwareMap, FirmwareError> {
        let map = match travelled(sys)? {
            Some(map) => map,
            None => booted(sys)?,
        };
        if map.of_kind(kind::RAM).is_empty() {
            return Err(FirmwareError::NoRam);
        }
        Ok(map)
    }

    /// Takes ranges in any order.
    #[must_use]
    pub fn new(mut ranges: Vec<FirmwareRange>) -> FirmwareMap {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_by_key(|r| (r.start, r.end));
        FirmwareMap { ranges }
    }

    /// Bytes of one type.
    #[must_use]
    pub fn of_kind(&self, kind: u32) -> RangeSet {
        let of_kind = self.ranges.iter().filter(|r| r.kind == kind);
        of_kind.map(|r| r.start..r.end).collect()
    }

    /// The map as it travels: start, end, type of each range, little endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ranges.len() * ENTRY);
        for range in &self.ranges {
            bytes.extend_from_slice(&range.start.to_le_bytes());
            bytes.extend_from_slice(&range.end.to_le_bytes());
            bytes.extend_from_slice(&range.kind.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<FirmwareMap> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        let range = |entry: &[u8; ENTRY]| {
            Some(FirmwareRange {
                start: u64::from_le_bytes(entry[..8].try_into().ok()?),
                end: u64::from_le_bytes(entry[8..16].try_into().ok()?),
                kind: u32::from_le_bytes(entry[16..].try_into().ok()?),
            })
        };
        let ranges = entries.iter().map(range).collect::<Option<_>>()?;
        rest.is_empty().then(|| FirmwareMap::new(ranges))
    }
}

const ENTRY: usize = 20;

fn read_text(path: &Path) -> Result<String, FirmwareError> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|cause| FirmwareError::File {
            path: path.to_owned(),
            cause,
        })
}

fn read_number(path: &Path) -> Result<u64, FirmwareError> {
    let text = read_text(path)?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| FirmwareError::Contents {
        path: path.to_owned(),
        text,
    })
}

/// Directories below `dir`; none when it is not there.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// `/sys/kernel/boot_params/setup_data/N/{type,data}` (Documentation/ABI/testing/sysfs-kernel-boot_params).
fn travelled(sys: &Path) -> Result<Option<FirmwareMap>, FirmwareError> {
    for entry in below(&sys.join("kernel/boot_params/setup_data")) {
        if read_number(&entry.join("type"))? != u64::from(SETUP_DATA_TYPE) {
            continue;
        }
        let path = entry.join("data");
        let bytes = std::fs::read(&path).map_err(|cause| FirmwareError::File {
            path: path.clone(),
            cause,
        })?;
        return match FirmwareMap::from_bytes(&bytes) {
            Some(map) => Ok(Some(map)),
            None => Err(FirmwareError::Contents {
                path,
                text: format!("{} bytes", bytes.len()),
            }),
        };
    }
    Ok(None)
}

/// `/sys/firmware/memmap/N/{start,end,type}` (Documentation/ABI/testing/sysfs-firmware-memmap).
fn booted(sys: &Path) -> Result<FirmwareMap, FirmwareError> {
    let mut ranges = Vec::new();
    for entry in below(&sys.join("firmware/memmap")) {
        let path = entry.join("type");
        let text = read_text(&path)?;
        let Some(kind) = kind_of(&text) else {
            return Err(FirmwareError::Contents { path, text });
        };
        ranges.push(FirmwareRange {
            start: read_number(&entry.join("start"))?,
            end: read_number(&entry.join("end"))?.saturating_add(1),
            kind,
        });
    }
    Ok(FirmwareMap::new(ranges))
}

/// Names of types (`e820_type_to_string`, arch/x86/kernel/e820.c). What the kernel does not know
/// is left alone as reserved.
fn kind_of(text: &str) -> Option<u32> {
    Some(match text {
        "System RAM" => kind::RAM,
        "Reserved" | "Unknown E820 type" | "Device reserved" => kind::RESERVED,
        "ACPI Tables" => kind::ACPI,
        "ACPI Non-volatile Storage" => kind::NVS,
        "Unusable memory" => kind::UNUSABLE,
        "Persistent Memory" => kind::PMEM,
        "Persistent Memory (legacy)" => kind::PRAM,
        "Soft Reserved" => kind::SOFT_RESERVED,
        _ => return None,
    })
}

/// A range as the standard library has it.
impl From<&FirmwareRange> for Range<u64> {
    fn from(range: &FirmwareRange) -> Range<u64> {
        range.start..range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sys(PathBuf);

    impl Sys {
        fn new(name: &str) -> Sys {
            Sys(std::env::temp_dir().join(format!("firmware-{name}-{}", std::process::id())))
        }
        fn put(&self, path: &str, bytes: &[u8]) {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn booted_host(sys: &Sys) {
        for (n, text) in [
            "0x100000 0x5ffdffff System RAM",
            "0x0 0x9fbff System RAM",
            "0xfffc0000 0xffffffff Reserved",
        ]
        .iter()
        .enumerate()
        {
            let mut words = text.splitn(3, ' ');
            for file in ["start", "end", "type"] {
                sys.put(
                    &format!("firmware/memmap/{n}/{file}"),
                    words.next().unwrap().as_bytes(),
                );
            }
        }
    }

    #[test]
    fn the_kernels_own_map_is_read_and_sorted() {
        let sys = Sys::new("own");
        booted_host(&sys);
        let map = FirmwareMap::read(&sys.0).unwrap();
        assert_eq!(map.ranges.len(), 3);
        assert_eq!(
            map.of_kind(kind::RAM).to_string(),
            "[0x0, 0x9fc00) [0x100000, 0x5ffe0000)"
        );
    }

    #[test]
    fn the_map_that_travelled_goes_first() {
        let sys = Sys::new("travelled");
        booted_host(&sys);
        let range = FirmwareRange {
            start: 0,
            end: 1 << 40,
            kind: kind::RAM,
        };
        let map = FirmwareMap::new(vec![range]);
        sys.put("kernel/boot_params/setup_data/0/type", b"0x9\n");
        sys.put("kernel/boot_params/setup_data/0/data", b"seed");
        let kind = format!("{SETUP_DATA_TYPE:#x}\n");
        sys.put("kernel/boot_params/setup_data/1/type", kind.as_bytes());
        sys.put("kernel/boot_params/setup_data/1/data", &map.to_bytes());
        assert_eq!(FirmwareMap::read(&sys.0).unwrap(), map);
        sys.put("kernel/boot_params/setup_data/1/data", b"short");
        assert!(FirmwareMap::read(&sys.0).is_err());
    }

    #[test]
    fn no_map_is_an_error() {
        let sys = Sys::new("none");
        assert!(matches!(
            FirmwareMap::read(&sys.0),
            Err(FirmwareError::NoRam)
        ));
    }
}
