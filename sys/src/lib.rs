//! The kernel boundary: every `unsafe` block of the project is in this crate.
//!
//! Modules are named after what they talk to. Nothing in here knows about manifests, plans or
//! policies; it turns system calls into functions that cannot be misused from safe code, and
//! errno values into [`Errno`].
//!
//! | module | what it drives |
//! |---|---|
//! | [`ids`] | newtypes for the numbers the kernel hands out |
//! | [`procdir`] | the procfs in which ids are looked up |
//! | [`fds`] | descriptors that libraries make only in part |
//! | [`process`] | pidfds, kcmp, clone3, signals to threads |
//! | [`wait`] | waiting with real-time signals kept (nix loses them) |
//! | [`ptrace`] | single ptrace requests |
//! | [`by_tracer`] | requests that a process makes of its own tracee |
//! | [`regs`] | register sets |
//! | [`batch`] | lists of system calls as data, and the loop that runs them |
//! | [`scratch`] | the memory that batches run from |
//! | [`gate`] | system call instructions with a way back |
//! | `sigframe` | the frame a thread goes on from by itself |
//! | [`remainder`] | code that makes the rest of a call that was partly done |
//! | [`socket_wait`] | waits whose time-out is an option of the socket |
//! | [`tracee`] | one stopped thread: registers, memory, batches |
//! | [`vm`] | memory of other processes |
//! | [`userfault`] | new pages of other processes |
//! | [`held`] | pages of our own that stay in memory |
//! | [`pagemap`] | which pages a process has |
//! | [`ipc`] | System V IPC |
//! | [`mqueue`] | POSIX message queues |
//! | [`physmap`] | physical memory through `/dev/mem` |
//! | [`kernel_memory`], [`known_page`] | the kernel's own memory, to look at |
//! | [`kexec`] | loading another kernel and jumping into it |
//! | [`swap`] | swap areas |
//! | [`rtnetlink`] | interfaces, addresses and routes |
//! | [`tun`] | tunnels: interfaces whose packets a process reads and writes |
//! | [`socket`] | sockets with addresses and options as bytes |
//! | [`mountapi`] | what nix lacks of the mount interface |
//! | [`xattr`] | extended attributes |
//! | [`files`] | owners of signals, locks, leases, inotify |
//! | [`handle`] | file handles |
//! | [`tty`] | terminals |
//! | [`uring`] | rings of io_uring |
//! | [`asleep`] | threads that are to sleep in their calls again before others go on |
//! | [`kmsg`] | the kernel's log |
//! | [`holes`] | blocks of files that hold nothing |
//! | [`limits`] | the calling process's own limits |
//! | [`clock`] | clocks and the time stamp counter |
//! | [`discipline`] | how the kernel's clock is kept right |
//! | [`deadline`] | a bound for system calls that have none |
//! | [`dirents`] | entries of directories with their offsets |

pub mod asleep;
pub mod batch;
pub mod bpf_map;
pub mod by_tracer;
pub mod cgroups;
pub mod child_wait;
pub mod clock;
pub mod core_pattern;
pub mod cpu_clock;
pub mod deadline;
pub mod dirents;
pub mod discipline;
pub mod epoll;
pub mod fds;
pub mod files;
pub mod first_taker;
pub mod gate;
pub mod handle;
pub mod held;
pub mod held_receive;
pub mod holes;
pub mod ids;
pub mod ipc;
pub mod kernel_memory;
pub mod kexec;
pub mod kmsg;
pub mod known_page;
pub mod landlock;
pub mod limits;
pub mod lsm;
pub mod mapped;
pub mod mountapi;
pub mod mqueue;
pub mod pagemap;
pub mod physmap;
pub mod procdir;
pub mod process;
pub mod ptrace;
mod raw;
pub mod regs;
pub mod remainder;
pub mod rtnetlink;
pub mod scratch;
pub mod secret;
mod sigframe;
pub mod socket;
pub mod socket_wait;
pub mod swap;
pub mod tracee;
#[cfg(test)]
mod tracer_death;
pub mod tty;
pub mod tun;
pub mod urgent;
pub mod uring;
pub mod userfault;
pub mod vm;
pub mod wait;
pub mod xattr;
pub mod xstate;

pub use ids::{Pid, Tid};
pub use nix::errno::Errno;
pub use sigframe::Remaining;

/// Result of one system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Bytes in a page on x86_64 (`PAGE_SIZE`, arch/x86/include/asm/page_types.h).
pub const PAGE_SIZE: usize = 4096;
/// [`PAGE_SIZE`] as the kernel's 64-bit interfaces count.
pub const PAGE_SIZE_U64: u64 = 4096;
