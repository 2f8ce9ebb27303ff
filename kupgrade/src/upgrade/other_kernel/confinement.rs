//! Whether it has AppArmor (apparmor(7)), and lets everybody enter a profile.

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use persist_mem::manifest::{Manifest, Process, Thread};

/// Since when a thread enters a profile by a call of its own (`lsm_set_self_attr(2)`), and not by a file.
const CALLS: Version = (6, 8);

/// Processes that AppArmor confines, when it is not there, and such as could not enter their profiles.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    let confined = |thread: &Thread| thread.profile.is_some();
    let restricted = |thread: &Thread| confined(thread) && !thread.layers.is_empty();
    let any = |process: &Process, which: &dyn Fn(&Thread) -> bool| {
        process
            .live()
            .is_some_and(|live| live.all_threads().any(which))
    };
    if !has_apparmor(there) {
        let reason = format!(
            "AppArmor confines it, which Linux {} has not",
            there.release
        );
        return refuse(
            manifest,
            |process| any(process, &confined),
            "attr/current",
            &reason,
        );
    }
    if there.version >= CALLS {
        return Vec::new();
    }
    let reason = "AppArmor confines it, and it could not enter its profile from its domain of Landlock before Linux 6.8";
    refuse(
        manifest,
        |process| any(process, &restricted),
        "attr/current",
        reason,
    )
}

/// Whether it is built in, and not switched off by the command line.
fn has_apparmor(there: &OtherKernel) -> bool {
    let built = there.has("CONFIG_SECURITY_APPARMOR").unwrap_or(true);
    let off = there.argument("apparmor") == Some("0");
    let among = |list: &str| list.split(',').any(|name| name == "apparmor");
    let listed = there.argument("lsm").is_none_or(among);
    let chosen = there.argument("security");
    let asked = there.argument("lsm").is_some() || chosen.is_none_or(|name| name == "apparmor");
    built && !off && listed && asked
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel;
    use super::*;

    #[test]
    fn apparmor_is_there_unless_it_is_switched_off() {
        let built = Some("CONFIG_SECURITY_APPARMOR=y\n");
        let not_built = Some("# CONFIG_SECURITY_APPARMOR is not set\n");
        for (config, line, wanted) in [
            (built, "quiet", true),
            (None, "quiet", true),
            (not_built, "quiet", false),
            (built, "apparmor=0", false),
            (built, "apparmor=1 security=apparmor", true),
            (built, "security=selinux", false),
            (built, "lsm=landlock,yama", false),
            (built, "lsm=landlock,apparmor security=selinux", true),
        ] {
            let there = kernel("6.12", config, line);
            assert_eq!(has_apparmor(&there), wanted, "{config:?} {line}");
        }
    }
}
