//! Directories that are being read.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use libc::{O_DIRECTORY, O_RDONLY};

use crate::kit::files::{open, place};
use crate::kit::{Setting, Watch, args, raw, same};

/// Entries of one getdents64(2) call.
fn entries(dir: i32) -> Result<Vec<String>> {
    let mut bytes = [0_u8; 256];
    let got = raw(
        libc::SYS_getdents64,
        args([dir as u64, bytes.as_mut_ptr() as u64, 256]),
    );
    if got < 0 {
        bail!("getdents64: error {}", -got);
    }
    let (mut names, mut at) = (Vec::new(), 0);
    while at < got as usize {
        let length = u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]) as usize;
        let name: Vec<u8> = bytes[at + 19..at + length]
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect();
        names.push(String::from_utf8_lossy(&name).into_owned());
        at += length;
    }
    Ok(names)
}

/// The next entries are those that come after the ones that were read.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let (dir, watch) = read_in_part(&setting.fresh("dir"))?;
    Ok(Watch::keep(move || place(dir, None))?.and(watch))
}

/// The same on tmpfs, where another kernel may count otherwise.
pub(crate) fn in_memory(_: &Setting) -> Result<Watch> {
    let path = super::in_memory::fresh("dir")?;
    read_in_part(&path).map(|(_, watch)| watch)
}

fn read_in_part(path: &Path) -> Result<(i32, Watch)> {
    fs::create_dir(path)?;
    for number in 0..100 {
        fs::write(path.join(format!("file-{number}")), "")?;
    }
    let dir = open(path, O_RDONLY | O_DIRECTORY)?;
    let mut seen = entries(dir)?;
    let mut rest = None;
    let watch = Watch::new(move || {
        let at = place(dir, None)?;
        let mut now = Vec::new();
        loop {
            let more = entries(dir)?;
            if more.is_empty() {
                break;
            }
            now.extend(more);
        }
        place(dir, Some(at))?;
        let expected = rest.get_or_insert_with(|| now.clone());
        same("the rest", expected, &now)?;
        seen.retain(|name| now.contains(name));
        same("entries read twice", &Vec::<String>::new(), &seen)
    })
    .spoiled_by(move || place(dir, Some(0)).map(drop));
    Ok((dir, watch))
}
