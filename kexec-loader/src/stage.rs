//! Handing the parts to the kernel, and taking them back.

use crate::boot_params::{Addresses, TRAMPOLINE_AT};
use crate::image::KernelImage;
use sys::Errno;
use sys::kexec::{self, Segment};

/// kexec is not there or was refused.
#[derive(Debug, thiserror::Error)]
#[error("{call} was refused: {errno}{hint}", hint = hint(*errno))]
pub struct StageError {
    call: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

fn hint(errno: Errno) -> String {
    match errno {
        Errno::EPERM => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/kexec_load_disabled");
            if setting.is_ok_and(|text| text.trim() == "1") {
                "; the sysctl kernel.kexec_load_disabled is 1, which lasts until the next boot"
                    .into()
            } else {
                "; CAP_SYS_BOOT is missing, or the kernel is locked down (lockdown(7))".into()
            }
        }
        Errno::ENOSYS => "; the running kernel was built without kexec".into(),
        Errno::EBUSY => "; another program is loading a kernel".into(),
        _ => String::new(),
    }
}

/// Asks whether a kernel may be loaded, changing nothing.
///
/// # Errors
/// [`StageError`].
pub fn allowed() -> Result<(), StageError> {
    kexec::probe_load().map_err(|errno| StageError {
        call: "kexec_load",
        errno,
    })
}

/// A kernel that is loaded. Dropped, it is unloaded.
#[derive(Debug)]
pub struct Staged(());

/// Loads kernel, archive and parameters (the pages of [`crate::boot_params::Told::pages`] for the
/// same addresses).
///
/// # Errors
/// [`StageError`].
pub fn stage(
    image: &KernelImage,
    initrd: &[u8],
    params: &[u8],
    at: Addresses,
) -> Result<Staged, StageError> {
    let segment = |data, address| Segment { data, address };
    let segments = [
        segment(image.protected_mode(), at.kernel),
        segment(params, at.params),
        segment(initrd, at.initrd),
    ];
    let entry = at.params + TRAMPOLINE_AT as u64;
    kexec::load(entry, &segments).map_err(|errno| StageError {
        call: "kexec_load",
        errno,
    })?;
    Ok(Staged(()))
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(errno) = kexec::unload() {
            log::warn!("the loaded kernel stays loaded: {errno}");
        }
    }
}
