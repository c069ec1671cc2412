//! The lab's own user and network namespaces: made by the daemon, entered by `exec` and `psql`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::{AtPath, Doing, Result, refuse};
use crate::idmap::{MAP_ME, MAPPED, no_user_namespace};

/// Moves this process into fresh user and network namespaces, in which it is root and the only user.
/// The process must have one thread only: the kernel refuses otherwise.
pub(crate) fn create() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(no_user_namespace)?;
    // The kernel takes a group map from an ordinary user only when the process can no longer drop groups.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))
}

/// The same with all users of a container, which only somebody outside can map: the other end of the leash does.
pub(crate) fn create_for_containers(mut leash: &UnixStream) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(no_user_namespace)?;
    writeln!(leash, "{MAP_ME}").doing("ask for the users of the lab")?;
    let mut answer = String::new();
    BufReader::with_capacity(1, leash).read_line(&mut answer).doing("wait for the users of the lab")?;
    if answer.trim_end() != MAPPED {
        return refuse("the users of the lab were not mapped");
    }
    Ok(())
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
