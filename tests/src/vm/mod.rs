//! One virtual machine: a QEMU process, its console log and the socket of its shell.

mod accel;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub(crate) use accel::Accel;
pub(crate) use accel::decide as decide_accel;

use crate::guest::Shell;
use crate::setup::image::{self, Disk, ROOT_UUID};
use crate::setup::kernels::Kernel;
use crate::setup::qemu::Qemu;
use crate::tool::tail;

/// How long a cold boot may take until the shell answers.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// A name for its logs.
    pub(crate) name: String,
    /// The kernel it boots cold.
    pub(crate) kernel: Kernel,
    /// The archive for that boot.
    pub(crate) initrd: PathBuf,
    /// The root disk below its overlay.
    pub(crate) disk: Disk,
    /// The disk with the programs under test.
    pub(crate) payload: Option<PathBuf>,
    /// MiB of RAM.
    pub(crate) memory: u64,
    /// What runs it.
    pub(crate) qemu: Qemu,
    /// How the processors are run.
    pub(crate) accel: Accel,
    /// More words for the kernel's command line.
    pub(crate) append: String,
}

/// A running machine. It is killed when the value is dropped; its logs stay.
pub(crate) struct Vm {
    qemu: Child,
    dir: PathBuf,
    overlay: PathBuf,
    socket: PathBuf,
    /// The root shell on the second serial port.
    pub(crate) shell: Shell,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Vm {
    /// Boots a machine and waits until its shell answers. Its logs go to a new folder in `run`.
    pub(crate) fn boot(run: &Path, spec: &Spec) -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = run.join(format!("{number:02}-{}", spec.name));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let overlay = dir.join("root.qcow2");
        image::overlay(&spec.disk, &overlay)?;
        // Not in `dir`: the path of a unix socket is at most 107 bytes.
        let socket =
            std::env::temp_dir().join(format!("kupgrade-lab-{}-{number}.sock", std::process::id()));
        let _ = fs::remove_file(&socket);
        let mut qemu = command(spec, &dir, &overlay, &socket)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let shell = connect(&mut qemu, &dir, &socket).and_then(|stream| Shell::new(stream, &dir));
        let shell = match shell {
            Ok(shell) => shell,
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                return Err(error);
            }
        };
        let mut vm = Self {
            qemu,
            dir,
            overlay,
            socket,
            shell,
        };
        let ready = vm.shell.greet(BOOT_LIMIT);
        ready.map_err(|error| {
            vm.explain(error)
                .context(format!("{} did not boot to its shell", spec.kernel.release))
        })?;
        Ok(vm)
    }

    /// The folder of its logs.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file with all that was written to the first serial port.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What was written to the first serial port until now.
    pub(crate) fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.console()).unwrap_or_default()).into_owned()
    }

    /// Waits until `text` is on the console and returns when it was seen.
    pub(crate) fn wait_console(&mut self, text: &str, limit: Duration) -> Result<Instant> {
        let end = Instant::now() + limit;
        loop {
            if self.console_text().contains(text) {
                return Ok(Instant::now());
            }
            if let Some(status) = self.qemu.try_wait()? {
                return Err(self.explain(anyhow::anyhow!(
                    "the machine ended ({status}) before '{text}' was on its console"
                )));
            }
            if Instant::now() > end {
                let error = anyhow::anyhow!(
                    "'{text}' was not on the console within {} s",
                    limit.as_secs()
                );
                return Err(self.explain(error));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does QEMU still run?
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// Adds to an error what the machine's logs say and where they are. When the shell still
    /// answers, the guest's kernel log and kupgrade's own logs are fetched first.
    pub(crate) fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.alive() {
            self.collect();
        } else {
            let _ = fs::write(self.dir.join("ended"), "the machine ended by itself\n");
        }
        let console = tail(&self.console_text(), 25);
        error.context(format!(
            "logs are kept in {}; the console's last lines:\n{console}\n",
            self.dir.display()
        ))
    }

    /// Fetches the guest's logs, as far as it still answers.
    fn collect(&mut self) {
        let short = Duration::from_secs(10);
        for (name, command) in [
            ("dmesg.log", "dmesg"),
            (
                "processes.log",
                "ps -eLo pid,ppid,pgid,sid,lwp,tty,stat,wchan:20,args",
            ),
            (
                "kupgrade.log",
                "cat /var/log/kupgrade/* /run/kupgrade/*.log 2>/dev/null",
            ),
            ("report.json", "kupgrade report --json"),
        ] {
            match self.shell.run(command, short) {
                Ok(out) => {
                    let _ = fs::write(self.dir.join(name), out.text);
                }
                Err(_) => break,
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_file(&self.overlay);
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(monitor(&self.socket));
    }
}

/// The kernel's command line for a cold boot. Without `no_timer_check` a kernel that is translated panics when the
/// host is so busy that no tick comes within its first moments (arch/x86/kernel/apic/io_apic.c, timer_irq_works). A
/// translated processor does not say that its TSC is constant, which it is, and Linux 6.1 would not use it without being
/// told (arch/x86/kernel/tsc.c, unsynchronized_tsc): no clock is read through the vdso then, and those of the scheduler
/// differ between processors.
fn append(spec: &Spec) -> String {
    let quiet = if std::env::var_os("KUPGRADE_LAB_VERBOSE").is_some() {
        ""
    } else {
        " quiet"
    };
    let tsc = match spec.accel {
        Accel::Tcg => " tsc=reliable",
        Accel::Kvm => "",
    };
    format!(
        "console=ttyS0 root=UUID={ROOT_UUID} rw panic=-1 no_timer_check{tsc}{quiet} {}",
        spec.append
    )
    .trim_end()
    .to_owned()
}

fn command(spec: &Spec, dir: &Path, overlay: &Path, socket: &Path) -> Command {
    // setpriv: the machine must not outlive a lab that was killed.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"])
        .args(spec.qemu.words())
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(spec.accel.args())
        .args(["-smp", "2", "-m", &spec.memory.to_string()])
        .arg("-kernel")
        .arg(spec.kernel.vmlinuz())
        .arg("-initrd")
        .arg(&spec.initrd)
        .arg("-append")
        .arg(append(spec))
        .arg("-drive")
        .arg(format!(
            "file={},if=virtio,format=qcow2,cache=unsafe",
            overlay.display()
        ))
        .arg("-chardev")
        .arg(format!(
            "file,id=console,path={}",
            dir.join("console.log").display()
        ))
        .args(["-serial", "chardev:console", "-chardev"])
        .arg(format!(
            "socket,id=shell,path={},server=on,wait=off",
            socket.display()
        ))
        .args(["-serial", "chardev:shell", "-monitor"])
        .arg(format!("unix:{},server,nowait", monitor(socket).display()));
    if let Some(payload) = &spec.payload {
        qemu.arg("-drive").arg(format!(
            "file={},if=virtio,format=raw,readonly=on",
            payload.display()
        ));
    }
    let log = fs::File::create(dir.join("qemu.log")).map_or_else(|_| Stdio::null(), Stdio::from);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    qemu
}

/// Where QEMU tells what a machine is doing that does not answer (`info registers -a`).
fn monitor(socket: &Path) -> PathBuf {
    socket.with_extension("monitor")
}

/// Waits for QEMU's socket.
fn connect(qemu: &mut Child, dir: &Path, socket: &Path) -> Result<UnixStream> {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = qemu.try_wait()? {
            let log = fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
            bail!("QEMU ended at once ({status}):\n{}", tail(&log, 10));
        }
        if Instant::now() > end {
            bail!("QEMU did not open its socket within 15 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
