//! Requests of a context that have not been completed (`struct kioctx`, fs/aio.c).
//!
//! Only the kernel knows them. Those that wait for a descriptor to become ready (`IOCB_CMD_POLL`) may wait for
//! ever; they are in a list. The others, which are only counted, end by themselves.

use crate::kernel::{self, Kernel, Unreadable, half, word};
use crate::proc;
use persist_mem::manifest::AioPoll;
use sys::Pid;

const WRONG: Unreadable = Unreadable::Inconsistent("a context of asynchronous I/O");
/// More requests than there can be (`fs.aio-max-nr` is an int).
const MOST: usize = 1 << 24;

/// What is under way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UnderWay {
    /// Waits for descriptors, in the order they were made.
    pub(super) polls: Vec<AioPoll>,
    /// Something in the list is not known.
    pub(super) unknown: bool,
    /// Number of other requests, 0 where it cannot be known.
    pub(super) others: u64,
    /// The process has no such context: a child has its parent's ring from fork(2).
    pub(super) inherited: bool,
}

/// Of the context whose ring is at `ring`.
pub(super) fn under_way(pid: Pid, ring: u64) -> Result<UnderWay, Unreadable> {
    let lives = proc::representative(pid).ok_or(WRONG)?;
    kernel::look(|kernel| {
        let task = kernel.tasks(&[lives])?.pop().flatten().ok_or(WRONG)?;
        let Some(context) = find(kernel, task, ring)? else {
            return Ok(UnderWay {
                inherited: true,
                ..UnderWay::default()
            });
        };
        let (polls, unknown) = polls(kernel, task, context)?;
        let others =
            count(kernel, context)?.map_or(0, |all| all.saturating_sub(polls.len() as u64));
        Ok(UnderWay {
            polls,
            unknown,
            others,
            inherited: false,
        })
    })
}

/// `struct kioctx` of a ring, if it has one.
fn find(kernel: &mut Kernel, task: u64, ring: u64) -> Result<Option<u64>, Unreadable> {
    const WHAT: &str = "the contexts of asynchronous I/O";
    let btf = kernel.btf();
    let field = |structure, path| Ok(btf.field(structure, path)?.offset);
    let (mm, table) = (
        field("task_struct", "mm")?,
        field("mm_struct", "ioctx_table")?,
    );
    let (count, first) = (
        field("kioctx_table", "nr")?,
        field("kioctx_table", "table")?,
    );
    let id = field("kioctx", "user_id")?;
    let mm = kernel.word(task.wrapping_add(mm), WHAT)?;
    let table = kernel.word(mm.wrapping_add(table), WHAT)?;
    if table == 0 {
        return Ok(None);
    }
    let count = kernel.word(table.wrapping_add(count), WHAT)? & 0xffff_ffff;
    if count as usize > MOST {
        return Err(WRONG);
    }
    let first = table.wrapping_add(first);
    let places: Vec<u64> = (0..count).map(|n| first.wrapping_add(n * 8)).collect();
    let contexts: Vec<u64> = kernel
        .words(&places)?
        .into_iter()
        .flatten()
        .filter(|at| *at != 0)
        .collect();
    let ids: Vec<u64> = contexts.iter().map(|at| at.wrapping_add(id)).collect();
    let ids = kernel.words(&ids)?;
    let at = ids.iter().position(|id| *id == Some(ring));
    Ok(at.map(|at| contexts[at]))
}

/// Where things are in `struct aio_kiocb`.
struct Request {
    size: u64,
    link: u64,
    cancel: u64,
    file: u64,
    events: u64,
    data: u64,
    object: u64,
    eventfd: u64,
}

impl Request {
    fn of(kernel: &Kernel) -> Result<Request, Unreadable> {
        let btf = kernel.btf();
        let field = |path| Ok(btf.field("aio_kiocb", path)?.offset);
        Ok(Request {
            size: btf.size_of("aio_kiocb")?,
            link: field("ki_list")?,
            cancel: field("ki_cancel")?,
            file: field("poll.file")?,
            events: field("poll.events")?,
            data: field("ki_res.data")?,
            object: field("ki_res.obj")?,
            eventfd: field("ki_eventfd")?,
        })
    }
}

/// The requests in the list, and whether there is one that is no poll or whose files the process does not have.
fn polls(kernel: &mut Kernel, task: u64, context: u64) -> Result<(Vec<AioPoll>, bool), Unreadable> {
    const WHAT: &str = "a request of asynchronous I/O";
    let request = Request::of(kernel)?;
    let btf = kernel.btf();
    let head = btf.field("kioctx", "active_reqs")?.offset;
    let private = btf.field("file", "private_data")?.offset;
    let head = context.wrapping_add(head);
    let mut at = kernel.word(head, WHAT)?;
    let (mut found, mut unknown) = (Vec::new(), false);
    if at == head {
        return Ok((found, unknown));
    }
    let poll = kernel.symbol("aio_poll_cancel");
    let files = kernel.files(task)?;
    let places: Vec<u64> = files
        .iter()
        .map(|(_, file)| file.wrapping_add(private))
        .collect();
    let private = kernel.words(&places)?;
    while at != head {
        let place = at.wrapping_sub(request.link);
        let read = kernel
            .read(&[(place, request.size as usize)])?
            .pop()
            .flatten();
        let bytes = read.ok_or(WRONG)?;
        let get = |at| word(&bytes, at).ok_or(WRONG);
        let (file, eventfd) = (get(request.file)?, get(request.eventfd)?);
        let fd = files
            .iter()
            .find(|(_, its)| *its == file)
            .map(|(fd, _)| *fd);
        let told = files
            .iter()
            .zip(&private)
            .find(|(_, its)| **its == Some(eventfd));
        match (fd, told.map(|((fd, _), _)| *fd)) {
            (Some(fd), told)
                if Some(get(request.cancel)?) == poll && (eventfd == 0 || told.is_some()) =>
            {
                found.push(AioPoll {
                    fd,
                    events: half(&bytes, request.events).ok_or(WRONG)? as u16,
                    data: get(request.data)?,
                    request: get(request.object)?,
                    eventfd: told.filter(|_| eventfd != 0),
                });
            }
            _ => unknown = true,
        }
        at = get(request.link)?;
        if found.len() > MOST {
            return Err(WRONG);
        }
    }
    Ok((found, unknown))
}

/// How many requests are under way: those that may be made at once, less those that may be made now, less
/// those that are completed and not given back yet. None when the counts of the processors are not known.
fn count(kernel: &mut Kernel, context: u64) -> Result<Option<u64>, Unreadable> {
    let btf = kernel.btf();
    let field = |path| Ok(btf.field("kioctx", path)?.offset);
    let (all, free) = (field("nr_events")?, field("reqs_available")?);
    let (completed, processors) = (field("completed_events")?, field("cpu")?);
    let free_here = btf.field("kioctx_cpu", "reqs_available")?.offset;
    let len = btf.size_of("kioctx")?;
    let bytes = kernel
        .read(&[(context, len as usize)])?
        .pop()
        .flatten()
        .ok_or(WRONG)?;
    let number = |at| half(&bytes, at).map(u64::from).ok_or(WRONG);
    let processors = word(&bytes, processors).ok_or(WRONG)?;
    let counts = match kernel.of_processors(processors.wrapping_add(free_here)) {
        Ok(counts) => counts,
        Err(Unreadable::NoField(_)) => return Ok(None),
        Err(other) => return Err(other),
    };
    let free = number(free)? + counts.into_iter().map(u64::from).sum::<u64>();
    let taken = number(all)?.checked_sub(1 + free + number(completed)?);
    taken.map(Some).ok_or(WRONG)
}
