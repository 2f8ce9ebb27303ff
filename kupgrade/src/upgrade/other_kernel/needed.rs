//! What it must be built with for any process to be rebuilt on it.

use super::OtherKernel;

/// The archive that finds the processes, and their pages; their addresses, ids, clocks and restartable sequences; how
/// their memory is filled, and what they gave up.
const NEEDED: [&str; 10] = [
    "CONFIG_BLK_DEV_INITRD",
    "CONFIG_DEVMEM",
    "CONFIG_EFI_SOFT_RESERVE",
    "CONFIG_MEMORY_HOTPLUG",
    "CONFIG_CHECKPOINT_RESTORE",
    "CONFIG_PID_NS",
    "CONFIG_TIME_NS",
    "CONFIG_RSEQ",
    "CONFIG_CROSS_MEMORY_ATTACH",
    "CONFIG_SECCOMP_FILTER",
];

impl OtherKernel {
    /// What it is built without, where its configuration is known.
    pub(in super::super) fn lacks(&self) -> Vec<&'static str> {
        let lacking = NEEDED.into_iter().filter(|it| self.has(it) == Some(false));
        lacking.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::NEEDED;

    #[test]
    fn what_is_missing_is_named() {
        let all: String = NEEDED
            .iter()
            .map(|option| format!("{option}=y\n"))
            .collect();
        assert!(kernel("7.0", Some(&all), "").lacks().is_empty());
        assert!(kernel("7.0", None, "").lacks().is_empty(), "not known");
        let some = all.replace("CONFIG_TIME_NS=y", "# CONFIG_TIME_NS is not set");
        let lacks = kernel("7.0", Some(&some), "").lacks();
        assert_eq!(lacks, ["CONFIG_TIME_NS"]);
    }
}
