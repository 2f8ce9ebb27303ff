//! The overlay archive: a "newc" cpio as the kernel unpacks it
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Entries are written in the order of their paths, with inode numbers counted up and times of
//! zero, so the same contents always give the same bytes.

use std::collections::BTreeMap;

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OverlayError {
    /// A path is empty, goes up (`..`) or holds a NUL byte.
    #[error("`{0}` cannot be a path inside the initramfs: it is empty, goes up, or holds a NUL")]
    BadPath(String),
    /// newc headers hold 32-bit sizes.
    #[error("`{path}` has {size} bytes; a file of the initramfs has less than 4 GiB")]
    TooLarge {
        /// Path inside the archive.
        path: String,
        /// Its bytes.
        size: u64,
    },
    /// The same path was added twice with different kinds.
    #[error("`{0}` was added to the initramfs twice")]
    Twice(String),
}

/// Character or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Node(NodeKind, u32, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    permissions: u32,
}

/// The contents of an initramfs, added piece by piece.
///
/// Directories above an entry come by themselves (mode 0755). The first mistake is kept and
/// returned by [`Overlay::finish`], so calls can be chained.
#[derive(Debug, Default)]
pub struct Overlay {
    entries: BTreeMap<String, Entry>,
    error: Option<OverlayError>,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
/// The kernel reads archives in blocks of this many bytes.
const BLOCK: usize = 512;

impl Overlay {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Overlay {
        Overlay::default()
    }

    /// An archive with what every `/init` needs: the binary, mount points, and the console, from
    /// which the kernel opens its standard files.
    #[must_use]
    pub fn with_init(binary: impl Into<Vec<u8>>) -> Overlay {
        let mut overlay = Overlay::new();
        overlay
            .file("init", 0o755, binary)
            .node("dev/console", 0o600, NodeKind::Char, 5, 1);
        for directory in ["proc", "sys", "sysroot", "tmp"] {
            overlay.dir(directory, 0o755);
        }
        overlay
    }

    /// Adds a regular file. `path` is absolute or relative to the archive's root; `mode` holds
    /// the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> &mut Overlay {
        self.add(path, mode, Kind::File(bytes.into()))
    }

    /// Adds a directory.
    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Overlay {
        self.add(path, mode, Kind::Dir)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Overlay {
        self.add(path, 0o777, Kind::Symlink(target.to_owned()))
    }

    /// Adds a device node.
    pub fn node(
        &mut self,
        path: &str,
        mode: u32,
        kind: NodeKind,
        major: u32,
        minor: u32,
    ) -> &mut Overlay {
        self.add(path, mode, Kind::Node(kind, major, minor))
    }

    /// Whether something was added under this path.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        clean(path).is_some_and(|path| self.entries.contains_key(&path))
    }

    fn add(&mut self, path: &str, mode: u32, kind: Kind) -> &mut Overlay {
        let Some(path) = clean(path) else {
            self.fail(OverlayError::BadPath(path.to_owned()));
            return self;
        };
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry {
                kind: Kind::Dir,
                permissions: 0o755,
            });
        }
        let entry = Entry {
            kind,
            permissions: mode & 0o7777,
        };
        let twice = match self.entries.get(&path) {
            Some(old) => old.kind != Kind::Dir || entry.kind != Kind::Dir,
            None => false,
        };
        if twice {
            self.fail(OverlayError::Twice(path));
        } else {
            self.entries.insert(path, entry);
        }
        self
    }

    fn fail(&mut self, error: OverlayError) {
        self.error.get_or_insert(error);
    }

    /// Writes the archive, its trailer and the padding to a full block.
    ///
    /// # Errors
    /// The first mistake made while adding, or a file of 4 GiB and more.
    pub fn finish(self) -> Result<Vec<u8>, OverlayError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut out = Vec::new();
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            write_entry(
                &mut out,
                u32::try_from(number + 1).unwrap_or(u32::MAX),
                path,
                entry,
            )?;
        }
        header(
            &mut out,
            &Header {
                links: 1,
                ..Header::default()
            },
            "TRAILER!!!",
        );
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        Ok(out)
    }
}

/// Removes leading and doubled slashes; `None` for a path that is no path in an archive.
fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    let bad = parts.is_empty() || parts.contains(&"..") || path.contains('\0');
    (!bad).then(|| parts.join("/"))
}

#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    size: u32,
    major: u32,
    minor: u32,
}

fn header(out: &mut Vec<u8>, header: &Header, name: &str) {
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    let fields = [
        header.inode,
        header.mode,
        0, // uid
        0, // gid
        header.links,
        0, // mtime
        header.size,
        0, // device of the file, major
        0, // and minor
        header.major,
        header.minor,
        name_size,
        0, // check sum, unused in this format
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn write_entry(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    entry: &Entry,
) -> Result<(), OverlayError> {
    let (kind, body, links, major, minor): (u32, &[u8], u32, u32, u32) = match &entry.kind {
        Kind::Dir => (S_IFDIR, &[], 2, 0, 0),
        Kind::File(bytes) => (S_IFREG, bytes, 1, 0, 0),
        Kind::Symlink(target) => (S_IFLNK, target.as_bytes(), 1, 0, 0),
        Kind::Node(NodeKind::Char, major, minor) => (S_IFCHR, &[], 1, *major, *minor),
        Kind::Node(NodeKind::Block, major, minor) => (S_IFBLK, &[], 1, *major, *minor),
    };
    let size = u32::try_from(body.len()).map_err(|_| OverlayError::TooLarge {
        path: path.to_owned(),
        size: body.len() as u64,
    })?;
    let fields = Header {
        inode,
        mode: kind | entry.permissions,
        links,
        size,
        major,
        minor,
    };
    header(out, &fields, path);
    out.extend_from_slice(body);
    pad(out);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One entry as read back.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Read {
        pub(crate) name: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) body: Vec<u8>,
    }

    /// An independent reader: it goes by the header's fields alone.
    pub(crate) fn read(archive: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let head = &archive[at..at + 110];
            assert_eq!(&head[..6], b"070701", "magic at {at}");
            let field = |n: usize| {
                let text = std::str::from_utf8(&head[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name[name_size - 1], 0);
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let body = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert!(archive[body..].iter().all(|b| *b == 0));
                return entries;
            }
            entries.push(Read {
                name,
                mode: field(1),
                device: (field(9), field(10)),
                body: archive[body..body + size].to_vec(),
            });
            at = (body + size).next_multiple_of(4);
        }
    }

    #[test]
    fn reads_back_what_was_added_with_parents_first() {
        let mut overlay = Overlay::new();
        overlay
            .file("/lib/modules/a.ko", 0o644, *b"abc")
            .dir("proc", 0o555)
            .symlink("bin", "usr/bin")
            .node("dev/console", 0o600, NodeKind::Char, 5, 1)
            .node("dev/vda", 0o660, NodeKind::Block, 254, 0)
            .file("init", 0o755, vec![0x7f; 5]);
        let archive = overlay.finish().unwrap();
        assert_eq!(archive.len() % 512, 0);
        let entries = read(&archive);
        let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "bin",
                "dev",
                "dev/console",
                "dev/vda",
                "init",
                "lib",
                "lib/modules",
                "lib/modules/a.ko",
                "proc"
            ]
        );
        assert_eq!(entries[0].mode, 0o120_777);
        assert_eq!(entries[0].body, b"usr/bin");
        assert_eq!(entries[1].mode, 0o040_755);
        assert_eq!((entries[2].mode, entries[2].device), (0o020_600, (5, 1)));
        assert_eq!((entries[3].mode, entries[3].device), (0o060_660, (254, 0)));
        assert_eq!((entries[4].mode, entries[4].body.len()), (0o100_755, 5));
        assert_eq!(entries[7].body, b"abc");
        assert_eq!(entries[8].mode, 0o040_555);
    }

    #[test]
    fn the_least_archive_has_init_and_a_console() {
        let entries = read(&Overlay::with_init(*b"elf").finish().unwrap());
        let mode = |name: &str| entries.iter().find(|e| e.name == name).map(|e| e.mode);
        assert_eq!(mode("init"), Some(0o100_755));
        assert_eq!(mode("dev/console"), Some(0o020_600));
        assert_eq!(mode("sysroot"), Some(0o040_755));
    }

    #[test]
    fn same_contents_give_same_bytes_whatever_the_order() {
        let mut one = Overlay::new();
        one.file("a", 0o644, *b"1").file("b/c", 0o600, *b"2");
        let mut two = Overlay::new();
        two.file("b/c", 0o600, *b"2").file("a", 0o644, *b"1");
        assert_eq!(one.finish().unwrap(), two.finish().unwrap());
    }

    #[test]
    fn a_directory_added_after_its_child_keeps_the_given_mode() {
        let mut overlay = Overlay::new();
        overlay.file("root/key", 0o600, *b"k").dir("root", 0o700);
        let entries = read(&overlay.finish().unwrap());
        assert_eq!(entries[0].mode, 0o040_700);
    }

    #[test]
    fn bad_paths_and_doubles_are_refused() {
        for path in ["", "/", "../etc", "a/../b", "a\0b"] {
            let mut overlay = Overlay::new();
            overlay.file(path, 0o644, *b"x");
            assert!(
                matches!(overlay.finish(), Err(OverlayError::BadPath(_))),
                "{path:?}"
            );
        }
        let mut overlay = Overlay::new();
        overlay.file("a", 0o644, *b"x").file("/a", 0o644, *b"y");
        assert_eq!(overlay.finish(), Err(OverlayError::Twice("a".into())));
    }
}
