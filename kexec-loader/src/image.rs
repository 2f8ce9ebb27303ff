//! bzImage files (Documentation/arch/x86/boot.rst, arch/x86/include/uapi/asm/bootparam.h).

use std::path::{Path, PathBuf};

/// Where the setup header lies, in the image and in `boot_params` alike.
pub const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP: usize = 0x201;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// The newest field read here, `init_size`, came with protocol 2.10; `xloadflags` with 2.12.
const OLDEST_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
const SECTOR: usize = 512;

/// Why a file is not taken as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It does not begin like a kernel.
    #[error("{} is not a kernel: {what}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// It ends too early.
    #[error("{} is cut off: {have} bytes, at least {need} are needed", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        have: usize,
        /// The size its header asks for.
        need: usize,
    },
    /// A kernel, but one that cannot be started this way.
    #[error("{} cannot be started by kexec: {what}", path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
}

/// A kernel that can be entered in 64-bit mode, anywhere in memory.
#[derive(Clone, Debug)]
pub struct KernelImage {
    bytes: Vec<u8>,
    /// `uname -r` of it.
    pub release: String,
    /// Bytes from its load address on that it uses before it has read the memory map.
    pub init_size: u64,
    /// What its load address must be a multiple of.
    pub alignment: u64,
    /// The address it would like, and below which it does not run.
    pub preferred: u64,
    /// Highest address of the archive's last byte.
    pub initrd_max: u64,
    /// Longest command line, without the NUL.
    pub cmdline_max: usize,
    /// Whether it and its data may lie above 4 GiB.
    pub above_4g: bool,
    setup_bytes: usize,
}

fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u16::from_le_bytes(*b))
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_le_bytes(*b))
}

impl KernelImage {
    /// Reads a file.
    ///
    /// # Errors
    /// As the variants of [`ImageError`] say.
    pub fn read(path: &Path) -> Result<KernelImage, ImageError> {
        let bytes = std::fs::read(path).map_err(|cause| ImageError::File {
            path: path.to_owned(),
            cause,
        })?;
        KernelImage::parse(path, bytes)
    }

    /// Reads the bytes of a file called `path`.
    ///
    /// # Errors
    /// As the variants of [`ImageError`] say, except [`ImageError::File`].
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<KernelImage, ImageError> {
        let not = |what| {
            Err(ImageError::NotAKernel {
                path: path.to_owned(),
                what,
            })
        };
        if bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
            return not("it has no setup header (\"HdrS\" at 0x202)");
        }
        if u16_at(&bytes, BOOT_FLAG) != 0xaa55 {
            return not("its boot sector has no signature");
        }
        suitable(path, &bytes)?;
        let setup_sectors = match u8_at(&bytes, SETUP_HEADER) {
            0 => 4,
            n => usize::from(n),
        };
        let setup_bytes = (setup_sectors + 1) * SECTOR;
        // In paragraphs of 16 bytes.
        let need = setup_bytes + u32_at(&bytes, 0x1f4) as usize * 16;
        if bytes.len() < need || need == setup_bytes {
            return Err(ImageError::Truncated {
                path: path.to_owned(),
                have: bytes.len(),
                need: need.max(setup_bytes + 1),
            });
        }
        let Some(release) = release(&bytes) else {
            return not("it does not name its release");
        };
        Ok(KernelImage {
            release,
            init_size: u64::from(u32_at(&bytes, INIT_SIZE)).max((need - setup_bytes) as u64),
            alignment: u64::from(u32_at(&bytes, KERNEL_ALIGNMENT))
                .max(1 << 12)
                .next_power_of_two(),
            preferred: u64_at(&bytes, PREF_ADDRESS),
            initrd_max: u64::from(u32_at(&bytes, INITRD_ADDR_MAX)),
            cmdline_max: (u32_at(&bytes, CMDLINE_SIZE) as usize).min(sys::PAGE_SIZE - 1),
            above_4g: u16_at(&bytes, XLOADFLAGS) & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            setup_bytes,
            bytes,
        })
    }

    /// What is to lie at the load address. The 64-bit entry is 0x200 bytes behind its start.
    #[must_use]
    pub fn protected_mode(&self) -> &[u8] {
        &self.bytes[self.setup_bytes..]
    }

    /// The setup header, to be copied to offset [`SETUP_HEADER`] of `boot_params`. Its length is in
    /// the jump instruction at its start.
    #[must_use]
    pub fn setup_header(&self) -> &[u8] {
        let end = (HEADER_MAGIC + usize::from(u8_at(&self.bytes, JUMP))).clamp(0x268, 0x290);
        &self.bytes[SETUP_HEADER..end.min(self.setup_bytes)]
    }
}

fn suitable(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let unsuitable = |what: String| {
        Err(ImageError::Unsuitable {
            path: path.to_owned(),
            what,
        })
    };
    let protocol = u16_at(bytes, VERSION);
    if protocol < OLDEST_PROTOCOL {
        return unsuitable(format!(
            "it speaks boot protocol {}.{:02}; 2.12 (Linux 3.8) is needed",
            protocol >> 8,
            protocol & 0xff
        ));
    }
    if u8_at(bytes, LOADFLAGS) & LOADED_HIGH == 0 {
        return unsuitable("it is a zImage, which loads below 1 MiB".into());
    }
    if u16_at(bytes, XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return unsuitable(
            "it has no 64-bit entry point (xloadflags); is it a 32-bit kernel?".into(),
        );
    }
    if u8_at(bytes, RELOCATABLE) == 0 {
        return unsuitable("it is not relocatable (CONFIG_RELOCATABLE)".into());
    }
    Ok(())
}

/// The first word of the version string.
fn release(bytes: &[u8]) -> Option<String> {
    let at = match u16_at(bytes, KERNEL_VERSION) {
        0 => return None,
        offset => usize::from(offset) + SECTOR,
    };
    let text = bytes.get(at..)?.split(|b| *b == 0 || *b == b' ').next()?;
    let text = std::str::from_utf8(text).ok()?;
    let plausible = !text.is_empty() && text.len() < 65 && text.is_ascii();
    plausible.then(|| text.to_owned())
}

/// A kernel image made up for tests.
#[cfg(test)]
pub(crate) fn sample() -> Vec<u8> {
    let mut bytes = vec![0; 3 * SECTOR + 40_000];
    let mut put = |at: usize, new: &[u8]| bytes[at..at + new.len()].copy_from_slice(new);
    put(SETUP_HEADER, &[2]);
    put(0x1f4, &2500u32.to_le_bytes());
    put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(HEADER_MAGIC, b"HdrS");
    put(VERSION, &0x020fu16.to_le_bytes());
    put(KERNEL_VERSION, &0x300u16.to_le_bytes());
    put(LOADFLAGS, &[1]);
    put(INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    put(RELOCATABLE, &[1]);
    put(XLOADFLAGS, &0x3fu16.to_le_bytes());
    put(CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    put(INIT_SIZE, &0x300_0000u32.to_le_bytes());
    put(0x500, b"6.12.1-test (someone@host) #1 SMP\0");
    put(3 * SECTOR, b"protected mode");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: Vec<u8>) -> Result<KernelImage, ImageError> {
        KernelImage::parse(Path::new("/boot/k"), bytes)
    }

    #[test]
    fn a_kernel_is_understood() {
        let image = parse(sample()).unwrap();
        assert_eq!(image.release, "6.12.1-test");
        assert_eq!(image.init_size, 0x300_0000);
        assert_eq!((image.alignment, image.preferred), (1 << 21, 16 << 20));
        assert!(image.above_4g);
        assert!(image.protected_mode().starts_with(b"protected"));
        let header = image.setup_header();
        assert_eq!(header.len(), 0x26c - SETUP_HEADER);
        assert_eq!(&header[HEADER_MAGIC - SETUP_HEADER..][..4], b"HdrS");
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        type Spoil = fn(&mut Vec<u8>);
        let table: &[(Spoil, &[&str])] = &[
            (|b| b.clear(), &["/boot/k", "not a kernel"]),
            (|b| b.truncate(0x204), &["not a kernel"]),
            (|b| b[HEADER_MAGIC] = 0, &["not a kernel", "HdrS"]),
            (|b| b[BOOT_FLAG] = 0, &["not a kernel", "signature"]),
            (|b| b.truncate(b.len() - 1), &["cut off", "41536"]),
            (|b| b[0x1f4..0x1f8].fill(0), &["cut off"]),
            (|b| b[XLOADFLAGS] &= !1, &["64-bit"]),
            (|b| b[RELOCATABLE] = 0, &["relocatable"]),
            (|b| b[LOADFLAGS] = 0, &["zImage"]),
            (|b| b[VERSION] = 9, &["protocol 2.09"]),
            (|b| b[0x500] = 0, &["release"]),
            (|b| b[KERNEL_VERSION + 1] = 0xff, &["release"]),
        ];
        for (spoil, words) in table {
            let mut bytes = sample();
            spoil(&mut bytes);
            let message = parse(bytes).unwrap_err().to_string();
            for word in *words {
                assert!(message.contains(word), "`{word}` is not in `{message}`");
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = KernelImage::read(Path::new("/nonexistent/vmlinuz")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vmlinuz"));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        // Every header byte in turn, at its extremes, with the file cut off at odd places.
        for at in SETUP_HEADER..0x290 {
            for value in [0, 0x7f, 0xff] {
                for len in [0x26c, 0x600, usize::MAX] {
                    let mut bytes = sample();
                    bytes[at] = value;
                    bytes.truncate(len);
                    if let Ok(image) = parse(bytes) {
                        let _ = (image.setup_header(), image.protected_mode());
                    }
                }
            }
        }
    }
}
