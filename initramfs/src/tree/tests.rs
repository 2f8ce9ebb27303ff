use super::make::node;
use super::*;
use crate::testdir::TestDir;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::SFlag;
use persist_mem::mounts::{DeviceNumber, Name};
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use sys::xattr;

/// Two new file systems in memory, which this thread alone sees, in `one` and `two` below a
/// directory.
fn two_in_memory(tmp: &TestDir) -> (PathBuf, PathBuf) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let new = |name| {
        let path = tmp.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let plain = MsFlags::empty();
        mount(Some("tmpfs"), &path, Some("tmpfs"), plain, None::<&str>).unwrap();
        path
    };
    (new("one"), new("two"))
}

/// A tree with one of everything.
fn build(at: &Path) {
    std::fs::create_dir_all(at.join("dir/empty")).unwrap();
    std::fs::write(at.join("dir/file"), b"contents").unwrap();
    std::fs::hard_link(at.join("dir/file"), at.join("linked")).unwrap();
    std::fs::create_dir(at.join("later")).unwrap();
    std::fs::hard_link(at.join("dir/file"), at.join("later/too")).unwrap();
    symlink("dir/file", at.join("link")).unwrap();
    let sparse = File::create(at.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"tail", 700_000).unwrap();
    node(&at.join("fifo"), SFlag::S_IFIFO, DeviceNumber::default()).unwrap();
    node(&at.join("socket"), SFlag::S_IFSOCK, DeviceNumber::default()).unwrap();
    let odd = at.join(OsStr::from_bytes(b"odd \xff\nname"));
    std::fs::write(&odd, b"").unwrap();
    std::fs::set_permissions(&odd, Permissions::from_mode(0o4751)).unwrap();
    let _ = xattr::set(&odd, c"user.note", b"value");
    std::fs::set_permissions(at.join("dir"), Permissions::from_mode(0o1777)).unwrap();
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let tmp = TestDir::new("tree");
    let (one, two) = two_in_memory(&tmp);
    // Numbers that nobody has any more.
    for _ in 0..300 {
        std::fs::write(one.join("gone"), b"").unwrap();
        std::fs::remove_file(one.join("gone")).unwrap();
    }
    build(&one);
    // A directory with a higher number than what is in it.
    std::fs::create_dir(one.join("latest")).unwrap();
    std::fs::rename(one.join("dir"), one.join("latest/dir")).unwrap();
    std::fs::create_dir(one.join("dir")).unwrap();
    std::fs::rename(one.join("latest/dir/file"), one.join("dir/file")).unwrap();
    std::fs::create_dir(one.join("point")).unwrap();
    std::fs::write(one.join("point/below"), b"seen").unwrap();
    let plain = MsFlags::empty();
    mount(
        Some("tmpfs"),
        &one.join("point"),
        Some("tmpfs"),
        plain,
        None::<&str>,
    )
    .unwrap();
    let tree = archive(&one, 1 << 20).unwrap();
    unpack(&tree, &two, Existing::Refuse).unwrap();
    assert_eq!(archive(&two, 1 << 20).unwrap(), tree);
    let meta = |p: &str| std::fs::symlink_metadata(two.join(p)).unwrap();
    assert_eq!(meta("linked").ino(), meta("dir/file").ino());
    assert_eq!(meta("latest/dir").mode() & 0o7777, 0o1777);
    assert!(meta("latest").ino() > meta("latest/dir").ino() && meta("linked").ino() > 300);
    assert_eq!(std::fs::read(two.join("point/below")).unwrap(), b"seen");
    assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
    assert!(meta("sparse").blocks() * 512 < 1 << 19, "holes stay holes");
    assert_eq!(
        meta("dir").mtime(),
        std::fs::metadata(one.join("dir")).unwrap().mtime()
    );
    assert!(
        unpack(&tree, &two, Existing::Refuse).is_err(),
        "names exist"
    );
    unpack(&tree, &two, Existing::Keep).unwrap();
}

#[test]
fn too_much_is_refused_by_name() {
    let tmp = TestDir::new("large");
    tmp.write("a/big", vec![1; 5000]);
    let error = archive(tmp.path(), 4999).unwrap_err().to_string();
    assert!(error.contains("a/big") && error.contains("4999"), "{error}");
}

#[test]
fn a_damaged_tree_cannot_write_elsewhere() {
    let tmp = TestDir::new("damaged");
    let mut tree = archive(tmp.path(), 0).unwrap();
    let mut evil = tree.inodes[0].clone();
    evil.names = vec![Name {
        parent: 0,
        position: 0,
        name: b"../evil".to_vec(),
    }];
    tree.inodes.push(evil);
    assert!(matches!(
        unpack(&tree, tmp.path(), Existing::Refuse),
        Err(TreeError::Damaged(1))
    ));
}
