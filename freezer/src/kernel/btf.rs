//! Where the fields of the kernel's structures are: its own description of its types
//! ([`Types`], Documentation/bpf/btf.rst).

use super::Unreadable;
use core::cell::RefCell;
use std::collections::BTreeMap;
use sys::kernel_memory::Types;

const MAGIC: u16 = 0xeb9f;
/// No type is nested deeper; a longer chain is damage.
const DEPTH: usize = 32;

/// The kinds of types that are told apart.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    /// The last kind that is known.
    pub(super) const LAST: u32 = ENUM64;
}

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Bytes from the start of the structure.
    pub(crate) offset: u64,
    /// Size in bytes, 0 for an array without a bound.
    pub(crate) size: u64,
    /// It is a pointer.
    pub(crate) pointer: bool,
    /// Number of elements of an array.
    pub(crate) elements: u64,
}

/// The description of all types.
#[derive(Debug)]
pub(crate) struct Btf {
    bytes: Types,
    /// Where the names are in it.
    names: usize,
    /// Where each type is, by id; type 0 is void.
    types: Vec<usize>,
    /// Hashes of the names of structures that have one, and their ids; in ascending order.
    structures: Vec<(u32, u32)>,
    /// Fields that were asked for, by structure and path; None where there is none.
    asked: RefCell<BTreeMap<String, BTreeMap<String, Option<Field>>>>,
}

/// `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    /// Where what follows it begins.
    rest: usize,
    name: u32,
    kind: u32,
    count: u32,
    /// Offsets of members hold the sizes of bit fields, too.
    bits: bool,
    /// Size, or the type that it is made of.
    size_or_type: u32,
}

impl Btf {
    /// The running kernel's.
    pub(crate) fn load() -> Result<Btf, Unreadable> {
        let bytes = Types::read().map_err(|e| Unreadable::NoTypes(e.to_string()))?;
        Btf::parse(bytes).ok_or_else(|| Unreadable::NoTypes("they are not understood".into()))
    }

    fn parse(bytes: Types) -> Option<Btf> {
        // magic, version, flags, header's length, then offsets and lengths of types and names behind it
        let head = u16::from_le_bytes([*bytes.first()?, *bytes.get(1)?]);
        let word = |at| word(&bytes, at).and_then(|word| usize::try_from(word).ok());
        let after = word(4)?;
        let (first, len) = (after.checked_add(word(8)?)?, word(12)?);
        let names = after.checked_add(word(16)?)?;
        let end = first.checked_add(len)?;
        if head != MAGIC || end > bytes.len() || names > bytes.len() {
            return None;
        }
        let mut btf = Btf {
            bytes,
            names,
            types: vec![0],
            structures: Vec::new(),
            asked: RefCell::default(),
        };
        let mut at = first;
        while at < end {
            let id = u32::try_from(btf.types.len()).ok()?;
            btf.types.push(at);
            let found = btf.at(at)?;
            if found.kind == kind::STRUCT && found.name != 0 {
                let hash = hash(btf.name(found.name)?);
                btf.structures.push((hash, id));
            }
            at = found.rest.checked_add(found.len()?)?;
        }
        btf.structures.sort_unstable();
        Some(btf)
    }

    /// A field of a structure; `path` names fields within fields with dots between them. A name that several
    /// structures have means none of them.
    pub(crate) fn field(&self, structure: &str, path: &str) -> Result<Field, Unreadable> {
        let missing = || Unreadable::NoField(format!("{structure}.{path}"));
        let mut asked = self.asked.borrow_mut();
        if let Some(found) = asked.get(structure).and_then(|fields| fields.get(path)) {
            return found.ok_or_else(missing);
        }
        let found = self.find_field(structure, path);
        let fields = asked.entry(structure.to_owned()).or_default();
        fields.insert(path.to_owned(), found);
        found.ok_or_else(missing)
    }

    fn find_field(&self, structure: &str, path: &str) -> Option<Field> {
        let mut id = self.structure(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (at, of) = self.member(id, name, DEPTH)?;
            offset += at;
            id = of;
        }
        let found = self.resolve(id)?;
        let elements = match found.kind {
            kind::ARRAY => u64::from(self.word(found.rest + 8)?),
            _ => 0,
        };
        Some(Field {
            offset,
            size: self.size(id, DEPTH)?,
            pointer: found.kind == kind::PTR,
            elements,
        })
    }

    /// Size of a structure in bytes.
    pub(crate) fn size_of(&self, structure: &str) -> Result<u64, Unreadable> {
        let found = self.structure(structure).and_then(|id| self.get(id));
        let missing = || Unreadable::NoField(structure.to_owned());
        found
            .map(|found| found.size_or_type.into())
            .ok_or_else(missing)
    }

    /// The value of a constant of an `enum`.
    pub(crate) fn constant(&self, name: &str) -> Result<u32, Unreadable> {
        let all = self.types.iter().skip(1).filter_map(|at| self.at(*at));
        let mut values = all.filter(|of| of.kind == kind::ENUM).flat_map(|of| {
            (0..of.count as usize).filter_map(move |index| {
                let at = of.rest + index * 8;
                Some((self.word(at)?, self.word(at + 4)?))
            })
        });
        let found = values.find(|(called, _)| self.is_named(*called, name));
        found
            .map(|(_, value)| value)
            .ok_or_else(|| Unreadable::NoField(name.to_owned()))
    }

    fn structure(&self, name: &str) -> Option<u32> {
        let hash = hash(name.as_bytes());
        let first = self.structures.partition_point(|(its, _)| *its < hash);
        let alike = self.structures[first..].iter();
        let mut found = alike.take_while(|(its, _)| *its == hash).filter(|(_, id)| {
            let structure = self.get(*id);
            structure.is_some_and(|structure| self.is_named(structure.name, name))
        });
        match (found.next(), found.next()) {
            (Some((_, id)), None) => Some(*id),
            _ => None,
        }
    }

    /// A bit field of one bit that a structure has, or a `bool`: the byte it is in, and its place there.
    pub(crate) fn flag(&self, structure: &str, name: &str) -> Result<(u64, u8), Unreadable> {
        let missing = || Unreadable::NoField(format!("{structure}.{name}"));
        let id = self.structure(structure).ok_or_else(missing)?;
        match self.member_bits(id, name, DEPTH) {
            Some((at, 1, _)) => Ok((at / 8, 1 << (at % 8))),
            // A bool, which is 1.
            Some((at, 0, _)) => Ok((at / 8, 1)),
            _ => Err(missing()),
        }
    }

    /// Where a bit field of a structure begins, in bits, and how many it has.
    pub(crate) fn bits(&self, structure: &str, name: &str) -> Result<(u64, u32), Unreadable> {
        let id = self.structure(structure);
        match id.and_then(|id| self.member_bits(id, name, DEPTH)) {
            Some((at, width, _)) if width > 0 => Ok((at, width)),
            _ => Err(Unreadable::NoField(format!("{structure}.{name}"))),
        }
    }

    /// Offset in bytes and type of a member, also of one in a member without a name.
    fn member(&self, id: u32, name: &str, depth: usize) -> Option<(u64, u32)> {
        let (at, width, of) = self.member_bits(id, name, depth)?;
        // A bit field has no address.
        (width == 0).then_some((at / 8, of))
    }

    /// Offset in bits, width of a bit field or 0, and type of a member.
    fn member_bits(&self, id: u32, name: &str, depth: usize) -> Option<(u64, u32, u32)> {
        let holder = self.resolve(id)?;
        if !matches!(holder.kind, kind::STRUCT | kind::UNION) || depth == 0 {
            return None;
        }
        for index in 0..holder.count as usize {
            let at = holder.rest + index * 12;
            let (called, of) = (self.word(at)?, self.word(at + 4)?);
            let bits = self.word(at + 8)?;
            let (width, bits) = match holder.bits {
                true => (bits >> 24, bits & 0xff_ffff),
                false => (0, bits),
            };
            if called == 0 {
                if let Some((inner, width, of)) = self.member_bits(of, name, depth - 1) {
                    return Some((u64::from(bits) + inner, width, of));
                }
            } else if self.is_named(called, name) {
                return Some((bits.into(), width, of));
            }
        }
        None
    }

    /// A type without its names and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH {
            let found = self.get(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.size_or_type
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn size(&self, id: u32, depth: usize) -> Option<u64> {
        let found = self.resolve(id)?;
        match found.kind {
            kind::PTR => Some(8),
            kind::ARRAY if depth > 0 => {
                let (of, count) = (self.word(found.rest)?, self.word(found.rest + 8)?);
                Some(self.size(of, depth - 1)?.saturating_mul(count.into()))
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                Some(found.size_or_type.into())
            }
            _ => None,
        }
    }

    fn get(&self, id: u32) -> Option<Type> {
        let at = self.types.get(usize::try_from(id).ok()?)?;
        if id == 0 { None } else { self.at(*at) }
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        // The bits between were unused until counts and kinds were given more room (Linux 7.0).
        let (count, kind) = (info & 0xff_ffff, info >> 24 & 0x7f);
        (1..=kind::LAST).contains(&kind).then_some(Type {
            rest: at + 12,
            name: self.word(at)?,
            kind,
            count,
            bits: info >> 31 != 0,
            size_or_type: self.word(at + 8)?,
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(&self.bytes, at)
    }

    fn name(&self, name: u32) -> Option<&[u8]> {
        let names = self.bytes.get(self.names + name as usize..)?;
        Some(&names[..names.iter().position(|byte| *byte == 0)?])
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let at = self.names + name as usize;
        let found = self.bytes.get(at..).unwrap_or_default();
        found
            .strip_prefix(wanted.as_bytes())
            .and_then(<[u8]>::first)
            == Some(&0)
    }
}

impl Type {
    /// Length of what follows the type.
    fn len(&self) -> Option<usize> {
        let count = usize::try_from(self.count).ok()?;
        match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => Some(4),
            kind::ARRAY => Some(12),
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count.checked_mul(12),
            kind::ENUM | kind::FUNC_PROTO => count.checked_mul(8),
            _ => Some(0),
        }
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { union { struct inner { u32 a; u64 *b; } in; u32 c[6]; }; u32 d : 3; }; enum { ONE = 9 }`
    fn example() -> Vec<u8> {
        let mut names = vec![0];
        let mut name = |text: &str| {
            let at = u32::try_from(names.len()).unwrap();
            names.extend_from_slice(text.as_bytes());
            names.push(0);
            at
        };
        let info = |kind: u32, count: u32, bits: u32| kind << 24 | count | bits << 31;
        let int = info(kind::INT, 0, 0);
        let words = [
            // 1: u32
            vec![name("u32"), int, 4, 32],
            // 2: its pointer
            vec![0, info(kind::PTR, 0, 0), 1],
            // 3: const of it
            vec![0, info(kind::CONST, 0, 0), 2],
            // 4: an array of u32
            vec![0, info(kind::ARRAY, 0, 0), 0, 1, 1, 6],
            // 5: inner
            vec![
                name("inner"),
                info(kind::STRUCT, 2, 0),
                16,
                name("a"),
                1,
                0,
                name("b"),
                3,
                64,
            ],
            // 6: the union
            vec![
                0,
                info(kind::UNION, 2, 0),
                24,
                name("in"),
                5,
                0,
                name("c"),
                4,
                0,
            ],
            // 7: outer
            vec![
                name("outer"),
                info(kind::STRUCT, 2, 1),
                32,
                0,
                6,
                64,
                name("d"),
                1,
                3 << 24 | 256,
            ],
            // 8: the constant
            vec![0, info(kind::ENUM, 1, 0), 4, name("ONE"), 9],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (len, strings) = (types.len() as u32, names.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, len, len, strings] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        [bytes, types, names].concat()
    }

    #[test]
    fn fields_are_found_within_what_has_no_name() {
        let btf = Btf::parse(example().into()).unwrap();
        let place = |path| {
            let field = btf.field("outer", path).unwrap();
            (field.offset, field.size, field.pointer, field.elements)
        };
        assert_eq!(place("in.b"), (16, 8, true, 0));
        assert_eq!(place("c"), (8, 24, false, 6));
        assert_eq!(btf.size_of("inner").unwrap(), 16);
        assert_eq!(btf.constant("ONE"), Ok(9));
        assert!(btf.constant("TWO").is_err());
        assert_eq!(btf.bits("outer", "d"), Ok((256, 3)));
        assert!(btf.bits("outer", "c").is_err());
        for (structure, path) in [("outer", "d"), ("outer", "in.z"), ("none", "a")] {
            assert!(btf.field(structure, path).is_err(), "{structure}.{path}");
        }
    }

    #[test]
    fn damage_is_no_description() {
        let whole = example();
        for len in 0..whole.len() - 60 {
            assert!(
                Btf::parse(whole[..len].to_vec().into()).is_none(),
                "{len} bytes"
            );
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            // Whatever is found, nothing is read out of bounds.
            if let Some(btf) = Btf::parse(bytes.into()) {
                let _ = btf.field("outer", "in.b");
            }
        }
    }
}
