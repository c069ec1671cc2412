//! Table -> bytes.

use crate::table::{Partition, Table, entry_sectors};
use crate::{ENTRY_BYTES, ENTRY_COUNT, HEADER_BYTES, REVISION, SIGNATURE};

/// The bytes of both copies.
///
/// To survive a power cut at any point, write and flush the tail before the head: until the head is replaced the old
/// primary copy stands, afterwards both new ones do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Protective MBR, primary header and entries, for offset 0.
    pub head: Vec<u8>,
    /// Backup entries and header.
    pub tail: Vec<u8>,
    /// Where the tail goes, in bytes.
    pub tail_offset: u64,
}

impl Table {
    /// Both copies and the protective MBR. Equal tables give equal bytes.
    pub fn encode(&self) -> Encoded {
        let sector = self.sector_size() as usize;
        let array_sectors = entry_sectors(self.sector_size());
        let entries = self.encode_entries();
        let last = self.disk_sectors() - 1;

        let mut head = self.protective_mbr();
        head.extend(self.header(1, last, 2, &entries));
        head.extend(&entries);
        head.resize((2 + array_sectors as usize) * sector, 0);

        let backup_entries = last - array_sectors;
        let mut tail = entries.clone();
        tail.resize(array_sectors as usize * sector, 0);
        tail.extend(self.header(last, 1, backup_entries, &entries));
        Encoded { head, tail, tail_offset: backup_entries * sector as u64 }
    }

    /// One 0xEE record over the whole disk, so that tools that know only MBR leave it alone.
    fn protective_mbr(&self) -> Vec<u8> {
        let mut mbr = vec![0u8; self.sector_size() as usize];
        let sectors = u32::try_from(self.disk_sectors() - 1).unwrap_or(u32::MAX);
        let record = &mut mbr[446..462];
        record[1..4].copy_from_slice(&[0x00, 0x02, 0x00]);
        record[4] = 0xee;
        record[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
        record[8..12].copy_from_slice(&1u32.to_le_bytes());
        record[12..16].copy_from_slice(&sectors.to_le_bytes());
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        mbr
    }

    fn header(&self, this: u64, other: u64, entries_lba: u64, entries: &[u8]) -> Vec<u8> {
        let mut h = Vec::with_capacity(self.sector_size() as usize);
        h.extend(SIGNATURE);
        h.extend(REVISION.to_le_bytes());
        h.extend((HEADER_BYTES as u32).to_le_bytes());
        h.extend([0u8; 8]); // CRC, filled in below, and a reserved word
        for lba in [this, other, self.first_usable(), self.last_usable()] {
            h.extend(lba.to_le_bytes());
        }
        h.extend(self.disk_guid.to_disk());
        h.extend(entries_lba.to_le_bytes());
        h.extend(ENTRY_COUNT.to_le_bytes());
        h.extend(ENTRY_BYTES.to_le_bytes());
        h.extend(crc32fast::hash(entries).to_le_bytes());
        let crc = crc32fast::hash(&h);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h.resize(self.sector_size() as usize, 0);
        h
    }

    fn encode_entries(&self) -> Vec<u8> {
        let mut out = vec![0u8; (ENTRY_COUNT * ENTRY_BYTES) as usize];
        for (&number, partition) in self.partitions() {
            let at = (number as usize - 1) * ENTRY_BYTES as usize;
            encode_entry(partition, &mut out[at..at + ENTRY_BYTES as usize]);
        }
        out
    }
}

fn encode_entry(p: &Partition, out: &mut [u8]) {
    out[0..16].copy_from_slice(&p.type_guid.to_disk());
    out[16..32].copy_from_slice(&p.guid.to_disk());
    out[32..40].copy_from_slice(&p.first_lba.to_le_bytes());
    out[40..48].copy_from_slice(&p.last_lba.to_le_bytes());
    out[48..56].copy_from_slice(&p.attributes.to_le_bytes());
    for (slot, unit) in out[56..128].chunks_exact_mut(2).zip(p.name.encode_utf16()) {
        slot.copy_from_slice(&unit.to_le_bytes());
    }
}
