//! The Debian 12 root file systems, as folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::Mirror;
use crate::paths::recipe_hash;
use crate::tool::Tool;
use crate::ui;

/// What is in each of them, beside Debian's essential packages.
const PACKAGES: &str = "redis-server,python3,iproute2,procps,bash,busybox-static,kmod,util-linux,kexec-tools,psmisc,netbase";

/// The real programs that a machine of [`Flavour::Apps`] has in addition.
const APPS: &str = "memcached,nginx-light,postgresql,mariadb-server-core,mariadb-client-core,nodejs,openjdk-17-jdk-headless,tmux,vim,make,gcc,libc6-dev";

/// What is left out: nothing in the guest reads it.
const WITHOUT: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];

/// Java's programs become commands by links that are made together with those of their manual pages.
const FOLDERS: &str = "mkdir -p \"$1/usr/share/man/man1\"";

/// Which programs a root file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Those of the demonstration.
    Demo,
    /// Many real ones beside them.
    Apps,
}

impl Flavour {
    /// Commands before the packages are set up.
    fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Demo => &[],
            Self::Apps => &[FOLDERS],
        }
    }

    fn packages(self) -> String {
        match self {
            Self::Demo => PACKAGES.to_owned(),
            Self::Apps => format!("{PACKAGES},{APPS}"),
        }
    }
}

/// A root file system in the cache.
pub(super) struct Root {
    /// Its folder.
    pub(super) dir: PathBuf,
    /// Names the recipe it was made from.
    pub(super) recipe: String,
}

/// Makes it when it is absent or when its recipe changed.
pub(super) fn ensure(cache: &Path, flavour: Flavour) -> Result<Root> {
    let packages = flavour.packages();
    let hooks = flavour.hooks();
    let parts = ["1", packages.as_str()].into_iter().chain(WITHOUT);
    let recipe = recipe_hash(parts.chain(hooks.iter().copied()));
    let dir = cache.join(format!("root-{recipe}"));
    if !dir.is_dir() {
        ui::step(&format!(
            "building the Debian 12 root file system with {packages}"
        ));
        build(cache, &dir, &packages, hooks)?;
    }
    Ok(Root { dir, recipe })
}

fn build(cache: &Path, dir: &Path, packages: &str, hooks: &[&str]) -> Result<()> {
    let scratch = dir.with_extension("tmp");
    Tool::root("rm", Duration::from_secs(120))
        .arg("-rf")
        .arg(&scratch)
        .run()?;
    let sources = cache.join("root.sources.list");
    fs::write(&sources, Mirror::of_host()?.sources("bookworm"))?;
    Tool::root("mmdebstrap", Duration::from_secs(1200))
        .args(["--mode=root", "--variant=minbase", "--architectures=amd64"])
        .arg(format!("--include={packages}"))
        .args(
            WITHOUT
                .iter()
                .map(|path| format!("--dpkgopt=path-exclude={path}")),
        )
        .args(hooks.iter().map(|hook| format!("--essential-hook={hook}")))
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
