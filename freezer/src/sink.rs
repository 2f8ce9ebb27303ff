//! Where the contents of pages go, or stay.

use persist_mem::manifest::Extent;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use sys::vm::{ProcMem, read_process};
use sys::{PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// What pages belong to.
#[derive(Clone, Copy, Debug)]
pub enum PageSource<'a> {
    /// An address space; [`PageRun::va`] is an address.
    Process(Pid, &'a ProcMem),
    /// A memory object; [`PageRun::va`] is an offset.
    Object(&'a File),
}

/// A run of pages to keep.
#[derive(Clone, Copy, Debug)]
pub struct PageRun<'a> {
    /// What they belong to.
    pub from: PageSource<'a>,
    /// Address or offset of the first page, in bytes.
    pub va: u64,
    /// Number of pages.
    pub pages: u64,
    /// Their page frame numbers, all present; empty when [`PageSink::wants_frames`] says no.
    pub pfns: &'a [u64],
    /// Other processes may have the pages as well, copied on write.
    pub shared: bool,
}

impl PageRun<'_> {
    /// Fills `buffer`, a whole number of pages, from page number `first` of the run. What lies behind
    /// the last page of an object is zero.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read_at(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.va + first * PAGE_SIZE_U64;
        match self.from {
            // process_vm_readv(2) copies once, but breaks what fork(2) has shared (it pins pages, and
            // gup_must_unshare in mm/internal.h then gives the process its own), and obeys PROT_NONE.
            // Frames that are named must stay the process's, whoever else has them.
            PageSource::Process(pid, mem) => {
                let pin = !self.shared && self.pfns.is_empty();
                let once = pin && read_process(pid, &[(at, buffer.len())], buffer).is_ok();
                let read = if once { Ok(()) } else { mem.read(at, buffer) };
                read.map_err(io::Error::from)
            }
            PageSource::Object(file) => read_object(file, at, buffer),
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.pages).unwrap_or(0) * PAGE_SIZE];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all of them, `at_once` pages at a time, and hands them on in order.
    ///
    /// # Errors
    /// When they cannot be read, or `take` fails.
    pub fn copy(
        &self,
        at_once: usize,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let total = usize::try_from(self.pages).unwrap_or(0);
        let mut buffer = vec![0; at_once.min(total) * PAGE_SIZE];
        let mut done = 0;
        while done < total {
            let now = &mut buffer[..at_once.min(total - done) * PAGE_SIZE];
            self.read_at(done as u64, now)?;
            take(now)?;
            done += now.len() / PAGE_SIZE;
        }
        Ok(())
    }
}

fn read_object(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let (_, rest) = buffer.split_at_mut(done);
    rest.fill(0);
    // The rest of the last page is memory too for who has mapped it.
    if done % PAGE_SIZE != 0 {
        let tail = PAGE_SIZE - done % PAGE_SIZE;
        let page = memmap2::MmapOptions::new()
            .offset(at + (done / PAGE_SIZE * PAGE_SIZE) as u64)
            .len(PAGE_SIZE)
            .map_raw_read_only(file)?;
        let me = Pid(nix::unistd::getpid().as_raw());
        let address = page.as_ptr() as u64 + (done % PAGE_SIZE) as u64;
        read_process(me, &[(address, tail)], &mut rest[..tail])?;
    }
    Ok(())
}

/// Where the contents of pages go, or stay.
pub trait PageSink {
    /// Whether runs shall come with page frame numbers.
    fn wants_frames(&self) -> bool;

    /// Keeps the pages of a run and says where in the store they are: extents in ascending order
    /// that together cover the run.
    ///
    /// # Errors
    /// Whatever reading or writing them meets.
    fn save(&mut self, run: &PageRun<'_>) -> io::Result<Vec<Extent>>;
}
