//! What a process has and no interface tells of.

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, args, not_here, raw, sys};

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

/// Two threads: each has a keyring of its own that request_key(2) puts new keys in.
pub(crate) fn request_keyring(_: &Setting) -> Result<Watch> {
    let set = |which: u64| {
        let operation = libc::KEYCTL_SET_REQKEY_KEYRING.into();
        raw(libc::SYS_keyctl, args([operation, which]))
    };
    let now = move || sys("keyctl", set(u64::MAX));
    if set(u64::MAX) == -i64::from(libc::ENOSYS) {
        return not_here("no keys");
    }
    let mut crew = Crew::default();
    // KEY_REQKEY_DEFL_USER_KEYRING, _THREAD_KEYRING
    for which in [4, 1] {
        crew.add(move || {
            sys("keyctl", set(which))?;
            Ok(Watch::keep(now)?.spoiled_by(move || sys("keyctl", set(3)).map(drop)))
        })?;
    }
    Ok(crew.watch().and(Watch::keep(now)?))
}
