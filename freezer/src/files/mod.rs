//! Open file descriptions: one module for each kind, each with the same name in `resurrect::files`.

pub(crate) mod apart;
mod check;
mod class;
mod deleted;
mod device;
mod edges;
pub(crate) mod elsewhere;
pub(crate) mod ends;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod inotify;
mod kmsg;
mod known;
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
mod signalfd;
mod socket;
mod table;
mod terminal;
mod timerfd;
mod tunnel;
mod unheld;

use class::Class;
use open::{O_PATH, Open};

pub(crate) use check::{reaching_out, refusals};
pub use path::reference;
pub(crate) use place::{Identity, lasting, other_name};
pub(crate) use removed::removed_cwd;
pub use socket::{silence_connections, take_backlogs, take_device_messages, untaken_backlogs};
pub(crate) use table::Table;
pub use tunnel::take_packets;
