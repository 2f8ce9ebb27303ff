//! Pages that a family shares since fork(2).

use anyhow::{Context, Result, bail};

use crate::kit::{Area, Kin, Setting, Watch, procfs};

/// 8 MiB.
const PAGES: usize = 2048;

/// Three children share all but a page that each has written. They must not come back with
/// copies of their own, and one that writes must not be seen by the others.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    area.fill(15);
    let mut kin = Vec::new();
    for child in 1..=3 {
        kin.push(Kin::start(setting, &format!("child{child}"), move |_| {
            area.fill_page(child, 15 + child as u64);
            Ok(Watch::new(move || {
                area.check_page(child, 15 + child as u64)?;
                (4..PAGES).try_for_each(|page| area.check_page(page, 15))
            })
            .spoiled_by(move || {
                area.part(4, PAGES - 4).fill(15);
                Ok(())
            }))
        })?);
    }
    let kin = std::rc::Rc::new(std::cell::RefCell::new(kin));
    let other = kin.clone();
    Ok(Watch::new(move || {
        area.check(15)?;
        let mut kin = kin.borrow_mut();
        let mut sum = procfs::smaps_kb("self", area.page(0), "Pss")?;
        for child in kin.iter_mut() {
            child.check()?;
            let pid = child.pid.to_string();
            sum += procfs::smaps_kb(&pid, area.page(0), "Pss").context("a child")?;
        }
        let once = PAGES as u64 * 4;
        if sum > once + once / 8 {
            bail!("the family of four holds {sum} kB, not {once}");
        }
        Ok(())
    })
    .spoiled_by(move || other.borrow()[2].spoil()))
}
