//! What terminals tell only once (include/linux/tty.h).

use super::{Kernel, Unreadable};
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a terminal");

impl Kernel {
    /// Status of packet mode that the master of a pseudo terminal, which a descriptor of this process is open on, has
    /// not read (`TIOCPKT_*`). It is kept at the slave's side.
    pub(crate) fn packet_status(&mut self, master: BorrowedFd<'_>) -> Result<u8, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let terminal = field("tty_file_private", "tty")?;
        let (link, status) = (
            field("tty_struct", "link")?,
            field("tty_struct", "ctrl.pktstatus")?,
        );
        let file = self.own_file(master)?;
        let of_file = self.word(file.wrapping_add(private), "an open terminal")?;
        let master = self.word(of_file.wrapping_add(terminal), "an open terminal")?;
        let slave = self.word(master.wrapping_add(link), "an open terminal")?;
        let read = self.read(&[(slave.wrapping_add(status), 1)])?.pop();
        read.flatten()
            .and_then(|bytes| bytes.first().copied())
            .ok_or(WRONG)
    }
}
