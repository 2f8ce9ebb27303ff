//! User, groups and capabilities. Nothing that needs privileges can come after.

use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Credentials, Live, Thread};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use sys::Pid;
use sys::batch::{Arg, Batch};

const PR_SET_PDEATHSIG: i32 = 1;
const PR_SET_DUMPABLE: i32 = 4;
const PR_CAPBSET_DROP: i32 = 24;
const PR_SET_SECUREBITS: i32 = 28;
const PR_SET_NO_NEW_PRIVS: i32 = 38;
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: i32 = 2;
/// `SECBIT_NO_SETUID_FIXUP`: changing ids leaves capabilities alone.
const NO_SETUID_FIXUP: u32 = 1 << 2;
/// `CAP_SETPCAP`
const SETPCAP: u64 = 1 << 8;
/// Capabilities there may be (capabilities(7)); what a kernel does not know it does not have.
const CAPABILITIES: u64 = 64;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets them for every thread.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let doing = "setting a thread's credentials";
    let own = own();
    // Nobody who shares the memory of such a process changes its users, which would clear `dumpable`.
    let as_made = |live: &Live| {
        let same = |thread: &Thread| own.as_ref() == Some(&thread.credentials);
        live.dumpable < 2 && live.all_threads().all(same)
    };
    let kept: BTreeSet<Pid> = restore
        .lives()
        .filter(|(pid, live)| !restore.acted.contains(pid) && as_made(live))
        .map(|(pid, _)| pid)
        .collect();
    super::together(restore, doing, |pid, live, thread| {
        let mut batch = Batch::new();
        let kept = kept.contains(&pid);
        if live.dumpable > 1 {
            clear_dumpable(&mut batch);
        }
        if !kept {
            become_user(&mut batch, &thread.credentials);
        }
        afterwards(&mut batch, thread);
        // Every change of users has cleared it.
        let first = live.threads.first().map(|first| first.tid) == Some(thread.tid);
        if live.dumpable < 2 && (first || !kept) {
            let args = [PR_SET_DUMPABLE.into(), u64::from(live.dumpable).into()];
            batch.call("setting dumpable", nr::PRCTL, args);
        }
        batch
    })
}

/// 2 cannot be set: it is what a change of users leaves where `fs.suid_dumpable` says so, also one that is taken back.
fn clear_dumpable(batch: &mut Batch) {
    for user in [1, 0] {
        let args = [Arg::Value(user)];
        batch.call("clearing dumpable", nr::SETFSUID, args);
    }
}

/// Those of this process, which what it makes begins with. None when they cannot be told, or are not the same
/// after it has acted as another user for a while.
fn own() -> Option<Credentials> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let status = sys::procdir::read(me, "status").ok()?;
    let text = std::str::from_utf8(&status).ok()?;
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.strip_prefix(':')
    };
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let words = line(name)?.split_ascii_whitespace();
        words.map(|word| word.parse().ok()).collect()
    };
    let set = |name: &str| u64::from_str_radix(line(name)?.trim(), 16).ok();
    let own = Credentials {
        uid: numbers("Uid")?.try_into().ok()?,
        gid: numbers("Gid")?.try_into().ok()?,
        groups: numbers("Groups")?,
        inheritable: set("CapInh")?,
        permitted: set("CapPrm")?,
        effective: set("CapEff")?,
        bounding: set("CapBnd")?,
        ambient: set("CapAmb")?,
        securebits: sys::process::securebits().ok()?,
    };
    let same = |ids: &[u32; 4]| ids.iter().all(|id| *id == ids[0]);
    (same(&own.uid) && same(&own.gid) && own.effective == own.permitted).then_some(own)
}

/// As [`become_user`], for one that is about to end. It may have had a user namespace of its own, in which it had
/// capabilities that this process has not: it gets those that there are.
pub(crate) fn become_ended_user(batch: &mut Batch, c: &Credentials) {
    let ours = permitted().unwrap_or(u64::MAX);
    let [inheritable, permitted, effective, ambient] =
        [c.inheritable, c.permitted, c.effective, c.ambient].map(|set| set & ours);
    let possible = Credentials {
        inheritable,
        permitted,
        effective,
        ambient,
        ..c.clone()
    };
    become_user(batch, &possible);
}

/// The capabilities of this process.
fn permitted() -> Option<u64> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let status = sys::procdir::read(me, "status").ok()?;
    let text = std::str::from_utf8(&status).ok()?;
    let set = text.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Each step needs what the next one takes: ambient capabilities need inheritable ones and no securebit against
/// them, inheritable ones a bounding set that has them, and all of it `CAP_SETPCAP`. Locks of securebits are for good.
pub(crate) fn become_user(batch: &mut Batch, c: &Credentials) {
    securebits(batch, "keeping capabilities", NO_SETUID_FIXUP);
    let groups: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let list = batch.data(&groups);
    let args = [c.groups.len().into(), list.into()];
    batch.call("setting its groups", nr::SETGROUPS, args);
    let [real, effective, saved, fs] = c.gid;
    let args = [real.into(), effective.into(), saved.into()];
    batch.call("setting its group ids", nr::SETRESGID, args);
    batch.call("setting its file system group", nr::SETFSGID, [fs.into()]);
    let [real, effective, saved, fs] = c.uid;
    let args = [real.into(), effective.into(), saved.into()];
    batch.call("setting its user ids", nr::SETRESUID, args);
    batch.call("setting its file system user", nr::SETFSUID, [fs.into()]);
    let able = c.permitted | SETPCAP;
    capset(batch, [able, able, c.inheritable]);
    for bit in (0..=last_capability()).filter(|bit| c.ambient >> bit & 1 == 1) {
        let raise = PR_CAP_AMBIENT_RAISE.into();
        let args = [PR_CAP_AMBIENT.into(), raise, bit.into(), 0.into(), 0.into()];
        batch.call("raising an ambient capability", nr::PRCTL, args);
    }
    for bit in (0..=last_capability()).filter(|bit| c.bounding >> bit & 1 == 0) {
        let args = [
            PR_CAPBSET_DROP.into(),
            bit.into(),
            0.into(),
            0.into(),
            0.into(),
        ];
        batch.call("bounding its capabilities", nr::PRCTL, args);
    }
    if c.securebits != NO_SETUID_FIXUP {
        securebits(batch, "setting securebits", c.securebits);
    }
    capset(batch, [c.effective, c.permitted, c.inheritable]);
}

fn securebits(batch: &mut Batch, doing: &'static str, bits: u32) {
    let args = [PR_SET_SECUREBITS.into(), u64::from(bits).into()];
    batch.call(doing, nr::PRCTL, args);
}

/// The highest capability this kernel knows.
fn last_capability() -> u64 {
    static LAST: LazyLock<u64> = LazyLock::new(|| {
        std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(40)
            .min(CAPABILITIES - 1)
    });
    *LAST
}

/// The effective, permitted and inheritable ones.
fn capset(batch: &mut Batch, sets: [u64; 3]) {
    let mut head = CAPABILITY_VERSION_3.to_le_bytes().to_vec();
    head.extend_from_slice(&0_u32.to_le_bytes());
    let head = batch.data(&head);
    // Low halves, then the high halves.
    let half = |shift: u32| sets.map(|set| (set >> shift & 0xffff_ffff) as u32);
    let words = [half(0), half(32)];
    let bytes: Vec<u8> = words
        .as_flattened()
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let data = batch.data(&bytes);
    batch.call(
        "setting its capabilities",
        nr::CAPSET,
        [head.into(), data.into()],
    );
}

pub(crate) fn afterwards(batch: &mut Batch, thread: &Thread) {
    if thread.pdeathsig != 0 {
        let args = [PR_SET_PDEATHSIG.into(), thread.pdeathsig.into()];
        batch.call("setting its parent death signal", nr::PRCTL, args);
    }
    if thread.no_new_privs {
        no_new_privs(batch);
    }
}

/// no_new_privs is for good.
pub(super) fn no_new_privs(batch: &mut Batch) {
    let args = [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0].map(Into::into);
    batch.call("giving up new privileges", nr::PRCTL, args);
}
