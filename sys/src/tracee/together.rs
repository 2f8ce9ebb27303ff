//! Batches that several threads under construction run side by side.

use super::{Tracee, TraceeError};
use crate::batch::{Batch, Output};
use crate::ptrace;
use crate::regs::Regs;
use crate::wait::Status;

/// A thread that is to run a batch, with the place of the call table.
type Begun<'a, 'b> = (&'a mut Tracee, &'b Batch, u64);

/// Runs a batch in each of the threads, as [`Tracee::run_raw`] does, but so that they need not wait for each
/// other, nor this process for every single one. Their tables never lie in the same place: processes may have
/// the same memory. The stack pointer is 0 meanwhile: what looks whether a thread is on its signal stack finds
/// that it is not.
///
/// # Errors
/// As [`Tracee::run_raw`]: the first one, when all that were begun have stopped.
pub fn run_together<'a, 'b>(
    work: impl IntoIterator<Item = (&'a mut Tracee, &'b Batch)>,
) -> Result<Vec<Output>, TraceeError> {
    let mut outputs = Vec::new();
    let mut begun: Vec<Begun<'a, 'b>> = Vec::new();
    let mut used = 0;
    for (tracee, batch) in work {
        let alone = tracee.lender.is_some();
        if used > 0 && (alone || tracee.room_for(batch, used).is_err()) {
            end(&mut begun, &mut outputs)?;
            used = 0;
        }
        if alone {
            outputs.push(tracee.run_alone(batch)?);
            continue;
        }
        match tracee.begin_raw(batch, used) {
            Ok(table) => begun.push((tracee, batch, table)),
            Err(error) => {
                // Nobody may be left running.
                end(&mut begun, &mut outputs)?;
                return Err(error);
            }
        }
        used += batch.size().next_multiple_of(64);
    }
    end(&mut begun, &mut outputs)?;
    Ok(outputs)
}

/// Waits for all that were begun, the last one first: on one processor the others have stopped by then, one after
/// the other, and none of them has woken who waits.
fn end(begun: &mut Vec<Begun<'_, '_>>, outputs: &mut Vec<Output>) -> Result<(), TraceeError> {
    let mut failed = None;
    let before = outputs.len();
    for (tracee, batch, table) in begun.drain(..).rev() {
        match tracee.end_raw(batch, table) {
            Ok(output) => outputs.push(output),
            Err(error) => failed = Some(error),
        }
    }
    outputs[before..].reverse();
    failed.map_or(Ok(()), Err)
}

impl Tracee {
    /// Begins with a batch whose table lies `used` bytes from where tables may lie, and returns its address.
    fn begin_raw(&mut self, batch: &Batch, used: usize) -> Result<u64, TraceeError> {
        let regs = Regs {
            rsp: 0,
            ..self.regs()?
        };
        let table = self.prepare_raw(batch, used, regs)?;
        ptrace::cont(self.tid, 0).map_err(self.failed("running a batch in it"))?;
        Ok(table)
    }

    /// Who lends something to a thread may have its memory, and takes back what the one before has got.
    fn run_alone(&mut self, batch: &Batch) -> Result<Output, TraceeError> {
        let lent = self.lent(batch)?;
        let batch = lent.as_ref().unwrap_or(batch);
        let table = self.begin_raw(batch, 0)?;
        self.end_raw(batch, table)
    }

    fn end_raw(&mut self, batch: &Batch, table: u64) -> Result<Output, TraceeError> {
        self.wait_for("running a batch in it", ptrace::cont, |_, status| {
            status == Status::Signal(libc::SIGTRAP)
        })?;
        self.read_batch(batch, table)
    }
}
