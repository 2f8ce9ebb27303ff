//! Directories that processes are told of by signals (fcntl(2), `F_NOTIFY`): each asks again by itself.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;

const F_NOTIFY: i32 = 1026;
const DOING: &str = "asking to be told of a directory";

/// Asks, when nothing is made or removed any more. The owner of the description, whom the first to ask becomes, has
/// been told before.
pub(super) fn watch(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for notice in &manifest.notices {
        let mut tables = manifest.tables();
        let table = tables.find(|table| table.shown_as() == notice.pid);
        let table = table.ok_or_else(|| ResurrectError::Impossible {
            pid: notice.pid,
            why: format!(
                "who asked to be told of a directory by descriptor {} is not there",
                notice.fd
            ),
        })?;
        // The one with whom it shares its descriptors asks.
        if table.shared {
            continue;
        }
        let mut calls = Calls::new(table.pid, DOING, restore.keeper(table)?);
        let args = [notice.fd.into(), F_NOTIFY.into(), notice.events.into()];
        calls.batch().call(DOING, nr::FCNTL, args);
        calls.flush()?;
    }
    Ok(())
}
