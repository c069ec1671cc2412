//! The lab's own user and network namespaces: made by the daemon, entered by `exec` and `psql`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::{AtPath, Doing, LabError, Result};

/// Moves this process into fresh user and network namespaces, in which it is root.
/// The process must have one thread only: the kernel refuses otherwise.
pub(crate) fn create() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|e| {
        LabError::Refused(format!(
            "this host does not let user {uid} make a user namespace ({e}); allow it with \
             `sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000` and, where AppArmor restricts \
             it, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        ))
    })?;
    // The kernel takes a group map from an ordinary user only when the process can no longer drop groups.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).at("write", Path::new(path))
}

/// Moves this process, which must have one thread only, into the namespaces of `pid`. Files stay the caller's.
pub(crate) fn enter(pid: i32) -> Result<()> {
    let open = |kind: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        File::open(&path).at("open", &path)
    };
    let (user, net) = (open("user")?, open("net")?);
    setns(&user, CloneFlags::CLONE_NEWUSER).doing("enter the lab's user namespace (only its owner may)")?;
    setns(&net, CloneFlags::CLONE_NEWNET).doing("enter the lab's network namespace")
}
