//! Formats of the extended state (Intel SDM, volume 1, chapter 13).
//!
//! The kernel keeps the state of a thread that does not run in the compacted format, as XSAVES writes it; what
//! ptrace(2) shows is the standard one. [`standard`] makes one of the other for threads that cannot be stopped.

use core::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Places in the legacy region and the header.
const MXCSR: usize = 24;
const X87_REGISTERS: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = 416;
/// What the kernel tells of the format (`struct _fpx_sw_bytes`).
pub(crate) const SW_BYTES: usize = 464;
pub(crate) const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
pub(crate) const HEADER_END: usize = 576;

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
pub(crate) const PKRU: u32 = 9;
/// Tiles of AMX (XTILEDATA).
pub const TILES: u64 = 1 << 18;
const COMPACTED: u64 = 1 << 63;
/// What the registers are when nothing was saved of them.
const FCW_INIT: u16 = 0x37f;
const MXCSR_INIT: u32 = 0x1f80;

/// A component: where it is in the standard format, its size, whether it begins at 64 bytes in the compacted
/// one, whether it is the kernel's own.
pub(crate) struct Component {
    pub(crate) offset: usize,
    pub(crate) size: usize,
    aligned: bool,
    supervisor: bool,
}

impl Component {
    /// In a virtual machine to ask takes longer than a system call: each is asked for once.
    pub(crate) fn of(bit: u32) -> &'static Component {
        static KNOWN: [OnceLock<Component>; 64] = [const { OnceLock::new() }; 64];
        KNOWN[bit as usize & 63].get_or_init(|| {
            let leaf = __cpuid_count(0xd, bit);
            Component {
                offset: leaf.ebx as usize,
                size: leaf.eax as usize,
                aligned: leaf.ecx & 2 != 0,
                supervisor: leaf.ecx & 1 != 0,
            }
        })
    }
}

/// The components of a saved state that are not as they are in a new thread.
#[must_use]
pub fn in_use(state: &[u8]) -> u64 {
    let word = state.get(XSTATE_BV..XCOMP_BV);
    let word = word.and_then(|bytes| bytes.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

/// Bytes of the standard format with these features.
pub(crate) fn standard_size(features: u64) -> usize {
    (2..63)
        .filter(|bit| features >> bit & 1 == 1)
        .map(|bit| {
            let component = Component::of(bit);
            component.offset + component.size
        })
        .max()
        .unwrap_or(0)
        .max(HEADER_END)
}

/// The standard format of a state that the kernel keeps. `like` is the state of any thread as
/// [`crate::ptrace::get_xstate`] gives it, `pkru` the rights of protection keys, which the kernel keeps apart. None
/// when `kept` is shorter than it says.
#[must_use]
pub fn standard(kept: &[u8], like: &[u8], pkru: Option<u32>) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u64::from_le_bytes(*kept.get(at..)?.first_chunk()?));
    let (present, format) = (word(XSTATE_BV)?, word(XCOMP_BV)?);
    let mut state = vec![0; like.len()];
    let mut copy = |from: usize, to: usize, len: usize| {
        let bytes = kept.get(from..from + len)?;
        state.get_mut(to..to + len)?.copy_from_slice(bytes);
        Some(())
    };
    if present & X87 != 0 {
        copy(0, 0, MXCSR)?;
        copy(X87_REGISTERS, X87_REGISTERS, XMM - X87_REGISTERS)?;
    }
    if present & (SSE | AVX) != 0 {
        copy(MXCSR, MXCSR, X87_REGISTERS - MXCSR)?;
    }
    if present & SSE != 0 {
        copy(XMM, XMM, XMM_END - XMM)?;
    }
    let mut users = present & (X87 | SSE);
    let mut at = HEADER_END;
    for bit in 2..63 {
        let compacted = format & COMPACTED != 0;
        if compacted && format >> bit & 1 == 0 {
            continue;
        }
        if !compacted && present >> bit & 1 == 0 {
            continue;
        }
        let component = Component::of(bit);
        if component.aligned {
            at = at.next_multiple_of(64);
        }
        let from = if compacted { at } else { component.offset };
        at += component.size;
        if present >> bit & 1 == 1 && !component.supervisor && bit != PKRU {
            copy(from, component.offset, component.size)?;
            users |= 1 << bit;
        }
    }
    if present & X87 == 0 {
        state.get_mut(..2)?.copy_from_slice(&FCW_INIT.to_le_bytes());
    }
    if present & (SSE | AVX) == 0 {
        let place = state.get_mut(MXCSR..MXCSR + 4)?;
        place.copy_from_slice(&MXCSR_INIT.to_le_bytes());
    }
    let told = like.get(SW_BYTES..XSTATE_BV)?;
    state.get_mut(SW_BYTES..XSTATE_BV)?.copy_from_slice(told);
    let key = Component::of(PKRU);
    if let Some(place) = state.get_mut(key.offset..key.offset + 4)
        && let Some(pkru) = pkru.filter(|_| key.size >= 4)
    {
        place.copy_from_slice(&pkru.to_le_bytes());
        users |= u64::from(pkru != 0) << PKRU;
    }
    let head = state.get_mut(XSTATE_BV..XCOMP_BV)?;
    head.copy_from_slice(&users.to_le_bytes());
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_saved_is_as_after_a_reset() {
        let like = vec![7; 832];
        let kept = vec![0; 832];
        let state = standard(&kept, &like, None).unwrap();
        assert_eq!(state[..2], FCW_INIT.to_le_bytes());
        assert_eq!(state[MXCSR..MXCSR + 4], MXCSR_INIT.to_le_bytes());
        assert_eq!(state[SW_BYTES..XSTATE_BV], [7; 48]);
        assert!(state[XMM..XMM_END].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_upper_halves_of_ymm_move_to_their_place() {
        let avx = Component::of(2);
        if avx.size == 0 {
            return;
        }
        let mut kept = vec![0; HEADER_END + avx.size];
        kept[XMM] = 3;
        kept[XSTATE_BV] = 6;
        kept[XCOMP_BV..HEADER_END][..8].copy_from_slice(&(COMPACTED | 7).to_le_bytes());
        kept[HEADER_END..].fill(9);
        let like = vec![0; avx.offset + avx.size];
        let state = standard(&kept, &like, None).unwrap();
        assert_eq!((state[XMM], state[XSTATE_BV]), (3, 6));
        assert!(state[avx.offset..].iter().all(|byte| *byte == 9));
        assert_eq!(state[XCOMP_BV..HEADER_END], [0; 56]);
        assert!(standard(&kept[..600], &like, None).is_none());
    }
}
