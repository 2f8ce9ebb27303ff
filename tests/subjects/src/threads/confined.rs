//! What a process has and no interface tells of.

use anyhow::Result;

use crate::kit::files::close;
use crate::kit::{Setting, Watch, args, not_here, raw, same, sys};

/// Landlock: it has forbidden itself to make block devices.
pub(crate) fn landlock(setting: &Setting) -> Result<Watch> {
    const MAKE_BLOCK: u64 = 1 << 11;
    let handled = [MAKE_BLOCK];
    let rules = raw(
        libc::SYS_landlock_create_ruleset,
        args([handled.as_ptr() as u64, 8]),
    );
    if [-libc::ENOSYS, -libc::EOPNOTSUPP]
        .map(i64::from)
        .contains(&rules)
    {
        return not_here("no Landlock");
    }
    sys("landlock_create_ruleset", rules)?;
    // SAFETY: no pointers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    })?;
    sys(
        "landlock_restrict_self",
        raw(libc::SYS_landlock_restrict_self, args([rules as u64])),
    )?;
    close(rules as i32);
    let path = setting.fresh("device");
    let name = std::ffi::CString::new(path.to_string_lossy().as_bytes())?;
    Ok(Watch::new(move || {
        let mode = libc::S_IFBLK | 0o600;
        let made = raw(
            libc::SYS_mknod,
            args([name.as_ptr() as u64, mode.into(), 0]),
        );
        same("making a block device", &-i64::from(libc::EACCES), &made)
    })
    .spoiled_by(move || std::fs::write(&path, "").map_err(Into::into)))
}

/// A key in the process keyring.
pub(crate) fn keys(_: &Setting) -> Result<Watch> {
    key_in(-2_i64 as u64)
}

/// A key in a session keyring that no other process has, beside others.
pub(crate) fn session_keys(_: &Setting) -> Result<Watch> {
    let join = args([libc::KEYCTL_JOIN_SESSION_KEYRING.into(), 0]);
    let keyring = raw(libc::SYS_keyctl, join);
    if keyring < 0 {
        return not_here("no keyrings");
    }
    for n in 0..40 {
        let name = std::ffi::CString::new(format!("_uid.test.{n}"))?;
        let new = [
            c"keyring".as_ptr() as u64,
            name.as_ptr() as u64,
            0,
            0,
            -3_i64 as u64,
        ];
        sys("add_key", raw(libc::SYS_add_key, args(new)))?;
    }
    key_in(-3_i64 as u64)
}

/// Puts a key into a keyring (`KEY_SPEC_*_KEYRING`).
fn key_in(keyring: u64) -> Result<Watch> {
    let (kind, name, secret) = (c"user", c"a key", b"secret");
    let key = raw(
        libc::SYS_add_key,
        args([
            kind.as_ptr() as u64,
            name.as_ptr() as u64,
            secret.as_ptr() as u64,
            secret.len() as u64,
            keyring,
        ]),
    );
    if [-libc::ENOSYS, -libc::EPERM].map(i64::from).contains(&key) {
        return not_here("no keyrings");
    }
    sys("add_key", key)?;
    let call = |operation: u32, rest: [u64; 2]| {
        raw(libc::SYS_keyctl, args([operation.into(), rest[0], rest[1]]))
    };
    Ok(Watch::keep(move || {
        let found = raw(
            libc::SYS_keyctl,
            args([
                libc::KEYCTL_SEARCH.into(),
                keyring,
                kind.as_ptr() as u64,
                name.as_ptr() as u64,
            ]),
        );
        Ok((found, call(libc::KEYCTL_READ, [key as u64, 0])))
    })?
    .spoiled_by(move || sys("keyctl", call(libc::KEYCTL_CLEAR, [keyring, 0])).map(drop)))
}
