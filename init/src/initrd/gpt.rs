//! Just enough of the GUID partition table to find a partition by its unique GUID.
//!
//! What is found here is not trusted: the root hash decides, and a table that lies leads to a root that does not verify.

use std::io::{Read, Seek, SeekFrom};

/// More entries than any partitioning program makes.
const ENTRIES_MAX: u32 = 1024;
const ENTRY_BYTES_MAX: u32 = 4096;

/// Numbers (from 1) and unique GUIDs, as on disk (mixed endian), of the partitions in the primary table; empty where
/// there is no table.
pub(super) fn partitions(
    disk: &mut (impl Read + Seek),
    sector_bytes: u64,
) -> std::io::Result<Vec<(u32, [u8; 16])>> {
    let mut header = [0; 92];
    disk.seek(SeekFrom::Start(sector_bytes))?;
    disk.read_exact(&mut header)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (count, size) = (word(80), word(84));
    if &header[..8] != b"EFI PART" || count > ENTRIES_MAX || !(128..=ENTRY_BYTES_MAX).contains(&size) {
        return Ok(Vec::new());
    }
    let lba = u64::from(word(72)) | (u64::from(word(76)) << 32);
    disk.seek(SeekFrom::Start(lba.saturating_mul(sector_bytes)))?;
    let mut table = vec![0; count as usize * size as usize];
    disk.read_exact(&mut table)?;
    let entries = table.chunks_exact(size as usize).enumerate();
    Ok(entries
        .filter(|(_, entry)| entry[..16] != [0; 16])
        .map(|(at, entry)| {
            let mut guid = [0; 16];
            guid.copy_from_slice(&entry[16..32]);
            (at as u32 + 1, guid)
        })
        .collect())
}

/// Bytes of a GUID in text order -> on disk: the first three fields are little endian there.
pub(super) fn on_disk(text_order: [u8; 16]) -> [u8; 16] {
    let mut guid = text_order;
    guid[..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    guid
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn disk(sector: usize) -> Vec<u8> {
        let mut bytes = vec![0; sector * 8];
        bytes[sector..sector + 8].copy_from_slice(b"EFI PART");
        bytes[sector + 72] = 2;
        bytes[sector + 80] = 4;
        bytes[sector + 84] = 128;
        let entry = sector * 2 + 128;
        bytes[entry] = 1;
        bytes[entry + 16..entry + 32].copy_from_slice(&[7; 16]);
        bytes
    }

    #[test]
    fn both_sector_sizes() {
        for sector in [512, 4096] {
            let found = partitions(&mut Cursor::new(disk(sector)), sector as u64).expect("whole table");
            assert_eq!(found, [(2, [7; 16])]);
        }
    }

    #[test]
    fn strange_tables_are_no_tables() {
        let mut huge = disk(512);
        huge[512 + 80..512 + 84].fill(0xff);
        assert!(partitions(&mut Cursor::new(huge), 512).expect("read").is_empty());
        assert!(partitions(&mut Cursor::new(vec![0; 4096]), 512).expect("read").is_empty());
        assert!(partitions(&mut Cursor::new(disk(512)[..1030].to_vec()), 512).is_err());
    }

    #[test]
    fn mixed_endian() {
        let text: Vec<u8> = (0..16).collect();
        let text = <[u8; 16]>::try_from(text).expect("16 bytes");
        assert_eq!(on_disk(text), [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
    }
}
