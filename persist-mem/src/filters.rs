//! What a seccomp filter says of a call.

/// struct seccomp_data.
const DATA: usize = 64;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;
const SECCOMP_RET_ACTION: u32 = 0xffff_0000;

/// Whether it lets a 64-bit call without arguments pass that is made at `ip`. Not when it is not understood.
#[must_use]
pub fn allows(code: &[u8], nr: u32, ip: u64) -> bool {
    let mut data = [0; DATA];
    data[..4].copy_from_slice(&nr.to_le_bytes());
    data[4..8].copy_from_slice(&AUDIT_ARCH_X86_64.to_le_bytes());
    data[8..16].copy_from_slice(&ip.to_le_bytes());
    run(code, &data).is_some_and(|verdict| verdict & SECCOMP_RET_ACTION == SECCOMP_RET_ALLOW)
}

/// An instruction (`struct sock_filter`).
struct Step {
    code: u16,
    jumps: [u8; 2],
    k: u32,
}

fn step(code: &[u8], at: usize) -> Option<Step> {
    let bytes: &[u8; 8] = code.get(at.checked_mul(8)?..)?.first_chunk()?;
    let [c0, c1, yes, no, k0, k1, k2, k3] = *bytes;
    Some(Step {
        code: u16::from_le_bytes([c0, c1]),
        jumps: [yes, no],
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    })
}

/// What the program returns (include/uapi/linux/bpf_common.h, filter.h). It only jumps forward.
fn run(code: &[u8], data: &[u8; DATA]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let mut at = 0;
    loop {
        let Step {
            code: what,
            jumps,
            k,
        } = step(code, at)?;
        at += 1;
        let index = k as usize;
        let operand = if what & 8 == 0 { k } else { x };
        match (what & 7, what & 0xf0) {
            // BPF_LD: immediate, absolute, memory, length.
            (0, 0x00) => a = k,
            (0, 0x20) => a = u32::from_le_bytes(*data.get(index..)?.first_chunk()?),
            (0, 0x60) => a = *memory.get(index)?,
            (0, 0x80) => a = DATA as u32,
            // BPF_LDX.
            (1, 0x00) => x = k,
            (1, 0x60) => x = *memory.get(index)?,
            (1, 0x80) => x = DATA as u32,
            (2, _) => *memory.get_mut(index)? = a,
            (3, _) => *memory.get_mut(index)? = x,
            (4, operation) => a = calculate(operation, a, operand)?,
            (5, 0x00) => at = at.checked_add(index)?,
            (5, condition) => at += usize::from(jumps[usize::from(!holds(condition, a, operand)?)]),
            // BPF_RET: a constant, or the accumulator (BPF_RVAL).
            (6, kind) => return Some(if kind & 0x10 == 0 { k } else { a }),
            // BPF_MISC: TAX, TXA.
            (7, 0x00) => x = a,
            (7, 0x80) => a = x,
            _ => return None,
        }
    }
}

fn calculate(operation: u16, a: u32, by: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(by),
        0x10 => a.wrapping_sub(by),
        0x20 => a.wrapping_mul(by),
        0x30 => a.checked_div(by)?,
        0x40 => a | by,
        0x50 => a & by,
        0x60 => a.checked_shl(by).unwrap_or(0),
        0x70 => a.checked_shr(by).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ by,
        _ => return None,
    })
}

fn holds(condition: u16, a: u32, by: u32) -> Option<bool> {
    Some(match condition {
        0x10 => a == by,
        0x20 => a > by,
        0x30 => a >= by,
        0x40 => a & by != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(steps: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes = |(code, yes, no, k): &(u16, u8, u8, u32)| {
            let mut bytes = code.to_le_bytes().to_vec();
            bytes.extend([*yes, *no]);
            bytes.extend(k.to_le_bytes());
            bytes
        };
        steps.iter().flat_map(bytes).collect()
    }

    #[test]
    fn a_list_of_calls() {
        const KILL: u32 = 0x8000_0000;
        let filter = program(&[
            // The architecture, then the number.
            (0x20, 0, 0, 4),
            (0x15, 1, 0, AUDIT_ARCH_X86_64),
            (0x06, 0, 0, KILL),
            (0x20, 0, 0, 0),
            (0x35, 0, 1, 0x4000_0000),
            (0x06, 0, 0, KILL),
            (0x15, 1, 0, 39),
            (0x15, 0, 1, 228),
            (0x06, 0, 0, SECCOMP_RET_ALLOW),
            (0x06, 0, 0, 0x0005_0001),
        ]);
        assert_eq!(
            [39, 228, 186, 0].map(|nr| allows(&filter, nr, 0)),
            [true, true, false, false]
        );
        assert!(!allows(&filter[..72], 186, 0), "it ends too early");
        assert!(!allows(&[], 39, 0));
    }

    #[test]
    fn what_it_calculates() {
        // The lower half of the address, with its lowest 12 bits away, is in memory and comes back.
        let filter = program(&[
            (0x20, 0, 0, 8),
            (0x54, 0, 0, 0xffff_f000),
            (0x02, 0, 0, 3),
            (0x00, 0, 0, 1),
            (0x61, 0, 0, 3),
            (0x87, 0, 0, 0),
            (0x74, 0, 0, 12),
            (0x15, 0, 1, 5),
            (0x06, 0, 0, SECCOMP_RET_ALLOW),
            (0x16, 0, 0, 0),
        ]);
        assert!(allows(&filter, 1, 0x7_0000_5fff));
        assert!(!allows(&filter, 1, 0x7_0000_6fff));
    }
}
