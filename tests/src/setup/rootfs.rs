//! The Debian 12 root file system, as a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::Mirror;
use crate::paths::recipe_hash;
use crate::tool::Tool;
use crate::ui;

/// What is in it, beside Debian's essential packages.
const PACKAGES: &str = "redis-server,python3,iproute2,procps,bash,busybox-static,kmod,util-linux,kexec-tools,psmisc,netbase";

/// What is left out: nothing in the guest reads it.
const WITHOUT: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];

/// A root file system in the cache.
pub(super) struct Root {
    /// Its folder.
    pub(super) dir: PathBuf,
    /// Names the recipe it was made from.
    pub(super) recipe: String,
}

/// Makes it when it is absent or when its recipe changed.
pub(super) fn ensure(cache: &Path) -> Result<Root> {
    let recipe = recipe_hash(["1", PACKAGES].into_iter().chain(WITHOUT));
    let dir = cache.join(format!("root-{recipe}"));
    if !dir.is_dir() {
        ui::step("building the Debian 12 root file system");
        build(cache, &dir)?;
    }
    Ok(Root { dir, recipe })
}

fn build(cache: &Path, dir: &Path) -> Result<()> {
    let scratch = dir.with_extension("tmp");
    Tool::root("rm", Duration::from_secs(120))
        .arg("-rf")
        .arg(&scratch)
        .run()?;
    let sources = cache.join("root.sources.list");
    fs::write(&sources, Mirror::of_host()?.sources("bookworm"))?;
    Tool::root("mmdebstrap", Duration::from_secs(1200))
        .args(["--mode=root", "--variant=minbase", "--architectures=amd64"])
        .arg(format!("--include={PACKAGES}"))
        .args(
            WITHOUT
                .iter()
                .map(|path| format!("--dpkgopt=path-exclude={path}")),
        )
        .arg("bookworm")
        .arg(&scratch)
        .arg(&sources)
        .log(cache.join("root.log"))
        .run()
        .context("the root file system could not be built")?;
    Tool::root("mv", Duration::from_secs(10))
        .arg(&scratch)
        .arg(dir)
        .run()
}
