//! Where kernel, archive and parameters lie in the boot window.
//!
//! The kernel goes as low as it may, everything else to the top. Between them stays the room in
//! which the kernel unpacks itself, at an address of its own choice (KASLR).

use crate::boot_params::Addresses;
use crate::image::KernelImage;
use std::ops::Range;

const PAGE: u64 = sys::PAGE_SIZE_U64;

/// There is no room.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlacementError {
    /// The window is too small.
    #[error(
        "the boot window {start:#x}-{end:#x} has no room for the kernel ({kernel} MiB while it \
         starts) and its archive ({initrd} MiB)"
    )]
    NoRoom {
        /// Start of the largest run of the window.
        start: u64,
        /// Its end.
        end: u64,
        /// What the kernel needs, MiB.
        kernel: u64,
        /// What the archive needs, MiB.
        initrd: u64,
    },
    /// It lies too high for this kernel.
    #[error(
        "the boot window {start:#x}-{end:#x} is too high for this kernel: {what} must be below {limit:#x}"
    )]
    TooHigh {
        /// Start of the window.
        start: u64,
        /// Its end.
        end: u64,
        /// What does not fit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Where the kernel runs at the lowest.
fn kernel_start(image: &KernelImage, run: &Range<u64>) -> Option<u64> {
    run.start
        .max(image.preferred)
        .checked_next_multiple_of(image.alignment)
}

/// Bytes a run of RAM needs, wherever it begins: the kernel where it is loaded, once more where it
/// unpacks itself to, archive and parameters.
#[must_use]
pub fn needed(image: &KernelImage, initrd: u64, params: u64) -> u64 {
    2 * image.init_size.next_multiple_of(image.alignment)
        + image.alignment
        + initrd.next_multiple_of(PAGE)
        + params.next_multiple_of(PAGE)
}

/// Places an archive of `initrd` bytes and `params` bytes of parameters in `run`, RAM that the
/// new kernel knows as such.
///
/// # Errors
/// [`PlacementError`].
pub fn place(
    image: &KernelImage,
    run: &Range<u64>,
    initrd: u64,
    params: u64,
) -> Result<Addresses, PlacementError> {
    let no_room = PlacementError::NoRoom {
        start: run.start,
        end: run.end,
        kernel: image.init_size >> 20,
        initrd: initrd.div_ceil(1 << 20),
    };
    let Some(kernel) = kernel_start(image, run) else {
        return Err(no_room);
    };
    let end = run.end - run.end % PAGE;
    // The header's limit is for boot loaders that enter in 32-bit mode; the kernel's own kexec ignores it for
    // images that may lie anywhere (arch/x86/kernel/kexec-bzimage64.c).
    let initrd_end = if image.above_4g {
        end
    } else {
        end.min((image.initrd_max + 1) & !(PAGE - 1))
    };
    let high = |what, limit| PlacementError::TooHigh {
        start: run.start,
        end: run.end,
        what,
        limit,
    };
    if end > 1 << 32 && !image.above_4g {
        return Err(high("all of it", 1 << 32));
    }
    let initrd_at = initrd_end
        .checked_sub(initrd.next_multiple_of(PAGE))
        .ok_or_else(|| no_room.clone())?;
    let params_at = initrd_at
        .checked_sub(params.next_multiple_of(PAGE))
        .ok_or_else(|| no_room.clone())?;
    // Twice: loaded here, unpacked somewhere else in the window.
    let room = 2 * image.init_size.next_multiple_of(image.alignment);
    if kernel.checked_add(room).is_none_or(|top| top > params_at) {
        let limited = initrd_end < end && kernel + room > image.initrd_max;
        return Err(if limited {
            high("the archive", image.initrd_max)
        } else {
            no_room
        });
    }
    Ok(Addresses {
        params: params_at,
        kernel,
        initrd: initrd_at,
        initrd_len: initrd,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;
    use proptest::prelude::*;
    use std::path::Path;

    const MIB: u64 = 1 << 20;

    fn image() -> KernelImage {
        KernelImage::parse(Path::new("k"), sample()).unwrap()
    }

    #[test]
    fn the_kernel_lies_low_the_rest_high() {
        let at = place(&image(), &(MIB..256 * MIB), 10 * MIB + 5, 3 * 4096).unwrap();
        assert_eq!(at.kernel, 16 * MIB, "not below its preferred address");
        assert_eq!(at.initrd, 246 * MIB - 4096);
        assert_eq!(at.params, at.initrd - 3 * 4096);
        let low = place(&image(), &(300 * MIB + 1..600 * MIB), MIB, 4096).unwrap();
        assert_eq!(low.kernel, 302 * MIB);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut image = image();
        let error = place(&image, &(MIB..100 * MIB), 20 * MIB, 4096).unwrap_err();
        assert!(error.to_string().contains("window"), "{error}");
        assert!(matches!(error, PlacementError::NoRoom { .. }));
        let high = 6144 * MIB..6656 * MIB;
        assert!(place(&image, &high, 20 * MIB, 4096).is_ok());
        image.above_4g = false;
        let error = place(&image, &high, 20 * MIB, 4096).unwrap_err();
        assert!(matches!(error, PlacementError::TooHigh { .. }));
        image.initrd_max = 0x37ff_ffff;
        let error = place(&image, &(800 * MIB..1300 * MIB), MIB, 4096).unwrap_err();
        assert!(error.to_string().contains("archive"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_all_lies_inside(
            start in 0..5000_u64, len in 0..1200_u64, initrd in 1..200_000_000_u64, params in 1..90_000_u64,
        ) {
            let image = image();
            let run = start * MIB + 777..(start + len) * MIB + 999;
            let Ok(at) = place(&image, &run, initrd, params) else {
                // A run of the size that was announced is never refused for its size.
                let size = run.end.saturating_sub(run.start.max(image.preferred));
                prop_assert!(size < needed(&image, initrd, params) + 4096 || run.end > image.initrd_max);
                return Ok(());
            };
            prop_assert!(at.kernel >= run.start && at.kernel % image.alignment == 0);
            prop_assert!(at.kernel + 2 * image.init_size <= at.params);
            prop_assert!(at.params + params <= at.initrd && at.params % 4096 == 0);
            prop_assert!(at.initrd + initrd <= run.end && at.initrd % 4096 == 0);
        }
    }
}
