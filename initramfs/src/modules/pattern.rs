//! Shell patterns of modules.alias: `*`, `?`, `[abc]`, `[0-9]` (fnmatch(3) without flags).

/// Whether `text` matches `pattern` whole. `-` and `_` are the same outside of brackets.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    go(pattern.as_bytes(), text.as_bytes())
}

fn same(a: u8, b: u8) -> bool {
    let dash = |c: u8| if c == b'-' { b'_' } else { c };
    dash(a) == dash(b)
}

/// One star at a time is remembered: no exponential backtracking.
fn go(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => bracket(&pattern[p..], text[t]),
            Some(c) => same(*c, text[t]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((at, from))) => {
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Matches one bracket expression; gives its width in the pattern.
fn bracket(pattern: &[u8], c: u8) -> Option<usize> {
    let close = 1 + pattern.get(1..)?.iter().position(|b| *b == b']')?;
    let mut set = &pattern[1..close];
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    if negated {
        set = &set[1..];
    }
    let mut found = false;
    while let [first, rest @ ..] = set {
        if let [b'-', last, tail @ ..] = rest {
            found |= (*first..=*last).contains(&c);
            set = tail;
        } else {
            found |= *first == c;
            set = rest;
        }
    }
    (found != negated).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_modules_alias() {
        let pci = "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00";
        assert!(matches("pci:v00001AF4d*sv*sd*bc*sc*i*", pci));
        assert!(!matches("pci:v00008086d*sv*sd*bc*sc*i*", pci));
        assert!(matches("virtio:d00000002v*", "virtio:d00000002v00001AF4"));
        assert!(matches(
            "cpu:type:x86,ven*fam*mod*:feature:*0081*",
            "cpu:type:x86,ven0000fam0006mod0055:feature:,0000,0081,00A0,"
        ));
        assert!(matches("acpi*:PNP0[A-C]0?:*", "acpi:PNP0B03:"));
        assert!(!matches("acpi*:PNP0[A-C]0?:*", "acpi:PNP0D03:"));
        assert!(matches("a[!0-9]c", "abc"));
        assert!(!matches("a[!0-9]c", "a1c"));
        assert!(matches("crypto-crc32c", "crypto_crc32c"));
        assert!(matches("*", ""));
        assert!(!matches("?", ""));
        assert!(!matches("abc", "abcd"));
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = "*a".repeat(30) + "b";
        assert!(!matches(&pattern, &"a".repeat(3000)));
    }
}
