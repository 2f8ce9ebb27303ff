//! Shared anonymous memory of a family.

use std::os::fd::AsRawFd;

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Kin, Setting, Watch, same};

/// Made with MAP_ANONYMOUS.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    family(
        setting,
        Area::map(8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?,
    )
}

/// Made with /dev/zero.
pub(crate) fn zero(setting: &Setting) -> Result<Watch> {
    let zero = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")?;
    family(
        setting,
        Area::map(8, PROT_READ | PROT_WRITE, MAP_SHARED, zero.as_raw_fd())?,
    )
}

/// One page each.
pub(crate) fn many(_: &Setting) -> Result<Watch> {
    /// Usual limits of open files are 1024 and, in a virtual machine that has just booted, 4096 at the most.
    const COUNT: u64 = 4500;
    let all: Vec<Area> = (0..COUNT)
        .map(|number| {
            let one = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
            one.put(0, 0, number);
            Ok(one)
        })
        .collect::<Result<_>>()?;
    let last = *all.last().ok_or_else(|| anyhow::anyhow!("none"))?;
    let numbers = move || Ok(all.iter().map(|one| one.get(0, 0)).collect::<Vec<u64>>());
    Ok(Watch::keep(numbers)?.spoiled_by(move || {
        last.put(0, 0, 7);
        Ok(())
    }))
}

/// The child answers each number in the memory with the next one.
fn family(setting: &Setting, area: Area) -> Result<Watch> {
    area.part(4, 4).fill(14);
    let mut child = Kin::start(setting, "child", |_| {
        Ok(Watch::new(move || {
            area.part(4, 4).check(14)?;
            area.put(0, 1, area.get(0, 0) + 1);
            Ok(())
        }))
    })?;
    let mut number = 0;
    Ok(Watch::new(move || {
        area.part(4, 4).check(14)?;
        number += 10;
        area.put(0, 0, number);
        child.check()?;
        same("the child's answer", &(number + 1), &area.get(0, 1))
    })
    .spoiled_by(move || {
        Area::map_at(
            area.page(0),
            8,
            PROT_READ | PROT_WRITE,
            libc::MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )?;
        area.part(4, 4).fill(14);
        Ok(())
    }))
}
