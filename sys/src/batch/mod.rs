//! System calls as data.
//!
//! A [`Batch`] is a list of calls with their input and output buffers. It is built and printed
//! here, and run by [`crate::tracee::Tracee::run`] inside another process: the list is copied to a
//! scratch mapping there, a loop of some fifty instructions makes the calls one after the other
//! and stops once. So hundreds of calls cost one stop, and what a restore does is a value that can
//! be looked at.
//!
//! Scratch layout: one page of code, then the call table, then the data the calls point to. A batch whose
//! thread must find its way back alone has more before its table: the words that exits need
//! ([`EXIT_ROOM`]), and what the thread goes on with ([`Resume`]).

mod code;
mod resume;

pub use code::code;
pub(crate) use code::{UNTIL_FLAGS, mark, page};
use core::fmt;
pub(crate) use resume::{EXIT_ROOM, EXITS, Exit, RESUME_ROOM, Resume};

/// An argument of a remote call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A plain number (or an address of the target itself).
    Value(u64),
    /// The address, in the target, of a buffer of this batch.
    Data(Buffer),
    /// The result of an earlier call of the same batch.
    Result(CallIndex),
}

macro_rules! arg_from {
    ($($int:ty),*) => {$(
        impl From<$int> for Arg {
            /// Sign-extends, as the C ABI does for arguments.
            fn from(value: $int) -> Arg {
                Arg::Value(value as i64 as u64)
            }
        }
    )*};
}
arg_from!(i32, u32, i64, usize);

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::Value(value)
    }
}
impl From<Buffer> for Arg {
    fn from(buffer: Buffer) -> Arg {
        Arg::Data(buffer)
    }
}
impl From<CallIndex> for Arg {
    fn from(index: CallIndex) -> Arg {
        Arg::Result(index)
    }
}

/// A buffer inside a batch: offset and length in its data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    offset: usize,
    len: usize,
}

impl Buffer {
    /// What is behind its first `offset` bytes.
    #[must_use]
    pub fn at(self, offset: usize) -> Buffer {
        let offset = offset.min(self.len);
        Buffer {
            offset: self.offset + offset,
            len: self.len - offset,
        }
    }
}

/// Names a call of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallIndex(usize);

/// What the loop does when a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Stop; later calls are not made and report `ECANCELED`.
    Stop,
    /// Go on; the result says what happened.
    Continue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    nr: i64,
    args: [Arg; 6],
    on_error: OnError,
    /// What is done is no call: AMX is used.
    tiles: bool,
    what: &'static str,
}

/// A list of system calls with their buffers.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    /// Places in the data that hold the address of a buffer.
    pointers: Vec<(usize, Buffer)>,
}

const ENTRY: usize = 72;
const RESULT: usize = 56;
const FLAG_STOP_ON_ERROR: u64 = 1 << 8;
const FLAG_TILES: u64 = 1 << 9;

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a buffer holding `bytes` (input, or in/out), aligned to 16 bytes.
    pub fn data(&mut self, bytes: &[u8]) -> Buffer {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let offset = self.data.len();
        self.data.extend_from_slice(bytes);
        Buffer {
            offset,
            len: bytes.len(),
        }
    }

    /// Adds a zeroed buffer of `len` bytes for output.
    pub fn space(&mut self, len: usize) -> Buffer {
        self.data(&vec![0; len])
    }

    /// Adds a NUL-terminated string.
    pub fn string(&mut self, text: &[u8]) -> Buffer {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// Puts the address, in the target, of `buffer` into 8 bytes of `place` from `offset` on: for
    /// structures that point to others.
    pub fn pointer(&mut self, place: Buffer, offset: usize, buffer: Buffer) {
        debug_assert!(offset + 8 <= place.len);
        self.pointers.push((place.offset + offset, buffer));
    }

    /// Adds a call that must succeed: when it fails the batch stops there. `what` names it in
    /// messages. Missing arguments are 0.
    pub fn call<const N: usize>(
        &mut self,
        what: &'static str,
        nr: i64,
        args: [Arg; N],
    ) -> CallIndex {
        self.push(what, nr, &args, OnError::Stop)
    }

    /// Adds a call that may fail.
    pub fn try_call<const N: usize>(
        &mut self,
        what: &'static str,
        nr: i64,
        args: [Arg; N],
    ) -> CallIndex {
        self.push(what, nr, &args, OnError::Continue)
    }

    fn push(&mut self, what: &'static str, nr: i64, args: &[Arg], on_error: OnError) -> CallIndex {
        let mut six = [Arg::Value(0); 6];
        six[..args.len()].copy_from_slice(args);
        self.calls.push(Call {
            nr,
            args: six,
            on_error,
            tiles: false,
            what,
        });
        CallIndex(self.calls.len() - 1)
    }

    /// Has the thread use tiles of AMX for a moment, for which its process must have asked: the kernel keeps them for
    /// it from then on.
    pub fn use_tiles(&mut self) -> CallIndex {
        // Palette 1 with one tile of a row of 64 bytes (Intel SDM, LDTILECFG).
        let mut config = [0; 64];
        (config[0], config[16], config[48]) = (1, 64, 1);
        let config = self.data(&config);
        let index = self.push("using AMX", -1, &[config.into()], OnError::Stop);
        if let Some(call) = self.calls.last_mut() {
            call.tiles = true;
        }
        index
    }

    /// The calls with a number, and their arguments.
    pub fn calls_of(&self, nr: i64) -> impl Iterator<Item = (CallIndex, [Arg; 6])> {
        let calls = self.calls.iter().enumerate();
        let calls = calls.filter(move |(_, call)| call.nr == nr);
        calls.map(|(index, call)| (CallIndex(index), call.args))
    }

    /// Has another call take the place of one.
    pub fn replace<const N: usize>(&mut self, index: CallIndex, nr: i64, args: [Arg; N]) {
        if let Some(call) = self.calls.get_mut(index.0) {
            call.nr = nr;
            call.args = [Arg::Value(0); 6];
            call.args[..N].copy_from_slice(&args);
        }
    }

    /// What a buffer holds before the batch is run.
    #[must_use]
    pub fn input(&self, buffer: Buffer) -> &[u8] {
        let bytes = self.data.get(buffer.offset..buffer.offset + buffer.len);
        bytes.unwrap_or_default()
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes of call table and data together: the scratch space a run needs behind the code page.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data_offset() + self.data.len()
    }

    fn data_offset(&self) -> usize {
        (self.calls.len() * ENTRY).next_multiple_of(16)
    }

    /// The bytes to place at address `base` in the target.
    pub(crate) fn encode(&self, base: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        for call in &self.calls {
            let mut flags = match call.on_error {
                OnError::Stop => FLAG_STOP_ON_ERROR,
                OnError::Continue => 0,
            };
            if call.tiles {
                flags |= FLAG_TILES;
            }
            bytes.extend_from_slice(&call.nr.to_le_bytes());
            for (i, arg) in call.args.iter().enumerate() {
                let value = match *arg {
                    Arg::Value(value) => value,
                    Arg::Data(buffer) => base + (self.data_offset() + buffer.offset) as u64,
                    Arg::Result(CallIndex(index)) => {
                        flags |= 1 << i;
                        base + (index * ENTRY + RESULT) as u64
                    }
                };
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&(-i64::from(libc::ECANCELED)).to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        bytes.resize(self.data_offset(), 0);
        bytes.extend_from_slice(&self.data);
        for (place, buffer) in &self.pointers {
            let at = self.data_offset() + place;
            let address = base + (self.data_offset() + buffer.offset) as u64;
            bytes[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(&self, bytes: Vec<u8>) -> Output {
        let results = (0..self.calls.len())
            .map(|i| {
                let at = i * ENTRY + RESULT;
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[at..at + 8]);
                i64::from_le_bytes(word)
            })
            .collect();
        Output {
            results,
            data_offset: self.data_offset(),
            bytes,
        }
    }

    /// The first call that had to succeed and did not, by name.
    #[must_use]
    pub fn failure(&self, output: &Output) -> Option<CallFailure> {
        self.calls
            .iter()
            .zip(&output.results)
            .find_map(|(call, &result)| {
                let failed = is_error(result) && call.on_error == OnError::Stop;
                failed.then(|| CallFailure {
                    what: call.what,
                    nr: call.nr,
                    args: call.args,
                    errno: nix::errno::Errno::from_raw(-result as i32),
                })
            })
    }
}

impl fmt::Display for Batch {
    /// One call a line, for logs and tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, call) in self.calls.iter().enumerate() {
            write!(f, "{i:4} {} [{}](", call.what, call.nr)?;
            for (n, arg) in call.args.iter().enumerate() {
                let comma = if n == 0 { "" } else { ", " };
                match arg {
                    Arg::Value(v) => write!(f, "{comma}{v:#x}")?,
                    Arg::Data(b) => write!(f, "{comma}data+{:#x}[{}]", b.offset, b.len)?,
                    Arg::Result(CallIndex(n)) => write!(f, "{comma}result[{n}]")?,
                }
            }
            writeln!(f, ")")?;
        }
        Ok(())
    }
}

/// A remote call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} (system call {nr}) failed: {errno}")]
pub struct CallFailure {
    /// The name given to it.
    pub what: &'static str,
    /// Its number.
    pub nr: i64,
    /// Its arguments.
    pub args: [Arg; 6],
    /// Why.
    pub errno: nix::errno::Errno,
}

/// What a batch brought back.
#[derive(Debug)]
pub struct Output {
    results: Vec<i64>,
    data_offset: usize,
    bytes: Vec<u8>,
}

fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

impl Output {
    /// The result of one call.
    ///
    /// # Errors
    /// The errno it returned.
    pub fn result(&self, call: CallIndex) -> crate::Result<u64> {
        match self.results[call.0] {
            r if is_error(r) => Err(nix::errno::Errno::from_raw(-r as i32)),
            r => Ok(r.cast_unsigned()),
        }
    }

    /// The contents of a buffer after the run.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        let start = self.data_offset + buffer.offset;
        &self.bytes[start..start + buffer.len]
    }

    /// A buffer's 64-bit word number `index`.
    #[must_use]
    pub fn u64(&self, buffer: Buffer, index: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes(buffer)[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    }

    /// A buffer's 32-bit word number `index`.
    #[must_use]
    pub fn u32(&self, buffer: Buffer, index: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes(buffer)[index * 4..index * 4 + 4]);
        u32::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_places_arguments_buffers_and_references() {
        let mut batch = Batch::new();
        let path = batch.string(b"/x");
        let open = batch.call("open", 257, [(-100i32).into(), path.into()]);
        batch.try_call("close", 3, [open.into()]);
        let vector = batch.space(16);
        batch.pointer(vector, 8, path);
        let bytes = batch.encode(0x1000);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 257);
        assert_eq!(word(8), (-100i64).cast_unsigned());
        assert_eq!(word(16), 0x1000 + 144);
        assert_eq!(word(64), FLAG_STOP_ON_ERROR);
        assert_eq!(word(72 + 8), 0x1000 + 56, "close takes open's result");
        assert_eq!(word(72 + 64), 1);
        assert_eq!(&bytes[144..147], b"/x\0");
        assert_eq!(word(160 + 8), 0x1000 + 144, "the vector points to the path");
    }
}
