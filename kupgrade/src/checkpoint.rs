//! `kupgrade checkpoint`.

use crate::external::External;
use crate::image::Image;
use crate::signals::Held;
use anyhow::{Context, Result, bail};
use freezer::{Externals, Frozen, PageRun, PageSink};
use persist_mem::manifest::{Extent, Manifest};
use persist_mem::pages_file::PagesWriter;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use sys::Pid;

/// Saves the tree below `pid`. On any failure the tree runs on and the image is removed.
pub(crate) fn run(pid: Pid, dir: &Path, leave_running: bool, external: &[External]) -> Result<()> {
    refuse_ourselves(pid)?;
    let (numbers, names) = External::split(external);
    let externals = Externals::of(pid, &numbers, names)?;
    let mut refusals = freezer::check::check_tree_with(pid, &externals)?;
    if leave_running {
        refusals.extend(freezer::untaken_backlogs(&freezer::proc::tree(pid)?)?);
    }
    if !refusals.is_empty() {
        let list: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        bail!("not carried, nothing was touched:\n{}", list.join("\n"));
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let image = Image::at(dir);
    if image.manifest.exists() || image.pages.exists() {
        bail!(
            "{} holds an image already; name another directory",
            dir.display()
        );
    }
    let held = Held::hold()?;
    let frozen = freezer::freeze(pid)?;
    let saved = save(&frozen, &image, leave_running, externals);
    let saved = match saved.and_then(|saved| held.check().map(|()| saved)) {
        Ok(saved) => saved,
        Err(error) => {
            drop(frozen);
            image.discard();
            return Err(error);
        }
    };
    if leave_running {
        // The disk is slow: they need not wait for it.
        drop(frozen);
        return saved.commit(&image).inspect_err(|_| image.discard());
    }
    if let Err(error) = saved.commit(&image) {
        drop(frozen);
        image.discard();
        return Err(error);
    }
    let silenced = freezer::silence_connections(&saved.manifest);
    frozen.kill();
    silenced?;
    Ok(())
}

/// Everything is written, and not yet on the disk.
struct Saved {
    manifest: Manifest,
    files: [std::fs::File; 2],
}

impl Saved {
    /// Brings it to the disk and gives the image its name.
    fn commit(&self, image: &Image) -> Result<()> {
        let context = || format!("writing {}", image.unfinished.display());
        for file in &self.files {
            file.sync_all().with_context(context)?;
        }
        std::fs::rename(&image.unfinished, &image.manifest).with_context(context)
    }
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

fn save(
    frozen: &Frozen,
    image: &Image,
    leave_running: bool,
    externals: Externals,
) -> Result<Saved> {
    let mut sink = FileSink {
        writer: PagesWriter::create(&image.pages)
            .with_context(|| format!("making {}", image.pages.display()))?,
    };
    let (mut manifest, objects) = freezer::capture_with(frozen, externals)?;
    freezer::capture_pages(&mut manifest, &objects, &mut sink)?;
    let pages = sink
        .writer
        .finish()
        .with_context(|| format!("writing {}", image.pages.display()))?;
    if leave_running {
        // One may have come since the check.
        let pids: Vec<Pid> = frozen.pids().collect();
        if let Some(refusal) = freezer::untaken_backlogs(&pids)?.first() {
            bail!("not carried: {refusal}");
        }
    } else {
        freezer::take_backlogs(&mut manifest)?;
        freezer::take_packets(&mut manifest)?;
    }
    let bytes = manifest.to_bytes()?;
    let context = || format!("writing {}", image.unfinished.display());
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&image.unfinished)
        .with_context(context)?;
    file.write_all(&bytes).with_context(context)?;
    Ok(Saved {
        manifest,
        files: [pages, file],
    })
}

struct FileSink {
    writer: PagesWriter,
}

/// Pages read and written in one go: what stays in the processor's caches between the two.
const AT_ONCE: usize = 256;

impl PageSink for FileSink {
    fn wants_frames(&self) -> bool {
        false
    }

    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>> {
        let mut first = None;
        run.copy(AT_ONCE, |bytes| {
            let frame = self.writer.append(bytes)?;
            first.get_or_insert(frame);
            Ok(())
        })?;
        let (va, pages) = (run.va, run.pages);
        let extent = first.map(|frame| Extent { va, pages, frame });
        Ok(extent.into_iter().collect())
    }
}
