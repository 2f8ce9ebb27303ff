//! Newtypes for the numbers the kernel hands out, so that a process cannot be passed as a thread.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub i32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A thread group id: what user space calls a process id. Also used for process groups and
    /// sessions, which are named by the process that founded them.
    Pid
}
id! {
    /// A thread id.
    Tid
}

impl Pid {
    /// The thread group leader's thread id, which has the same number.
    #[must_use]
    pub fn leader(self) -> Tid {
        Tid(self.0)
    }
}
