//! Every subject there is. To add one: a module in the folder of its group, a line in the
//! group's `GROUP`.

use anyhow::Result;

use crate::kit::{Setting, Watch};
use crate::{ancestry, calls, files, ipc, memory, signals, sockets, terminals, threads, time};

/// A subject.
pub(crate) struct Subject {
    /// What the command line calls it.
    pub(crate) name: &'static str,
    /// The resource whose survival it proves, for the table of what is carried.
    pub(crate) resource: &'static str,
    /// Builds the state and returns what watches over it.
    pub(crate) start: fn(&Setting) -> Result<Watch>,
}

/// Subjects of one sort of resource.
pub(crate) struct Group {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// In the order of the table.
    pub(crate) subjects: &'static [Subject],
}

/// One line of a [`Group`].
pub(crate) const fn subject(
    name: &'static str,
    resource: &'static str,
    start: fn(&Setting) -> Result<Watch>,
) -> Subject {
    Subject {
        name,
        resource,
        start,
    }
}

const GROUPS: &[&Group] = &[
    &memory::GROUP,
    &threads::GROUP,
    &signals::GROUP,
    &calls::GROUP,
    &time::GROUP,
    &ancestry::GROUP,
    &files::GROUP,
    &sockets::GROUP,
    &terminals::GROUP,
    &ipc::GROUP,
];

/// Every subject with the name of its group.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static Subject)> {
    GROUPS
        .iter()
        .flat_map(|group| group.subjects.iter().map(|subject| (group.name, subject)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expected;

    #[test]
    fn names_are_unique_and_expectations_name_subjects() {
        let mut names: Vec<_> = all().map(|(_, subject)| subject.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in expected::names() {
            assert!(names.contains(&name), "{name} is no subject");
        }
    }
}
