//! The container around the manifest's records: read and checked before anything is decoded.
//!
//! ```text
//! body   := record*
//! record := kind u16 | version u16 | length u32 | crc u32 | payload[length]     (little endian)
//! ```
//!
//! The CRC covers kind, version, length and payload, so damage is found and named instead of
//! interpreted. The payload is postcard, which has no evolution: a record's `version` is the
//! version of its type, and a reader refuses what it does not know.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before a record's payload.
const HEADER: usize = 12;

/// What a record holds. Numbers are for ever; new kinds get new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`crate::manifest::Host`], the first record.
    Host = 1,
    /// [`crate::manifest::Process`], one each, parents before children.
    Process = 2,
    /// [`crate::manifest::Description`], one each.
    Description = 3,
    /// [`crate::manifest::Pipe`], one each.
    Pipe = 4,
    /// [`crate::manifest::SharedObject`], one each.
    SharedObject = 5,
    /// The last record: the number of records before it.
    End = 6,
    /// [`crate::manifest::Upgrade`], at most one.
    Upgrade = 7,
    /// [`crate::manifest::Terminal`], one each.
    Terminal = 8,
    /// [`crate::manifest::RemovedDirectory`], one each.
    Removed = 9,
    /// [`crate::manifest::Lock`], one each.
    Lock = 10,
    /// [`crate::manifest::SemaphoreSet`], one each.
    Semaphores = 11,
    /// [`crate::manifest::MessageQueue`], one each.
    Messages = 12,
    /// [`crate::manifest::PosixQueue`], one each.
    PosixQueue = 13,
    /// [`crate::manifest::Undo`], one for each list and set.
    Undo = 14,
    /// [`crate::manifest::Tunnel`], one each.
    Tunnel = 15,
    /// [`crate::manifest::Cgroup`], one each.
    Cgroup = 16,
    /// [`crate::manifest::PageSums`], at most one.
    PageSums = 17,
    /// [`crate::manifest::Notice`], one each.
    Notice = 18,
}

impl Kind {
    fn from_number(number: u16) -> Option<Kind> {
        [
            Kind::Host,
            Kind::Process,
            Kind::Description,
            Kind::Pipe,
            Kind::SharedObject,
            Kind::End,
            Kind::Upgrade,
            Kind::Terminal,
            Kind::Removed,
            Kind::Lock,
            Kind::Semaphores,
            Kind::Messages,
            Kind::PosixQueue,
            Kind::Undo,
            Kind::Tunnel,
            Kind::Cgroup,
            Kind::PageSums,
            Kind::Notice,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == number)
    }
}

/// Version of all record types. Raised with any change of a type in [`crate::manifest`].
pub const VERSION: u16 = 89;

/// Why a manifest is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// It ends in the middle of a record.
    #[error("the manifest is cut off at byte {at}")]
    Truncated {
        /// Offset of the record.
        at: usize,
    },
    /// The record's checksum is wrong.
    #[error("record {index} (kind {kind}) at byte {at} is damaged: its CRC does not match")]
    Damaged {
        /// Number of the record.
        index: usize,
        /// Its kind's number, as far as it can be trusted.
        kind: u16,
        /// Its offset.
        at: usize,
    },
    /// Written by another version of kupgrade.
    #[error(
        "the manifest has format version {found}, this kupgrade reads version {VERSION}; use the kupgrade that wrote it"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// A kind of record this version does not know.
    #[error("record {index} has the unknown kind {kind}; a newer kupgrade wrote it")]
    UnknownKind {
        /// Number of the record.
        index: usize,
        /// Its kind's number.
        kind: u16,
    },
    /// The checksum is right but the payload does not decode: a defect of the writer.
    #[error("record {index} ({kind:?}) does not decode: {cause}")]
    Undecodable {
        /// Number of the record.
        index: usize,
        /// Its kind.
        kind: Kind,
        /// What postcard says.
        cause: String,
    },
    /// A value that cannot be encoded, or a record over 4 GiB.
    #[error("a {kind:?} record cannot be written: {cause}")]
    Unencodable {
        /// Its kind.
        kind: Kind,
        /// Why.
        cause: String,
    },
    /// The records do not make a whole: a missing head or end, or references to nothing.
    #[error("the manifest is incomplete: {0}")]
    Incomplete(String),
}

/// Collects records.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    records: u64,
}

impl Writer {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`FormatError::Unencodable`].
    pub fn record<T: Serialize>(&mut self, kind: Kind, value: &T) -> Result<(), FormatError> {
        let unencodable = |cause: String| FormatError::Unencodable { kind, cause };
        let payload = postcard::to_stdvec(value).map_err(|e| unencodable(e.to_string()))?;
        let len = u32::try_from(payload.len()).map_err(|e| unencodable(e.to_string()))?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&(kind as u16).to_le_bytes());
        self.bytes.extend_from_slice(&VERSION.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        let crc = checksum(&self.bytes[start..start + 8], &payload);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes.extend_from_slice(&payload);
        self.records += 1;
        Ok(())
    }

    /// Adds the end record and gives the body.
    ///
    /// # Errors
    /// [`FormatError::Unencodable`].
    pub fn finish(mut self) -> Result<Vec<u8>, FormatError> {
        let records = self.records;
        self.record(Kind::End, &records)?;
        Ok(self.bytes)
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// One checked, still encoded record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What it holds.
    pub kind: Kind,
    index: usize,
    payload: &'a [u8],
}

impl Record<'_> {
    /// Decodes the payload, all of it.
    ///
    /// # Errors
    /// [`FormatError::Undecodable`].
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FormatError> {
        let undecodable = |cause: String| FormatError::Undecodable {
            index: self.index,
            kind: self.kind,
            cause,
        };
        match postcard::take_from_bytes(self.payload) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(undecodable(format!("{} bytes are left over", rest.len()))),
            Err(e) => Err(undecodable(e.to_string())),
        }
    }
}

/// Splits a body into its records and checks every one, the end record included. Bytes behind the
/// end record are not looked at.
///
/// # Errors
/// As the variants of [`FormatError`] say.
pub fn records(body: &[u8]) -> Result<Vec<Record<'_>>, FormatError> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let record = read_record(body, at, found.len())?;
        at += HEADER + record.payload.len();
        if record.kind == Kind::End {
            let count: u64 = record.decode()?;
            if count != found.len() as u64 {
                let text = format!("{count} records were written, {} are here", found.len());
                return Err(FormatError::Incomplete(text));
            }
            return Ok(found);
        }
        found.push(record);
    }
}

fn read_record(body: &[u8], at: usize, index: usize) -> Result<Record<'_>, FormatError> {
    let truncated = FormatError::Truncated { at };
    let Some((head, rest)) = body[at..].split_first_chunk::<HEADER>() else {
        return Err(truncated);
    };
    let [k0, k1, v0, v1, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let kind = u16::from_le_bytes([k0, k1]);
    let version = u16::from_le_bytes([v0, v1]);
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let crc = u32::from_le_bytes([c0, c1, c2, c3]);
    let Some(payload) = rest.get(..len) else {
        return Err(truncated);
    };
    if checksum(&head[..8], payload) != crc {
        return Err(FormatError::Damaged { index, kind, at });
    }
    if version != VERSION {
        return Err(FormatError::Version { found: version });
    }
    let kind = Kind::from_number(kind).ok_or(FormatError::UnknownKind { index, kind })?;
    Ok(Record {
        kind,
        index,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Vec<u8> {
        let mut writer = Writer::new();
        writer.record(Kind::Pipe, &(1u32, "text")).unwrap();
        writer.record(Kind::Description, &7u64).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn records_come_back() {
        let body = body();
        let found = records(&body).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].decode::<(u32, String)>().unwrap(),
            (1, "text".into())
        );
        assert_eq!(found[1].decode::<u64>().unwrap(), 7);
        assert!(
            found[0].decode::<u32>().is_err(),
            "left-over bytes are refused"
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = body();
        for byte in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                assert!(
                    records(&bad).is_err(),
                    "bit {bit} of byte {byte} went unseen"
                );
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let good = body();
        for len in 0..good.len() {
            assert!(
                records(&good[..len]).is_err(),
                "{len} bytes were taken for a whole"
            );
        }
    }

    #[test]
    fn a_foreign_version_is_named() {
        let mut bytes = body();
        bytes[2..4].copy_from_slice(&9u16.to_le_bytes());
        let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let crc = checksum(&bytes[..8], &bytes[HEADER..HEADER + len]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            records(&bytes).unwrap_err(),
            FormatError::Version { found: 9 }
        );
    }
}
