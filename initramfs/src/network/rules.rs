//! Rules of policy routing (ip-rule(8)): those of the old kernel, and no others.

use sys::Errno;
use sys::rtnetlink::{self, Netlink, RULE_FIXED};

/// Payloads of `RTM_NEWRULE` messages of all families, in their order.
pub(super) fn dump(netlink: &Netlink) -> Result<Vec<Vec<u8>>, Errno> {
    let rules = netlink.dump(rtnetlink::GETRULE, &[0; RULE_FIXED])?;
    Ok(rules.into_iter().map(|(_, payload)| payload).collect())
}

/// Makes those of the new kernel the `wanted` ones. Returns what could not be, in words.
pub(super) fn restore(netlink: &Netlink, wanted: &[Vec<u8>]) -> Vec<String> {
    let there = match dump(netlink) {
        Ok(there) => there,
        Err(errno) => return vec![format!("rules of routing: {errno}")],
    };
    let (more, less) = difference(wanted, &there);
    let changes = less
        .into_iter()
        .map(|rule| (rtnetlink::DELRULE, rule))
        .chain(more.into_iter().map(|rule| (rtnetlink::NEWRULE, rule)));
    changes
        .filter_map(|(kind, rule)| {
            let errno = netlink.change(kind, rule).err()?;
            Some(format!("a rule of routing: {errno}"))
        })
        .collect()
}

/// Which rules are missing, and which are too many. Equal ones may be there several times.
fn difference<'a>(
    wanted: &'a [Vec<u8>],
    there: &'a [Vec<u8>],
) -> (Vec<&'a Vec<u8>>, Vec<&'a Vec<u8>>) {
    let mut less: Vec<&Vec<u8>> = there.iter().collect();
    let mut more = Vec::new();
    for rule in wanted {
        match less.iter().position(|other| *other == rule) {
            Some(at) => drop(less.remove(at)),
            None => more.push(rule),
        }
    }
    (more, less)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_changed() {
        let rule = |number: u8| vec![number; 12];
        let wanted = [rule(1), rule(2), rule(2), rule(4)];
        let there = [rule(1), rule(2), rule(3)];
        let (more, less) = difference(&wanted, &there);
        assert_eq!(more, [&rule(2), &rule(4)]);
        assert_eq!(less, [&rule(3)]);
    }
}
