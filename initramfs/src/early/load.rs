//! Loading the overlay's modules.

use super::{EarlyError, Result};
use crate::modules::{LIST_PATH, MODULE_DIR, Stage};
use nix::kmod::{ModuleInitFlags, finit_module};
use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::Instant;
use sys::Errno;

/// One line of the overlay's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    stage: Stage,
    name: String,
    parameters: String,
}

fn parse(text: &str) -> Vec<Listed> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            Some(Listed {
                stage: Stage::from_word(words.next()?)?,
                name: words.next()?.to_owned(),
                parameters: words.next().unwrap_or("").to_owned(),
            })
        })
        .collect()
}

/// Loads the modules of one stage, in the list's order, from the overlay unpacked at `root`.
///
/// A module that fails is logged and the rest go on: most hosts come up without it, and what
/// cannot do without is found by the next step. Returns the number loaded and the failures.
///
/// # Errors
/// The list cannot be read.
pub fn load_modules(root: &Path, stage: Stage) -> Result<(usize, Vec<EarlyError>)> {
    let list = root.join(LIST_PATH);
    let text =
        std::fs::read_to_string(&list).map_err(|source| EarlyError::File { path: list, source })?;
    let start = Instant::now();
    let (mut loaded, mut failed) = (0, Vec::new());
    for module in parse(&text).iter().filter(|m| m.stage == stage) {
        match load_one(root, module) {
            Ok(()) => loaded += 1,
            Err(error) => {
                log::warn!("{error}");
                failed.push(error);
            }
        }
    }
    log::info!(
        "{loaded} modules ({}) in {:?}",
        stage.word(),
        start.elapsed()
    );
    Ok((loaded, failed))
}

fn load_one(root: &Path, module: &Listed) -> Result<()> {
    let path = root.join(MODULE_DIR).join(format!("{}.ko", module.name));
    let file = File::open(&path).map_err(|source| EarlyError::File {
        path: path.clone(),
        source,
    })?;
    let fail = |errno| EarlyError::Module {
        name: module.name.clone(),
        errno,
    };
    let parameters = CString::new(module.parameters.as_str()).map_err(|_| fail(Errno::EINVAL))?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(fail(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_lines_hold_stage_name_and_parameters() {
        let listed = parse("root dax_hmem region_idle=1 x=2\nworld fuse \nodd line\n\n");
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].parameters, "region_idle=1 x=2");
        assert_eq!(
            (listed[1].stage, listed[1].parameters.as_str()),
            (Stage::World, "")
        );
    }
}
