//! Settings that are others while processes are rebuilt.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Files, and what they hold meanwhile.
const SETTINGS: [(&str, &str); 2] = [
    // `OVERCOMMIT_ALWAYS`: most of the memory still belongs to nobody, and the kernel refuses mappings that are larger
    // than what it has (vm/overcommit-accounting.rst). What processes have mapped fitted on the old kernel, which had
    // all of it.
    ("/proc/sys/vm/overcommit_memory", "1"),
    // khugepaged fills no holes (admin-guide/mm/transhuge.rst): who has forbidden it has not said so again yet.
    (
        "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none",
        "0",
    ),
];

/// They are, until this is dropped.
#[derive(Debug)]
pub(super) struct Meanwhile(Vec<Setting>);

#[derive(Debug)]
struct Setting {
    name: &'static str,
    /// Open all the time: `/proc` is not everywhere meanwhile.
    file: File,
    before: String,
}

impl Meanwhile {
    /// Sets them. What cannot be set is told and borne.
    pub(super) fn begin() -> Meanwhile {
        let set = |(name, value): (&'static str, &str)| match Setting::set(name, value) {
            Ok(setting) => Some(setting),
            // Not every kernel has it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                log::warn!("{name}: {error}");
                None
            }
        };
        Meanwhile(SETTINGS.into_iter().filter_map(set).collect())
    }
}

impl Setting {
    fn set(name: &'static str, value: &str) -> io::Result<Setting> {
        let mut file = File::options().read(true).write(true).open(name)?;
        let mut before = String::new();
        file.read_to_string(&mut before)?;
        file.write_all_at(value.as_bytes(), 0)?;
        Ok(Setting { name, file, before })
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        for setting in &self.0 {
            let before = setting.before.trim().as_bytes();
            if let Err(error) = setting.file.write_all_at(before, 0) {
                log::warn!("{}: {error}", setting.name);
            }
        }
    }
}
