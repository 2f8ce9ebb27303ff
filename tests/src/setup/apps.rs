//! Programs that are compiled for the machines with real programs: one for the JVM, one in Go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::Apt;
use super::rootfs::Root;
use super::unpack::unpack;
use crate::paths::recipe_hash;
use crate::tool::Tool;
use crate::ui;

const JAVA: &str = include_str!("../../guest/programs/apps/Jvm.java");
const GO: &str = include_str!("../../guest/programs/apps/server.go");

/// Its compiler makes static programs, so that a machine needs nothing of it.
const GO_PACKAGE: &str = "golang-1.19-go";

const MINUTES: Duration = Duration::from_secs(600);

/// Compiled programs in the cache.
pub(super) struct Built {
    /// Their folder: `Jvm.class` and its companions, `go-server`.
    pub(super) dir: PathBuf,
    /// Names what they were made from.
    pub(super) recipe: String,
}

/// Compiles them when they are absent or when a source changed.
pub(super) fn ensure(cache: &Path, root: &Root) -> Result<Built> {
    let recipe = recipe_hash([JAVA, GO, GO_PACKAGE, &root.recipe]);
    let dir = cache.join(format!("apps-{recipe}"));
    if !dir.is_dir() {
        ui::step("compiling the programs in Java and Go");
        let scratch = cache.join("apps.new");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        java(root, &scratch).context("the program in Java could not be compiled")?;
        go(cache, &scratch).context("the program in Go could not be compiled")?;
        fs::rename(&scratch, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(Built { dir, recipe })
}

/// The root file system has the compiler; it is not written to.
fn java(root: &Root, to: &Path) -> Result<()> {
    let source = to.join("Jvm.java");
    fs::write(&source, JAVA)?;
    Tool::root("unshare", MINUTES)
        .args(["--mount", "sh", "-euc"])
        .arg(
            "mount --bind \"$2\" \"$1/mnt\"; mount -t proc proc \"$1/proc\"; \
             exec chroot \"$1\" javac -nowarn -XDignore.symbol.file -d /mnt /mnt/Jvm.java",
        )
        .arg("sh")
        .arg(&root.dir)
        .arg(to)
        .run()?;
    fs::remove_file(source).map_err(Into::into)
}

/// The compiler is unpacked for this one program and removed again.
fn go(cache: &Path, to: &Path) -> Result<()> {
    let tools = cache.join("go.new");
    let apt = Apt::open(cache, "bookworm")?;
    let files = [GO_PACKAGE, "golang-1.19-src"].map(|package| apt.download(package));
    unpack(files.into_iter().collect::<Result<Vec<_>>>()?, &tools)?;
    // What the package links to by an absolute path.
    let home = tools.join("home");
    fs::create_dir_all(&home)?;
    for part in ["src", "test", "api", "misc"] {
        let from = tools.join("usr/share/go-1.19").join(part);
        std::os::unix::fs::symlink(from, home.join(part))?;
    }
    for part in ["bin", "pkg"] {
        let from = tools.join("usr/lib/go-1.19").join(part);
        std::os::unix::fs::symlink(from, home.join(part))?;
    }
    let source = tools.join("server.go");
    fs::write(&source, GO)?;
    Tool::new(&home.join("bin/go").to_string_lossy(), MINUTES)
        .args(["build", "-o"])
        .arg(to.join("go-server"))
        .arg(&source)
        .env("GOROOT", &home)
        .env("GOCACHE", tools.join("cache"))
        .env("GOPATH", tools.join("path"))
        .env("GOFLAGS", "-mod=mod")
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "off")
        .run()?;
    fs::remove_dir_all(&tools).map_err(Into::into)
}
