//! A Redis server with data in memory only.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Pause, Program, SHORT, identity, number, same, until};
use crate::guest::Shell;

/// The server; nothing of its data is on a disk.
pub(crate) struct Redis {
    mib: u64,
    pid: u32,
    before: Facts,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    identity: String,
    run_id: String,
    keys: String,
    digest: String,
}

impl Redis {
    /// A server that will hold `mib` MiB of values.
    pub(crate) fn new(mib: u64) -> Self {
        Self {
            mib,
            pid: 0,
            before: Facts::default(),
        }
    }

    /// Sized for the data: hashing all values is slow under TCG.
    fn limit(&self) -> Duration {
        SHORT + Duration::from_millis(400 * self.mib)
    }

    fn facts(&self, shell: &mut Shell) -> Result<Facts> {
        let run_id = shell.must("redis-cli --raw info server | grep ^run_id", SHORT)?;
        Ok(Facts {
            identity: identity(shell, self.pid)?,
            run_id: run_id.trim().to_owned(),
            keys: shell
                .must("redis-cli --raw dbsize", SHORT)?
                .trim()
                .to_owned(),
            digest: shell
                .must("redis-cli --raw debug digest", self.limit())?
                .trim()
                .to_owned(),
        })
    }
}

impl Program for Redis {
    fn name(&self) -> String {
        "Redis".into()
    }

    fn start(&mut self, shell: &mut Shell) -> Result<()> {
        shell.must(
            "redis-server --port 6379 --bind 127.0.0.1 --save '' --appendonly no --daemonize yes \
             --enable-debug-command yes --dir /var/lab --logfile /var/lab/redis.log",
            SHORT,
        )?;
        until(shell, "redis-cli --raw ping", SHORT, |text| text == "PONG")?;
        self.pid = u32::try_from(number(&shell.must("pidof redis-server", SHORT)?)?)?;
        shell.must(
            &format!("python3 /opt/kupgrade/lab/fill.py {}", self.mib),
            self.limit(),
        )?;
        Ok(())
    }

    fn note(&mut self, shell: &mut Shell) -> Result<()> {
        self.before = self.facts(shell)?;
        Ok(())
    }

    fn verify(&mut self, shell: &mut Shell, _pause: &Pause) -> Result<String> {
        let now = self.facts(shell)?;
        same("the process", &self.before.identity, &now.identity)?;
        same("the run id", &self.before.run_id, &now.run_id)?;
        same("the number of keys", &self.before.keys, &now.keys)?;
        same("the digest of all values", &self.before.digest, &now.digest)?;
        let written = shell.must(
            "redis-cli --raw set lab:alive yes; redis-cli --raw del lab:alive",
            SHORT,
        )?;
        if written.split_whitespace().ne(["OK", "1"]) {
            bail!("it does not take writes: {written}");
        }
        Ok(format!(
            "process {}, {} keys, digest {:.12}",
            self.pid, now.keys, now.digest
        ))
    }
}
