//! cgroup v2: one group for each service and helper. Its files never block.

use std::fmt::Write as _;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{Errno, read, write};

const ROOT: &str = "/sys/fs/cgroup";
const SLICE: &str = "system.slice";
/// PID 1's own group: with controllers on, only leaves may hold processes (outside the machine's real root).
const OWN: &str = "init.scope";
/// Asked for where the kernel has them.
const CONTROLLERS: [&str; 4] = ["+cpu", "+io", "+memory", "+pids"];
/// Bytes read at once from `cgroup.procs`.
const PROCS_BYTES: usize = 4096;

/// The slice, open.
#[derive(Debug)]
pub(crate) struct Slice {
    dir: OwnedFd,
}

/// One group, open.
#[derive(Debug)]
pub(crate) struct Group {
    dir: OwnedFd,
}

fn directory(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn put(at: BorrowedFd<'_>, file: &str, text: &str) -> Result<(), Errno> {
    let fd = openat(at, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&fd, text.as_bytes()).map(|_| ())
}

impl Slice {
    /// Moves this process aside, turns the controllers on and makes the slice.
    pub(crate) fn prepare() -> Result<Self, Errno> {
        let root = openat(CWD, ROOT, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let own = directory(root.as_fd(), OWN)?;
        put(own.as_fd(), "cgroup.procs", "0")?;
        let dir = directory(root.as_fd(), SLICE)?;
        for controller in CONTROLLERS {
            // A kernel or container without one of them still supervises.
            let _ = put(root.as_fd(), "cgroup.subtree_control", controller);
            let _ = put(dir.as_fd(), "cgroup.subtree_control", controller);
        }
        Ok(Self { dir })
    }

    /// A new group of this name in the place of an empty one. Kernels from 6.12 on kill whatever is cloned into a group
    /// that `cgroup.kill` was once written to, so a group is used for one start only.
    pub(crate) fn fresh_group(&self, name: &str) -> Result<Group, Errno> {
        self.remove(name);
        self.group(name)
    }

    /// Opens the group of this name, making it if need be.
    pub(crate) fn group(&self, name: &str) -> Result<Group, Errno> {
        directory(self.dir.as_fd(), name).map(|dir| Group { dir })
    }

    /// Removes an empty group.
    pub(crate) fn remove(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::REMOVEDIR);
    }
}

impl Group {
    /// For clone3.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether no process is in it or below it. A group that cannot be read counts as occupied.
    pub(crate) fn is_empty(&self) -> bool {
        let mut text = [0u8; 128];
        openat(&self.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|fd| read(&fd, &mut text[..]))
            .is_ok_and(|length| text[..length].windows(11).any(|w| w == b"populated 0"))
    }

    /// SIGKILL for all its processes in one step.
    pub(crate) fn kill(&self) -> Result<(), Errno> {
        put(self.dir.as_fd(), "cgroup.kill", "1")
    }

    /// Calls `each` for every process in it.
    pub(crate) fn for_each(&self, mut each: impl FnMut(u32)) -> Result<(), Errno> {
        let fd = openat(&self.dir, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [0u8; PROCS_BYTES];
        let mut number = 0u32;
        loop {
            let length = read(&fd, &mut buffer[..])?;
            if length == 0 {
                return Ok(());
            }
            for byte in &buffer[..length] {
                match byte {
                    b'0'..=b'9' => number = number.saturating_mul(10).saturating_add(u32::from(byte - b'0')),
                    _ => {
                        if number != 0 {
                            each(number);
                        }
                        number = 0;
                    }
                }
            }
        }
    }
}

/// The service whose group a process is in; `None` for a process that is gone or none of ours.
pub(crate) fn service_of(pid: u32, name: &mut [u8; 128]) -> Option<&str> {
    group_of(pid, name)?.strip_suffix(".service")
}

/// The name of the group that a process is in, or was in when it ended if it still waits to be reaped.
pub(crate) fn group_of(pid: u32, name: &mut [u8; 128]) -> Option<&str> {
    let mut path = PathBuffer::default();
    write!(path, "/proc/{pid}/cgroup").ok()?;
    let mut text = [0u8; 512];
    let fd = openat(CWD, path.text(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = read(&fd, &mut text[..]).ok()?;
    let found = parse_group(std::str::from_utf8(&text[..length]).ok()?)?;
    name.get_mut(..found.len())?.copy_from_slice(found.as_bytes());
    std::str::from_utf8(&name[..found.len()]).ok()
}

/// `0::/system.slice/NAME[/...]`, perhaps with something before it in a container. A group that was removed is none.
fn parse_group(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (_, rest) = line.split_once("/system.slice/")?;
    rest.split('/').next().filter(|_| !rest.ends_with(" (deleted)"))
}

/// A short path formatted on the stack.
#[derive(Default)]
struct PathBuffer {
    bytes: [u8; 32],
    used: usize,
}

impl PathBuffer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.used]).unwrap_or("")
    }
}

impl std::fmt::Write for PathBuffer {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.used + text.len();
        self.bytes.get_mut(self.used..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_path() {
        assert_eq!(parse_group("0::/system.slice/pg.service\n"), Some("pg.service"));
        assert_eq!(parse_group("1:cpu:/x\n0::/lab/system.slice/pg.service/inner\n"), Some("pg.service"));
        assert_eq!(parse_group("0::/system.slice/pg.service (deleted)\n"), None, "an earlier start's");
        assert_eq!(parse_group("0::/init.scope\n"), None);
        assert_eq!(parse_group(""), None);
    }
}
