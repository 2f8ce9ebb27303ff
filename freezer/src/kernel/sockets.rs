//! Sockets, and what is in their queues (include/linux/skbuff.h, include/net/sock.h).

use super::{Kernel, Unreadable, half, word};
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a socket's queue");
/// More buffers than a queue can have.
const MOST: usize = 1 << 20;
/// More bytes than one buffer can have.
const LARGEST: usize = 1 << 26;

/// One buffer of a queue: a message, or a run of a stream's bytes.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Where it is.
    pub(crate) address: u64,
    /// `struct sk_buff`.
    bytes: Vec<u8>,
}

impl Kernel {
    /// `struct sock` of a descriptor of this process.
    pub(crate) fn own_sock(&mut self, fd: BorrowedFd<'_>) -> Result<u64, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (private, sk) = (field("file", "private_data")?, field("socket", "sk")?);
        let file = self.own_file(fd)?;
        let socket = self.word(file.wrapping_add(private), "an open socket")?;
        self.word(socket.wrapping_add(sk), "an open socket")
    }

    /// The buffers in the receive queue of a `struct sock`.
    pub(crate) fn queue(&mut self, sk: u64) -> Result<Vec<Buffer>, Unreadable> {
        self.queue_of(sk, "sk_receive_queue")
    }

    /// The buffers in a queue of a `struct sock`.
    pub(crate) fn queue_of(&mut self, sk: u64, name: &str) -> Result<Vec<Buffer>, Unreadable> {
        self.queue_in(sk, "sock", name)
    }

    /// The buffers in a queue that a family's structure has.
    pub(crate) fn queue_in(
        &mut self,
        sk: u64,
        structure: &str,
        name: &str,
    ) -> Result<Vec<Buffer>, Unreadable> {
        let queue = self.btf.field(structure, name)?.offset;
        let next = self.btf.field("sk_buff_head", "next")?.offset;
        let count = self.btf.field("sk_buff_head", "qlen")?.offset;
        let head = sk.wrapping_add(queue);
        let first = self.word(head.wrapping_add(next), "a socket's queue")?;
        let count = self.word(head.wrapping_add(count), "a socket's queue")? & 0xffff_ffff;
        let found = self.chain(first, head)?;
        if found.len() as u64 != count {
            return Err(WRONG);
        }
        Ok(found)
    }

    /// The buffer at an address.
    pub(crate) fn buffer(&mut self, address: u64) -> Result<Buffer, Unreadable> {
        let len = usize::try_from(self.btf.size_of("sk_buff")?).map_err(|_| WRONG)?;
        let bytes = self.read(&[(address, len)])?.pop().flatten();
        let bytes = bytes.ok_or(WRONG)?;
        Ok(Buffer { address, bytes })
    }

    /// The buffers from one on up to `end`.
    fn chain(&mut self, first: u64, end: u64) -> Result<Vec<Buffer>, Unreadable> {
        let next = self.btf.field("sk_buff", "next")?.offset;
        let mut found: Vec<Buffer> = Vec::new();
        let mut at = first;
        while at != end {
            let buffer = self.buffer(at)?;
            at = word(&buffer.bytes, next).ok_or(WRONG)?;
            found.push(buffer);
            if found.len() > MOST {
                return Err(WRONG);
            }
        }
        Ok(found)
    }

    /// A field of a buffer: up to eight bytes.
    pub(crate) fn of_buffer(&self, buffer: &Buffer, path: &str) -> Result<u64, Unreadable> {
        let field = self.btf.field("sk_buff", path)?;
        number(&buffer.bytes, field.offset, field.size).ok_or(WRONG)
    }

    /// A field of a buffer that is one bit.
    pub(crate) fn flag_of_buffer(&self, buffer: &Buffer, name: &str) -> Result<bool, Unreadable> {
        let (byte, bit) = self.btf.flag("sk_buff", name)?;
        let byte = usize::try_from(byte)
            .ok()
            .and_then(|at| buffer.bytes.get(at));
        byte.map(|byte| byte & bit != 0).ok_or(WRONG)
    }

    /// A field of what a family keeps in a buffer (`sk_buff.cb`).
    pub(crate) fn of_family(
        &self,
        buffer: &Buffer,
        structure: &str,
        path: &str,
    ) -> Result<u64, Unreadable> {
        let cb = self.btf.field("sk_buff", "cb")?.offset;
        let field = self.btf.field(structure, path)?;
        number(&buffer.bytes, cb + field.offset, field.size).ok_or(WRONG)
    }

    /// `struct file` of every descriptor in flight in a buffer of a unix socket (include/net/scm.h).
    pub(crate) fn in_flight(&mut self, buffer: &Buffer) -> Result<Vec<u64>, Unreadable> {
        const LIST: &str = "scm_fp_list";
        let list = self.of_family(buffer, "unix_skb_parms", "fp")?;
        if list == 0 {
            return Ok(Vec::new());
        }
        let files = self.btf.field(LIST, "fp")?;
        let count = self.fields(list, LIST, &["count"])?;
        let count = count.first().copied().filter(|n| *n <= files.elements);
        let count = count.ok_or(WRONG)?;
        let first = list.wrapping_add(files.offset);
        let places: Vec<u64> = (0..count).map(|n| first.wrapping_add(n * 8)).collect();
        let found: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        found.ok_or(WRONG)
    }

    /// The bytes of a buffer: those behind `data`, then those in pages, then those of buffers in it.
    pub(crate) fn contents(&mut self, buffer: &Buffer) -> Result<Vec<u8>, Unreadable> {
        let len = self.of_buffer(buffer, "len")?;
        let elsewhere = self.of_buffer(buffer, "data_len")?;
        let len = usize::try_from(len).map_err(|_| WRONG)?;
        let here = len.checked_sub(elsewhere as usize).ok_or(WRONG)?;
        if len > LARGEST {
            return Err(WRONG);
        }
        let mut requests = vec![(self.of_buffer(buffer, "data")?, here)];
        let mut more = Vec::new();
        if elsewhere != 0 {
            let end = self.of_buffer(buffer, "head")?;
            let end = end.wrapping_add(self.of_buffer(buffer, "end")?);
            requests.extend(self.fragments(end)?);
            let list = self.btf.field("skb_shared_info", "frag_list")?.offset;
            let first = self.word(end.wrapping_add(list), "a socket's queue")?;
            for part in self.chain(first, 0)? {
                more.extend(self.contents(&part)?);
            }
        }
        let pieces: Option<Vec<Vec<u8>>> = self.read(&requests)?.into_iter().collect();
        let mut bytes = pieces.ok_or(WRONG)?.concat();
        bytes.extend(more);
        if bytes.len() == len {
            Ok(bytes)
        } else {
            Err(WRONG)
        }
    }

    /// How long the parts are that a buffer has of one kind (`skb_shared_info.gso_size`), 0 for one that is whole.
    pub(crate) fn segment(&mut self, buffer: &Buffer) -> Result<u16, Unreadable> {
        let end = self.of_buffer(buffer, "head")?;
        let end = end.wrapping_add(self.of_buffer(buffer, "end")?);
        let found = self.fields(end, "skb_shared_info", &["gso_size"])?;
        let size = found.first().and_then(|size| u16::try_from(*size).ok());
        size.ok_or(WRONG)
    }

    /// Where the pieces are that a `struct skb_shared_info` names.
    fn fragments(&mut self, shared: u64) -> Result<Vec<(u64, usize)>, Unreadable> {
        /// Marks what is no page but memory of a device (include/net/netmem.h, `NET_IOV`).
        const NO_PAGE: u64 = 1;
        let info = usize::try_from(self.btf.size_of("skb_shared_info")?).map_err(|_| WRONG)?;
        let count = self.btf.field("skb_shared_info", "nr_frags")?;
        let fragments = self.btf.field("skb_shared_info", "frags")?;
        let one = fragments.size / fragments.elements.max(1);
        let bytes = self.read(&[(shared, info)])?.pop().flatten().ok_or(WRONG)?;
        let count = number(&bytes, count.offset, count.size).ok_or(WRONG)?;
        let mut found = Vec::new();
        for index in 0..count.min(fragments.elements) {
            // skb_frag_t: page, length, offset, since Linux 5.4 under several names.
            let at = fragments.offset + index * one;
            let page = word(&bytes, at).ok_or(WRONG)?;
            let len = half(&bytes, at + 8).ok_or(WRONG)?;
            let offset = half(&bytes, at + 12).ok_or(WRONG)?;
            if one != 16 || page & NO_PAGE != 0 {
                return Err(WRONG);
            }
            let start = self.contents_of_page(page)?.wrapping_add(offset.into());
            found.push((start, len as usize));
        }
        Ok(found)
    }

    /// The fields of a structure at an address, up to eight bytes each.
    pub(crate) fn fields(
        &mut self,
        at: u64,
        structure: &str,
        paths: &[&str],
    ) -> Result<Vec<u64>, Unreadable> {
        let fields = paths.iter().map(|path| self.btf.field(structure, path));
        let fields: Vec<_> = fields.collect::<Result<_, _>>()?;
        let places: Vec<_> = fields
            .iter()
            .map(|field| (at.wrapping_add(field.offset), field.size as usize))
            .collect();
        let found = self.read(&places)?;
        let numbers = found
            .iter()
            .zip(&fields)
            .map(|(bytes, field)| number(bytes.as_ref()?, 0, field.size));
        numbers.collect::<Option<_>>().ok_or(WRONG)
    }

    /// The number of a `struct pid` in the PID namespace of this process, 0 when it has none there.
    pub(crate) fn number_of(&mut self, pid: u64) -> Result<i32, Unreadable> {
        if pid == 0 {
            return Ok(0);
        }
        let [own, numbers, size] = [
            self.btf.field("task_struct", "thread_pid")?.offset,
            self.btf.field("pid", "numbers")?.offset,
            self.btf.size_of("upid")?,
        ];
        let task = self.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let own = self.word(task.wrapping_add(own), "the own number")?;
        let level = self.fields(own, "pid", &["level"])?[0];
        let its = self.fields(pid, "pid", &["level"])?[0];
        if its < level {
            return Ok(0);
        }
        let at = numbers + level * size;
        let ours = self.fields(own.wrapping_add(at), "upid", &["ns"])?;
        let theirs = self.fields(pid.wrapping_add(at), "upid", &["nr", "ns"])?;
        match (theirs.as_slice(), ours.as_slice()) {
            ([number, space], [own]) if space == own => Ok(*number as i32),
            _ => Ok(0),
        }
    }
}

/// Up to eight bytes as a number.
fn number(bytes: &[u8], at: u64, size: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let size = usize::try_from(size).ok().filter(|size| *size <= 8)?;
    let mut word = [0; 8];
    word[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_sent_is_in_the_queue() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let large: Vec<u8> = (0..150_000u32).map(|n| (n % 251) as u8).collect();
        a.write_all(b"small").unwrap();
        a.write_all(&large).unwrap();
        let found = look(|kernel| {
            let sk = kernel.own_sock(b.as_fd())?;
            let buffers = kernel.queue(sk)?;
            let mut bytes = Vec::new();
            for buffer in &buffers {
                bytes.extend(kernel.contents(buffer)?);
            }
            let peer = kernel.fields(sk, "sock", &["sk_peer_pid"])?[0];
            Ok((buffers.len(), bytes, kernel.number_of(peer)?))
        });
        if let Some((count, bytes, pid)) = readable(found) {
            assert!(count > 2);
            assert_eq!(bytes, [b"small", large.as_slice()].concat());
            assert_eq!(pid, std::process::id().cast_signed());
        }
    }
}
