//! `/proc/PID/smaps`: mappings with their flags.

/// One mapping as the kernel prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `rwxp` or `rwxs`.
    pub perms: [u8; 4],
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file, in the form of `st_dev`.
    pub device: u64,
    /// Inode, 0 for none.
    pub inode: u64,
    /// The last column with its octal escapes decoded, empty for plain anonymous memory.
    pub name: Vec<u8>,
    /// Two-letter flags.
    pub flags: Vec<[u8; 2]>,
    /// Bytes of one page (`KernelPageSize`).
    pub page_size: u64,
    /// Bytes in memory (`Rss`; hugetlb pages are not counted in it).
    pub resident: u64,
    /// Bytes in swap (`Swap`).
    pub swapped: u64,
    /// Its protection key (`ProtectionKey`), None where the processor has none.
    pub protection_key: Option<u8>,
    /// Whether it has a memory policy of its own (mbind(2)), where the kernel's memory has told.
    pub policy: Option<bool>,
}

impl Mapping {
    /// `PROT_*` bits.
    #[must_use]
    pub fn prot(&self) -> u32 {
        let bit = |i: usize, value: u32| if self.perms[i] == b'-' { 0 } else { value };
        bit(0, 1) | bit(1, 2) | bit(2, 4)
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }

    /// `MAP_SHARED`.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.perms[3] == b's'
    }

    /// Its name below `/proc/PID/map_files`.
    #[must_use]
    pub fn map_file(&self) -> String {
        format!("map_files/{:x}-{:x}", self.start, self.end)
    }

    /// Takes over a counter line. None when it is not understood.
    fn counter(&mut self, line: &[u8]) -> Option<()> {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = line.split_at(colon);
        let bytes = || {
            let text = std::str::from_utf8(&value[1..]).ok()?.trim();
            text.trim_end_matches(" kB").parse::<u64>().ok()
        };
        match name {
            b"VmFlags" => {
                let pairs = value[1..].split(|b| *b == b' ');
                self.flags = pairs.filter_map(|f| <[u8; 2]>::try_from(f).ok()).collect();
            }
            b"Rss" => self.resident = bytes()? << 10,
            b"Swap" => self.swapped = bytes()? << 10,
            b"KernelPageSize" => self.page_size = bytes()? << 10,
            b"ProtectionKey" => self.protection_key = u8::try_from(bytes()?).ok(),
            _ => {}
        }
        Some(())
    }
}

/// Parses a whole smaps file. None when a line is not understood.
#[must_use]
pub fn parse_smaps(text: &[u8]) -> Option<Vec<Mapping>> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        // Header lines begin with a lower-case hexadecimal digit, counters with a capital.
        if line[0].is_ascii_uppercase() {
            found.last_mut()?.counter(line)?;
        } else {
            found.push(parse_header(line)?);
        }
    }
    Some(found)
}

fn parse_header(line: &[u8]) -> Option<Mapping> {
    let mut parts = line.splitn(6, |b| *b == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let perms: [u8; 4] = text()?.as_bytes().try_into().ok()?;
    let offset = text()?;
    let (major, minor) = text()?.split_once(':')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let device = nix::sys::stat::makedev(number(major)?, number(minor)?);
    let inode = text()?;
    let name = parts.next().unwrap_or(b"").trim_ascii_start();
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        perms,
        offset: u64::from_str_radix(offset, 16).ok()?,
        device,
        inode: inode.parse().ok()?,
        name: unescape(name),
        page_size: sys::PAGE_SIZE_U64,
        ..Mapping::default()
    })
}

/// Decodes `\012`, the only character that maps escape (mangle_path with "\n").
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] =
        b"55d0-55d1 r-xp 00001000 fe:00 77                      /usr/bin/a b\\012c (deleted)\n\
KernelPageSize:     2048 kB\nRss:                   4 kB\nVmFlags: rd ex mr mw me \n\
7f00-7f10 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac \n\
7f20-7f21 rw-s 00000000 00:01 9                          /SYSV\xff\n";

    #[test]
    fn names_flags_and_bytes_that_are_not_text() {
        let maps = parse_smaps(TEXT).unwrap();
        assert_eq!(maps.len(), 3);
        assert_eq!(maps[0].name, b"/usr/bin/a b\nc (deleted)");
        assert_eq!(maps[0].flags.len(), 5);
        assert_eq!(
            (maps[0].prot(), maps[0].offset, maps[0].inode),
            (5, 0x1000, 77)
        );
        assert_eq!((maps[0].resident, maps[0].page_size), (4096, 2 << 20));
        assert_eq!(maps[0].device, 0xfe00);
        assert_eq!(maps[0].map_file(), "map_files/55d0-55d1");
        assert!(maps[1].name.is_empty() && maps[1].has(b"wr"));
        assert_eq!(maps[1].flags[1], *b"wr");
        assert_eq!(maps[2].name, b"/SYSV\xff");
        assert!(maps[2].shared() && !maps[0].shared());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse_smaps(b"zz-1 rw-p 0 0:0 0\n").is_none());
        assert!(parse_smaps(b"VmFlags: rd\n").is_none());
    }
}
