//! Memory and messages of requests of io_uring that wait, which the kernel has copied when they were submitted
//! (`struct io_async_rw`, `struct io_async_msghdr`): programs need not keep what led there.

use super::ring_requests::{Bytes, MULTISHOT, Waiting};
use super::{Kernel, Unreadable, half, word};
use sys::uring::op;

const WRONG: Unreadable = Unreadable::Inconsistent("memory of a request of io_uring");
const ITER: &str = "iov_iter";
const MESSAGE: &str = "io_async_msghdr";
/// Most parts (`UIO_MAXIOV`).
const MOST_PARTS: u64 = 1024;
/// `struct sockaddr_storage`
const LONGEST_NAME: u32 = 128;

/// `struct user_msghdr` without its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Where a name is to be put, or 0.
    pub(crate) name_at: u64,
    /// How much of it there may be; None for what the program's structure says.
    pub(crate) name_len: Option<u32>,
    /// The name that is sent to.
    pub(crate) name: Vec<u8>,
    /// Address and length of control data.
    pub(crate) control: (u64, u64),
}

impl Kernel {
    /// Adds what the kernel has copied of a request, `data`.
    pub(super) fn add_copied(
        &mut self,
        bytes: &[u8],
        data: u64,
        found: &mut Waiting,
    ) -> Result<(), Unreadable> {
        match found.entry.opcode {
            op::READ | op::READ_MULTISHOT if found.entry.chooses() => {
                if let Ok(group) = self.btf.field("io_async_rw", "buf_group") {
                    let group = self.word(data.wrapping_add(group.offset), "a buffer's group")?;
                    found.entry.buffer = group as u16;
                }
                Ok(())
            }
            op::READV | op::WRITEV if found.entry.chooses() => {
                found.obstacle = Some("a read into parts that chooses its buffer".into());
                Ok(())
            }
            op::READV | op::WRITEV => {
                let size = self.btf.size_of("io_async_rw")? as usize;
                let data = self.read(&[(data, size)])?.pop().flatten().ok_or(WRONG)?;
                let btf = &self.btf;
                let inside = |path| btf.field("io_async_rw", path);
                let iter = inside("iter").or_else(|_| inside("s.iter"))?.offset;
                if word(&data, inside("bytes_done")?.offset) != Some(0) {
                    found.obstacle = Some("a request that is partly done".into());
                }
                found.vectors = self.memory_parts(&data, iter)?;
                found.entry.len = found.vectors.len() as u32;
                Ok(())
            }
            op::SENDMSG | op::RECVMSG => self.message(bytes, data, found),
            _ => Ok(()),
        }
    }

    fn message(&mut self, bytes: &[u8], at: u64, found: &mut Waiting) -> Result<(), Unreadable> {
        let size = self.btf.size_of(MESSAGE)? as usize;
        let data = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
        let field = |path| Ok(self.btf.field(MESSAGE, path)?.offset);
        let long = |path| word(&data, field(path)?).ok_or(WRONG);
        let short = |path| half(&data, field(path)?).ok_or(WRONG);
        let request = Bytes {
            kernel: self,
            bytes,
        };
        let goes_on = found.entry.priority & MULTISHOT != 0;
        let chooses = found.entry.chooses();
        let mut message = Message::default();
        if found.entry.opcode == op::SENDMSG {
            let control = request.word("io_sr_msg", "msg_control")?;
            message.control = (control, long("msg.msg_controllen")?);
            let len = short("msg.msg_namelen")?;
            if long("msg.msg_name")? != 0 && len <= LONGEST_NAME {
                let from = field("addr")? as usize;
                let name = data.get(from..from + len as usize).ok_or(WRONG)?;
                message.name = name.to_vec();
                message.name_len = Some(len);
            }
        } else {
            message.name_at = long("uaddr")?;
            message.control = match goes_on {
                true => (0, long("controllen")?),
                false => (long("msg.msg_control_user")?, long("msg.msg_controllen")?),
            };
            message.name_len = if goes_on {
                Some(short("namelen")?)
            } else {
                None
            };
        }
        // A length alone, where the memory is chosen later.
        let len = request.half("io_sr_msg", "len")?;
        let whole = request.half("io_sr_msg", "done_io")? == 0;
        let iter = field("msg.msg_iter")?;
        found.vectors = match (chooses, len) {
            (true, 0) => Vec::new(),
            (true, len) => vec![(0, len.into())],
            _ => self.memory_parts(&data, iter)?,
        };
        if !whole {
            found.obstacle = Some("a message that is partly done".into());
        }
        found.message = Some(message);
        Ok(())
    }

    /// Addresses and lengths of what is left of some memory.
    fn memory_parts(&mut self, bytes: &[u8], iter: u64) -> Result<Vec<(u64, u64)>, Unreadable> {
        let field = |path| Ok(self.btf.field(ITER, path)?.offset + iter);
        let long = |path| word(bytes, field(path)?).ok_or(WRONG);
        let kind = half(bytes, field("iter_type")?).ok_or(WRONG)? & 0xff;
        let (mut done, mut left) = (long("iov_offset")?, long("count")?);
        if kind == self.btf.constant("ITER_UBUF")? {
            return Ok(vec![(long("ubuf")?.wrapping_add(done), left)]);
        }
        if kind != self.btf.constant("ITER_IOVEC")? {
            return Err(WRONG);
        }
        let first = long("__iov").or_else(|_| long("iov"))?;
        let count = long("nr_segs")?;
        if count > MOST_PARTS {
            return Err(WRONG);
        }
        let places: Vec<u64> = (0..count * 2).map(|n| first.wrapping_add(n * 8)).collect();
        let words: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        let mut found = Vec::new();
        for [at, len] in words.ok_or(WRONG)?.as_chunks::<2>().0 {
            let rest = len.saturating_sub(done).min(left);
            found.push((at.wrapping_add(done), rest));
            (done, left) = (0, left - rest);
        }
        Ok(found)
    }
}
