//! memfd_secret(2)

use anyhow::{Result, ensure};
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::files::seen;
use crate::kit::procfs::vm_flags;
use crate::kit::{Area, Kin, PAGE, Setting, Watch, args, not_here, raw, same, sys};

/// Whether nobody reads it through the kernel.
fn is_secret(area: Area) -> Result<()> {
    let mut word = [0_u8; 8];
    let local = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: 8,
    };
    let remote = libc::iovec {
        iov_base: area.page(0),
        iov_len: 8,
    };
    // SAFETY: the kernel writes to a buffer of ours.
    let read = unsafe {
        libc::process_vm_readv(
            std::process::id() as i32,
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    ensure!(read == -1, "the kernel reads it for others");
    Ok(())
}

/// Pages with and without contents, mapped twice, shared with a child.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let file = raw(libc::SYS_memfd_secret, args([0]));
    if [-libc::ENOSYS, -libc::EINVAL].contains(&(file as i32)) {
        return not_here("no memfd_secret");
    }
    let file = sys("memfd_secret", file)? as i32;
    // SAFETY: a call on a descriptor of ours.
    sys("ftruncate", unsafe {
        libc::ftruncate(file, 5 * PAGE as i64 - 100)
    })?;
    let area = Area::map(5, PROT_READ | PROT_WRITE, MAP_SHARED, file)?;
    area.fill_page(0, 91);
    area.fill_page(3, 92);
    let free = std::ptr::null_mut();
    let other = Area::map_at(free, 2, PROT_READ, MAP_SHARED, file, 3)?;
    let check = move || {
        is_secret(area)?;
        area.check_page(0, 91)?;
        area.check_page(3, 92)?;
        area.check_zero(1)?;
        same("the other mapping", &area.get(3, 7), &other.get(0, 7))
    };
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            check()?;
            same("the child's word", &area.get(2, 0), &area.get(2, 1))
        }))
    })?;
    let mut count = 0;
    Ok(Watch::keep(move || {
        let flags = [area.page(0), other.page(0)].map(vm_flags);
        let flags: Vec<_> = flags.into_iter().collect::<Result<_>>()?;
        let size = std::fs::metadata(format!("/proc/self/fd/{file}"))?.len();
        Ok((flags, size, seen(file)?))
    })?
    .and(
        Watch::new(move || {
            check()?;
            // What one writes the other sees.
            count += 1;
            area.put(2, 0, count);
            area.put(2, 1, count);
            child.check()
        })
        .spoiled_by(move || {
            area.put(3, 7, 0);
            Ok(())
        }),
    ))
}
