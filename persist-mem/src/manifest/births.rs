//! Which thread of a process makes which other one, so that those share tables that have shared them (clone(2)).
//!
//! Threads get a table from the one that makes them, and by no other way. Those that share one are thus a piece of the
//! tree of who has made whom; so of all trees in which makers share as many tables as can be with those whom they make,
//! each will do if one does.

use super::{Live, ThreadDirectories, ThreadFiles, ThreadUndo};
use std::collections::{BTreeMap, BTreeSet};
use sys::Tid;

/// Kinds of tables: descriptors, directories, what is undone of semaphores, I/O contexts.
pub const KINDS: usize = 4;

/// Of each kind a thread that names the table: the same one for all that share it. None for a table that is none or
/// nobody else's.
pub type Tables = [Option<Tid>; KINDS];

/// A thread and its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharer {
    /// The thread.
    pub tid: Tid,
    #[allow(missing_docs, reason = "see above")]
    pub tables: Tables,
}

/// How a thread is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The thread that makes it, None for the first one.
    pub by: Option<Tid>,
    /// Which tables it has from that one.
    pub shares: [bool; KINDS],
}

/// Who makes each of `threads`; the first thread, whose tables these are, makes all that nobody else does.
///
/// # Errors
/// A thread that cannot be made with the tables that it has.
pub fn births(first: &Tables, threads: &[Sharer]) -> Result<BTreeMap<Tid, Birth>, Tid> {
    let classes = classes(first, threads);
    let mut left: Vec<(&Tables, Birth)> = classes
        .keys()
        .map(|tables| (tables, from(None, first, tables)))
        .collect();
    let mut begun = BTreeSet::new();
    let mut made = BTreeMap::new();
    loop {
        let weight = |(_, birth): &(&Tables, Birth)| shared(birth);
        // The first of several that share as much.
        let next = left.iter().enumerate().rev();
        let Some((at, _)) = next.max_by_key(|(_, one)| weight(one)) else {
            return Ok(made);
        };
        let (tables, birth) = left.remove(at);
        let all = &classes[tables];
        let mut own = tables.iter().zip(birth.shares).enumerate();
        let lacks = own.any(|(kind, (table, shares))| {
            let own = table.filter(|_| !shares);
            own.is_some_and(|table| first[kind] == own || !begun.insert((kind, table)))
        });
        if lacks {
            return Err(all[0]);
        }
        // Who begins to have a table makes the others that have it.
        let begins = (0..KINDS).any(|kind| tables[kind].is_some() && !birth.shares[kind]);
        let of_others = if begins {
            from(Some(all[0]), tables, tables)
        } else {
            birth
        };
        made.insert(all[0], birth);
        made.extend(all[1..].iter().map(|tid| (*tid, of_others)));
        for (other, best) in &mut left {
            let offered = from(Some(all[0]), tables, other);
            if shared(&offered) > shared(best) {
                *best = offered;
            }
        }
    }
}

/// Threads that have the same tables, or one each of their own, together.
fn classes(first: &Tables, threads: &[Sharer]) -> BTreeMap<Tables, Vec<Tid>> {
    let mut users: BTreeMap<(usize, Tid), usize> = BTreeMap::new();
    for thread in threads {
        for (kind, table) in thread.tables.iter().enumerate() {
            if let Some(table) = table {
                *users.entry((kind, *table)).or_default() += 1;
            }
        }
    }
    let mut classes: BTreeMap<Tables, Vec<Tid>> = BTreeMap::new();
    for thread in threads {
        let mut tables = thread.tables;
        for (kind, table) in tables.iter_mut().enumerate() {
            *table = table.filter(|id| first[kind] == *table || users[&(kind, *id)] > 1);
        }
        classes.entry(tables).or_default().push(thread.tid);
    }
    classes
}

fn from(by: Option<Tid>, maker: &Tables, made: &Tables) -> Birth {
    let mut shares = [false; KINDS];
    for (kind, shares) in shares.iter_mut().enumerate() {
        *shares = made[kind].is_some() && made[kind] == maker[kind];
    }
    Birth { by, shares }
}

fn shared(birth: &Birth) -> usize {
    birth.shares.iter().filter(|shares| **shares).count()
}

impl Live {
    /// Who makes each of its threads but the first, or each where its leader has ended.
    ///
    /// # Errors
    /// A thread that cannot be made with the tables that it has.
    pub fn births(&self) -> Result<BTreeMap<Tid, Birth>, Tid> {
        let Some(first) = self.threads.first().map(|thread| thread.tid) else {
            return Ok(BTreeMap::new());
        };
        let made = self.threads.get(usize::from(self.ended_leader.is_none())..);
        let sharers = made.unwrap_or_default().iter().map(|thread| {
            let tid = thread.tid;
            let files = match thread.files {
                None => first,
                Some(ThreadFiles::Own(_)) => tid,
                Some(ThreadFiles::Of(other)) => other,
            };
            let directories = match thread.directories {
                None => first,
                Some(ThreadDirectories::Own(_)) => tid,
                Some(ThreadDirectories::Of(other)) => other,
            };
            let undo = match thread.undo {
                ThreadUndo::Shared => first,
                ThreadUndo::Own => tid,
                ThreadUndo::Of(other) => other,
            };
            let io = thread.io_of.unwrap_or(tid);
            Sharer {
                tid,
                tables: [files, directories, undo, io].map(Some),
            }
        });
        // Who has ended has no I/O context.
        let io = self.ended_leader.is_none().then_some(first);
        let tables = [Some(first), Some(first), Some(first), io];
        births(&tables, &sharers.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: i32 = 1;

    /// A thread, who makes it, what it shares.
    type Made = (i32, Option<i32>, [bool; 3]);

    /// Of descriptors, directories and undo, 0 for none or one's own.
    fn made(threads: &[(i32, [i32; 3])]) -> Result<Vec<Made>, i32> {
        let table = |id: i32| (id != 0).then_some(Tid(id));
        let sharer = |(tid, of): &(i32, [i32; 3])| Sharer {
            tid: Tid(*tid),
            tables: [table(of[0]), table(of[1]), table(of[2]), None],
        };
        let threads: Vec<Sharer> = threads.iter().map(sharer).collect();
        let found = births(&[Some(Tid(FIRST)); KINDS], &threads).map_err(|tid| tid.0)?;
        let one = |(tid, birth): (Tid, Birth)| {
            let [files, directories, undo, _] = birth.shares;
            (tid.0, birth.by.map(|by| by.0), [files, directories, undo])
        };
        Ok(found.into_iter().map(one).collect())
    }

    #[test]
    fn the_first_makes_who_has_its_tables_or_new_ones() {
        let all = [true; 3];
        let threads = [
            (2, [1, 1, 1]),
            (3, [1, 0, 1]),
            (4, [1, 0, 1]),
            (5, [1, 5, 1]),
        ];
        let own = [true, false, true];
        let expected = [
            (2, None, all),
            (3, None, own),
            (4, None, own),
            (5, None, own),
        ];
        assert_eq!(made(&threads), Ok(expected.to_vec()));
    }

    #[test]
    fn who_begins_makes_the_others() {
        let threads = [
            (2, [1, 2, 1]),
            (3, [1, 2, 1]),
            (4, [4, 2, 1]),
            (5, [4, 2, 1]),
        ];
        let all = [true; 3];
        let expected = [
            (2, None, [true, false, true]),
            (3, Some(2), all),
            (4, Some(2), [false, true, true]),
            (5, Some(4), all),
        ];
        assert_eq!(made(&threads), Ok(expected.to_vec()));
    }

    #[test]
    fn who_shares_more_comes_before_who_has_left_since() {
        // 2 has made 3 and left its table then; the first has left its directories.
        let threads = [(2, [0, 2, 1]), (3, [1, 2, 1])];
        let expected = [
            (2, Some(3), [false, true, true]),
            (3, None, [true, false, true]),
        ];
        assert_eq!(made(&threads), Ok(expected.to_vec()));
    }

    #[test]
    fn what_a_thread_that_ended_gave_to_three_in_turns_is_not_made() {
        let threads = [(2, [2, 2, 0]), (3, [2, 0, 3]), (4, [0, 2, 3])];
        assert!(made(&threads).is_err());
        // Nobody but the first has its table.
        assert!(made(&[(2, [1, 2, 0]), (3, [0, 2, 1])]).is_err());
    }
}
