//! `kupgrade checkpoint`.

use crate::external::External;
use crate::image::Image;
use crate::limits::allow_descriptors;
use crate::patience::{NotCarried, patiently};
use crate::signals::Held;
use anyhow::{Context, Result, bail};
use freezer::{Externals, FreezerError, Frozen, PageRun, PageSink, Prepared, Refusal};
use persist_mem::manifest::{Extent, Manifest};
use persist_mem::pages_file::PagesWriter;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Pid;

/// Saves the tree below `pid`. On any failure the tree runs on and the image is removed.
pub(crate) fn run(pid: Pid, dir: &Path, leave_running: bool, external: &[External]) -> Result<()> {
    freezer::proc::must_be_a_process(pid)?;
    refuse_ourselves(pid)?;
    allow_descriptors();
    wait_for_others(pid)?;
    patiently(|| attempt(pid, dir, leave_running, external))
}

fn attempt(pid: Pid, dir: &Path, leave_running: bool, external: &[External]) -> Result<()> {
    let (numbers, names) = External::split(external);
    let externals = Externals::of(pid, &numbers, names)?;
    let (mut refusals, mut prepared) = freezer::check::check_tree_with(pid, &externals)?;
    if leave_running {
        refusals.extend(freezer::untaken_backlogs(&freezer::proc::tree(pid)?)?);
    }
    refusals.extend(numbers_used_up(pid)?);
    NotCarried::unless_empty(&refusals)?;
    let image = place(dir)?;
    let stopped =
        Held::hold().and_then(|held| Ok((held, Output::create(&image)?, freezer::freeze(pid)?)));
    let (held, output, frozen) = stopped.inspect_err(|_| image.discard())?;
    let saved = save(
        &frozen,
        (&image, output),
        (leave_running, &held),
        (externals, &mut prepared),
    );
    // Who may not go on has lost something by now, and nothing is left to be done but to end it.
    let checked = |saved| match leave_running {
        true => held.check().map(|()| saved),
        false => Ok(saved),
    };
    let saved = match saved.and_then(checked) {
        Ok(saved) => saved,
        Err(error) => {
            // Once the tree goes on, another checkpoint may use the directory.
            image.discard();
            drop(frozen);
            return Err(error);
        }
    };
    if leave_running {
        // They need not wait for the disk.
        drop(frozen);
        return saved.commit(&image).inspect_err(|_| image.discard());
    }
    if let Err(error) = saved.commit(&image) {
        image.discard();
        drop(frozen);
        return Err(error);
    }
    let silenced = freezer::silence_connections(&saved.manifest);
    frozen.kill();
    silenced?;
    Ok(())
}

/// Why a tree is refused that leaves no number for a descriptor of who rebuilds it.
pub(crate) fn numbers_used_up(root: Pid) -> Result<Option<Refusal>> {
    let used = freezer::files::numbers_of(&freezer::proc::tree(root)?);
    Ok((!resurrect::is_one_left(&used)).then(|| no_number(root)))
}

fn no_number(root: Pid) -> Refusal {
    Refusal {
        pid: root,
        comm: freezer::proc::comm(root),
        resource: "descriptors".into(),
        reason: "the processes use every descriptor that the limit of open files allows; to rebuild them takes one more"
            .into(),
    }
}

fn too_many_files(root: Pid) -> Refusal {
    Refusal {
        reason: "to rebuild the processes takes more open files than the limit allows, and to raise it CAP_SYS_RESOURCE"
            .into(),
        ..no_number(root)
    }
}

/// Waits until no other kupgrade holds the tree: one that was killed lets it go on in a moment.
fn wait_for_others(root: Pid) -> Result<()> {
    const WITHIN: Duration = Duration::from_secs(30);
    const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
    let program = |pid: Pid| freezer::proc::link(pid, "exe").ok();
    let own = program(Pid(nix::unistd::getpid().as_raw()));
    let holds = |pid: &Pid| {
        let tracer = freezer::tracer_of(*pid, pid.leader());
        tracer.is_some_and(|tracer| program(Pid(tracer.0)) == own)
    };
    let begun = Instant::now();
    while freezer::proc::tree(root)?.iter().any(holds) {
        if begun.elapsed() > WITHIN {
            bail!(
                "another kupgrade holds process {root} or a descendant; try again when it has ended"
            );
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(())
}

/// Where the image will be.
fn place(dir: &Path) -> Result<Image> {
    let image = Image::make(dir).with_context(|| format!("making {}", dir.display()))?;
    if image.manifest.exists() || image.pages.exists() {
        bail!(
            "{} holds an image already; name another directory",
            dir.display()
        );
    }
    Ok(image)
}

/// The files of an image, made before anything stands still: that may take as long as all the rest.
struct Output {
    pages: PagesWriter,
    manifest: std::fs::File,
}

impl Output {
    fn create(image: &Image) -> Result<Output> {
        let context = |path: &Path| format!("making {}", path.display());
        Ok(Output {
            pages: PagesWriter::create(&image.pages).with_context(|| context(&image.pages))?,
            manifest: std::fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&image.unfinished)
                .with_context(|| context(&image.unfinished))?,
        })
    }
}

/// Everything is written, perhaps not yet to the disk.
struct Saved {
    manifest: Manifest,
    files: [std::fs::File; 2],
}

impl Saved {
    /// Gives the image its name. It is for this boot of the host, so that it need not be on the disk, but
    /// it must be certain that it can get there.
    fn commit(&self, image: &Image) -> Result<()> {
        let context = || format!("writing {}", image.unfinished.display());
        for file in self.files.iter().filter(|file| !has_room_reserved(file)) {
            file.sync_all().with_context(context)?;
        }
        std::fs::rename(&image.unfinished, &image.manifest).with_context(context)
    }
}

/// Whether what has been written to the file has its room: other file systems, those of networks above all,
/// only find out when they write it back that there is none.
fn has_room_reserved(file: &std::fs::File) -> bool {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    };
    let known = [
        BTRFS_SUPER_MAGIC,
        EXT4_SUPER_MAGIC,
        F2FS_SUPER_MAGIC,
        TMPFS_MAGIC,
        XFS_SUPER_MAGIC,
    ];
    nix::sys::statfs::fstatfs(file).is_ok_and(|fs| known.contains(&fs.filesystem_type()))
}

/// The tree must not hold this program or what waits for it.
fn refuse_ourselves(pid: Pid) -> Result<()> {
    let me = Pid(nix::unistd::getpid().as_raw());
    if freezer::proc::tree(pid)
        .with_context(|| format!("process {pid}"))?
        .contains(&me)
    {
        bail!("process {pid} is an ancestor of this command; start it from outside of the tree");
    }
    Ok(())
}

/// A process that there is no way to make again where it is, among its relatives.
pub(crate) fn placeless((pid, reason): (Pid, String)) -> FreezerError {
    FreezerError::Refused(vec![Refusal {
        pid,
        comm: freezer::proc::comm(pid),
        resource: "its place among processes".into(),
        reason,
    }])
}

fn save(
    frozen: &Frozen,
    (image, output): (&Image, Output),
    (leave_running, held): (bool, &Held),
    (externals, prepared): (Externals, &mut Prepared),
) -> Result<Saved> {
    held.check()?;
    let (mut manifest, objects) = freezer::capture_with(frozen, externals, prepared)?;
    if !resurrect::suffice(&manifest) {
        let root = manifest.processes.first().map_or(Pid(0), |first| first.pid);
        return Err(FreezerError::Refused(vec![no_number(root)]).into());
    }
    if !resurrect::are_enough(&manifest, objects.count()) {
        let root = manifest.processes.first().map_or(Pid(0), |first| first.pid);
        return Err(FreezerError::Refused(vec![too_many_files(root)]).into());
    }
    resurrect::tree::possible(&manifest).map_err(placeless)?;
    held.check()?;
    // From here on this process may have a second thread.
    let mut sink = FileSink {
        held,
        since: 0,
        writer: output.pages,
    };
    freezer::capture_pages(&mut manifest, &objects, &mut sink)?;
    let (pages, sums) = sink
        .writer
        .finish()
        .with_context(|| format!("writing {}", image.pages.display()))?;
    manifest.page_sums = Some(sums);
    // Nothing has been taken yet.
    frozen.stands()?;
    if leave_running {
        // One may have come since the check.
        let pids: Vec<Pid> = frozen.pids().collect();
        let came = freezer::untaken_backlogs(&pids)?;
        if !came.is_empty() {
            return Err(FreezerError::Refused(came).into());
        }
    } else {
        held.check()?;
        freezer::take_backlogs(&mut manifest)?;
        freezer::take_packets(&mut manifest)?;
    }
    let bytes = manifest.to_bytes()?;
    let context = || format!("writing {}", image.unfinished.display());
    let mut file = output.manifest;
    file.write_all(&bytes).with_context(context)?;
    Ok(Saved {
        manifest,
        files: [pages, file],
    })
}

struct FileSink<'a> {
    writer: PagesWriter,
    held: &'a Held,
    /// Bytes that were saved since a signal was looked for.
    since: usize,
}

/// As many take some ten milliseconds.
const BYTES_BETWEEN_LOOKS: usize = 32 << 20;

impl PageSink for FileSink<'_> {
    fn wants_frames(&self) -> bool {
        false
    }

    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>> {
        let (va, pages) = (run.va, run.pages);
        if pages == 0 {
            return Ok(Vec::new());
        }
        let (held, since) = (self.held, &mut self.since);
        let frame = self.writer.append(pages, |first, buffer| {
            *since += buffer.len();
            if *since > BYTES_BETWEEN_LOOKS {
                *since = 0;
                held.check().map_err(std::io::Error::other)?;
            }
            run.read_at(first, buffer)
        })?;
        Ok(vec![Extent { va, pages, frame }])
    }
}
