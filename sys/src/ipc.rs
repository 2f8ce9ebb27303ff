//! System V IPC (sysvipc(7)).

use crate::raw::syscall;
use crate::{Errno, Pid, Result};

/// `struct shmid_ds` (shmctl(2)), as far as it is used.
#[derive(Clone, Copy)]
pub struct ShmStat(libc::shmid_ds);

impl ShmStat {
    /// Owners, and mode with `SHM_DEST` (01000) and `SHM_LOCKED` (02000).
    #[must_use]
    pub fn owners(&self) -> Owners {
        owners(&self.0.shm_perm)
    }
    /// Size in bytes as asked for.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.shm_segsz as u64
    }
    /// Who made it.
    #[must_use]
    pub fn creator(&self) -> Pid {
        Pid(self.0.shm_cpid)
    }
    /// Who attached or detached it last; 0 for nobody.
    #[must_use]
    pub fn last(&self) -> Pid {
        Pid(self.0.shm_lpid)
    }
    /// Whether anybody has attached it yet.
    #[must_use]
    pub fn used(&self) -> bool {
        self.0.shm_atime != 0
    }
    /// Number of attachments.
    #[must_use]
    pub fn attached(&self) -> u64 {
        self.0.shm_nattch
    }
}

/// shmctl(2) `IPC_STAT`.
///
/// # Errors
/// `EINVAL` or `EIDRM` when there is no such segment.
pub fn shm_stat(id: i32) -> Result<ShmStat> {
    let mut stat = core::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    let args = [
        id as u64,
        libc::IPC_STAT as u64,
        stat.as_mut_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the structure is the one the kernel fills, and all zeroes is a value of it.
    unsafe {
        syscall(libc::SYS_shmctl, args)?;
        Ok(ShmStat(stat.assume_init()))
    }
}

/// shmctl(2) `IPC_SET`: owner, group and permission bits.
///
/// # Errors
/// As shmctl(2).
pub fn shm_set(id: i32, uid: u32, gid: u32, mode: u32) -> Result<()> {
    let mut stat = shm_stat(id)?.0;
    stat.shm_perm.uid = uid;
    stat.shm_perm.gid = gid;
    stat.shm_perm.mode = (mode & 0o777) as _;
    let args = [
        id as u64,
        libc::IPC_SET as u64,
        (&raw const stat) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads the structure, which lives through the call.
    unsafe { syscall(libc::SYS_shmctl, args) }.map(drop)
}

/// shmctl(2) `SHM_LOCK` and `IPC_RMID`: calls that take the id alone.
///
/// # Errors
/// As shmctl(2).
pub fn shm_control(id: i32, command: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_shmctl, [id as u64, command as u64, 0, 0, 0, 0]) }.map(drop)
}

/// shmget(2).
///
/// # Errors
/// As shmget(2).
pub fn shm_get(key: i32, size: u64, flags: i32) -> Result<i32> {
    // SAFETY: no pointers.
    let id = unsafe { syscall(libc::SYS_shmget, [key as u64, size, flags as u64, 0, 0, 0]) }?;
    i32::try_from(id).map_err(|_| Errno::EOVERFLOW)
}

/// A segment attached to this process, detached when dropped. What lies in it is others' too, so
/// it is an address for the kernel to copy from or to.
#[derive(Debug)]
pub struct Attached {
    address: u64,
}

impl Attached {
    /// shmat(2) at an address of the kernel's choice.
    ///
    /// # Errors
    /// As shmat(2).
    pub fn new(id: i32, read_only: bool) -> Result<Attached> {
        let flags = if read_only { libc::SHM_RDONLY } else { 0 };
        // SAFETY: a new mapping where the kernel finds room touches no other memory.
        let address = unsafe { syscall(libc::SYS_shmat, [id as u64, 0, flags as u64, 0, 0, 0]) }?;
        Ok(Attached { address })
    }

    /// Where it is attached.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it but by number.
        let _ = unsafe { syscall(libc::SYS_shmdt, [self.address, 0, 0, 0, 0, 0]) };
    }
}

/// Owners of an IPC object (`struct ipc64_perm`): key, owner, group, creator, creator's group, mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// The key, 0 for `IPC_PRIVATE`.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permission bits and flags.
    pub mode: u32,
}

fn owners(perm: &libc::ipc_perm) -> Owners {
    Owners {
        key: perm.__key,
        uid: perm.uid,
        gid: perm.gid,
        cuid: perm.cuid,
        cgid: perm.cgid,
        mode: u32::from(perm.mode),
    }
}

fn number(n: i32) -> u64 {
    i64::from(n).cast_unsigned()
}

fn id(result: u64) -> Result<i32> {
    i32::try_from(result).map_err(|_| Errno::EOVERFLOW)
}

fn sem_control(id: i32, member: i32, command: i32, argument: u64) -> Result<u64> {
    let args = [number(id), number(member), number(command), argument, 0, 0];
    // SAFETY: the callers below pass structures of the kind the command takes, which live through the
    // call.
    unsafe { syscall(libc::SYS_semctl, args) }
}

/// Owners and number of semaphores of a set (semctl(2) `IPC_STAT`).
///
/// # Errors
/// `EINVAL` or `EIDRM` when there is no such set.
pub fn sem_stat(id: i32) -> Result<(Owners, usize)> {
    let mut stat = core::mem::MaybeUninit::<libc::semid_ds>::zeroed();
    sem_control(id, 0, libc::IPC_STAT, stat.as_mut_ptr() as u64)?;
    // SAFETY: the kernel has filled it, and all zeroes is a value of it.
    let stat = unsafe { stat.assume_init() };
    let count = usize::try_from(stat.sem_nsems).unwrap_or(0);
    Ok((owners(&stat.sem_perm), count))
}

/// Whether anybody has made an operation on a set (`sem_otime` is not 0).
///
/// # Errors
/// As [`sem_stat`].
pub fn sem_operated(id: i32) -> Result<bool> {
    let mut stat = core::mem::MaybeUninit::<libc::semid_ds>::zeroed();
    sem_control(id, 0, libc::IPC_STAT, stat.as_mut_ptr() as u64)?;
    // SAFETY: the kernel has filled it, and all zeroes is a value of it.
    Ok(unsafe { stat.assume_init() }.sem_otime != 0)
}

/// An operation of semop(2): semaphore, what is added, flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SemOperation {
    /// Number in the set.
    pub number: u16,
    /// What is added.
    pub by: i16,
    /// `SEM_UNDO`: the reverse is remembered.
    pub undo: bool,
}

impl SemOperation {
    /// `struct sembuf`, with `IPC_NOWAIT`.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 6] {
        const IPC_NOWAIT: i16 = 0o4000;
        const SEM_UNDO: i16 = 0x1000;
        let flags = IPC_NOWAIT | if self.undo { SEM_UNDO } else { 0 };
        let ([a, b], [c, d], [e, f]) = (
            self.number.to_ne_bytes(),
            self.by.to_ne_bytes(),
            flags.to_ne_bytes(),
        );
        [a, b, c, d, e, f]
    }
}

/// semop(2) without waiting: all operations or none.
///
/// # Errors
/// `EAGAIN` when a value would be below 0, `ERANGE` when it would be too large.
pub fn sem_operate(id: i32, operations: &[SemOperation]) -> Result<()> {
    let bytes: Vec<u8> = operations.iter().flat_map(|one| one.to_bytes()).collect();
    let args = [
        number(id),
        bytes.as_ptr() as u64,
        operations.len() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads as many structures as there are.
    unsafe { syscall(libc::SYS_semop, args) }.map(drop)
}

/// semctl(2) `IPC_SET`: owner, group and permission bits.
///
/// # Errors
/// As semctl(2).
pub fn sem_set(id: i32, uid: u32, gid: u32, mode: u32) -> Result<()> {
    let mut stat = core::mem::MaybeUninit::<libc::semid_ds>::zeroed();
    sem_control(id, 0, libc::IPC_STAT, stat.as_mut_ptr() as u64)?;
    // SAFETY: the kernel has filled it, and all zeroes is a value of it.
    let mut stat = unsafe { stat.assume_init() };
    stat.sem_perm.uid = uid;
    stat.sem_perm.gid = gid;
    stat.sem_perm.mode = (mode & 0o777) as _;
    sem_control(id, 0, libc::IPC_SET, (&raw const stat) as u64).map(drop)
}

/// The values of the `count` semaphores of a set (semctl(2) `GETALL`).
///
/// # Errors
/// As semctl(2).
pub fn sem_values(id: i32, count: usize) -> Result<Vec<u16>> {
    // The kernel writes as many as there are now; the number of a set never changes.
    let (_, now) = sem_stat(id)?;
    let mut values = vec![0; now];
    sem_control(id, 0, libc::GETALL, values.as_mut_ptr() as u64)?;
    if now == count {
        Ok(values)
    } else {
        Err(Errno::EIDRM)
    }
}

/// Who changed a semaphore last (semctl(2) `GETPID`).
///
/// # Errors
/// As semctl(2).
pub fn sem_pid(id: i32, member: i32) -> Result<Pid> {
    let pid = sem_control(id, member, libc::GETPID, 0)?;
    Ok(Pid(i32::try_from(pid).unwrap_or(0)))
}

/// Sets one value of a set (semctl(2) `SETVAL`).
///
/// # Errors
/// As semctl(2).
pub fn sem_set_value(id: i32, member: i32, value: u16) -> Result<()> {
    sem_control(id, member, libc::SETVAL, value.into()).map(drop)
}

/// Sets all values of a set (semctl(2) `SETALL`).
///
/// # Errors
/// `EINVAL` when the set has another number of semaphores, among others.
pub fn sem_set_values(id: i32, values: &[u16]) -> Result<()> {
    if sem_stat(id)?.1 != values.len() {
        return Err(Errno::EINVAL);
    }
    sem_control(id, 0, libc::SETALL, values.as_ptr() as u64).map(drop)
}

/// semget(2).
///
/// # Errors
/// As semget(2).
pub fn sem_get(key: i32, count: usize, flags: i32) -> Result<i32> {
    let args = [number(key), count as u64, number(flags), 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_semget, args) }.and_then(id)
}

fn msg_stat_raw(id: i32) -> Result<libc::msqid_ds> {
    let mut stat = core::mem::MaybeUninit::<libc::msqid_ds>::zeroed();
    let args = [
        number(id),
        number(libc::IPC_STAT),
        stat.as_mut_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the structure is the one the kernel fills, and all zeroes is a value of it.
    unsafe {
        syscall(libc::SYS_msgctl, args)?;
        Ok(stat.assume_init())
    }
}

/// Owners, room in bytes, and number of messages of a queue (msgctl(2) `IPC_STAT`).
///
/// # Errors
/// `EINVAL` or `EIDRM` when there is no such queue.
pub fn msg_stat(id: i32) -> Result<(Owners, u64, u64)> {
    let stat = msg_stat_raw(id)?;
    Ok((owners(&stat.msg_perm), stat.msg_qbytes, stat.msg_qnum))
}

/// Who sent to and received from a queue last; 0 for nobody (`msg_lspid`, `msg_lrpid`).
///
/// # Errors
/// As [`msg_stat`].
pub fn msg_users(id: i32) -> Result<(Pid, Pid)> {
    let stat = msg_stat_raw(id)?;
    Ok((Pid(stat.msg_lspid), Pid(stat.msg_lrpid)))
}

/// msgctl(2) `IPC_SET`: owner, group, permission bits and room.
///
/// # Errors
/// As msgctl(2).
pub fn msg_set(id: i32, uid: u32, gid: u32, mode: u32, room: u64) -> Result<()> {
    let mut stat = msg_stat_raw(id)?;
    stat.msg_perm.uid = uid;
    stat.msg_perm.gid = gid;
    stat.msg_perm.mode = (mode & 0o777) as _;
    stat.msg_qbytes = room;
    let args = [
        number(id),
        number(libc::IPC_SET),
        (&raw const stat) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the kernel reads the structure, which lives through the call.
    unsafe { syscall(libc::SYS_msgctl, args) }.map(drop)
}

/// msgget(2).
///
/// # Errors
/// As msgget(2).
pub fn msg_get(key: i32, flags: i32) -> Result<i32> {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_msgget, [number(key), number(flags), 0, 0, 0, 0]) }.and_then(id)
}

/// msgctl(2) `IPC_RMID`.
///
/// # Errors
/// As msgctl(2).
pub fn msg_remove(id: i32) -> Result<()> {
    let args = [number(id), number(libc::IPC_RMID), 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_msgctl, args) }.map(drop)
}

/// semctl(2) `IPC_RMID`.
///
/// # Errors
/// As semctl(2).
pub fn sem_remove(id: i32) -> Result<()> {
    let args = [number(id), 0, number(libc::IPC_RMID), 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_semctl, args) }.map(drop)
}

/// Type and text of message number `index` of a queue, which stays in it (msgrcv(2) `MSG_COPY`). None
/// past the last.
///
/// # Errors
/// `ENOSYS` without CONFIG_CHECKPOINT_RESTORE.
pub fn msg_copy(id: i32, index: u64, longest: usize) -> Result<Option<(i64, Vec<u8>)>> {
    const MSG_COPY: i32 = 0o40_000;
    let mut buffer = vec![0_u8; 8 + longest];
    let args = [
        number(id),
        buffer.as_mut_ptr() as u64,
        longest as u64,
        index,
        number(MSG_COPY | libc::IPC_NOWAIT),
        0,
    ];
    // SAFETY: the buffer has room for the type and `longest` bytes.
    let got = match unsafe { syscall(libc::SYS_msgrcv, args) } {
        Err(Errno::ENOMSG) => return Ok(None),
        got => usize::try_from(got?).unwrap_or(0),
    };
    let mut kind = [0; 8];
    kind.copy_from_slice(&buffer[..8]);
    let text = buffer.get(8..8 + got).unwrap_or(&[]).to_vec();
    Ok(Some((i64::from_ne_bytes(kind), text)))
}

/// msgrcv(2) of the first message, which has no text, without waiting.
///
/// # Errors
/// As msgrcv(2).
pub fn msg_receive(id: i32) -> Result<()> {
    let mut kind = [0_u8; 8];
    let args = [
        number(id),
        kind.as_mut_ptr() as u64,
        0,
        0,
        number(libc::IPC_NOWAIT),
        0,
    ];
    // SAFETY: the buffer has room for the type.
    unsafe { syscall(libc::SYS_msgrcv, args) }.map(drop)
}

/// msgsnd(2) without waiting.
///
/// # Errors
/// As msgsnd(2).
pub fn msg_send(id: i32, kind: i64, text: &[u8]) -> Result<()> {
    let mut buffer = kind.to_ne_bytes().to_vec();
    buffer.extend_from_slice(text);
    let args = [
        number(id),
        buffer.as_ptr() as u64,
        text.len() as u64,
        number(libc::IPC_NOWAIT),
        0,
        0,
    ];
    // SAFETY: the buffer holds the type and as many bytes as are told.
    unsafe { syscall(libc::SYS_msgsnd, args) }.map(drop)
}
