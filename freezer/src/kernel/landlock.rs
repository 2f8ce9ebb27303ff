//! Domains of Landlock (security/landlock/ruleset.h, domain.h, object.h).
//!
//! A domain has its layers one in another: what each handles, and a tree of rules for inodes and one for ports, in
//! which a rule says what each of the layers that know it allows. Rules for rights that a layer does not handle
//! are kept as allowed.

use super::{Kernel, Unreadable, half, word};

const WRONG: Unreadable = Unreadable::Inconsistent("a domain of Landlock");
/// `LANDLOCK_MAX_NUM_LAYERS`
const MOST_LAYERS: u32 = 16;
/// More rules than anybody has.
const MOST_RULES: usize = 1 << 16;
/// `LANDLOCK_RESTRICT_SELF_LOG_*` (include/uapi/linux/landlock.h).
const SAME_EXEC_OFF: u32 = 1;
const NEW_EXEC_ON: u32 = 2;
const SUBDOMAINS_OFF: u32 = 4;

/// A domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Domain {
    pub(crate) layers: Vec<Layer>,
    pub(crate) rules: Vec<Rule>,
}

/// A layer, the first one that was enforced at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Its `struct landlock_hierarchy`: what tells it from another one that is alike.
    pub(crate) node: u64,
    /// File system, network, scopes.
    pub(crate) handled: [u64; 3],
    pub(crate) quiet: [u64; 3],
    pub(crate) log: u32,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) object: Object,
    pub(crate) parts: Vec<Part>,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// Address of an inode, 0 when its file system is gone.
    Inode(u64),
    Port(u16),
}

/// What a layer says in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 1 on.
    pub(crate) level: u32,
    pub(crate) access: u64,
    pub(crate) quiet: bool,
}

/// Where a kernel keeps what layers handle.
enum Masks {
    /// Only rights of files (before Linux 6.7).
    Files,
    /// `struct access_masks`: first bit and width of each (Linux 6.10).
    Fields([(u64, u32); 3]),
}

/// Fields of a domain's structure.
struct Fields {
    structure: &'static str,
    /// Trees of rules for inodes and for ports.
    roots: [Option<&'static str>; 2],
    masks: &'static str,
}

/// A rule is 7.3's, 6.10's, or that of before 6.7.
const SHAPES: [Fields; 3] = [
    Fields {
        structure: "landlock_domain",
        roots: [Some("rules.root_inode"), Some("rules.root_net_port")],
        masks: "handled_masks",
    },
    Fields {
        structure: "landlock_ruleset",
        roots: [Some("root_inode"), Some("root_net_port")],
        masks: "access_masks",
    },
    Fields {
        structure: "landlock_ruleset",
        roots: [Some("root"), None],
        masks: "fs_access_masks",
    },
];

/// A ruleset since 7.3, which has been the same as a domain before.
const RULESET: Fields = Fields {
    structure: "landlock_ruleset",
    roots: [Some("rules.root_inode"), Some("rules.root_net_port")],
    masks: "handled_masks",
};

impl Kernel {
    /// The domain that credentials lead to; `security` is the address of Landlock's part of them.
    pub(crate) fn domain(&mut self, security: u64) -> Result<Domain, Unreadable> {
        let at = self.word(security, "credentials")?;
        let shape = self.shape()?;
        let [hierarchy, count] =
            self.fields(at, shape.structure, &["hierarchy", "num_layers"])?[..]
        else {
            return Err(WRONG);
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count == 0 || count > MOST_LAYERS {
            return Err(WRONG);
        }
        let masks = self.btf.field(shape.structure, shape.masks)?.offset;
        let handled = self.masks(at.wrapping_add(masks), count)?;
        let nodes = self.nodes(hierarchy, count)?;
        let logged = self.logged(security, &nodes)?;
        let quiet = self.quiet(&nodes)?;
        let mut layers = Vec::new();
        for (index, node) in nodes.into_iter().enumerate() {
            layers.push(Layer {
                node,
                handled: handled[index],
                quiet: quiet[index],
                log: logged[index],
            });
        }
        Ok(Domain {
            layers,
            rules: self.all_rules(at, shape)?,
        })
    }

    /// The only layer of the ruleset that an open file is.
    pub(crate) fn ruleset(&mut self, file: u64) -> Result<Domain, Unreadable> {
        let private = self.btf.field("file", "private_data")?.offset;
        let at = self.word(file.wrapping_add(private), "a ruleset of Landlock")?;
        let shape = if self.has_fields(&RULESET) {
            &RULESET
        } else {
            self.shape()?
        };
        let masks = self.btf.field(shape.structure, shape.masks)?.offset;
        let handled = self.masks(at.wrapping_add(masks), 1)?;
        let quiet = match self.btf.field(shape.structure, "quiet_masks") {
            Ok(field) => self.masks(at.wrapping_add(field.offset), 1)?,
            Err(_) => vec![[0; 3]],
        };
        let layer = Layer {
            handled: *handled.first().ok_or(WRONG)?,
            quiet: *quiet.first().ok_or(WRONG)?,
            ..Layer::default()
        };
        Ok(Domain {
            layers: vec![layer],
            rules: self.all_rules(at, shape)?,
        })
    }

    /// The rules of a domain or ruleset.
    fn all_rules(&mut self, at: u64, shape: &Fields) -> Result<Vec<Rule>, Unreadable> {
        let mut rules = Vec::new();
        for (index, root) in shape.roots.iter().enumerate() {
            let Some(root) = root else { continue };
            let root = self.btf.field(shape.structure, root)?.offset;
            let root = self.word(at.wrapping_add(root), "rules of Landlock")?;
            self.rules(root, index == 0, &mut rules)?;
        }
        Ok(rules)
    }

    fn shape(&self) -> Result<&'static Fields, Unreadable> {
        let has = |shape: &&Fields| {
            let hierarchy = self.btf.field(shape.structure, "hierarchy");
            hierarchy.is_ok() && self.has_fields(shape)
        };
        let found = SHAPES.iter().find(has);
        found.ok_or_else(|| Unreadable::NoField("domain of Landlock that is known".into()))
    }

    fn has_fields(&self, shape: &Fields) -> bool {
        let mut all = shape.roots.iter().flatten().chain([&shape.masks]);
        all.all(|path| self.btf.field(shape.structure, path).is_ok())
    }

    /// The nodes of a domain's layers, the first one at the start. Those of kupgrade's own domain are among them.
    fn nodes(&mut self, last: u64, count: u32) -> Result<Vec<u64>, Unreadable> {
        let parent = self.btf.field("landlock_hierarchy", "parent")?.offset;
        let (mut at, mut found) = (last, Vec::new());
        while at != 0 {
            found.push(at);
            if found.len() > MOST_LAYERS as usize {
                return Err(WRONG);
            }
            at = self.word(at.wrapping_add(parent), "a domain of Landlock")?;
        }
        found.reverse();
        if found.len() == count as usize {
            Ok(found)
        } else {
            Err(WRONG)
        }
    }

    /// Where `struct access_masks` has the rights of each kind.
    fn mask_fields(&self) -> Result<[(u64, u32); 3], Unreadable> {
        let bits = |name| self.btf.bits("access_masks", name);
        // Scopes came later.
        Ok([bits("fs")?, bits("net")?, bits("scope").unwrap_or_default()])
    }

    fn masks(&mut self, at: u64, count: u32) -> Result<Vec<[u64; 3]>, Unreadable> {
        let fields = match self.btf.field("landlock_ruleset", "fs_access_masks") {
            Ok(_) => Masks::Files,
            Err(_) => Masks::Fields(self.mask_fields()?),
        };
        let each = match &fields {
            Masks::Files => 2,
            Masks::Fields(_) => self.btf.size_of("access_masks")? as usize,
        };
        if each > 8 {
            return Err(WRONG);
        }
        let bytes = self.read(&[(at, each * count as usize)])?.pop().flatten();
        let bytes = bytes.ok_or(WRONG)?;
        let all = bytes.chunks_exact(each).map(|bytes| {
            let whole = number(bytes);
            match &fields {
                Masks::Files => [whole, 0, 0],
                Masks::Fields(fields) => fields.map(|field| taken(whole, field)),
            }
        });
        Ok(all.collect())
    }

    /// What is not logged (Linux 7.2).
    fn quiet(&mut self, nodes: &[u64]) -> Result<Vec<[u64; 3]>, Unreadable> {
        let Ok(field) = self.btf.field("landlock_hierarchy", "quiet_masks") else {
            return Ok(vec![[0; 3]; nodes.len()]);
        };
        let mut found = Vec::new();
        for node in nodes {
            found.extend(self.masks(node.wrapping_add(field.offset), 1)?);
        }
        Ok(found)
    }

    /// The flags that each layer would be enforced with to log what it logs now (Linux 6.15).
    fn logged(&mut self, security: u64, nodes: &[u64]) -> Result<Vec<u32>, Unreadable> {
        let Ok(same) = self.btf.flag("landlock_hierarchy", "log_same_exec") else {
            return Ok(vec![0; nodes.len()]);
        };
        let new = self.btf.flag("landlock_hierarchy", "log_new_exec")?;
        let off = self
            .btf
            .flag("landlock_cred_security", "log_subdomains_off")?;
        let status = self.btf.field("landlock_hierarchy", "log_status")?;
        let disabled = self.btf.constant("LANDLOCK_LOG_DISABLED")?;
        let size = self.btf.size_of("landlock_hierarchy")? as usize;
        let own = self.btf.size_of("landlock_cred_security")? as usize;
        let since_exec = self.btf.field("landlock_cred_security", "domain_exec")?;
        let own = self
            .read(&[(security, own)])?
            .pop()
            .flatten()
            .ok_or(WRONG)?;
        let has = |bytes: &[u8], (at, bit): (u64, u8)| {
            let byte = usize::try_from(at).ok().and_then(|at| bytes.get(at));
            byte.is_some_and(|byte| byte & bit != 0)
        };
        let at = since_exec.offset as usize;
        let executed = number(own.get(at..at + since_exec.size as usize).ok_or(WRONG)?);
        let mut found = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let bytes = self.read(&[(*node, size)])?.pop().flatten().ok_or(WRONG)?;
            let never = half(&bytes, status.offset) == Some(disabled);
            // Who executes another program afterwards is told apart, and is not in a new domain.
            let now = if executed >> index & 1 == 1 {
                same
            } else {
                new
            };
            let (now, later) = (has(&bytes, now) && !never, has(&bytes, new) && !never);
            let last = index + 1 == nodes.len();
            let flags = [
                (!now, SAME_EXEC_OFF),
                (later, NEW_EXEC_ON),
                (last && has(&own, off), SUBDOMAINS_OFF),
            ];
            found.push(
                flags
                    .iter()
                    .filter(|(set, _)| *set)
                    .map(|(_, flag)| flag)
                    .sum(),
            );
        }
        Ok(found)
    }

    /// Every rule of a tree.
    fn rules(&mut self, root: u64, inodes: bool, found: &mut Vec<Rule>) -> Result<(), Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let node = field("landlock_rule", "node")?;
        let sides = [field("rb_node", "rb_left")?, field("rb_node", "rb_right")?];
        let key = field("landlock_rule", "key.data")
            .or_else(|_: Unreadable| field("landlock_rule", "object"))?;
        let (count, parts) = (
            field("landlock_rule", "num_layers")?,
            field("landlock_rule", "layers")?,
        );
        let mut left = vec![root];
        while let Some(at) = left.pop() {
            if at == 0 {
                continue;
            }
            if found.len() > MOST_RULES {
                return Err(WRONG);
            }
            let rule = at.wrapping_sub(node);
            let bytes = self
                .read(&[(rule, parts as usize)])?
                .pop()
                .flatten()
                .ok_or(WRONG)?;
            for side in sides {
                left.push(word(&bytes, node + side).ok_or(WRONG)?);
            }
            let count = half(&bytes, count).filter(|count| (1..=MOST_LAYERS).contains(count));
            let key = word(&bytes, key).ok_or(WRONG)?;
            found.push(Rule {
                object: match inodes {
                    true => Object::Inode(self.inode_of(key)?),
                    // As it is on the wire.
                    false => Object::Port(u16::from_be(u16::try_from(key).map_err(|_| WRONG)?)),
                },
                parts: self.parts(rule.wrapping_add(parts), count.ok_or(WRONG)?)?,
            });
        }
        Ok(())
    }

    /// The inode of a `struct landlock_object`.
    fn inode_of(&mut self, object: u64) -> Result<u64, Unreadable> {
        let field = self.btf.field("landlock_object", "underobj")?.offset;
        self.word(object.wrapping_add(field), "a rule of Landlock")
    }

    fn parts(&mut self, at: u64, count: u32) -> Result<Vec<Part>, Unreadable> {
        let size = self.btf.size_of("landlock_layer")? as usize;
        let level = self.btf.field("landlock_layer", "level")?;
        let access = self.btf.field("landlock_layer", "access")?;
        let flags = self.btf.field("landlock_layer", "flags").ok();
        let bytes = self.read(&[(at, size * count as usize)])?.pop().flatten();
        let bytes = bytes.ok_or(WRONG)?;
        let part = |bytes: &[u8]| {
            let value = |field: super::btf::Field| {
                let at = field.offset as usize;
                bytes.get(at..at + field.size as usize).map(number)
            };
            // One bit of flags is known.
            let flags = flags.map_or(Some(0), value).filter(|flags| *flags <= 1)?;
            Some(Part {
                level: u32::try_from(value(level)?).ok()?,
                access: value(access)?,
                quiet: flags == 1,
            })
        };
        let parts: Option<_> = bytes.chunks_exact(size).map(part).collect();
        parts.ok_or_else(|| Unreadable::NoField("flag of Landlock's rules that is known".into()))
    }
}

/// A number of up to eight bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().take(8).rev();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Bits of a number.
fn taken(whole: u64, (first, width): (u64, u32)) -> u64 {
    let mask = 1_u64.checked_shl(width).map_or(u64::MAX, |bit| bit - 1);
    whole.checked_shr(first as u32).unwrap_or(0) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_number() {
        assert_eq!(number(&[0x34, 0x12]), 0x1234);
        assert_eq!(taken(0x1_2345, (0, 16)), 0x2345);
        assert_eq!(taken(0x1_2345, (16, 2)), 1);
        assert_eq!(taken(0xffff, (0, 0)), 0);
    }
}
