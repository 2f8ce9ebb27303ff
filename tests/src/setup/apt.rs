//! Signed packages of other Debian releases, fetched through apt with a state folder of its
//! own: nothing of it is installed on the host and the host's lists stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::KEYRING;
use crate::tool::Tool;

const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);

/// Where the host gets Debian from.
pub(super) struct Mirror {
    main: String,
    security: String,
}

impl Mirror {
    /// The mirror that the host itself uses, or `$KUPGRADE_MIRROR` and
    /// `$KUPGRADE_SECURITY_MIRROR` on a host that is no Debian.
    pub(super) fn of_host() -> Result<Self> {
        if let (Ok(main), Ok(security)) = (
            std::env::var("KUPGRADE_MIRROR"),
            std::env::var("KUPGRADE_SECURITY_MIRROR"),
        ) {
            return Ok(Self { main, security });
        }
        if let Some(found) = Self::ask()? {
            return Ok(found);
        }
        Tool::root("apt-get", LONG).arg("update").run()?;
        Self::ask()?.context(
            "apt knows no Debian mirror on this host: set KUPGRADE_MIRROR and KUPGRADE_SECURITY_MIRROR to the addresses of one",
        )
    }

    fn ask() -> Result<Option<Self>> {
        let text = Tool::new("apt-get", SHORT)
            .args([
                "indextargets",
                "--format",
                "$(LABEL)|$(REPO_URI)",
                "Created-By: Packages",
            ])
            .output()?;
        let of = |label: &str| {
            text.lines()
                .filter_map(|line| line.split_once('|'))
                .find(|(l, _)| *l == label)
                .map(|(_, uri)| uri.to_owned())
        };
        Ok(of("Debian").map(|main| {
            let security = of("Debian-Security")
                .unwrap_or_else(|| format!("{}-security/", main.trim_end_matches('/')));
            Self { main, security }
        }))
    }

    /// The `sources.list` lines of a release and its security updates.
    pub(super) fn sources(&self, suite: &str) -> String {
        let line = |uri: &str, suite: &str| {
            format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
        };
        if suite.contains("-backports") || suite == "sid" {
            return line(&self.main, suite);
        }
        line(&self.main, suite) + &line(&self.security, &format!("{suite}-security"))
    }
}

/// A private apt that knows one Debian release.
pub(super) struct Apt {
    dir: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Sets the folder up and reads the release's signed lists.
    pub(super) fn open(cache: &Path, suite: &str) -> Result<Self> {
        let dir = cache.join("apt").join(suite);
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), Mirror::of_host()?.sources(suite))?;
        let here = dir.display();
        let text = format!(
            "Dir::State \"{here}\";\nDir::State::Lists \"{here}/lists\";\nDir::State::status \"{here}/status\";\n\
             Dir::Cache \"{here}/cache\";\nDir::Etc::SourceList \"{here}/sources.list\";\n\
             Dir::Etc::SourceParts \"/dev/null\";\nDir::Etc::Preferences \"/dev/null\";\n\
             Dir::Etc::PreferencesParts \"/dev/null\";\nAPT::Architecture \"amd64\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        let config = dir.join("apt.conf");
        fs::write(&config, text)?;
        let apt = Self { dir, config };
        apt.tool("apt-get", LONG)
            .arg("update")
            .run()
            .with_context(|| format!("cannot read the lists of {suite}"))?;
        Ok(apt)
    }

    fn tool(&self, program: &str, limit: Duration) -> Tool {
        Tool::new(program, limit).env("APT_CONFIG", &self.config)
    }

    /// Does this release have the package?
    pub(super) fn has(&self, package: &str) -> bool {
        self.show(package).is_ok()
    }

    fn show(&self, package: &str) -> Result<String> {
        let text = self
            .tool("apt-cache", SHORT)
            .args(["show", "--no-all-versions", package])
            .output()?;
        if text.trim().is_empty() {
            bail!("apt has no package {package}");
        }
        Ok(text)
    }

    /// The packages it depends on.
    pub(super) fn depends(&self, package: &str) -> Result<Vec<String>> {
        Ok(depends_of(&self.show(package)?))
    }

    /// Downloads a package, checked against the signed lists, and returns its file.
    pub(super) fn download(&self, package: &str) -> Result<PathBuf> {
        let debs = self.dir.join("debs");
        self.tool("apt-get", LONG)
            .args(["download", package])
            .dir(&debs)
            .run()
            .with_context(|| format!("cannot download {package}"))?;
        let prefix = format!("{package}_");
        let mut newest = None;
        for entry in fs::read_dir(&debs)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let stamp = entry.metadata()?.modified()?;
                if newest.as_ref().is_none_or(|(best, _)| stamp >= *best) {
                    newest = Some((stamp, entry.path()));
                }
            }
        }
        newest
            .map(|(_, path)| path)
            .with_context(|| format!("apt left no file of {package}"))
    }
}

impl Apt {
    /// Downloads a package and all that it depends on, and returns the files.
    pub(super) fn download_all(&self, package: &str) -> Result<Vec<PathBuf>> {
        self.tool("apt-get", LONG)
            .args([
                "install",
                "--download-only",
                "--no-install-recommends",
                "--yes",
            ])
            .arg(package)
            .run()
            .with_context(|| format!("cannot download {package} and what it depends on"))?;
        let archives = self.dir.join("cache/archives");
        let mut files = Vec::new();
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                files.push(path);
            }
        }
        Ok(files)
    }
}

/// The first choice of every dependency in a `Depends:` field, without its version.
fn depends_of(record: &str) -> Vec<String> {
    record
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .into_iter()
        .flat_map(|list| list.split(','))
        .filter_map(|item| item.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_without_versions() {
        let record = "Package: x\nDepends: linux-base-1 (= 1), linux-image-1-cloud-amd64 (= 1), a | b\nSize: 1\n";
        assert_eq!(
            depends_of(record),
            ["linux-base-1", "linux-image-1-cloud-amd64", "a"]
        );
        assert!(depends_of("Package: x\n").is_empty());
    }

    #[test]
    fn backports_have_no_security_suite() {
        let mirror = Mirror {
            main: "http://m/".into(),
            security: "http://s/".into(),
        };
        assert!(
            mirror
                .sources("bookworm")
                .contains("http://s/ bookworm-security")
        );
        assert!(!mirror.sources("trixie-backports").contains("security"));
    }
}
