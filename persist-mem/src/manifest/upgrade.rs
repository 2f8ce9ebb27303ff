//! What the new kernel must know of the upgrade itself: memory, time line, mounts.

use crate::firmware::FirmwareMap;
use crate::mounts::MountTable;
use crate::ranges::RangeSet;
use core::fmt;
use serde::{Deserialize, Serialize};
use sys::discipline::Discipline;

/// An upgrade under way.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// Release of the kernel it leads to.
    pub target: String,
    /// The map of the machine's memory.
    pub memory: MemoryPlan,
    /// What was carried, for the report.
    pub carried: Carried,
    /// Beginnings of phases until the manifest was written; the jump begins with
    /// [`crate::superblock::Superblock::sealed`].
    pub stamps: Vec<Stamp>,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// The host's mounts with the contents of file systems in memory.
    pub mounts: MountTable,
    /// Settings of the kernel: paths without their `/`, and values.
    pub settings: Vec<(String, String)>,
    /// Interpreters of foreign formats of programs.
    pub formats: Formats,
    /// Policies of AppArmor.
    pub policies: Policies,
    /// How the clock is kept right.
    pub discipline: Option<Discipline>,
    /// Settings of block devices.
    pub disks: Vec<DiskSettings>,
    /// Interrupts: number, the names of who handles one, and the processors it may be served on.
    pub interrupts: Vec<(u32, Vec<String>, String)>,
    /// Pools of huge pages (hugetlbfs).
    pub huge_pools: Vec<HugePool>,
    /// Swap areas.
    pub swaps: Vec<Swap>,
    /// Network interfaces, addresses and routes.
    pub network: Network,
    /// MemTotal of the old kernel, in bytes.
    pub mem_total: u64,
    /// Checksums of carried pages, when `--verify` was given.
    pub checksums: Option<PageChecksums>,
}

/// Policies of AppArmor (apparmor(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policies {
    /// Names of all profiles.
    pub profiles: Vec<Vec<u8>>,
    /// What was loaded, as it was written to the kernel, the first at the start.
    pub loaded: Vec<serde_bytes::ByteBuf>,
}

/// What is registered with binfmt_misc.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Formats {
    /// What was written to register each, and whether it is in use; the one that is tried first stands first.
    pub registered: Vec<(Vec<u8>, bool)>,
    /// All are switched off.
    pub off: bool,
}

/// What an administrator sets of a disk (`/sys/block/NAME/queue`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSettings {
    /// Its name.
    pub name: String,
    /// Where it is plugged in, and what tells it from others there.
    pub place: String,
    /// Names and values.
    pub settings: Vec<(String, String)>,
}

/// A pool of huge pages of one size (`/sys/kernel/mm/hugepages`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePool {
    /// Bytes of a page, in KiB.
    pub kib: u64,
    /// Pages that stay in the pool (`nr_hugepages`).
    pub pages: u64,
    /// Pages that may be made beyond it (`nr_overcommit_hugepages`).
    pub overcommit: u64,
    /// Pages that processes have.
    pub taken: u64,
    /// Pages that processes have not touched yet and were promised (`resv_hugepages`).
    pub promised: u64,
}

/// A swap area in use (`/proc/swaps`). What lay in it is carried as pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// Its file, or the device's node.
    pub path: Vec<u8>,
    /// UUID in the area's header, when it is a device.
    pub uuid: Option<String>,
    /// Below 0: chosen by the kernel.
    pub priority: i32,
}

/// The network of the host's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Payloads of `RTM_NEWADDR` messages (rtnetlink(7)), as the kernel dumped them.
    pub addresses: Vec<Vec<u8>>,
    /// Payloads of `RTM_NEWROUTE` messages, without the routes the kernel makes by itself.
    pub routes: Vec<Vec<u8>>,
    /// Payloads of `RTM_NEWRULE` messages: all rules of policy routing, those that every kernel has among them.
    pub rules: Vec<Vec<u8>>,
    /// Payloads of `RTM_NEWNEIGH` messages, of permanent entries alone.
    pub neighbours: Vec<Vec<u8>>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number, which messages name it by.
    pub index: u32,
    /// Its hardware address as text.
    pub hardware: String,
    /// Whether it is up (`IFF_UP`).
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether a device is behind it.
    pub physical: bool,
    /// Its device in `/sys`, as far as there is one.
    pub device: String,
    /// Its hardware address as the device has it, which may have been changed since; empty when that is not known.
    pub permanent: Vec<u8>,
    /// Flags that an administrator sets: `IFF_NOARP`, `IFF_PROMISC`, `IFF_ALLMULTI`.
    pub flags: u32,
    /// Length of its queue (`txqueuelen`).
    pub queue: u32,
    /// Its group of interfaces.
    pub group: u32,
    /// What it is called in words (`ifalias`); empty without.
    pub alias: String,
    /// Further names (`altname`).
    pub names: Vec<String>,
}

/// Which memory is what.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// What the firmware said.
    pub firmware: FirmwareMap,
    /// Bytes of a memory block on the old kernel.
    pub block_size: u64,
    /// RAM the new kernel was started in, as runs of physical bytes. All other RAM of the firmware
    /// map was given to it as soft reserved.
    pub window: Vec<(u64, u64)>,
    /// Physical bytes that hold carried pages, as runs of start and end. The manifest itself is
    /// not among them ([`crate::superblock::Superblock::ranges`]).
    pub kept: Vec<(u64, u64)>,
}

impl MemoryPlan {
    /// RAM the new kernel was started in.
    #[must_use]
    pub fn window(&self) -> RangeSet {
        self.window
            .iter()
            .map(|(start, end)| *start..*end)
            .collect()
    }

    /// Physical bytes with carried pages.
    #[must_use]
    pub fn kept(&self) -> RangeSet {
        self.kept.iter().map(|(start, end)| *start..*end).collect()
    }
}

/// Numbers for the report.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carried {
    /// Processes.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes whose page stays where it is.
    pub bytes_in_place: u64,
    /// Bytes copied to other pages.
    pub moved: Moved,
}

/// Bytes that could not stay where they were, by the place they were copied out of: all of it is RAM of the new
/// kernel from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moved {
    /// The boot window's main part, which was chosen because it held little.
    pub window: u64,
    /// The first memory block, where there is no choice.
    pub first_block: u64,
    /// The memory blocks at the end of RAM, where there is none either.
    pub last_blocks: u64,
}

impl Moved {
    /// All of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.window + self.first_block + self.last_blocks
    }
}

/// The phases of an upgrade, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// May this host be upgraded?
    Check,
    /// Boot window, kernel image, overlay.
    Plan,
    /// kexec_load.
    Stage,
    /// Stopping every process.
    Freeze,
    /// Describing them.
    Capture,
    /// Where their pages are.
    PinDown,
    /// From the last byte of the manifest to the new kernel's first process.
    Jump,
    /// The new kernel's early boot: modules, root file system, mounts.
    Init,
    /// Rebuilding the processes.
    Resurrect,
    /// Letting them go.
    Thaw,
    /// Old pages are copied out.
    Drain,
    /// Memory goes back to the kernel.
    HandBack,
}

impl Phase {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Check => "check",
            Phase::Plan => "plan",
            Phase::Stage => "stage",
            Phase::Freeze => "freeze",
            Phase::Capture => "capture",
            Phase::PinDown => "pin-down",
            Phase::Jump => "jump",
            Phase::Init => "init",
            Phase::Resurrect => "resurrect",
            Phase::Thaw => "thaw",
            Phase::Drain => "drain",
            Phase::HandBack => "hand-back",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A phase began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which.
    pub phase: Phase,
    /// Time stamp counter.
    pub tsc: u64,
}

/// CRC-32 of pages, by frame. Every carried frame is in exactly one run.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PageChecksums {
    /// Runs in ascending order.
    pub runs: Vec<ChecksumRun>,
}

/// Checksums of consecutive frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecksumRun {
    /// The first frame (physical address / 4096).
    pub frame: u64,
    /// One CRC-32 a page, little endian.
    #[serde(with = "serde_bytes")]
    pub sums: Vec<u8>,
}

impl ChecksumRun {
    /// The checksums, in the order of the frames.
    pub fn sums(&self) -> impl Iterator<Item = u32> + '_ {
        let (words, _) = self.sums.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word))
    }
}

impl PageChecksums {
    /// The checksum of a frame; None when it was not carried.
    #[must_use]
    pub fn of(&self, frame: u64) -> Option<u32> {
        let at = self.runs.partition_point(|run| run.frame <= frame);
        let run = self.runs.get(at.checked_sub(1)?)?;
        let (words, _) = run.sums.as_chunks::<4>();
        let word = words.get(usize::try_from(frame - run.frame).ok()?)?;
        Some(u32::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_found_by_frame() {
        let run = |frame, sums: &[u32]| ChecksumRun {
            frame,
            sums: sums.iter().flat_map(|sum| sum.to_le_bytes()).collect(),
        };
        let sums = PageChecksums {
            runs: vec![run(10, &[1, 2]), run(20, &[3])],
        };
        for (frame, sum) in [
            (9, None),
            (10, Some(1)),
            (11, Some(2)),
            (12, None),
            (20, Some(3)),
            (21, None),
        ] {
            assert_eq!(sums.of(frame), sum, "frame {frame}");
        }
    }
}
