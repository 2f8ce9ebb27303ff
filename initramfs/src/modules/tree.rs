//! `/lib/modules/RELEASE`: what depmod(8) wrote about a kernel's modules.

use super::pattern;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Why the modules of a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file that must be there cannot be read.
    #[error("{path}: {source}; is the kernel's package installed whole?", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A compressed module is damaged.
    #[error("{path}: damaged module: {source}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decompressor said.
        source: std::io::Error,
    },
    /// Modules without which the host cannot come back.
    #[error("kernel {release} lacks what this host needs to come back: {what}")]
    Essential {
        /// Release of the new kernel.
        release: String,
        /// Names and reasons.
        what: String,
    },
}

/// `-` and `_` are the same in a module's name; the kernel uses `_`.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Names of what must be loaded before, first to last.
    before: Vec<String>,
}

/// Modules of one kernel: files, dependencies, aliases, what is built in.
#[derive(Debug)]
pub struct ModuleTree {
    release: String,
    files: BTreeMap<String, File>,
    builtin: BTreeSet<String>,
    aliases: Vec<(String, String)>,
    pre: BTreeMap<String, Vec<String>>,
    post: BTreeMap<String, Vec<String>>,
    options: BTreeMap<String, String>,
}

/// What a name stands for on the new kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// These modules, by canonical name.
    Modules(Vec<String>),
    /// Part of the kernel image.
    Builtin,
    /// Unknown to this kernel.
    Unknown,
}

fn read(path: &Path) -> Result<String, ModuleError> {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| ModuleError::Unreadable {
            path: path.to_owned(),
            source,
        })
}

/// Files that older depmods do not write.
fn read_optional(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Module name of a path such as `kernel/fs/ext4/ext4.ko.xz`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let end = file.find(".ko")?;
    Some(canonical(&file[..end]))
}

impl ModuleTree {
    /// Reads `ROOT/lib/modules/RELEASE` (or, with a merged /usr missing, `ROOT/usr/lib/...`).
    ///
    /// # Errors
    /// `modules.dep` or `modules.builtin` cannot be read.
    pub fn open(root: &Path, release: &str) -> Result<ModuleTree, ModuleError> {
        let mut dir = root.join("lib/modules").join(release);
        if !dir.join("modules.dep").exists() {
            let other = root.join("usr/lib/modules").join(release);
            if other.join("modules.dep").exists() {
                dir = other;
            }
        }
        let mut tree = ModuleTree {
            release: release.to_owned(),
            files: BTreeMap::new(),
            builtin: BTreeSet::new(),
            aliases: Vec::new(),
            pre: BTreeMap::new(),
            post: BTreeMap::new(),
            options: BTreeMap::new(),
        };
        tree.parse_dep(&dir, &read(&dir.join("modules.dep"))?);
        tree.builtin = read(&dir.join("modules.builtin"))?
            .lines()
            .filter_map(name_of)
            .collect();
        tree.parse_alias(&read_optional(&dir.join("modules.alias")));
        tree.parse_builtin_info(&read_optional(&dir.join("modules.builtin.modinfo")));
        tree.parse_softdep(&read_optional(&dir.join("modules.softdep")));
        for conf in [
            "usr/lib/modprobe.d",
            "lib/modprobe.d",
            "run/modprobe.d",
            "etc/modprobe.d",
        ] {
            tree.parse_conf_dir(&root.join(conf));
        }
        Ok(tree)
    }

    /// Release this tree belongs to (`uname -r`).
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    fn parse_dep(&mut self, dir: &Path, text: &str) {
        for line in text.lines() {
            let Some((path, deps)) = line.split_once(':') else {
                continue;
            };
            let Some(name) = name_of(path) else { continue };
            // depmod lists the nearest dependency first; the farthest must be loaded first.
            let before = deps.split_whitespace().rev().filter_map(name_of).collect();
            self.files.insert(
                name,
                File {
                    path: dir.join(path),
                    before,
                },
            );
        }
    }

    fn parse_alias(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("alias") {
                continue;
            }
            if let (Some(pattern), Some(name)) = (words.next(), words.next()) {
                self.aliases.push((pattern.to_owned(), canonical(name)));
            }
        }
    }

    /// NUL-separated `name.key=value`: the aliases of what is built in.
    fn parse_builtin_info(&mut self, text: &str) {
        for record in text.split('\0') {
            let Some((key, value)) = record.split_once('=') else {
                continue;
            };
            if let Some(name) = key.strip_suffix(".alias") {
                self.aliases.push((value.to_owned(), canonical(name)));
            }
        }
    }

    fn parse_softdep(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(name) = words.next().map(canonical) else {
                continue;
            };
            let mut after = false;
            for word in words {
                match word {
                    "pre:" => after = false,
                    "post:" => after = true,
                    other => {
                        let table = if after { &mut self.post } else { &mut self.pre };
                        table
                            .entry(name.clone())
                            .or_default()
                            .push(canonical(other));
                    }
                }
            }
        }
    }

    /// modprobe.d(5): `options` (parameters) and `softdep` lines.
    fn parse_conf_dir(&mut self, dir: &Path) {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|e| e == "conf"));
        files.sort();
        for path in files {
            let text = read_optional(&path).replace("\\\n", " ");
            self.parse_softdep(&text);
            for line in text.lines() {
                let Some(rest) = line.trim().strip_prefix("options ") else {
                    continue;
                };
                if let Some((name, parameters)) = rest.trim().split_once(char::is_whitespace) {
                    let all = self.options.entry(canonical(name)).or_default();
                    if !all.is_empty() {
                        all.push(' ');
                    }
                    all.push_str(parameters.trim());
                }
            }
        }
    }

    /// What a module name or an alias (`pci:v00001AF4d...`, `fs-ext4`) stands for.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Resolved {
        let plain = canonical(name);
        if self.files.contains_key(&plain) {
            return Resolved::Modules(vec![plain]);
        }
        if self.builtin.contains(&plain) {
            return Resolved::Builtin;
        }
        let mut modules: Vec<String> = Vec::new();
        let mut builtin = false;
        for (alias, module) in &self.aliases {
            if !pattern::matches(alias, name) {
                continue;
            }
            if self.files.contains_key(module) {
                if !modules.contains(module) {
                    modules.push(module.clone());
                }
            } else {
                builtin = true;
            }
        }
        match (modules.is_empty(), builtin) {
            (false, _) => Resolved::Modules(modules),
            (true, true) => Resolved::Builtin,
            (true, false) => Resolved::Unknown,
        }
    }

    /// File of a module, by canonical name.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(|file| file.path.as_path())
    }

    /// Parameters modprobe.d gives the module.
    #[must_use]
    pub fn options(&self, name: &str) -> &str {
        self.options.get(name).map_or("", String::as_str)
    }

    /// Appends `name` and everything it needs to `order`, each once, needed ones before.
    pub(super) fn append(&self, name: &str, order: &mut Vec<String>) {
        self.visit(name, order, &mut BTreeSet::new());
    }

    fn visit(&self, name: &str, order: &mut Vec<String>, open: &mut BTreeSet<String>) {
        if order.iter().any(|n| n == name) || !open.insert(name.to_owned()) {
            return;
        }
        let Some(file) = self.files.get(name) else {
            return;
        };
        for soft in self.pre.get(name).into_iter().flatten() {
            self.visit_soft(soft, order, open);
        }
        for before in &file.before {
            self.visit(before, order, open);
        }
        order.push(name.to_owned());
        for soft in self.post.get(name).into_iter().flatten() {
            self.visit_soft(soft, order, open);
        }
    }

    /// A soft dependency may be an alias, and may be missing.
    fn visit_soft(&self, name: &str, order: &mut Vec<String>, open: &mut BTreeSet<String>) {
        if let Resolved::Modules(modules) = self.resolve(name) {
            for module in modules {
                self.visit(&module, order, open);
            }
        }
    }
}
