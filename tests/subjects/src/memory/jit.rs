//! Code written at run time.

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, same};

/// mov eax, 1234567; ret
const CODE: u64 = 0x0000_c300_12d6_87b8;

/// A function in memory that is writable and executable.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::map(
        1,
        PROT_READ | PROT_WRITE | PROT_EXEC,
        MAP_PRIVATE | MAP_ANONYMOUS,
        -1,
    )?;
    area.put(0, 0, CODE);
    Ok(Watch::new(move || {
        // SAFETY: the page holds a function of this type, written above.
        let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(area.page(0)) };
        same("what the code returns", &1_234_567, &function())
    })
    .spoiled_by(move || {
        area.put(0, 0, CODE + 0x100);
        Ok(())
    }))
}
