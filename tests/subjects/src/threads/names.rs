//! Names of threads, and many of them.

use std::fs;

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, tid};

fn comm(tid: i32) -> String {
    format!("/proc/self/task/{tid}/comm")
}

/// Five names, one with every byte a name may have.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    named(&["first", "a b)c (d", "fifteen letters", "", "\u{fc}\t\n\\"])
}

/// Two hundred threads.
pub(crate) fn many(_: &Setting) -> Result<Watch> {
    let names: Vec<String> = (0..200).map(|number| format!("thread {number}")).collect();
    named(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn named(names: &[&str]) -> Result<Watch> {
    let mut crew = Crew::default();
    for name in names {
        let name = (*name).to_owned();
        crew.add(move || {
            let mine = tid();
            fs::write(comm(mine), &name)?;
            Ok(Watch::keep(move || Ok((tid(), fs::read(comm(mine))?)))?
                .spoiled_by(move || Ok(fs::write(comm(mine), "other")?)))
        })?;
    }
    Ok(crew.watch())
}
