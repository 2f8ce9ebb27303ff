//! Open file descriptions: one module for each kind, each with the same name in `resurrect::files`.

pub(crate) mod apart;
mod bpf_map;
mod check;
mod class;
mod creator;
mod deleted;
mod device;
mod dnotify;
mod edges;
pub(crate) mod elsewhere;
pub(crate) mod ends;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod gone;
mod inotify;
mod kmsg;
mod known;
pub(crate) mod listener;
mod located;
mod lock;
mod memfd;
mod mqueue;
mod open;
pub(crate) mod outside;
pub(crate) mod outsiders;
mod owner;
mod path;
mod pidfd;
mod pipe;
mod place;
mod pseudo;
mod removed;
mod restricted;
mod ruleset;
pub(crate) mod secret;
pub(crate) mod sent;
mod signalfd;
mod socket;
mod table;
mod terminal;
mod timerfd;
mod tunnel;
mod unheld;
mod uring;
pub(crate) mod userfault;

use class::Class;
use open::O_PATH;
pub(crate) use open::Open;

pub(crate) use check::{reaching_out, refusals};
pub use path::reference;
pub(crate) use path::reference_by;
pub(crate) use place::{Identity, lasting, other_name, paths_of};
pub(crate) use pseudo::removed_directory;
pub(crate) use removed::removed_cwd;
pub(crate) use socket::Facts;
pub(crate) use socket::packet_rings_of as packet_rings;
pub use socket::{silence_connections, take_backlogs, take_device_messages, untaken_backlogs};
pub(crate) use table::Table;
pub use table::numbers_of;
pub use tunnel::take_packets;
pub(crate) use uring::names::{descriptor as named_ring, obstacle as unnamed_ring};
pub(crate) use uring::workers::waiting as waiting_workers;
pub(crate) use uring::{
    first_time_out, has_lost_buffers, holds as holds_ring, left as left_in_rings,
    of_table as rings_of,
};
