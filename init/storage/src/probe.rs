//! What a partition holds, as far as it must be known before writing to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Doing, PhaseError};

/// How much of a partition's start and of its end is looked at: every signature in use lies there.
pub(crate) const EDGE_BYTES: u64 = 1 << 20;

/// What the edges of a partition say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// First and last MiB are zero.
    Blank,
    /// ext2, ext3 or ext4.
    Ext4,
    /// An LVM physical volume.
    Lvm,
    /// Something else, named as well as possible.
    Other(&'static str),
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blank => "nothing (its edges are zero)",
            Self::Ext4 => "an ext2, ext3 or ext4 file system",
            Self::Lvm => "an LVM physical volume",
            Self::Other(what) => what,
        })
    }
}

/// (offset, bytes, name), looked for in this order.
const SIGNATURES: [(usize, &[u8], &str); 11] = [
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"hsqs", "a squashfs file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a software RAID"),
    (512, b"EFI PART", "a partition table"),
    (510, b"\x55\xaa", "a boot sector or partition table"),
];

/// Recognises the first MiB; `head` may be shorter on a small device.
pub(crate) fn recognise(head: &[u8], tail: &[u8]) -> Content {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    if head.iter().chain(tail).all(|&byte| byte == 0) {
        return Content::Blank;
    }
    if at(1080, &[0x53, 0xef]) {
        return Content::Ext4;
    }
    if (0..4).any(|sector| at(sector * 512, b"LABELONE")) {
        return Content::Lvm;
    }
    match SIGNATURES.iter().find(|(offset, bytes, _)| at(*offset, bytes)) {
        Some((.., name)) => Content::Other(name),
        None => Content::Other("data of an unknown kind"),
    }
}

/// Reads both edges of a partition.
pub(crate) fn content(device: &Path) -> Result<Content, PhaseError> {
    let file = File::open(device).doing("open", device)?;
    let size = dyad_sys::block::size_bytes(&file).doing("ask the size of", device)?;
    let edge = |offset: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; EDGE_BYTES.min(size) as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    };
    let head = edge(0).doing("read the start of", device)?;
    let tail = edge(size.saturating_sub(EDGE_BYTES)).doing("read the end of", device)?;
    Ok(recognise(&head, &tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, bytes: &[u8]) -> Content {
        let mut head = vec![0; 1 << 20];
        head[offset..offset + bytes.len()].copy_from_slice(bytes);
        recognise(&head, &[])
    }

    #[test]
    fn one_byte_anywhere_is_not_blank() {
        assert_eq!(recognise(&[0; 4096], &[0; 4096]), Content::Blank);
        assert_eq!(with(99_999, &[1]), Content::Other("data of an unknown kind"));
        assert_eq!(recognise(&[0; 4096], &[0, 0, 7]), Content::Other("data of an unknown kind"));
    }

    #[test]
    fn every_signature_is_named() {
        assert_eq!(with(1080, &[0x53, 0xef]), Content::Ext4);
        assert_eq!(with(512, b"LABELONE"), Content::Lvm);
        for (offset, bytes, name) in SIGNATURES {
            assert_eq!(with(offset, bytes), Content::Other(name));
        }
    }

    #[test]
    fn a_short_device_is_no_panic() {
        assert_eq!(recognise(&[1; 8], &[1; 8]), Content::Other("data of an unknown kind"));
    }
}
