//! A Python program that counts.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Pause, Program, SHORT, identity, number, same, until};
use crate::guest::Shell;

const FILE: &str = "/var/lab/counter.log";

/// A longer pause between two counts than this must be the upgrade. A busy host with two
/// translated processors stops a guest for a good part of it.
const HICCUP: f64 = 2.5;

/// The counter; its count and token exist in its memory alone.
#[derive(Default)]
pub(crate) struct Counter {
    pid: u32,
    identity: String,
    count: u64,
}

/// What `counter_check.py` found.
#[derive(Debug, Deserialize)]
struct Judgement {
    last: u64,
    gaps: Vec<Gap>,
    errors: Vec<String>,
}

/// Seconds between two counts on both clocks.
#[derive(Debug, Deserialize)]
struct Gap {
    wall: f64,
    mono: f64,
    count: u64,
}

impl Counter {
    fn judge(&self, shell: &mut Shell) -> Result<Judgement> {
        let text = shell.must(
            &format!(
                "python3 /opt/kupgrade/lab/counter_check.py {FILE} {}",
                self.count
            ),
            SHORT,
        )?;
        serde_json::from_str(text.trim())
            .with_context(|| format!("the judge of the counter said: {text}"))
    }
}

/// One gap is the upgrade's; it is not longer than the blackout, and there is no other.
fn check_gaps(gaps: &[Gap], pause: &Pause) -> Result<()> {
    let Some(blackout) = pause.blackout_ms else {
        return Ok(());
    };
    for (place, gap) in gaps.iter().enumerate() {
        let allowed = if place == 0 {
            blackout / 1000.0 + HICCUP
        } else {
            HICCUP
        };
        if gap.wall > allowed {
            bail!(
                "at count {} it stood still for {:.2} s; {allowed:.2} s are explained",
                gap.count,
                gap.wall
            );
        }
        if gap.mono > gap.wall + 0.5 {
            bail!(
                "at count {} the monotonic clock jumped {:.2} s ahead while {:.2} s passed",
                gap.count,
                gap.mono,
                gap.wall
            );
        }
    }
    Ok(())
}

impl Program for Counter {
    fn name(&self) -> String {
        "Python counter".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        let pid = shell.must(
            &format!("python3 /opt/kupgrade/lab/counter.py {FILE} & echo $!"),
            SHORT,
        )?;
        let pid = pid.lines().last().unwrap_or_default();
        self.pid = u32::try_from(number(pid)?)?;
        until(shell, &format!("wc -l < {FILE}"), SHORT, |lines| {
            lines != "0"
        })?;
        Ok(())
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.identity = identity(shell, self.pid)?;
        self.count = self.judge(shell)?.last;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, pause: &Pause) -> Result<String> {
        same("the process", &self.identity, &identity(shell, self.pid)?)?;
        let before = self.judge(shell)?.last;
        until(
            shell,
            &format!("tail -n 1 {FILE} | cut -d ' ' -f 1"),
            SHORT,
            |count| count.parse().is_ok_and(|count: u64| count > before),
        )
        .context("it does not count any more")?;
        let found = self.judge(shell)?;
        if let Some(error) = found.errors.first() {
            bail!("{error}");
        }
        check_gaps(&found.gaps, pause)?;
        let longest = found.gaps.first().map_or(0.0, |gap| gap.wall);
        Ok(format!(
            "process {}, at {} without a gap in the count, longest pause {longest:.2} s",
            self.pid, found.last
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(wall: f64, mono: f64) -> Gap {
        Gap {
            wall,
            mono,
            count: 1,
        }
    }

    #[test]
    fn one_gap_is_explained_by_the_blackout() {
        let pause = Pause {
            blackout_ms: Some(8000.0),
        };
        assert!(check_gaps(&[gap(8.3, 8.3), gap(0.1, 0.1)], &pause).is_ok());
        assert!(check_gaps(&[gap(8.3, 0.0)], &pause).is_ok());
        assert!(check_gaps(&[gap(12.0, 12.0)], &pause).is_err());
        assert!(check_gaps(&[gap(8.3, 8.3), gap(4.0, 4.0)], &pause).is_err());
        assert!(check_gaps(&[gap(8.3, 60.0)], &pause).is_err());
    }
}
