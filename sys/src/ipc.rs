//! System V IPC (sysvipc(7)).

use crate::raw::syscall;
use crate::{Errno, Pid, Result};

/// `struct shmid_ds` (shmctl(2)), as far as it is used.
#[derive(Clone, Copy)]
pub struct ShmStat(libc::shmid_ds);

impl ShmStat {
    /// Key, owner, group, creator, creator's group.
    #[must_use]
    pub fn owners(&self) -> (i32, u32, u32, u32, u32) {
        let perm = &self.0.shm_perm;
        (perm.__key, perm.uid, perm.gid, perm.cuid, perm.cgid)
    }
    /// Mode with `SHM_DEST` (01000) and `SHM_LOCKED` (02000).
    #[must_use]
    pub fn mode(&self) -> u32 {
        u32::from(self.0.shm_perm.mode)
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
