//! Profiles of AppArmor (apparmor(7)).

use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::kit::files::close;
use crate::kit::{Crew, Kin, Setting, Watch, args, not_here, raw, same, sys};

/// The policy, beside this program in the lab's machines: `shop` may do what it likes, and `inn` may send no signals, not
/// even to itself; neither may open what is called `forbidden`. `gone` is there to be removed.
const POLICY: &str = "lab/policy";
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LABEL: &str = "/proc/thread-self/attr/current";

/// Something in a mount of securityfs of its own.
fn mounted(work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let kind = CString::new("securityfs")?;
    let context = sys(
        "fsopen",
        raw(libc::SYS_fsopen, args([kind.as_ptr() as u64])),
    )?;
    let context = context as u64;
    // FSCONFIG_CMD_CREATE
    sys("fsconfig", raw(libc::SYS_fsconfig, args([context, 6])))?;
    let mount = sys("fsmount", raw(libc::SYS_fsmount, args([context])))?;
    close(i32::try_from(context)?);
    let mount = i32::try_from(mount)?;
    let done = work(Path::new(&format!("/proc/self/fd/{mount}")));
    close(mount);
    done
}

/// Loads the policy, and removes a profile of it again.
fn load() -> Result<()> {
    if !fs::read(ENABLED).is_ok_and(|enabled| enabled.starts_with(b"Y")) {
        return not_here("no AppArmor");
    }
    let Ok(policy) = fs::read(std::env::current_exe()?.with_file_name(POLICY)) else {
        return not_here("no policy of AppArmor");
    };
    mounted(|root| {
        fs::write(root.join("apparmor/.replace"), policy)?;
        fs::write(root.join("apparmor/.remove"), "gone")?;
        Ok(())
    })
}

fn enter(profile: &str) -> Result<()> {
    fs::write(LABEL, format!("changeprofile {profile}"))?;
    Ok(())
}

/// This thread is called by its label, and may open a file or not.
fn look(label: &str, file: &Path) -> Result<()> {
    let now = fs::read_to_string(LABEL)?;
    same("its label", label, now.trim_end_matches(['\0', '\n']))?;
    match fs::File::open(file) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied && label != "unconfined" => {
            Ok(())
        }
        Ok(_) if label == "unconfined" => Ok(()),
        other => bail!("opening {}: {other:?}", file.display()),
    }
}

/// Enters a profile, or none, and watches that it stays so.
fn watch(profile: Option<&'static str>, file: PathBuf) -> Result<Watch> {
    let label = match profile {
        Some(profile) => {
            enter(profile)?;
            format!("{profile} (enforce)")
        }
        None => "unconfined".to_owned(),
    };
    Ok(Watch::new(move || look(&label, &file)).spoiled_by(|| enter("shop")))
}

/// A child in one profile, threads in that one and in none, and the first thread in another one.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    load()?;
    let file = setting.fresh("forbidden");
    fs::write(&file, "")?;
    let its = file.clone();
    let mut child = Kin::start(setting, "child", move |_| watch(Some("inn"), its))?;
    let mut crew = Crew::default();
    for profile in [Some("inn"), None] {
        let file = file.clone();
        crew.add(move || watch(profile, file))?;
    }
    let mut first = watch(Some("shop"), file)?;
    Ok(crew.watch().and(Watch::new(move || {
        first.check()?;
        child.check()
    })))
}
