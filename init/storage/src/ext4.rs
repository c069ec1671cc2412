//! Making and checking ext4 file systems with options that do not depend on a configuration file.

use std::path::Path;
use std::time::Duration;

use crate::Host;
use crate::durable;
use crate::error::PhaseError;
use crate::run::{Tool, ToolError};

const MKFS: &str = "/usr/sbin/mkfs.ext4";
const E2FSCK: &str = "/usr/sbin/e2fsck";

/// Discards and inode tables of a large disk take their time.
const MKFS_DEADLINE: Duration = Duration::from_secs(300);
/// A journal replay takes seconds; a full check of a large volume after damage does not.
const FSCK_DEADLINE: Duration = Duration::from_secs(3600);

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

/// Replays the journal and repairs what can be repaired without a human. Fails when a human is needed.
///
/// The kernel writes the superblock, two sectors, whenever it mounts: a power cut may leave one old and one new. Then its first
/// copy takes its place.
pub(crate) fn check(host: &Host, device: &Path) -> Result<(), PhaseError> {
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
