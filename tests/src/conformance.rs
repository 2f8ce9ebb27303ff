//! The table of what is carried: a row for every subject, made from what the tests found.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{paths, ui};

/// What became of a subject, or should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// It went through and found nothing changed.
    Carried,
    /// It was refused before anything was stopped, with this message.
    Refused(String),
    /// It went through and something was wrong.
    Wrong(String),
    /// What it needs does not exist on this machine.
    NotHere(String),
}

impl Fate {
    /// As `subject --table` writes it.
    pub(crate) fn parse(text: &str) -> Self {
        match text.split_once(": ") {
            Some(("refused", words)) => Self::Refused(words.to_owned()),
            Some(("wrong", what)) => Self::Wrong(what.to_owned()),
            _ => Self::Carried,
        }
    }

    fn cell(&self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Refused(_) => "refused",
            Self::Wrong(_) => "**wrong**",
            Self::NotHere(_) => "not on the machine",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carried => write!(out, "carried"),
            Self::Refused(text) => write!(out, "refused: {text}"),
            Self::Wrong(text) => write!(out, "wrong: {text}"),
            Self::NotHere(text) => write!(out, "not here: {text}"),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    group: String,
    name: String,
    resource: String,
    /// On one kernel.
    here: Option<Fate>,
    /// From kernel to kernel.
    across: Option<Fate>,
    #[serde(skip)]
    listed: bool,
}

/// All rows, with what earlier runs found where this one finds nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    fn path(ending: &str) -> PathBuf {
        paths::lab_dir().join(format!("conformance.{ending}"))
    }

    /// The table of the last run.
    pub(crate) fn load() -> Self {
        fs::read(Self::path("json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Makes sure that a subject has a row. One that is not taken across kernels has its
    /// verdict at once.
    pub(crate) fn add(&mut self, group: &str, name: &str, resource: &str, across: Fate) {
        let old = self.rows.iter().position(|row| row.name == name);
        let old = old.map(|place| self.rows.remove(place));
        let (here, before) = old.map_or((None, None), |row| (row.here, row.across));
        let across = if across == Fate::Carried {
            before
        } else {
            Some(across)
        };
        self.rows.push(Row {
            group: group.to_owned(),
            name: name.to_owned(),
            resource: resource.to_owned(),
            here,
            across,
            listed: true,
        });
    }

    /// Drops rows of subjects that do not exist any more.
    pub(crate) fn keep_listed(&mut self) {
        self.rows.retain(|row| row.listed);
    }

    /// Notes what one kernel made of a subject.
    pub(crate) fn here(&mut self, name: &str, fate: &Fate) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name) {
            row.here = Some(fate.clone());
        }
    }

    /// Notes what an upgrade made of a subject. That one kernel has not what it needs says nothing about
    /// another that has.
    pub(crate) fn across(&mut self, name: &str, fate: Fate) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name)
            && !(matches!(fate, Fate::NotHere(_)) && row.across == Some(Fate::Carried))
        {
            row.across = Some(fate);
        }
    }

    /// Writes it for people and for machines.
    pub(crate) fn save(&self) -> Result<()> {
        fs::create_dir_all(paths::lab_dir())?;
        let write = |ending: &str, text: String| {
            let path = Self::path(ending);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("json", serde_json::to_string_pretty(self)?)?;
        write("md", self.markdown())
    }

    fn markdown(&self) -> String {
        let cell = |fate: &Option<Fate>| fate.as_ref().map_or("not tried", Fate::cell);
        let mut text =
            String::from("| | resource | one kernel | across kernels |\n|---|---|---|---|\n");
        let mut group = "";
        for row in &self.rows {
            let head = if row.group == group { "" } else { &row.group };
            group = &row.group;
            text += &format!(
                "| {head} | {} | {} | {} |\n",
                row.resource,
                cell(&row.here),
                cell(&row.across)
            );
        }
        text
    }

    /// A table for each group, folded up behind a line that sums it up.
    fn folded(&self) -> String {
        let of_one = |left: &Row, right: &Row| left.group == right.group;
        let groups = self.rows.chunk_by(of_one).map(|rows| {
            let group = &rows[0].group;
            let table = Table {
                rows: rows.to_vec(),
            };
            format!(
                "<details><summary>{group}: {}</summary>\n\n{}\n</details>\n",
                table.summary(),
                table.markdown()
            )
        });
        groups.collect()
    }

    fn summary(&self) -> String {
        format!(
            "{} subjects; {} are carried on one kernel, {} across kernels",
            self.rows.len(),
            self.count(|row| &row.here),
            self.count(|row| &row.across)
        )
    }

    fn count(&self, of: impl Fn(&Row) -> &Option<Fate>) -> usize {
        self.rows
            .iter()
            .filter(|row| *of(row) == Some(Fate::Carried))
            .count()
    }
}

/// What `cargo lab conformance` takes.
#[derive(Args)]
pub(crate) struct ConformanceArgs {
    /// Put the table into README.md, between its markers
    #[arg(long)]
    write: bool,
}

const BEGIN: &str = "<!-- conformance: made by cargo lab conformance --write -->\n";
const END: &str = "<!-- end of conformance -->";

/// `cargo lab conformance`: the table of the last runs.
pub(crate) fn conformance(args: &ConformanceArgs) -> Result<ExitCode> {
    let table = Table::load();
    if !args.write {
        ui::say(&table.markdown());
        return Ok(ExitCode::SUCCESS);
    }
    let path = paths::workspace().join("README.md");
    let text = fs::read_to_string(&path)?;
    let written = replace(
        &text,
        &format!("{}.\n\n{}", table.summary(), table.folded()),
    )
    .with_context(|| format!("{} has no markers for the table", path.display()))?;
    fs::write(&path, written).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Replaces what stands between the markers.
fn replace(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let text = format!("a\n{BEGIN}old{END}\nb");
        assert_eq!(
            replace(&text, "new"),
            Some(format!("a\n{BEGIN}new{END}\nb"))
        );
        assert_eq!(replace("a", "new"), None);
    }

    #[test]
    fn every_group_has_a_table_that_is_summed_up() {
        let mut table = Table::default();
        table.add("g", "a", "r", Fate::Carried);
        table.add("g", "b", "s", Fate::Refused("x".into()));
        table.add("h", "c", "t", Fate::Carried);
        table.here("a", &Fate::Carried);
        let folded = table.folded();
        assert!(folded.contains(
            "<summary>g: 2 subjects; 1 are carried on one kernel, 0 across kernels</summary>\n\n|"
        ));
        assert!(folded.contains("| h | t | not tried | not tried |\n\n</details>"));
        assert_eq!(folded.matches("<details>").count(), 2);
    }

    #[test]
    fn rows_keep_what_earlier_runs_found() {
        let mut table = Table::default();
        table.add("g", "a", "r", Fate::Carried);
        table.here("a", &Fate::Carried);
        table.across("a", Fate::Wrong("x".into()));
        table.add("g", "a", "other", Fate::Carried);
        assert_eq!(table.rows.len(), 1);
        assert_eq!(table.rows[0].here, Some(Fate::Carried));
        assert!(
            table
                .markdown()
                .contains("| g | other | carried | **wrong** |")
        );
    }
}
