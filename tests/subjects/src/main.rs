//! The subjects: programs that build some state, let themselves be carried, and say whether
//! all of it is still there. The protocol is in `tests/README.md`.
//!
//! A folder per group of resources, a module per resource; [`registry`] knows all of them and
//! [`expected`] what is not carried yet.

mod ancestry;
mod calls;
mod expected;
mod files;
mod ipc;
mod kit;
mod load;
mod memory;
mod protocol;
mod registry;
mod signals;
mod sockets;
mod terminals;
mod threads;
mod time;
mod vfork_parent;

use std::process::ExitCode;

use anyhow::{Result, bail};

use expected::Fate;
use kit::Setting;

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
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => list(""),
        ["--list", part] => list(part),
        ["--table"] => table(),
        ["vfork-parent", prefix] => return vfork_parent::run(prefix),
        [name, prefix] => {
            kit::close_inherited();
            let setting = Setting::new(prefix);
            if let Some(kind) = name.strip_prefix("load:") {
                return protocol::serve(&setting, || load::start(kind, &setting));
            }
            let Some((_, subject)) = registry::all().find(|(_, subject)| subject.name == name)
            else {
                bail!("no subject is called {name}");
            };
            return protocol::serve(&setting, || (subject.start)(&setting));
        }
        _ => bail!("usage: subject NAME FILE-PREFIX | --list [PART] | --table"),
    }
    Ok(())
}

/// The names of those that are carried from kernel to kernel, one a line; with a part of a
/// name or group only those that contain it, with `=NAME` those whose name or group it is.
fn list(part: &str) {
    for (group, subject) in registry::all() {
        let chosen = match part.strip_prefix('=') {
            Some(name) => subject.name == name || group == name,
            None => subject.name.contains(part) || group.contains(part),
        };
        if chosen && expected::of(subject.name).across == Fate::Carried {
            protocol::say(&format!("{}\n", subject.name));
        }
    }
}

/// Everything that is known of every subject, tabs between: group, name, what is expected on
/// one kernel and across kernels, the resource.
fn table() {
    for (group, subject) in registry::all() {
        let expected = expected::of(subject.name);
        protocol::say(&format!(
            "{group}\t{}\t{}\t{}\t{}\n",
            subject.name, expected.here, expected.across, subject.resource
        ));
    }
}
