//! What came from the guest, read by a thread of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Output;
use super::protocol::Request;
use crate::tool::tail;

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

/// The bytes that came and were not yet asked for.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Inbox {
    /// Starts reading.
    pub(super) fn start(mut stream: UnixStream, log: &Path) -> Result<Arc<Self>> {
        let mut log =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let inbox = Arc::new(Self::default());
        let own = Arc::clone(&inbox);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        // The log is a help for people; the bytes below are what counts.
                        let _ = log.write_all(&buffer[..count]);
                        own.lock().bytes.extend_from_slice(&buffer[..count]);
                        own.changed.notify_all();
                    }
                }
            }
            own.lock().closed = true;
            own.changed.notify_all();
        });
        Ok(inbox)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Did the machine close the line?
    pub(super) fn closed(&self) -> bool {
        self.lock().closed
    }

    /// Drops what came unasked.
    pub(super) fn forget(&self) {
        self.lock().bytes.clear();
    }

    /// Takes what came, waiting a little when there is nothing. `None`: the line is closed.
    pub(crate) fn take(&self, limit: Duration) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if state.bytes.is_empty() && !state.closed {
            state = self
                .changed
                .wait_timeout(state, limit)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        (!state.closed || !state.bytes.is_empty()).then(|| std::mem::take(&mut state.bytes))
    }

    /// Waits for the answer to a request.
    pub(super) fn wait(&self, request: &Request, limit: Duration) -> Result<Output> {
        self.wait_for(limit, |bytes| request.answer(bytes))
    }

    /// Waits for a text.
    pub(super) fn wait_text(&self, text: &str, limit: Duration) -> Result<Instant> {
        self.wait_for(limit, |bytes| {
            String::from_utf8_lossy(bytes)
                .contains(text)
                .then(Instant::now)
        })
    }

    /// Waits until `found` finds something in what came.
    fn wait_for<T>(&self, limit: Duration, found: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = found(&state.bytes) {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let text = String::from_utf8_lossy(&state.bytes).into_owned();
                let why = if state.closed {
                    "the machine ended".to_owned()
                } else {
                    format!("no answer within {} s", limit.as_secs())
                };
                bail!("{why}; until then it printed:\n{}", tail(&text, 15));
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
