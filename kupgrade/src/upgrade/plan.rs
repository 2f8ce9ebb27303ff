//! The overlay initramfs, the boot window, and frames of our own outside of it.

use super::check::Host;
use super::room;
use anyhow::{Context, Result};
use initramfs::Overlay;
use kexec_loader::placement;
use persist_mem::blocks::{Emptied, MemoryBlocks};
use persist_mem::firmware::kind;
use persist_mem::frames::{Frames, ManifestPlace};
use persist_mem::meminfo::mem_available;
use persist_mem::push_out::push_out;
use persist_mem::window::{self, Window};

/// Room for the parameters: their pages, and as many for a long memory map.
const PARAMS: u64 = 64 << 10;

/// What was decided.
pub(super) struct Plan<'a> {
    pub(super) window: Window<'a>,
    pub(super) initrd: Vec<u8>,
    pub(super) frames: Frames,
    pub(super) block_size: u64,
    /// Blocks beside the window without old pages.
    _room: Vec<Emptied<'a>>,
}

pub(super) fn make<'a>(host: &Host, blocks: &'a MemoryBlocks) -> Result<Plan<'a>> {
    let initrd = overlay(host)?;
    let least = placement::needed(&host.image, initrd.len() as u64, PARAMS);
    let ram = host.firmware.of_kind(kind::RAM);
    push_out(&window::from_the_start(&ram, blocks.size()));
    let window = window::take(blocks, &ram, mem_available().unwrap_or(0), least)?;
    log::info!(
        "boot window {:#x}-{:#x} ({} MiB), RAM of the new kernel at first: {}",
        window.main.start,
        window.main.end,
        (window.main.end - window.main.start) >> 20,
        window.all
    );
    Ok(Plan {
        frames: Frames::new(window.all.clone()),
        _room: room::make(blocks, &window.all, &ram),
        window,
        initrd,
        block_size: blocks.size(),
    })
}

impl Plan<'_> {
    /// Takes the frame whose address the new kernel's command line will carry.
    pub(super) fn reserve(&mut self) -> Result<ManifestPlace> {
        Ok(ManifestPlace::reserve(&mut self.frames)?)
    }
}

/// The archive: this program as `/init`, and the new kernel's modules.
fn overlay(host: &Host) -> Result<Vec<u8>> {
    let program = std::fs::read("/proc/self/exe").context("reading this program")?;
    let mut overlay = Overlay::with_init(loaded_part(program));
    host.modules.add_to(&mut overlay)?;
    let archive = overlay.finish().context("making the initramfs")?;
    log::info!("initramfs: {} KiB", archive.len() >> 10);
    Ok(archive)
}

/// A static program without what is not loaded (symbols, debug information): everything up to the
/// end of its last segment, with no section headers. What is no 64-bit ELF file comes back whole.
fn loaded_part(mut program: Vec<u8>) -> Vec<u8> {
    let word =
        |at: usize| -> Option<u64> { Some(u64::from_le_bytes(*program.get(at..)?.first_chunk()?)) };
    let half = |at: usize| -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(
            *program.get(at..)?.first_chunk()?,
        )))
    };
    let end = || -> Option<usize> {
        program.starts_with(b"\x7fELF\x02").then_some(())?;
        // e_phoff, e_phentsize, e_phnum; p_offset, p_filesz (elf(5)).
        let (table, size, count) = (word(32)? as usize, half(54)?, half(56)?);
        let mut end = table.checked_add(size * count)?;
        for index in 0..count {
            let header = table + index * size;
            let segment = word(header + 8)?.checked_add(word(header + 32)?)?;
            end = end.max(usize::try_from(segment).ok()?);
        }
        (end <= program.len()).then_some(end)
    };
    if let Some(end) = end() {
        program.truncate(end);
        // e_shoff; e_shnum, e_shstrndx.
        program[40..48].fill(0);
        program[60..64].fill(0);
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_without_its_symbols_still_runs() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let short = loaded_part(own.clone());
        assert!(short.len() < own.len());
        let path = std::env::temp_dir().join(format!("loaded-part-{}", std::process::id()));
        std::fs::write(&path, short).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = std::process::Command::new(&path).arg("--list").output();
        std::fs::remove_file(&path).unwrap();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(text.contains("without_its_symbols"), "{text}");
    }

    #[test]
    fn what_is_no_program_is_left_alone() {
        for bytes in [b"".as_slice(), b"\x7fELF\x02", &[0x7f; 100]] {
            assert_eq!(loaded_part(bytes.to_vec()), bytes);
        }
    }
}
