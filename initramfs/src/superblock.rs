//! Who a file system is: UUID and label from its superblock, because device numbers and names
//! change from boot to boot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Identity of a file system (or swap area) on a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its type, as mount(8) names it.
    pub kind: &'static str,
    /// UUID as text, lower case with dashes (vfat: `1234-ABCD`).
    pub uuid: String,
    /// Label, when it has one.
    pub label: Option<String>,
}

/// Reads the identity of what lies on `device`; `None` for a type not known here.
///
/// # Errors
/// The device cannot be opened or read.
pub fn identify(device: &Path) -> io::Result<Option<Identity>> {
    let file = File::open(device)?;
    Ok(ext(&file)
        .or_else(|| xfs(&file))
        .or_else(|| btrfs(&file))
        .or_else(|| swap(&file))
        .or_else(|| fat(&file)))
}

fn at<const N: usize>(file: &File, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

fn label_text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// ext2, ext3 and ext4 (Documentation/filesystems/ext4/super.rst).
fn ext(file: &File) -> Option<Identity> {
    const SUPER: u64 = 1024;
    if at::<2>(file, SUPER + 0x38)? != [0x53, 0xef] {
        return None;
    }
    let compat = u32::from_le_bytes(at(file, SUPER + 0x5c)?);
    let incompat = u32::from_le_bytes(at(file, SUPER + 0x60)?);
    let ro_compat = u32::from_le_bytes(at(file, SUPER + 0x64)?);
    // Anything newer than ext3 knew (extents, huge files, ...) makes it ext4.
    let kind = if incompat & !0x1f != 0 || ro_compat & !0x7 != 0 {
        "ext4"
    } else if compat & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    };
    Some(Identity {
        kind,
        uuid: uuid_text(at(file, SUPER + 0x68)?),
        label: label_text(&at::<16>(file, SUPER + 0x78)?),
    })
}

fn xfs(file: &File) -> Option<Identity> {
    (at::<4>(file, 0)? == *b"XFSB").then_some(())?;
    Some(Identity {
        kind: "xfs",
        uuid: uuid_text(at(file, 32)?),
        label: label_text(&at::<12>(file, 108)?),
    })
}

fn btrfs(file: &File) -> Option<Identity> {
    const SUPER: u64 = 0x10000;
    (at::<8>(file, SUPER + 0x40)? == *b"_BHRfS_M").then_some(())?;
    Some(Identity {
        kind: "btrfs",
        uuid: uuid_text(at(file, SUPER + 0x20)?),
        label: label_text(&at::<256>(file, SUPER + 0x12b)?),
    })
}

fn swap(file: &File) -> Option<Identity> {
    (at::<10>(file, 4086)? == *b"SWAPSPACE2").then_some(())?;
    Some(Identity {
        kind: "swap",
        uuid: uuid_text(at(file, 1036)?),
        label: label_text(&at::<16>(file, 1052)?),
    })
}

fn fat(file: &File) -> Option<Identity> {
    let (id, label) = if at::<8>(file, 0x52)? == *b"FAT32   " {
        (at::<4>(file, 0x43)?, at::<11>(file, 0x47)?)
    } else if at::<3>(file, 0x36)? == *b"FAT" {
        (at::<4>(file, 0x27)?, at::<11>(file, 0x2b)?)
    } else {
        return None;
    };
    let [a, b, c, d] = id;
    Some(Identity {
        kind: "vfat",
        uuid: format!("{d:02X}{c:02X}-{b:02X}{a:02X}"),
        label: label_text(&label).filter(|l| l != "NO NAME"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    fn image(tmp: &TestDir, parts: &[(usize, &[u8])]) -> std::path::PathBuf {
        let mut bytes = vec![0; 0x11000];
        for (offset, part) in parts {
            bytes[*offset..*offset + part.len()].copy_from_slice(part);
        }
        tmp.write("image", bytes);
        tmp.path().join("image")
    }

    const UUID: &[u8] = &[
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc,
        0xfe,
    ];
    const TEXT: &str = "01234567-89ab-cdef-1032-547698badcfe";

    #[test]
    fn each_kind_is_recognised() {
        let tmp = TestDir::new("superblock");
        type Parts<'a> = &'a [(usize, &'a [u8])];
        let cases: [(&str, Parts<'_>); 5] = [
            (
                "ext4",
                &[
                    (1024 + 0x38, &[0x53, 0xef]),
                    (1024 + 0x60, &[0x40]),
                    (1024 + 0x68, UUID),
                    (1024 + 0x78, b"rootfs"),
                ],
            ),
            (
                "ext3",
                &[
                    (1024 + 0x38, &[0x53, 0xef]),
                    (1024 + 0x5c, &[4]),
                    (1024 + 0x68, UUID),
                ],
            ),
            ("xfs", &[(0, b"XFSB"), (32, UUID)]),
            ("btrfs", &[(0x10040, b"_BHRfS_M"), (0x10020, UUID)]),
            ("swap", &[(4086, b"SWAPSPACE2"), (1036, UUID)]),
        ];
        for (kind, parts) in cases {
            let found = identify(&image(&tmp, parts)).unwrap().unwrap();
            assert_eq!((found.kind, found.uuid.as_str()), (kind, TEXT));
        }
        let fat = image(
            &tmp,
            &[(0x52, b"FAT32   "), (0x43, &[0x78, 0x56, 0x34, 0x12])],
        );
        assert_eq!(identify(&fat).unwrap().unwrap().uuid, "1234-5678");
        assert_eq!(identify(&image(&tmp, &[])).unwrap(), None);
        assert!(identify(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_label_is_read() {
        let tmp = TestDir::new("label");
        let path = image(
            &tmp,
            &[(1024 + 0x38, &[0x53, 0xef]), (1024 + 0x78, b"rootfs")],
        );
        assert_eq!(
            identify(&path).unwrap().unwrap().label.as_deref(),
            Some("rootfs")
        );
    }
}
