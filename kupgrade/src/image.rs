//! An image directory: `manifest` and `pages`.

use std::path::{Path, PathBuf};

/// Paths of an image.
pub(crate) struct Image {
    pub(crate) manifest: PathBuf,
    pub(crate) pages: PathBuf,
    /// The manifest's name until everything is written: an image without manifest is none.
    pub(crate) unfinished: PathBuf,
    /// Directories that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Image {
    pub(crate) fn at(dir: &Path) -> Image {
        Image {
            manifest: dir.join("manifest"),
            pages: dir.join("pages"),
            unfinished: dir.join("manifest.unfinished"),
            made: Vec::new(),
        }
    }

    /// One whose directory is made where it is not there.
    pub(crate) fn make(dir: &Path) -> std::io::Result<Image> {
        let missing = dir.ancestors().take_while(|path| !path.exists());
        // The last one is empty where the path is relative.
        let made = missing.filter(|path| !path.as_os_str().is_empty());
        let made = made.map(Path::to_owned).collect();
        std::fs::create_dir_all(dir)?;
        Ok(Image {
            made,
            ..Image::at(dir)
        })
    }

    /// Removes what an attempt that failed has written.
    pub(crate) fn discard(&self) {
        for path in [&self.unfinished, &self.manifest, &self.pages] {
            // What was not written yet is not there.
            let _ = std::fs::remove_file(path);
        }
        for dir in &self.made {
            // Somebody may have put something into it.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_for_an_attempt_goes_with_it() {
        let top = std::env::temp_dir().join(format!("kupgrade-image-{}", std::process::id()));
        std::fs::create_dir(&top).unwrap();
        let dir = top.join("a/b");
        let image = Image::make(&dir).unwrap();
        std::fs::write(&image.pages, "").unwrap();
        image.discard();
        assert!(!dir.exists() && !top.join("a").exists() && top.exists());
        // What was there before stays.
        let image = Image::make(&top).unwrap();
        image.discard();
        assert!(top.exists());
        std::fs::remove_dir(&top).unwrap();
    }
}
