//! Making, checking and mounting ext4 file systems with options that do not depend on a configuration file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};

use crate::Host;
use crate::durable;
use crate::error::{Doing, PhaseError};
use crate::mounts::{self, FileSystem};
use crate::run::{Tool, ToolError};

const MKFS: &str = "/usr/sbin/mkfs.ext4";
const E2FSCK: &str = "/usr/sbin/e2fsck";

/// Discards and inode tables of a large disk take their time.
const MKFS_DEADLINE: Duration = Duration::from_secs(300);
/// A journal replay takes seconds; a full check of a large volume after damage does not.
const FSCK_DEADLINE: Duration = Duration::from_secs(3600);

/// Where the superblock is, and how much of it.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
/// `s_state` of a file system without errors; with a journal it stays so while it is mounted.
const VALID: u16 = 1;

/// How e2fsck ends when it cannot begin.
const UNUSABLE: i32 = 8;
/// Where the first copy of the superblock is in a file system of [`make`].
const FIRST_COPY: [&str; 4] = ["-b", "32768", "-B", "4096"];

/// Every feature by name: `none` clears what the program would add by itself.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// What differs between our file systems.
pub(crate) struct Shape {
    /// Volume label.
    pub(crate) label: &'static str,
    /// Bytes of disk per inode.
    pub(crate) inode_ratio_bytes: u32,
    /// Leave inode tables and journal to be zeroed by the kernel after the mount. Saves minutes on a large volume;
    /// a small one is done at once so that nothing runs in the background.
    pub(crate) lazy: bool,
}

/// Makes a file system over whatever the device holds and flushes it to the medium.
pub(crate) fn make(host: &Host, device: &Path, shape: &Shape) -> Result<(), PhaseError> {
    let lazy = u8::from(shape.lazy);
    Tool::new(MKFS, MKFS_DEADLINE)
        // An empty configuration: without it mke2fs would take the image's mke2fs.conf into account.
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=64", "-e", "remount-ro"])
        .args(["-i", &shape.inode_ratio_bytes.to_string(), "-L", shape.label, "-O", FEATURES])
        .args(["-E", &format!("lazy_itable_init={lazy},lazy_journal_init={lazy},nodiscard")])
        .arg(device.to_string_lossy())
        .run(&host.log)?;
    durable::sync(device)
}

/// Mounts a file system unless it is mounted there.
///
/// After a power cut the kernel replays the journal, and looks at the superblock's checksum: that is all that e2fsck would do of a
/// file system that is not marked as damaged, at the price of a program that is read for it at each boot. e2fsck gets what
/// the kernel refuses or has marked, in this mount or in one before.
pub(crate) fn mount(host: &Host, device: &Path, at: &Path) -> Result<(), PhaseError> {
    let fs = FileSystem {
        device,
        at,
        kind: "ext4",
        flags: MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOATIME,
        options: "errors=remount-ro",
    };
    if mounts::is_mounted(device, at)? {
        return Ok(());
    }
    if is_unmarked(device)? {
        match mounts::mount(host, &fs) {
            // The journal may have had more to say of damage than the superblock.
            Ok(_) if is_unmarked(device)? => return Ok(()),
            Ok(_) => rustix::mount::unmount(at, UnmountFlags::empty()).doing("unmount", at)?,
            Err(error) => host.log.line(&format!("{error}; it is checked")),
        }
    }
    check(host, device)?;
    mounts::mount(host, &fs).map(drop)
}

/// Whether nothing in the superblock asks for a check.
fn is_unmarked(device: &Path) -> Result<bool, PhaseError> {
    let mut superblock = [0; SUPERBLOCK_BYTES];
    let file = File::open(device).doing("open", device)?;
    file.read_exact_at(&mut superblock, SUPERBLOCK_AT).doing("read the superblock of", device)?;
    Ok(asks_no_check(&superblock))
}

/// `s_state` says that it was whole, has no errors, and no orphans are being dealt with.
fn asks_no_check(superblock: &[u8; SUPERBLOCK_BYTES]) -> bool {
    u16::from_le_bytes([superblock[0x3a], superblock[0x3b]]) == VALID
}

/// Replays the journal and repairs what can be repaired without a human. Fails when a human is needed.
///
/// The kernel writes the superblock, two sectors, whenever it mounts: a power cut may leave one old and one new. Then its first
/// copy takes its place.
fn check(host: &Host, device: &Path) -> Result<(), PhaseError> {
    let check = |copy: &[&str]| {
        Tool::new(E2FSCK, FSCK_DEADLINE)
            .arg("-p")
            .args(copy.iter().copied())
            .arg(device.to_string_lossy())
            // 1: errors were corrected. 2 asks for a reboot when a mounted root was changed, which this is not.
            .good(&[0, 1])
            .run(&host.log)
            .map(drop)
    };
    match check(&[]) {
        Err(ToolError::Failed { status, stderr, .. }) if status.code() == Some(UNUSABLE) => {
            host.log.line(&format!("{stderr}; the superblock's first copy is taken"));
            Ok(check(&FIRST_COPY)?)
        }
        told => Ok(told?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_asks_for_a_check() {
        let with = |at: usize, byte: u8| {
            let mut superblock = [0; SUPERBLOCK_BYTES];
            superblock[0x3a] = 1;
            superblock[at] = byte;
            asks_no_check(&superblock)
        };
        assert!(with(0, 0));
        // Not whole; errors; orphans being recovered; something that this program does not know.
        for (at, byte) in [(0x3a, 0), (0x3a, 3), (0x3a, 5), (0x3b, 1)] {
            assert!(!with(at, byte), "{at:#x} {byte}");
        }
    }
}
