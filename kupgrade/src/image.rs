//! An image directory: `manifest` and `pages`.

use std::path::{Path, PathBuf};

/// Paths of an image.
pub(crate) struct Image {
    pub(crate) manifest: PathBuf,
    pub(crate) pages: PathBuf,
    /// The manifest's name until everything is written: an image without manifest is none.
    pub(crate) unfinished: PathBuf,
}

impl Image {
    pub(crate) fn at(dir: &Path) -> Image {
        Image {
            manifest: dir.join("manifest"),
            pages: dir.join("pages"),
            unfinished: dir.join("manifest.unfinished"),
        }
    }

    /// Removes what an attempt that failed has written.
    pub(crate) fn discard(&self) {
        for path in [&self.unfinished, &self.manifest, &self.pages] {
            // What was not written yet is not there.
            let _ = std::fs::remove_file(path);
        }
    }
}
