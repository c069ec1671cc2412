//! The control groups of a lab of containers: one for each node, by which it is stalled and killed as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::clock::{self, Deadline};
use crate::error::{AtPath, LabError, Result};

/// How long a group may take to freeze, or to empty after a kill.
const SETTLE_WAIT: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(2);

/// Where this process may make groups: the top of cgroup2 for root, else its own group.
pub(crate) fn place(root: bool) -> Result<Option<PathBuf>> {
    let read = |path: &str| fs::read_to_string(path).at("read", Path::new(path));
    let Some(top) = mount_point(&read("/proc/self/mountinfo")?) else { return Ok(None) };
    if root {
        return Ok(Some(top));
    }
    let own = own_group(&read("/proc/self/cgroup")?);
    Ok(Some(top.join(own.trim_start_matches('/'))))
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

fn own_group(cgroup: &str) -> String {
    cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned()
}

/// The group of a lab, by its state directory: two labs have two.
pub(crate) fn of_lab(place: &Path, state: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(state.as_os_str().as_bytes());
    let name: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
    place.join(format!("dyad-lab-{name}"))
}

/// A new, empty group; what is left of an earlier one by that name is killed.
pub(crate) fn fresh(group: &Path) -> Result<()> {
    remove(group)?;
    fs::create_dir_all(group).at("make the control group", group)
}

/// Kills everything in a group and removes it with the groups below it.
pub(crate) fn remove(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    put(group, "cgroup.kill", "1")?;
    settle(group, "populated 0")?;
    remove_empty(group)
}

fn remove_empty(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).at("read the control group", group)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(group).at("remove the control group", group)
}

/// Stalls everything in a group, or lets it run on.
pub(crate) fn freeze(group: &Path, frozen: bool) -> Result<()> {
    put(group, "cgroup.freeze", if frozen { "1" } else { "0" })?;
    settle(group, if frozen { "frozen 1" } else { "frozen 0" })
}

/// Moves the calling process into a group.
pub(crate) fn enter(group: &Path) -> Result<()> {
    put(group, "cgroup.procs", "0")
}

fn put(group: &Path, file: &str, text: &str) -> Result<()> {
    let path = group.join(file);
    fs::write(&path, text).at("write", &path)
}

fn settle(group: &Path, wanted: &str) -> Result<()> {
    let path = group.join("cgroup.events");
    let deadline = Deadline::after(SETTLE_WAIT);
    loop {
        match fs::read_to_string(&path) {
            Ok(text) if text.lines().any(|line| line == wanted) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).at("read", &path),
        }
        if deadline.left().is_none() {
            return Err(LabError::Deadline {
                what: format!("{} did not become \"{wanted}\"", group.display()),
                seconds: SETTLE_WAIT.as_secs(),
                next: "a process in it waits in the kernel, perhaps for a disk; try again".into(),
            });
        }
        clock::pause(SETTLE_POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_read_from_the_kernels_tables() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("30 24 0:26 / / rw - ext4 /dev/vda rw\n"), None);
        assert_eq!(own_group("4:cpu:/a\n0::/user.slice/x\n"), "/user.slice/x");
        assert_eq!(own_group("4:cpu:/a\n"), "/");
        let one = of_lab(Path::new("/cg"), Path::new("/a"));
        assert_ne!(one, of_lab(Path::new("/cg"), Path::new("/b")));
        assert!(one.starts_with("/cg/"));
    }
}
