//! `boot_params` and what it points to, as one run of pages.
//!
//! ```text
//! page 0      boot_params
//! page 1      command line
//! page 2      trampoline
//! page 3..    setup_data, a list
//! ```

use crate::e820::{ENTRY_SIZE, Entry};
use crate::image::{KernelImage, SETUP_HEADER};
use std::path::PathBuf;

const PAGE: usize = sys::PAGE_SIZE;
const CMDLINE_AT: usize = PAGE;
/// Offset of the trampoline, the entry point for kexec.
pub const TRAMPOLINE_AT: usize = 2 * PAGE;
const SETUP_DATA_AT: usize = 3 * PAGE;

// Offsets in boot_params.
const ACPI_RSDP: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_CMD_LINE: usize = 0x0c8;
const EFI_INFO: std::ops::Range<usize> = 0x1c0..0x1e0;
const E820_COUNT: usize = 0x1e8;
const SENTINEL: usize = 0x1ef;
const VID_MODE: usize = 0x1fa;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;

/// No assigned number: "undefined" (boot.rst).
const LOADER_UNDEFINED: u8 = 0xff;
const SETUP_E820_EXT: u32 = 1;

/// Why the running kernel's parameters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BootParamsError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It has another size than a page.
    #[error("{}: {len} bytes, 4096 were expected", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: usize,
    },
}

/// What the running kernel was given: screen, disks, ACPI's tables.
#[derive(Clone, Debug)]
pub struct OldParams {
    page: Vec<u8>,
    rsdp: Option<u64>,
}

impl OldParams {
    /// Reads `SYS/kernel/boot_params/data` and, on a host with EFI, where ACPI's tables are.
    ///
    /// # Errors
    /// [`BootParamsError`].
    pub fn read(sys: &std::path::Path) -> Result<OldParams, BootParamsError> {
        let path = sys.join("kernel/boot_params/data");
        let page = std::fs::read(&path).map_err(|cause| BootParamsError::File {
            path: path.clone(),
            cause,
        })?;
        if page.len() != PAGE {
            return Err(BootParamsError::Size {
                path,
                len: page.len(),
            });
        }
        let tables = std::fs::read_to_string(sys.join("firmware/efi/systab")).unwrap_or_default();
        let rsdp = ["ACPI20=", "ACPI="].iter().find_map(|key| {
            let value = tables.lines().find_map(|line| line.strip_prefix(key))?;
            u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()
        });
        Ok(OldParams { page, rsdp })
    }
}

/// A `setup_data` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupData {
    /// `SETUP_*`, or a number the kernel does not know and only shows in sysfs.
    pub kind: u32,
    /// Its contents.
    pub data: Vec<u8>,
}

/// What the new kernel is told.
#[derive(Clone, Debug)]
pub struct Told<'a> {
    /// The running kernel's parameters.
    pub old: &'a OldParams,
    /// The new kernel.
    pub image: &'a KernelImage,
    /// Its memory map.
    pub map: &'a [Entry],
    /// Its command line.
    pub cmdline: &'a str,
    /// Entries beside those that are made here.
    pub setup_data: &'a [SetupData],
}

/// Addresses that go into the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of the pages made here.
    pub params: u64,
    /// Load address of the kernel.
    pub kernel: u64,
    /// Of the archive.
    pub initrd: u64,
    /// Bytes of the archive.
    pub initrd_len: u64,
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Told<'_> {
    /// The pages, for these addresses. Their number does not depend on the addresses.
    #[must_use]
    pub fn pages(&self, at: Addresses) -> Vec<u8> {
        let mut bytes = self.page(at);
        bytes.extend_from_slice(self.cmdline.as_bytes());
        bytes.resize(TRAMPOLINE_AT, 0);
        bytes.extend_from_slice(&trampoline(at));
        bytes.resize(SETUP_DATA_AT, 0);
        bytes.extend_from_slice(&self.setup_data_list(at.params + SETUP_DATA_AT as u64));
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        bytes
    }

    fn page(&self, at: Addresses) -> Vec<u8> {
        let mut page = self.old.page.clone();
        // The old setup header goes whole: a newer one may be shorter.
        page[SETUP_HEADER..0x290].fill(0);
        let vid_mode = [self.old.page[VID_MODE], self.old.page[VID_MODE + 1]];
        put(&mut page, SETUP_HEADER, self.image.setup_header());
        put(&mut page, VID_MODE, &vid_mode);
        put(&mut page, SENTINEL, &[0]);
        put(&mut page, TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        put(&mut page, CODE32_START, &(at.kernel as u32).to_le_bytes());
        split(&mut page, RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, at.initrd);
        split(&mut page, RAMDISK_SIZE, EXT_RAMDISK_SIZE, at.initrd_len);
        split(
            &mut page,
            CMD_LINE,
            EXT_CMD_LINE,
            at.params + CMDLINE_AT as u64,
        );
        let list = if self.entries().is_empty() {
            0
        } else {
            at.params + SETUP_DATA_AT as u64
        };
        put(&mut page, SETUP_DATA, &list.to_le_bytes());
        // Firmware services are not carried on: their memory map belongs to the old kernel.
        page[EFI_INFO].fill(0);
        if let Some(rsdp) = self.old.rsdp {
            put(&mut page, ACPI_RSDP, &rsdp.to_le_bytes());
        }
        let count = self.map.len().min(E820_MAX);
        put(&mut page, E820_COUNT, &[count as u8]);
        page[E820_TABLE..E820_TABLE + E820_MAX * ENTRY_SIZE].fill(0);
        for (index, entry) in self.map[..count].iter().enumerate() {
            put(
                &mut page,
                E820_TABLE + index * ENTRY_SIZE,
                &entry.to_bytes(),
            );
        }
        page
    }

    fn entries(&self) -> Vec<SetupData> {
        let mut entries = self.setup_data.to_vec();
        if let Some(rest) = self.map.get(E820_MAX..).filter(|rest| !rest.is_empty()) {
            entries.push(SetupData {
                kind: SETUP_E820_EXT,
                data: rest.iter().flat_map(Entry::to_bytes).collect(),
            });
        }
        entries
    }

    /// `struct setup_data`: next u64, type u32, length u32, data.
    fn setup_data_list(&self, start: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let entries = self.entries();
        for (index, entry) in entries.iter().enumerate() {
            let len = (16 + entry.data.len()).next_multiple_of(16);
            let next = match index + 1 == entries.len() {
                true => 0,
                false => start + (bytes.len() + len) as u64,
            };
            let end = bytes.len() + len;
            bytes.extend_from_slice(&next.to_le_bytes());
            bytes.extend_from_slice(&entry.kind.to_le_bytes());
            bytes.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&entry.data);
            bytes.resize(end, 0);
        }
        bytes
    }
}

/// Low 32 bits in the header, the rest in the `ext_` field.
fn split(page: &mut [u8], low: usize, high: usize, value: u64) {
    put(page, low, &(value as u32).to_le_bytes());
    put(page, high, &((value >> 32) as u32).to_le_bytes());
}

/// `mov rsi, boot_params; mov rax, entry; jmp rax`: kexec enters with all registers zero, the
/// kernel's 64-bit entry wants its parameters in rsi (boot.rst, "64-bit BOOT PROTOCOL").
fn trampoline(at: Addresses) -> [u8; 22] {
    let mut code = [0; 22];
    put(&mut code, 0, &[0x48, 0xbe]);
    put(&mut code, 2, &at.params.to_le_bytes());
    put(&mut code, 10, &[0x48, 0xb8]);
    put(&mut code, 12, &(at.kernel + 0x200).to_le_bytes());
    put(&mut code, 20, &[0xff, 0xe0]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820;
    use crate::image::sample;
    use std::path::Path;

    fn old() -> OldParams {
        let mut page = vec![0x11; PAGE];
        page[VID_MODE] = 0x0f;
        OldParams { page, rsdp: None }
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }
    fn half(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    const AT: Addresses = Addresses {
        params: 0x1_2000_0000,
        kernel: 0x1_1000_0000,
        initrd: 0x1_3000_1000,
        initrd_len: 0x1234,
    };

    fn map(count: u64) -> Vec<Entry> {
        (0..count)
            .map(|n| Entry {
                range: n << 20..(n << 20) + 4096,
                kind: e820::RAM,
            })
            .collect()
    }

    #[test]
    fn the_new_kernel_finds_everything() {
        let image = KernelImage::parse(Path::new("k"), sample()).unwrap();
        let told = Told {
            old: &old(),
            image: &image,
            map: &map(3),
            cmdline: "ro quiet",
            setup_data: &[],
        };
        let pages = told.pages(AT);
        assert_eq!(pages.len(), 3 * PAGE);
        assert_eq!(pages[0], 0x11, "the screen stays");
        assert_eq!(pages[VID_MODE], 0x0f);
        assert_eq!(&pages[0x202..0x206], b"HdrS");
        assert_eq!(
            (half(&pages, RAMDISK_IMAGE), half(&pages, EXT_RAMDISK_IMAGE)),
            (0x3000_1000, 1)
        );
        assert_eq!(
            (half(&pages, RAMDISK_SIZE), half(&pages, EXT_RAMDISK_SIZE)),
            (0x1234, 0)
        );
        assert_eq!(
            (half(&pages, CMD_LINE), half(&pages, EXT_CMD_LINE)),
            (0x2000_1000, 1)
        );
        assert_eq!(word(&pages, SETUP_DATA), 0);
        assert_eq!(pages[E820_COUNT], 3);
        assert_eq!(word(&pages, E820_TABLE + ENTRY_SIZE), 1 << 20);
        assert!(pages[EFI_INFO].iter().all(|b| *b == 0));
        assert!(pages[CMDLINE_AT..].starts_with(b"ro quiet\0"));
        let code = &pages[TRAMPOLINE_AT..];
        assert_eq!(code[..2], [0x48, 0xbe]);
        assert_eq!(word(code, 2), AT.params);
        assert_eq!(word(code, 12), AT.kernel + 0x200);
    }

    #[test]
    fn a_long_map_goes_on_in_the_list() {
        let image = KernelImage::parse(Path::new("k"), sample()).unwrap();
        let ours = SetupData {
            kind: 0x31,
            data: vec![7; 21],
        };
        let told = Told {
            old: &old(),
            image: &image,
            map: &map(130),
            cmdline: "",
            setup_data: std::slice::from_ref(&ours),
        };
        let pages = told.pages(AT);
        assert_eq!(pages[E820_COUNT], 128);
        let list = AT.params + SETUP_DATA_AT as u64;
        assert_eq!(word(&pages, SETUP_DATA), list);
        let first = &pages[SETUP_DATA_AT..];
        assert_eq!((half(first, 8), half(first, 12)), (0x31, 21));
        let next = (word(first, 0) - AT.params) as usize;
        let second = &pages[next..];
        assert_eq!(word(second, 0), 0);
        assert_eq!((half(second, 8), half(second, 12)), (1, 40));
        assert_eq!(word(second, 16), 128 << 20);
    }
}
