//! The subjects: programs that build some state, let themselves be carried, and say whether
//! all of it is still there. The protocol is in `tests/README.md`.

mod memory_pattern;
mod protocol;
mod vfork_parent;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A subject: builds its state and returns what checks it.
type Subject = fn() -> Result<Box<dyn FnMut() -> Result<()>>>;

/// Every subject, by name; the lab carries all of them. To add one: a module, and a line here.
const SUBJECTS: &[(&str, Subject)] = &[("memory-pattern", memory_pattern::start)];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            protocol::complain(&format!("subject: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|arg| arg == "--list") {
        protocol::say(
            &SUBJECTS
                .iter()
                .map(|(name, _)| format!("{name}\n"))
                .collect::<String>(),
        );
        return Ok(());
    }
    let (Some(name), Some(base)) = (args.next(), args.next()) else {
        let names: Vec<&str> = SUBJECTS.iter().map(|(name, _)| *name).collect();
        bail!(
            "usage: subject NAME FILE-PREFIX; names: {}",
            names.join(", ")
        );
    };
    if name == "vfork-parent" {
        return vfork_parent::run(&base);
    }
    let Some((_, start)) = SUBJECTS.iter().find(|(known, _)| *known == name) else {
        bail!("no subject is called {name}");
    };
    protocol::serve(&base, start()?)
}
