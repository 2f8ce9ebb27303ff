//! Memory that processes share is found and saved once.

mod common;

use common::{Subject, describe};
use freezer::proc::Pagemap;
use freezer::{PageRun, PageSink};
use persist_mem::manifest::{Backing, DescriptionKind, Extent, Manifest, SharedKind};

/// Maps shared memory and a memfd, forks, and has half of a private array in common with its child.
const FAMILY: &str = r#"
import mmap, os, time, fcntl
shared = mmap.mmap(-1, 8 * 4096)
shared[4096:4096+6] = b"common"
fd = os.memfd_create("a name", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, 1 << 20)
os.pwrite(fd, b"held", 64 * 4096)
view = mmap.mmap(fd, 1 << 20)
fcntl.fcntl(fd, 1033, 2)
private = mmap.mmap(-1, 512 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(512):
    private[page * 4096] = 1 + page % 200
if os.fork() == 0:
    for page in range(256):
        private[page * 4096] = 7
time.sleep(1000)
"#;

#[test]
fn a_family_s_memory_is_saved_once() {
    let subject = Subject::python("objects", FAMILY);
    let (manifest, pages) = describe(subject.pid());
    assert_eq!(manifest.shared_objects.len(), 2);
    let find = |wanted: &dyn Fn(&SharedKind) -> bool| {
        let mut objects = manifest.shared_objects.iter();
        objects.find(|object| wanted(&object.kind)).unwrap()
    };
    let anonymous = find(&|kind| *kind == SharedKind::Anonymous);
    assert_eq!((anonymous.size, anonymous.extents.len()), (8 * 4096, 1));
    assert_eq!(
        (anonymous.extents[0].va, anonymous.extents[0].pages),
        (4096, 1)
    );
    assert!(
        pages
            .page(anonymous.extents[0].frame)
            .starts_with(b"common")
    );
    let memfd = find(&|kind| matches!(kind, SharedKind::Memfd { .. }));
    let SharedKind::Memfd { name, seals, .. } = &memfd.kind else {
        unreachable!();
    };
    assert_eq!((name.as_slice(), *seals), (b"a name".as_slice(), 2));
    assert!(pages.page(memfd.extents[0].frame).starts_with(b"held"));
    assert_eq!(memfd.extents[0].pages, 1, "holes stay holes");
    let described = manifest.descriptions.iter();
    let wanted = DescriptionKind::Memfd { object: memfd.id };
    assert_eq!(described.filter(|d| d.kind == wanted).count(), 1);
    for process in &manifest.processes {
        let vmas = process.live().unwrap().mm.vmas.iter();
        let shared = vmas.filter(|vma| matches!(vma.backing, Backing::Object { shared: true, .. }));
        assert_eq!(shared.count(), 2, "both map both");
    }
    let frames = |index: usize| -> std::collections::BTreeMap<u64, u64> {
        let extents = &manifest.processes[index].live().unwrap().mm.extents;
        let pages = extents
            .iter()
            .flat_map(|e| (0..e.pages).map(move |i| (e, i)));
        pages.map(|(e, i)| (e.va + i * 4096, e.frame + i)).collect()
    };
    let (parent, child) = (frames(0), frames(1));
    let same = parent
        .iter()
        .filter(|(va, frame)| child.get(va) == Some(frame));
    let same = same.count();
    assert!(same >= 256, "{same} pages in common");
    let copied = parent
        .iter()
        .filter(|(va, frame)| child.get(va).is_some_and(|f| f != *frame));
    assert!(
        copied.count() >= 256,
        "what was written to is no longer in common"
    );
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(
        persist_mem::manifest::Manifest::from_bytes(&bytes).unwrap(),
        manifest
    );
}

/// Keeps pages where they are.
#[derive(Default)]
struct InPlace(u64);

impl PageSink for InPlace {
    fn wants_frames(&self) -> bool {
        true
    }
    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>> {
        assert_eq!(run.pfns.len() as u64, run.pages);
        assert!(!run.pfns.contains(&0), "a frame is not known");
        self.0 += run.pages;
        let extent = |(n, pfn): (u64, &u64)| Extent {
            va: run.va + n * 4096,
            pages: 1,
            frame: *pfn,
        };
        Ok((0..).zip(run.pfns).map(extent).collect())
    }
}

/// Pages of the first process that lie in another frame than their extent says.
fn moved(manifest: &Manifest, pagemap: &Pagemap) -> Vec<Extent> {
    let live = manifest.processes[0].live();
    let extents = &live.expect("it lives").mm.extents;
    let elsewhere = |extent: &&Extent| frame_at(pagemap, extent.va) != extent.frame;
    extents.iter().filter(elsewhere).copied().collect()
}

fn frame_at(pagemap: &Pagemap, va: u64) -> u64 {
    let states = pagemap.states(va, va + 4096);
    states.expect("a page table")[0].pfn()
}

#[test]
fn a_store_that_leaves_pages_in_place_is_told_their_frames() {
    let subject = Subject::python("frames", FAMILY);
    let frozen = freezer::freeze(subject.pid()).unwrap();
    let (described, objects) = freezer::capture(&frozen).unwrap();
    let pagemap = Pagemap::open(subject.pid()).unwrap();
    // The kernel may move pages to other frames at any time, so not every look need agree.
    let mut looks = (0..5).map(|_| {
        let mut manifest = described.clone();
        let mut sink = InPlace::default();
        freezer::capture_pages(&mut manifest, &objects, &mut sink).unwrap();
        let moved = moved(&manifest, &pagemap);
        (manifest, sink, moved)
    });
    let last = looks.find(|(_, _, moved)| moved.is_empty());
    let (manifest, sink, _) = last.expect("frames that the page table has");
    let mm = &manifest.processes[0].live().unwrap().mm;
    let mut seen = 0;
    for vma in &mm.vmas {
        let Backing::Object { object, offset, .. } = vma.backing else {
            continue;
        };
        let found = manifest.shared_objects.iter().find(|o| o.id == object);
        for extent in &found.unwrap().extents {
            // What was written by a call only is in the object and in no page table.
            let mapped = frame_at(&pagemap, vma.start + extent.va - offset);
            assert!([0, extent.frame].contains(&mapped));
            seen += u32::from(mapped != 0);
        }
    }
    assert_eq!(seen, 1, "the page of shared memory that was written to");
    let all = manifest.processes.iter().filter_map(|p| p.live());
    let all = all
        .flat_map(|live| &live.mm.extents)
        .map(|e| e.pages)
        .sum::<u64>()
        + 2;
    assert!(sink.0 < all - 256, "what is shared is handed over once");
}

#[test]
fn memory_shared_with_others_is_refused() {
    let script = r#"
import mmap, os, time
shared = mmap.mmap(-1, 4096)
if os.fork() == 0:
    os.setsid()
time.sleep(1000)
"#;
    let subject = Subject::python("outside", script);
    let child = freezer::proc::children(subject.pid()).unwrap()[0];
    assert_eq!(freezer::check::check_tree(subject.pid()).unwrap(), []);
    let refused = freezer::check::check_tree(child).unwrap();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].reason.contains("not part of the tree"));
    let frozen = freezer::freeze(child).unwrap();
    let error = freezer::capture(&frozen).unwrap_err().to_string();
    assert_eq!(error, refused[0].to_string());
}
