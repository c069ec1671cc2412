//! Finding the two partitions whose unique GUIDs are the halves of the root hash, or the pair of files that came over
//! the network.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fd::AsFd;

use super::gpt;
use super::verity::RootHash;

/// A root that came in the initrd.
pub(super) const NETWORK_ROOT: &str = "/root.squashfs";
/// Its hash tree.
pub(super) const NETWORK_VERITY: &str = "/root.verity";

/// Where a root came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Partition number of the root.
    Partition(u32),
    /// The initrd.
    Network,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Partition(2) => f.write_str("a"),
            Origin::Partition(4) => f.write_str("b"),
            Origin::Partition(number) => write!(f, "partition-{number}"),
            Origin::Network => f.write_str("network"),
        }
    }
}

/// The devices of one slot.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) data: PathBuf,
    pub(super) verity: PathBuf,
    pub(super) origin: Origin,
}

/// Why there is no pair.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    #[error("no disk has {missing} of the verity root hash {hash} (PARTUUID {guid}); seen: {seen}")]
    Missing { missing: &'static str, hash: RootHash, guid: String, seen: String },
    #[error("cannot list the disks: {0}")]
    List(#[source] std::io::Error),
    #[error("cannot use {path} of the initrd as a loop device: {source}")]
    Loop { path: &'static str, source: std::io::Error },
}

/// The pair of files of the initrd, through loop devices.
pub(super) fn from_initrd() -> Result<Pair, SlotError> {
    Ok(Pair { data: attach(NETWORK_ROOT)?, verity: attach(NETWORK_VERITY)?, origin: Origin::Network })
}

fn attach(path: &'static str) -> Result<PathBuf, SlotError> {
    File::open(path)
        .and_then(|file| dyad_sys::loopdev::attach_read_only(file.as_fd()))
        .map(|number| PathBuf::from(format!("/dev/loop{number}")))
        .map_err(|source| SlotError::Loop { path, source })
}

/// Looks at every disk once.
pub(super) fn find(hash: &RootHash) -> Result<Pair, SlotError> {
    let (root_guid, verity_guid) = hash.halves();
    let (mut root, mut verity) = (None, None);
    let mut seen = String::new();
    for entry in std::fs::read_dir("/sys/block").map_err(SlotError::List)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["loop", "ram", "zram", "dm-", "sr", "fd", "nbd"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let parts = disk_partitions(&name, &entry.path());
        if !seen.is_empty() {
            seen.push_str("; ");
        }
        match parts {
            Err(error) => seen.push_str(&format!("{name}: {error}")),
            Ok(parts) => {
                seen.push_str(&format!("{name} with {} partitions", parts.len()));
                for (number, guid) in parts {
                    if guid == gpt::on_disk(root_guid) {
                        root = root.or_else(|| node(&name, &entry.path(), number).map(|path| (path, number)));
                    } else if guid == gpt::on_disk(verity_guid) {
                        verity = verity.or_else(|| node(&name, &entry.path(), number));
                    }
                }
            }
        }
    }
    if seen.is_empty() {
        seen.push_str("no disk at all");
    }
    let missing = |missing, guid| SlotError::Missing {
        missing,
        hash: hash.clone(),
        guid: text(guid),
        seen: seen.clone(),
    };
    let (data, number) = root.ok_or_else(|| missing("the root partition", root_guid))?;
    let verity = verity.ok_or_else(|| missing("the verity partition", verity_guid))?;
    Ok(Pair { data, verity, origin: Origin::Partition(number) })
}

fn disk_partitions(name: &str, sys: &Path) -> std::io::Result<Vec<(u32, [u8; 16])>> {
    let sector = std::fs::read_to_string(sys.join("queue/logical_block_size"))?.trim().parse().unwrap_or(512);
    gpt::partitions(&mut File::open(Path::new("/dev").join(name))?, sector)
}

/// The device node of a partition: the directory of the disk that says this number.
fn node(disk: &str, sys: &Path, number: u32) -> Option<PathBuf> {
    std::fs::read_dir(sys).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let says = std::fs::read_to_string(entry.path().join("partition")).ok()?;
        (name.starts_with(disk) && says.trim() == number.to_string()).then(|| Path::new("/dev").join(name))
    })
}

fn text(guid: [u8; 16]) -> String {
    let hex: String = guid.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_in_text() {
        let guid = <[u8; 16]>::try_from((0..16).collect::<Vec<u8>>()).expect("16 bytes");
        assert_eq!(text(guid), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
