//! System V message queues.

use anyhow::Result;
use libc::{IPC_CREAT, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT};

use crate::kit::{Setting, Watch, args, raw, same, sys};

fn send(id: i32, kind: u64, text: &[u8]) -> Result<()> {
    let mut message = kind.to_ne_bytes().to_vec();
    message.extend(text);
    let arguments = [
        id as u64,
        message.as_ptr() as u64,
        text.len() as u64,
        IPC_NOWAIT as u64,
    ];
    sys("msgsnd", raw(libc::SYS_msgsnd, args(arguments))).map(drop)
}

/// The next message of a type, or of any.
fn receive(id: i32, kind: u64) -> Result<(u64, Vec<u8>)> {
    let mut message = vec![0_u8; 5008];
    let at = message.as_mut_ptr() as u64;
    let got = raw(
        libc::SYS_msgrcv,
        args([id as u64, at, 5000, kind, IPC_NOWAIT as u64]),
    );
    if got < 0 {
        anyhow::bail!("msgrcv: error {}", -got);
    }
    message.truncate(8 + got as usize);
    let text = message.split_off(8);
    let mut kind = [0; 8];
    kind.copy_from_slice(&message);
    Ok((u64::from_ne_bytes(kind), text))
}

/// Key, owner and mode, room, and how many there are.
fn state(id: i32) -> Result<(i32, u32, u64, u64)> {
    // SAFETY: zeros are a valid structure, and the kernel fills it.
    unsafe {
        let mut state: libc::msqid_ds = std::mem::zeroed();
        sys("msgctl", libc::msgctl(id, IPC_STAT, &raw mut state))?;
        Ok((
            state.msg_perm.__key,
            state.msg_perm.mode.into(),
            state.msg_qbytes,
            state.msg_qnum,
        ))
    }
}

/// Five messages of three types, one of them empty, one of more than a page.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let key = 0x6b75_0020_u64;
    let old = raw(libc::SYS_msgget, args([key]));
    if old >= 0 {
        raw(libc::SYS_msgctl, args([old as u64, IPC_RMID as u64]));
    }
    let id = sys(
        "msgget",
        raw(libc::SYS_msgget, args([key, (IPC_CREAT | 0o620) as u64])),
    )? as i32;
    // SAFETY: zeros are a valid structure, and the kernel fills it.
    unsafe {
        let mut state: libc::msqid_ds = std::mem::zeroed();
        sys("msgctl", libc::msgctl(id, IPC_STAT, &raw mut state))?;
        state.msg_qbytes = 9999;
        sys("msgctl", libc::msgctl(id, IPC_SET, &raw mut state))?;
    }
    let sent: [(u64, &[u8]); 5] = [
        (7, b"first"),
        (3, b""),
        (7, &[9; 5000]),
        (1 << 40, b"large type"),
        (7, b"last"),
    ];
    let fill = move || {
        sent.iter()
            .try_for_each(|(kind, text)| send(id, *kind, text))
    };
    fill()?;
    let observe = move || Ok((raw(libc::SYS_msgget, args([key])), state(id)?));
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            same("by type", &(3, Vec::new()), &receive(id, 3)?)?;
            for at in [0, 2, 3, 4] {
                same(
                    "in order",
                    &(sent[at].0, sent[at].1.to_vec()),
                    &receive(id, 0)?,
                )?;
            }
            same("one more", &true, &receive(id, 0).is_err())?;
            fill()
        })
        .spoiled_by(move || receive(id, 0).map(drop)),
    ))
}
