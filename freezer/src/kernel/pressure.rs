//! Triggers of pressure (Documentation/accounting/psi.rst), which nothing shows once they were written.

use super::{Kernel, Unreadable};
use persist_mem::manifest::PressureTrigger;
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a trigger of pressure");
const NANOSECONDS: u64 = 1000;

impl Kernel {
    /// What was written to a file of pressure that a descriptor of this process is open on: one of `/proc/pressure`, or
    /// one of a control group. None when nothing was.
    pub(crate) fn pressure_trigger(
        &mut self,
        file: BorrowedFd<'_>,
        of_group: bool,
    ) -> Result<Option<PressureTrigger>, Unreadable> {
        let file = self.own_file(file)?;
        let sequence = self.private_data(file)?;
        let mut trigger = self.field_in(sequence, "seq_file", "private")?;
        if of_group {
            // kernel/cgroup/cgroup-internal.h
            let context = self.field_in(trigger, "kernfs_open_file", "priv")?;
            trigger = match context {
                0 => 0,
                context => self.field_in(context, "cgroup_file_ctx", "psi.trigger")?,
            };
        }
        if trigger == 0 {
            return Ok(None);
        }
        let paths = ["state", "threshold", "win.size"];
        let found = self.fields(trigger, "psi_trigger", &paths)?;
        let [state, threshold, window] = found[..] else {
            return Err(WRONG);
        };
        let microseconds = |time: u64| u32::try_from(time / NANOSECONDS).map_err(|_| WRONG);
        Ok(Some(PressureTrigger {
            // `enum psi_states` (include/linux/psi_types.h).
            full: state & 1 != 0,
            threshold: microseconds(threshold)?,
            window: microseconds(window)?,
        }))
    }

    fn field_in(&mut self, at: u64, structure: &str, path: &str) -> Result<u64, Unreadable> {
        let found = self.fields(at, structure, &[path])?;
        found.first().copied().ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_written_is_read() {
        for (text, full) in [("some 150000 2000000", false), ("full 70000 4000000", true)] {
            let opened = File::options()
                .read(true)
                .write(true)
                .open("/proc/pressure/memory");
            let Ok(mut file) = opened else { return };
            let read = |file: &File| look(|kernel| kernel.pressure_trigger(file.as_fd(), false));
            let Some(nothing) = readable(read(&file)) else {
                return;
            };
            assert_eq!(nothing, None);
            // The last byte does not count.
            file.write_all(format!("{text}\n").as_bytes()).unwrap();
            let found = readable(read(&file)).unwrap().unwrap();
            assert_eq!(found.full, full);
            assert_eq!(found.to_string(), text);
        }
    }
}
