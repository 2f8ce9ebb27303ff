//! An image that is not what was written is not restored from.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

#[test]
fn damaged_pages_are_refused() {
    // Whoever runs the tests may have left it ends of pipes.
    let program = "import os, time; os.closerange(3, 4096); print(flush=True); time.sleep(60)";
    let mut quiet = Command::new("setsid");
    quiet.args(["python3", "-c", program]).stdin(Stdio::null());
    quiet.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut quiet = quiet.spawn().unwrap();
    let mut line = [0];
    quiet
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    let dir = std::env::temp_dir().join(format!("kupgrade-image-{}", std::process::id()));
    let kupgrade = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kupgrade"));
        let done = command.args(words).arg("--dir").arg(&dir).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let pid = quiet.id().to_string();
    let saved = kupgrade(&[
        "checkpoint",
        "--leave-running",
        "--external",
        "fd[1]",
        "--pid",
        &pid,
    ]);
    quiet.kill().unwrap();
    quiet.wait().unwrap();
    assert_eq!(saved, (Some(0), String::new()));
    let pages = dir.join("pages");
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).open(&pages).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    let refused = kupgrade(&["restore"]);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(refused.0, Some(1));
    assert!(refused.1.contains("pages: it is damaged"), "{}", refused.1);
}
