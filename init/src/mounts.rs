//! Mounting the kernel's own file systems. None of these can wait for a device.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// One mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const SHARED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What the initrd stage needs and hands on.
pub(crate) const FIRST: &[Mount] = &[
    Mount { kind: "proc", target: "/proc", flags: SAFE, data: "" },
    Mount { kind: "sysfs", target: "/sys", flags: SAFE, data: "" },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "mode=0755",
    },
];

/// The rest, in the root.
pub(crate) const REST: &[Mount] = &[
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID,
        data: "gid=5,mode=0620,ptmxmode=0666",
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: SHARED, data: "mode=1777" },
    Mount { kind: "tmpfs", target: "/run", flags: SHARED, data: "mode=0755,size=25%" },
    Mount { kind: "tmpfs", target: "/tmp", flags: SHARED, data: "mode=1777,size=25%" },
    Mount { kind: "tmpfs", target: "/var", flags: SHARED, data: "mode=0755,size=25%" },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, data: "nsdelegate,memory_recursiveprot" },
];

/// Which mount failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {kind} on {target}: {source}")]
pub(crate) struct MountError {
    kind: &'static str,
    target: &'static str,
    source: Errno,
}

/// Mounts one after the other; what is mounted already (a container's `/proc`) is left as it is.
pub(crate) fn mount_all(mounts: &[Mount]) -> Result<(), MountError> {
    mounts.iter().filter(|m| !is_mount_point(m.target)).try_for_each(|m| {
        // The directory is there in an image; below /dev it is not.
        let _ = mkdir(m.target, Mode::from_raw_mode(0o755));
        let data = std::ffi::CString::new(m.data).unwrap_or_default();
        mount(m.kind, m.target, m.kind, m.flags, Some(data.as_c_str())).map_err(|source| MountError {
            kind: m.kind,
            target: m.target,
            source,
        })
    })
}

/// Whether a file system is mounted exactly here: its device or inode differs from what its parent shows.
pub(crate) fn is_mount_point(path: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
    match (std::fs::symlink_metadata(path), std::fs::symlink_metadata(parent)) {
        (Ok(here), Ok(above)) => here.dev() != above.dev(),
        _ => false,
    }
}

/// Mounts below a directory, deepest first, from `/proc/self/mountinfo`'s text.
pub(crate) fn mount_points(mountinfo: &str) -> Vec<String> {
    let mut points: Vec<String> =
        mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect();
    points.reverse();
    points
}

/// mountinfo writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Moves the mounts of [`FIRST`] below `root` and makes it `/`.
pub(crate) fn switch_root(root: &str) -> io::Result<()> {
    for m in FIRST {
        rustix::mount::mount_move(m.target, format!("{root}{}", m.target).as_str())?;
    }
    std::env::set_current_dir(root)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_come_deepest_first_and_unescaped() {
        let text = "21 1 254:0 / / ro - squashfs /dev/mapper/root ro\n\
                    22 21 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
                    30 22 0:20 / /dev/a\\040b\\134 rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_points(text), ["/dev/a b\\", "/dev", "/"]);
        assert!(mount_points("").is_empty());
        assert_eq!(mount_points("1 2 3 4 \\0"), ["\\0"]);
    }
}
