//! What a process has in its address space.

mod advice;
mod anon;
mod changes;
mod fork_cow;
mod growsdown;
mod guard;
mod heap;
mod huge;
mod hugetlb;
mod jit;
mod locked;
mod many_vmas;
mod maps;
mod memfd;
mod most_vmas;
mod mseal;
mod named;
mod neighbours;
mod numa;
mod pkey;
mod posix_shm;
mod private_file;
mod protections;
mod removed_file;
mod reservation;
mod secret;
mod shared_anon;
mod shared_file;
mod stack_in_stack;
mod stacks;
mod sysv_shm;

use crate::registry::{Group, subject};

/// Memory.
pub(crate) const GROUP: Group = Group {
    name: "memory",
    subjects: &[
        subject("anon", "private anonymous memory", anon::start),
        subject(
            "anon-holes",
            "pages never touched stay absent and read as zero",
            anon::holes,
        ),
        subject(
            "protections",
            "read-only, PROT_NONE and split mappings with their contents",
            protections::start,
        ),
        subject("jit", "executable anonymous memory", jit::start),
        subject("heap", "the heap of brk(2)", heap::start),
        subject("growsdown", "mappings that grow down", growsdown::start),
        subject(
            "below-stack",
            "memory that begins right below the stack",
            growsdown::below_stack,
        ),
        subject(
            "stack-in-stack",
            "a small stack within the first one, with memory of use right below",
            stack_in_stack::start,
        ),
        subject(
            "stack-grown",
            "the stack of a child that has grown since the fork",
            stacks::grown,
        ),
        subject(
            "mapping-grown",
            "a mapping that a child has made longer since the fork",
            stacks::longer,
        ),
        subject(
            "mapping-grown-file",
            "a private mapping of a file that a child has made longer since the fork",
            stacks::longer_file,
        ),
        subject(
            "mapping-grown-beside",
            "a mapping that a child has made longer where its parent has another one",
            stacks::longer_beside,
        ),
        subject(
            "stack-unused",
            "the stack of a child that a thread has forked",
            stacks::of_nobody,
        ),
        subject("stack-sealed", "a sealed stack", stacks::sealed),
        subject(
            "reservation",
            "PROT_NONE reservations of a terabyte",
            reservation::start,
        ),
        subject("many-vmas", "thousands of mappings", many_vmas::start),
        subject(
            "most-vmas",
            "as many mappings as a process may have",
            most_vmas::start,
        ),
        subject(
            "maps",
            "/proc/PID/maps, exe, cmdline, environ and auxv",
            maps::start,
        ),
        subject(
            "neighbours",
            "mappings side by side that could be one and are not",
            neighbours::start,
        ),
        subject(
            "changes",
            "mappings made, moved and removed afterwards",
            changes::start,
        ),
        subject(
            "private-file",
            "private file mappings with copied pages",
            private_file::start,
        ),
        subject("shared-file", "shared file mappings", shared_file::start),
        subject(
            "removed-file",
            "mappings of a removed file",
            removed_file::start,
        ),
        subject(
            "removed-name",
            "mappings of a file that has lost its name and has another one",
            removed_file::other_name,
        ),
        subject(
            "shared-anon",
            "shared anonymous memory across a family",
            shared_anon::start,
        ),
        subject(
            "shared-zero",
            "shared mappings of /dev/zero",
            shared_anon::zero,
        ),
        subject(
            "shared-many",
            "more objects of shared memory than a process may have open files",
            shared_anon::many,
        ),
        subject(
            "fork-cow",
            "pages shared by fork stay shared",
            fork_cow::start,
        ),
        subject(
            "fork-remap",
            "a mapping of a child where its parent has others",
            fork_cow::mapped_anew,
        ),
        subject(
            "fork-holes",
            "mappings of a child that its parent has unmapped and protected in part since",
            fork_cow::parent_changed,
        ),
        subject(
            "fork-replaced",
            "mappings of a child that its parent has replaced in part since",
            fork_cow::parent_replaced,
        ),
        subject(
            "fork-locked",
            "mappings that are two in a child because its parent has locked a part",
            fork_cow::parent_locked,
        ),
        subject(
            "memfd",
            "memfd with contents, offset and mapping",
            memfd::start,
        ),
        subject(
            "memfd-tail",
            "memory behind the end of a memfd, in its last page",
            memfd::tail,
        ),
        subject(
            "memfd-attributes",
            "times, attributes and preallocated blocks of a memfd and of a file without a name",
            memfd::attributes,
        ),
        subject(
            "memfd-secret",
            "secret memory (memfd_secret)",
            secret::start,
        ),
        subject("memfd-seals", "seals of a memfd", memfd::seals),
        subject(
            "memfd-program",
            "programs that run from a memfd (fexecve), sealed and not",
            memfd::program,
        ),
        subject(
            "memfd-launched",
            "memfds that programs are started from afterwards, and leases of them",
            memfd::launched,
        ),
        subject(
            "sysv-shm",
            "attached System V shared memory",
            sysv_shm::attached,
        ),
        subject(
            "sysv-shm-unattached",
            "System V shared memory that nobody has attached",
            sysv_shm::unattached,
        ),
        subject(
            "sysv-shm-unused",
            "System V shared memory that nobody has attached yet",
            sysv_shm::unused,
        ),
        subject(
            "sysv-shm-removed",
            "attached System V shared memory marked for removal",
            sysv_shm::removed,
        ),
        subject(
            "sysv-shm-succeeded",
            "attached System V shared memory marked for removal whose key others have since",
            sysv_shm::succeeded,
        ),
        subject(
            "sysv-shm-parts",
            "attached System V shared memory of which parts were unmapped",
            sysv_shm::parts,
        ),
        subject(
            "sysv-shm-split",
            "attached System V shared memory in several mappings, and longer than the segment",
            sysv_shm::split,
        ),
        subject("posix-shm", "POSIX shared memory", posix_shm::start),
        subject(
            "posix-shm-unlinked",
            "unlinked POSIX shared memory",
            posix_shm::unlinked,
        ),
        subject("huge", "transparent huge pages stay huge", huge::start),
        subject(
            "huge-family",
            "transparent huge pages that fork has shared, given up in parts by one process",
            huge::family,
        ),
        subject("hugetlb", "huge pages of hugetlbfs", hugetlb::start),
        subject(
            "hugetlb-family",
            "huge pages of hugetlbfs shared by fork stay shared",
            hugetlb::family,
        ),
        subject(
            "deny-write-exec",
            "prctl(PR_SET_MDWE)",
            protections::deny_write_exec,
        ),
        subject(
            "mempolicy",
            "policies of nodes, of threads and mappings (set_mempolicy, mbind)",
            numa::start,
        ),
        subject("mlock", "mlock", locked::mlock),
        subject(
            "mlock-fork",
            "memory locked in part by who forked a child",
            locked::forked,
        ),
        subject(
            "mlock-shared",
            "locked memory whose pages a child has in common",
            locked::shared,
        ),
        subject(
            "mlock-untouched",
            "locked memory that was only read, or is not there",
            locked::untouched,
        ),
        subject("mlock-onfault", "mlock2(MLOCK_ONFAULT)", locked::onfault),
        subject("mlockall-future", "mlockall(MCL_FUTURE)", locked::future),
        subject("dontfork", "madvise(MADV_DONTFORK)", advice::dontfork),
        subject("wipeonfork", "madvise(MADV_WIPEONFORK)", advice::wipeonfork),
        subject("dontdump", "madvise(MADV_DONTDUMP)", advice::dontdump),
        subject("hugepage", "madvise(MADV_HUGEPAGE)", advice::hugepage),
        subject("nohugepage", "madvise(MADV_NOHUGEPAGE)", advice::nohugepage),
        subject("mergeable", "madvise(MADV_MERGEABLE)", advice::mergeable),
        subject(
            "mergeable-all",
            "memory that may be merged, but for a part (PR_SET_MEMORY_MERGE)",
            advice::all_mergeable,
        ),
        subject(
            "sequential",
            "madvise(MADV_SEQUENTIAL, MADV_RANDOM)",
            advice::read_ahead,
        ),
        subject("anon-name", "names of anonymous mappings", named::start),
        subject("pkey", "protection keys", pkey::start),
        subject(
            "pkey-freed",
            "a protection key that was freed while a mapping has it",
            pkey::freed,
        ),
        subject("guard", "guard regions", guard::start),
        subject(
            "guard-removed",
            "mappings that have had guard regions",
            guard::removed,
        ),
        subject("mseal", "sealed mappings", mseal::start),
        subject("droppable", "droppable mappings", mseal::droppable),
    ],
};
