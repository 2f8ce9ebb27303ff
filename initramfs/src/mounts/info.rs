//! /proc/PID/mountinfo (proc_pid_mountinfo(5)), byte for byte.

use super::{MountError, Result};
use nix::mount::MsFlags;
use persist_mem::mounts::{DeviceNumber, Mount};

/// `MS_NOSYMFOLLOW` (linux/mount.h), which nix does not know.
const MS_NOSYMFOLLOW: u64 = 256;

/// Per-mount options and their bits.
const FLAGS: [(&[u8], u64); 8] = [
    (b"ro", MsFlags::MS_RDONLY.bits()),
    (b"nosuid", MsFlags::MS_NOSUID.bits()),
    (b"nodev", MsFlags::MS_NODEV.bits()),
    (b"noexec", MsFlags::MS_NOEXEC.bits()),
    (b"noatime", MsFlags::MS_NOATIME.bits()),
    (b"nodiratime", MsFlags::MS_NODIRATIME.bits()),
    (b"relatime", MsFlags::MS_RELATIME.bits()),
    (b"nosymfollow", MS_NOSYMFOLLOW),
];

/// Parses a whole file.
///
/// # Errors
/// [`MountError::Line`].
pub fn parse(bytes: &[u8]) -> Result<Vec<Mount>> {
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line)
                .ok_or_else(|| MountError::Line(String::from_utf8_lossy(line).into_owned()))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = words.iter().skip(6).position(|w| *w == b"-")? + 6;
    let device = number_pair(words.get(2)?)?;
    let mut mount = Mount {
        id: number(words.first()?)?,
        parent: number(words.get(1)?)?,
        device,
        root: unescape(words.get(3)?),
        point: unescape(words.get(4)?),
        flags: flags(words.get(5)?),
        shared: None,
        master: None,
        unbindable: false,
        kind: String::from_utf8(unescape(words.get(dash + 1)?)).ok()?,
        source: unescape(words.get(dash + 2)?),
        super_options: unescape(words.get(dash + 3)?),
    };
    for tag in &words[6..dash] {
        if let Some(group) = tag.strip_prefix(b"shared:") {
            mount.shared = Some(number(group)?);
        } else if let Some(group) = tag.strip_prefix(b"master:") {
            mount.master = Some(number(group)?);
        } else if *tag == b"unbindable" {
            mount.unbindable = true;
        }
    }
    Some(mount)
}

fn number(word: &[u8]) -> Option<u32> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn number_pair(word: &[u8]) -> Option<DeviceNumber> {
    let (major, minor) = std::str::from_utf8(word).ok()?.split_once(':')?;
    Some(DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// Without `noatime` and `relatime` the mount is strict about access times, which mount(2) must be
/// told.
fn flags(options: &[u8]) -> u64 {
    let mut bits = 0;
    for option in options.split(|b| *b == b',') {
        if let Some((_, bit)) = FLAGS.iter().find(|(name, _)| *name == option) {
            bits |= bit;
        }
    }
    if bits & (MsFlags::MS_NOATIME | MsFlags::MS_RELATIME).bits() == 0 {
        bits |= MsFlags::MS_STRICTATIME.bits();
    }
    bits
}

/// Undoes `\040` and the like.
pub(crate) fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime,nosuid master:1 shared:7 propagate_from:3 - ext3 /dev/root\\011x rw,errors=continue\n\
            1 0 0:2 / / rw - rootfs none rw\n\
            9 1 0:9 / /x rw,relatime unbindable - fuse.sshfs a:b rw\n";
        let mounts = parse(text).unwrap();
        assert_eq!(mounts.len(), 3);
        let m = &mounts[0];
        assert_eq!(
            (m.id, m.parent, m.device),
            (
                36,
                35,
                DeviceNumber {
                    major: 98,
                    minor: 0
                }
            )
        );
        assert_eq!(
            (m.root.as_slice(), m.point.as_slice()),
            (&b"/mnt1"[..], &b"/mnt 2"[..])
        );
        assert_eq!(
            (m.shared, m.master, m.unbindable),
            (Some(7), Some(1), false)
        );
        assert_eq!(m.flags, (MsFlags::MS_NOATIME | MsFlags::MS_NOSUID).bits());
        assert_eq!(
            (m.kind.as_str(), m.source.as_slice()),
            ("ext3", &b"/dev/root\tx"[..])
        );
        assert_eq!(m.super_options, b"rw,errors=continue");
        assert_eq!(mounts[1].flags, MsFlags::MS_STRICTATIME.bits());
        assert!(mounts[2].unbindable && mounts[2].flags == MsFlags::MS_RELATIME.bits());
    }

    #[test]
    fn half_a_line_is_an_error() {
        for line in [
            &b"36 35 98:0 / /mnt rw"[..],
            b"x 35 98:0 / /mnt rw - ext4 /dev/a rw",
            b"1 2",
        ] {
            assert!(matches!(parse(line), Err(MountError::Line(_))));
        }
    }
}
