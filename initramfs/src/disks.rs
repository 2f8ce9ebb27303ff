//! Settings of block devices (`/sys/block/NAME/queue`, Documentation/ABI/stable/sysfs-block): recorded before the jump,
//! set again after it. A disk's name depends on the order of probing; where it is plugged in does not.

use persist_mem::manifest::DiskSettings;
use std::path::Path;

/// What an administrator sets; requests come after the scheduler, which replaces their number.
const SETTINGS: [&str; 10] = [
    "scheduler",
    "nr_requests",
    "read_ahead_kb",
    "rq_affinity",
    "nomerges",
    "max_sectors_kb",
    "add_random",
    "iostats",
    "rotational",
    "wbt_lat_usec",
];

/// What tells disks of one controller apart.
const FACTS: [&str; 4] = ["size", "wwid", "serial", "device/wwid"];

/// The disks of this kernel that have a device.
#[must_use]
pub fn capture(sys: &Path) -> Vec<DiskSettings> {
    let entries = std::fs::read_dir(sys.join("block"));
    let disk = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let device = entry.path().join("device");
        let place = place(std::fs::canonicalize(device).ok()?.to_str()?);
        let queue = entry.path().join("queue");
        let facts = FACTS.map(|fact| std::fs::read_to_string(entry.path().join(fact)));
        let facts = facts.into_iter().flatten();
        let read = |setting: &str| {
            let text = std::fs::read_to_string(queue.join(setting)).ok()?;
            let value = crate::settings::chosen(&text).to_owned();
            Some((setting.to_owned(), value))
        };
        Some(DiskSettings {
            name,
            place: [place].into_iter().chain(facts).collect(),
            settings: SETTINGS.into_iter().filter_map(read).collect(),
        })
    };
    let mut disks: Vec<DiskSettings> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(disk)
        .collect();
    disks.sort_by(|one, other| one.name.cmp(&other.name));
    disks
}

/// The path of a device without the numbers that are given as devices are found (`virtio1`, `host0/target0:0:0`).
fn place(device: &str) -> String {
    let lasting = |part: &&str| {
        let counted = ["virtio", "ata", "host", "nvme", "port-", "end_device-"];
        let numbered = |kind: &&str| {
            let rest = part.strip_prefix(*kind);
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        !counted.iter().any(numbered)
    };
    let scsi = |part: &str| match part.split_once(':') {
        // Host, channel, target, unit: the first is counted.
        Some((host, rest)) if rest.matches(':').count() == 2 && !host.contains('.') => {
            rest.to_owned()
        }
        _ if part.starts_with("target") => "target".to_owned(),
        _ => part.to_owned(),
    };
    let parts = device.split('/').filter(lasting).map(scsi);
    parts.collect::<Vec<_>>().join("/")
}

/// Sets what differs now. Returns what could not be set, in words.
#[must_use]
pub fn restore(sys: &Path, disks: &[DiskSettings]) -> Vec<String> {
    let here = capture(sys);
    let mut failed = Vec::new();
    for disk in disks {
        // Several at one place are told apart by their names.
        let same = |now: &&DiskSettings| now.place == disk.place;
        let mut same = here.iter().filter(same);
        let named = same.clone().find(|now| now.name == disk.name);
        let Some(now) = named.or_else(|| same.next().filter(|_| same.next().is_none())) else {
            failed.push(format!("the settings of {}: it is not there", disk.name));
            continue;
        };
        let queue = sys.join("block").join(&now.name).join("queue");
        for (name, value) in &disk.settings {
            let path = queue.join(name);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if crate::settings::chosen(&text) != value
                && let Err(error) = std::fs::write(&path, value)
            {
                failed.push(format!("{name} = {value} of {}: {error}", disk.name));
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_no_counted_numbers() {
        let virtio = place("/sys/devices/pci0000:00/0000:00:04.0/virtio1");
        assert_eq!(virtio, "/sys/devices/pci0000:00/0000:00:04.0");
        let disk = |host| {
            place(&format!(
                "/sys/devices/pci0000:00/0000:00:1f.2/ata{host}/host{host}/target{host}:0:1/{host}:0:1:0"
            ))
        };
        assert_eq!(disk(3), "/sys/devices/pci0000:00/0000:00:1f.2/target/0:1:0");
        assert_eq!(disk(3), disk(0));
        let nvme = "/sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0";
        assert_eq!(place(nvme), "/sys/devices/pci0000:00/0000:01:00.0/nvme");
    }
}
