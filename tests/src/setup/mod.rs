//! Everything a virtual machine needs, made once and kept in the cache: the host's programs,
//! Debian's kernels, a Debian 12 root file system and the disk image made of both.

mod apps;
mod apt;
pub(crate) mod criu;
mod host;
pub(crate) mod image;
pub(crate) mod initrd;
pub(crate) mod kernels;
mod policy;
pub(crate) mod qemu;
pub(crate) mod rootfs;
mod unpack;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths;
use kernels::Kernel;
use rootfs::Flavour;

/// The cache, locked for making things in it, with the host's programs there.
pub(crate) struct Cache {
    dir: PathBuf,
    /// Held while the value lives: two labs never build the same thing at once.
    _lock: File,
}

impl Cache {
    /// Opens the cache and waits for another lab that is building in it.
    pub(crate) fn open() -> Result<Self> {
        let dir = paths::cache()?;
        let path = dir.join("lock");
        let lock =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        host::ensure()?;
        Ok(Self { dir, _lock: lock })
    }

    /// The kernels named, downloaded when absent.
    pub(crate) fn kernels(&self, names: &[String], update: bool) -> Result<Vec<Kernel>> {
        names
            .iter()
            .map(|name| kernels::find(&self.dir, name, update))
            .collect()
    }

    /// The root disk holding these kernels, made when absent or when its recipe changed.
    pub(crate) fn disk(&self, flavour: Flavour, kernels: &[Kernel]) -> Result<image::Disk> {
        let root = rootfs::ensure(&self.dir, flavour)?;
        let built = match flavour {
            Flavour::Demo => None,
            Flavour::Apps => Some(apps::ensure(&self.dir, &root)?),
        };
        image::ensure(&self.dir, &root, built.as_ref(), kernels)
    }

    /// The program that runs machines.
    pub(crate) fn qemu(&self) -> Result<qemu::Qemu> {
        qemu::ensure(&self.dir)
    }

    /// CRIU with its own libraries.
    pub(crate) fn criu(&self) -> Result<PathBuf> {
        criu::ensure(&self.dir)
    }

    /// A policy of AppArmor for machines.
    pub(crate) fn policy(&self) -> Result<PathBuf> {
        policy::ensure(&self.dir)
    }

    /// The archive that boots this kernel from the disk.
    pub(crate) fn initrd(&self, kernel: &Kernel) -> Result<PathBuf> {
        initrd::ensure(&self.dir, kernel)
    }

    /// The archive whose init only prints [`initrd::BARE_MARKER`] and powers off.
    pub(crate) fn bare_initrd(&self) -> Result<PathBuf> {
        initrd::ensure_bare(&self.dir)
    }
}
