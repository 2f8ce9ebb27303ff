//! Which modules the new kernel needs, and in which order.
//!
//! Two sources tell: the old kernel's loaded modules, and the devices and file systems in use
//! (what was built into the old kernel may be a module of the new one).

mod decompress;
mod host;
mod pattern;
mod tree;

pub use decompress::decompress;
pub use host::{DeviceUse, HostUse};
pub use tree::{ModuleError, ModuleTree, Resolved, canonical};

use crate::cpio::Overlay;
use std::path::PathBuf;

/// Always needed: `dax_hmem` makes devices of the kept memory, `kmem` hands it back. With
/// `region_idle` the former makes no device that spans a whole range, so that blocks go one by one.
pub const ALWAYS: [(&str, &str); 2] = [("dax_hmem", "region_idle=1"), ("kmem", "")];

/// Where the list of modules lies in the overlay.
pub const LIST_PATH: &str = "kupgrade/modules.list";
/// Where the modules lie in the overlay.
pub const MODULE_DIR: &str = "kupgrade/modules";

/// When a module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the root file system is mounted.
    Root,
    /// After it, before the processes come back.
    World,
}

impl Stage {
    /// Word in the list file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Stage::Root => "root",
            Stage::World => "world",
        }
    }

    /// The other way.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Stage> {
        [Stage::Root, Stage::World]
            .into_iter()
            .find(|s| s.word() == word)
    }
}

/// One module to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Canonical name.
    pub name: String,
    /// File on the host.
    pub path: PathBuf,
    /// Parameters for finit_module(2).
    pub parameters: String,
    /// When.
    pub stage: Stage,
}

/// Something the new kernel has no module for (and has not built in).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Module name or alias.
    pub name: String,
    /// What asked for it.
    pub why: String,
}

/// Modules in load order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModulePlan {
    /// First to last.
    pub modules: Vec<Planned>,
    /// Not there; reported, not fatal.
    pub missing: Vec<Missing>,
}

/// Collects names while the plan is made.
struct Collector<'a> {
    tree: &'a ModuleTree,
    order: Vec<String>,
    missing: Vec<Missing>,
}

impl Collector<'_> {
    fn want(&mut self, name: &str, why: &str) -> bool {
        match self.tree.resolve(name) {
            Resolved::Modules(modules) => {
                for module in modules {
                    self.tree.append(&module, &mut self.order);
                }
                true
            }
            Resolved::Builtin => true,
            Resolved::Unknown => {
                self.missing.push(Missing {
                    name: name.to_owned(),
                    why: why.to_owned(),
                });
                false
            }
        }
    }

    /// A device: by its driver's module or name, else (a driver that was renamed or split) by
    /// what its bus calls it. The aliases of drivers built into a kernel are not written down
    /// before 6.18, so the bus's name alone would find only what else could drive it.
    fn want_device(&mut self, device: &DeviceUse, loaded: &[String], why: &str) -> bool {
        let names = [
            device.module.as_ref(),
            Some(&device.driver),
            Some(&device.modalias),
        ];
        let known = |name: &&String| self.tree.resolve(name) != Resolved::Unknown;
        let found = names.into_iter().flatten().find(known);
        match (found, &device.module) {
            (Some(name), _) => self.want(name, why),
            (None, Some(module)) if loaded.contains(&canonical(module)) => self.want(module, why),
            // Built into the running kernel and unknown to the new one by any name: of the kind
            // that is never a module (a PCI bridge's).
            (None, _) => true,
        }
    }

    /// File systems: `fs-TYPE`, and the module of the same name for those without an alias.
    fn want_filesystem(&mut self, kind: &str, why: &str) -> bool {
        let alias = format!("fs-{kind}");
        match self.tree.resolve(&alias) {
            Resolved::Unknown => self.want(kind, why),
            _ => self.want(&alias, why),
        }
    }
}

/// Makes the plan for the kernel of `tree` from what the host uses.
///
/// # Errors
/// [`ModuleError::Essential`]: no module (nor built in) for handing memory back, for the root
/// file system, or for the devices its disk hangs on.
pub fn plan(tree: &ModuleTree, host: &HostUse) -> Result<ModulePlan, ModuleError> {
    let mut all = Collector {
        tree,
        order: Vec::new(),
        missing: Vec::new(),
    };
    for device in host.devices.iter().filter(|d| d.carries_root) {
        all.want_device(
            device,
            &host.loaded,
            &format!("the root disk's device {}", device.path.display()),
        );
    }
    if let Some(root) = &host.root_type {
        all.want_filesystem(root, "the root file system");
    }
    for (name, _) in ALWAYS {
        all.want(name, "handing memory back");
    }
    if !all.missing.is_empty() {
        let what: Vec<String> = all
            .missing
            .iter()
            .map(|m| format!("{} ({})", m.name, m.why))
            .collect();
        return Err(ModuleError::Essential {
            release: tree.release().to_owned(),
            what: what.join(", "),
        });
    }
    let root_stage = all.order.len();
    for kind in &host.filesystems {
        all.want_filesystem(kind, "a mounted file system");
    }
    for name in &host.loaded {
        all.want(name, "loaded on the running kernel");
    }
    for device in host.devices.iter().filter(|d| !d.carries_root) {
        all.want_device(
            device,
            &host.loaded,
            &format!("device {}", device.path.display()),
        );
    }
    let modules = all.order.iter().enumerate().filter_map(|(at, name)| {
        let stage = if at < root_stage {
            Stage::Root
        } else {
            Stage::World
        };
        Some(Planned {
            name: name.clone(),
            path: tree.path(name)?.to_owned(),
            parameters: parameters(tree, name),
            stage,
        })
    });
    Ok(ModulePlan {
        modules: modules.collect(),
        missing: all.missing,
    })
}

fn parameters(tree: &ModuleTree, name: &str) -> String {
    let ours = ALWAYS
        .iter()
        .find(|(always, _)| *always == name)
        .map_or("", |(_, p)| *p);
    [tree.options(name), ours].join(" ").trim().to_owned()
}

impl ModulePlan {
    /// Puts the modules, unpacked, and their list into the overlay.
    ///
    /// # Errors
    /// A module cannot be read or is damaged.
    pub fn add_to(&self, overlay: &mut Overlay) -> Result<(), ModuleError> {
        let mut list = String::new();
        for module in &self.modules {
            let bytes = std::fs::read(&module.path).map_err(|source| ModuleError::Unreadable {
                path: module.path.clone(),
                source,
            })?;
            let bytes = decompress(bytes).map_err(|source| ModuleError::Damaged {
                path: module.path.clone(),
                source,
            })?;
            overlay.file(&format!("{MODULE_DIR}/{}.ko", module.name), 0o644, bytes);
            list.push_str(&format!(
                "{} {} {}\n",
                module.stage.word(),
                module.name,
                module.parameters
            ));
        }
        overlay.file(LIST_PATH, 0o644, list);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    const DIR: &str = "lib/modules/6.12-test";

    fn fixture() -> TestDir {
        let tmp = TestDir::new("modules");
        tmp.write(
            &format!("{DIR}/modules.dep"),
            "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz kernel/lib/crc16.ko.xz\n\
             kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
             kernel/crypto/crc32c_generic.ko.xz:\n\
             kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz\n\
             kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz:\nkernel/drivers/virtio/virtio_ring.ko.xz:\n\
             kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz\n\
             kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz\n\
             kernel/drivers/dax/kmem.ko.xz:\nkernel/drivers/dax/hmem/dax_hmem.ko.xz:\n\
             kernel/net/netfilter/nf_tables.ko.xz:\n",
        );
        tmp.write(
            &format!("{DIR}/modules.builtin"),
            "kernel/fs/fuse/fuse.ko\n",
        );
        tmp.write(
            &format!("{DIR}/modules.builtin.modinfo"),
            "fuse.alias=fs-fuse\0fuse.license=GPL\0serio.alias=serio:ty*pr*id*ex*\0",
        );
        tmp.write(
            &format!("{DIR}/modules.softdep"),
            "# x\nsoftdep ext4 pre: crypto-crc32c\n",
        );
        tmp.write(
            &format!("{DIR}/modules.alias"),
            "alias fs-ext4 ext4\nalias crypto-crc32c crc32c_generic\n\
             alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n\
             alias virtio:d00000002v* virtio_blk\n",
        );
        tmp.write(
            "etc/modprobe.d/local.conf",
            "options nf-tables a=1\noptions nf_tables b=2\n",
        );
        tmp
    }

    fn host() -> HostUse {
        let device = |path: &str, modalias: &str, carries_root| DeviceUse {
            path: path.into(),
            modalias: modalias.into(),
            driver: String::new(),
            module: None,
            carries_root,
        };
        HostUse {
            loaded: vec!["fuse".into(), "nf_tables".into(), "gone".into()],
            devices: vec![
                device(
                    "/sys/devices/a",
                    "pci:v00001AF4d00001001sv0sd0bc01sc00i00",
                    true,
                ),
                device("/sys/devices/a/b", "virtio:d00000002v00001AF4", true),
                device("/sys/devices/c", "serio:ty01pr00id00ex00", false),
            ],
            filesystems: ["ext4".to_owned()].into(),
            root_type: Some("ext4".into()),
        }
    }

    #[test]
    fn order_has_dependencies_first_and_the_root_disk_before_the_rest() {
        let tmp = fixture();
        let tree = ModuleTree::open(tmp.path(), "6.12-test").unwrap();
        let plan = plan(&tree, &host()).unwrap();
        let names: Vec<&str> = plan.modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "virtio_ring",
                "virtio",
                "virtio_pci_modern_dev",
                "virtio_pci",
                "virtio_blk",
                "crc32c_generic",
                "crc16",
                "mbcache",
                "jbd2",
                "ext4",
                "dax_hmem",
                "kmem",
                "nf_tables"
            ]
        );
        let stage = |n: &str| plan.modules.iter().find(|m| m.name == n).unwrap().stage;
        assert_eq!(
            (stage("kmem"), stage("nf_tables")),
            (Stage::Root, Stage::World)
        );
        let parameters = |n: &str| {
            plan.modules
                .iter()
                .find(|m| m.name == n)
                .unwrap()
                .parameters
                .clone()
        };
        assert_eq!(parameters("dax_hmem"), "region_idle=1");
        assert_eq!(parameters("nf_tables"), "a=1 b=2");
        let missing: Vec<&str> = plan.missing.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(missing, ["gone"]);
    }

    #[test]
    fn a_kernel_without_the_root_disks_driver_is_refused() {
        let tmp = fixture();
        let tree = ModuleTree::open(tmp.path(), "6.12-test").unwrap();
        let mut host = host();
        host.devices[1].modalias = "nvme:unknown".into();
        host.devices[1].module = Some("nvme".into());
        assert!(plan(&tree, &host).is_ok(), "built in and never a module");
        host.loaded.push("nvme".into());
        let error = plan(&tree, &host).unwrap_err().to_string();
        assert!(
            error.contains("nvme") && error.contains("root disk"),
            "{error}"
        );
        host.devices[1].driver = "virtio-blk".into();
        let found = plan(&tree, &host).unwrap();
        assert!(
            found.modules.iter().any(|m| m.name == "virtio_blk"),
            "by its driver's name"
        );
        let error = ModuleTree::open(tmp.path(), "9.9").unwrap_err().to_string();
        assert!(error.contains("9.9/modules.dep"), "{error}");
    }

    #[test]
    fn the_overlay_gets_the_list_and_unpacked_files() {
        let tmp = fixture();
        let tree = ModuleTree::open(tmp.path(), "6.12-test").unwrap();
        let mut plan = plan(&tree, &host()).unwrap();
        plan.modules
            .retain(|m| m.name == "kmem" || m.name == "dax_hmem");
        let mut overlay = Overlay::new();
        let error = plan.add_to(&mut overlay).unwrap_err().to_string();
        assert!(error.contains("dax_hmem.ko.xz"), "{error}");
        for module in &plan.modules {
            std::fs::create_dir_all(module.path.parent().unwrap()).unwrap();
            std::fs::write(&module.path, b"\x7fELF").unwrap();
        }
        let mut overlay = Overlay::new();
        plan.add_to(&mut overlay).unwrap();
        let entries = crate::cpio::tests::read(&overlay.finish().unwrap());
        let list = entries.iter().find(|e| e.name == LIST_PATH).unwrap();
        assert_eq!(list.body, b"root dax_hmem region_idle=1\nroot kmem \n");
        assert!(entries.iter().any(|e| e.name == "kupgrade/modules/kmem.ko"));
    }
}
