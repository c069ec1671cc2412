//! Bytes -> table, from whichever copy is sound.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};

use crate::table::{Partition, Table};
use crate::{ENTRY_BYTES, ENTRY_COUNT, Error, Guid, HEADER_BYTES, REVISION, SIGNATURE};

/// Largest entry array that is read: four times what everybody writes.
const ENTRY_ARRAY_BYTES_MAX: u64 = 4 * (ENTRY_COUNT * ENTRY_BYTES) as u64;

/// What is wrong with one copy of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// The header does not start with `EFI PART`.
    #[error("has no signature")]
    Signature,
    /// The header's sector lies behind the end of the disk.
    #[error("lies outside the disk (sector {0})")]
    Outside(u64),
    /// Unknown revision or an impossible header or entry size.
    #[error("has an impossible {0}")]
    Geometry(&'static str),
    /// The header's checksum does not match.
    #[error("has a wrong header checksum")]
    HeaderCrc,
    /// The entry array's checksum does not match.
    #[error("has a wrong entry checksum")]
    EntriesCrc,
    /// Checksums match but the content is not a sound table.
    #[error("is not sound: {0}")]
    Content(String),
}

/// State of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// Sound and where it belongs.
    Good,
    /// A sound backup that is not in the disk's last sector: the disk has grown. Holds the sector.
    Misplaced(u64),
    /// A sound backup that says something else than the primary copy; the primary counts.
    Differs,
    /// Not usable.
    Damaged(Defect),
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Copy::Good => f.write_str("good"),
            Copy::Misplaced(lba) => write!(f, "good, but at sector {lba} instead of the end of the disk"),
            Copy::Differs => f.write_str("sound, but different from the primary copy"),
            Copy::Damaged(defect) => write!(f, "damaged: it {defect}"),
        }
    }
}

/// A table and how well its copies are. Writing [`Table::encode`] repairs whatever is not [`Copy::Good`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The table, fitted to the size of the disk.
    pub table: Table,
    /// The copy at the start.
    pub primary: Copy,
    /// The copy at the end.
    pub backup: Copy,
}

impl Found {
    /// Both copies are sound and in place.
    pub fn is_good(&self) -> bool {
        self.primary == Copy::Good && self.backup == Copy::Good
    }
}

/// One decoded copy.
struct Side {
    disk_guid: Guid,
    alternate_lba: u64,
    partitions: Vec<(u32, Partition)>,
}

/// Reads the table of a disk of `disk_bytes`. One damaged copy is told in [`Found`]; two are an error.
pub fn read(disk: &mut (impl Read + Seek), sector_size: u32, disk_bytes: u64) -> Result<Found, Error> {
    let sectors = disk_bytes / u64::from(sector_size.max(1));
    let empty = Table::new(sector_size, sectors, Guid::ZERO)?;
    let last = sectors - 1;
    let primary = read_side(disk, &empty, 1)?;
    let backup_lba = match &primary {
        Ok(side) if side.alternate_lba > 1 && side.alternate_lba < last => side.alternate_lba,
        _ => last,
    };
    let backup = read_side(disk, &empty, backup_lba)?;
    match (primary, backup) {
        (Ok(p), backup) => {
            let state = match backup {
                Err(defect) => Copy::Damaged(defect),
                Ok(b) if b.disk_guid != p.disk_guid || b.partitions != p.partitions => Copy::Differs,
                Ok(_) if backup_lba != last => Copy::Misplaced(backup_lba),
                Ok(_) => Copy::Good,
            };
            Ok(Found { table: build(&empty, p)?, primary: Copy::Good, backup: state })
        }
        (Err(defect), Ok(b)) => {
            Ok(Found { table: build(&empty, b)?, primary: Copy::Damaged(defect), backup: Copy::Good })
        }
        (Err(primary), Err(backup)) => Err(Error::NoTable { primary, backup }),
    }
}

/// The sector size for which a header is in place, at the start or else at the end: an image file does not say it
/// otherwise.
pub fn detect_sector_size(disk: &mut (impl Read + Seek)) -> Result<Option<u32>, Error> {
    let end = disk.seek(SeekFrom::End(0))?;
    for size in [512u32, 4096] {
        if has_signature(disk, u64::from(size))? {
            return Ok(Some(size));
        }
    }
    for size in [512u32, 4096] {
        if let Some(last) = end.checked_sub(u64::from(size)) {
            if has_signature(disk, last)? {
                return Ok(Some(size));
            }
        }
    }
    Ok(None)
}

fn has_signature(disk: &mut (impl Read + Seek), offset: u64) -> Result<bool, Error> {
    let mut signature = [0u8; 8];
    Ok(read_at(disk, offset, &mut signature)? && &signature == SIGNATURE)
}

/// False when the disk ends before the buffer is full.
fn read_at(disk: &mut (impl Read + Seek), offset: u64, buf: &mut [u8]) -> Result<bool, Error> {
    disk.seek(SeekFrom::Start(offset))?;
    match disk.read_exact(buf) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn build(empty: &Table, side: Side) -> Result<Table, Error> {
    let mut table = empty.clone();
    table.disk_guid = side.disk_guid;
    for (number, partition) in side.partitions {
        table.insert(number, partition)?;
    }
    Ok(table)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut v = [0; 4];
    v.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(v)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut v = [0; 8];
    v.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(v)
}

fn guid_at(b: &[u8], at: usize) -> Guid {
    let mut v = [0; 16];
    v.copy_from_slice(&b[at..at + 16]);
    Guid::from_disk(v)
}

/// The outer error is the device's, the inner one the copy's.
fn read_side(disk: &mut (impl Read + Seek), empty: &Table, lba: u64) -> Result<Result<Side, Defect>, Error> {
    let sector = u64::from(empty.sector_size());
    let mut header = vec![0u8; sector as usize];
    if lba >= empty.disk_sectors() || !read_at(disk, lba * sector, &mut header)? {
        return Ok(Err(Defect::Outside(lba)));
    }
    let (entries_lba, array_bytes) = match check_header(&header, lba) {
        Ok(place) => place,
        Err(defect) => return Ok(Err(defect)),
    };
    let mut entries = vec![0u8; array_bytes as usize];
    if entries_lba >= empty.disk_sectors() || !read_at(disk, entries_lba * sector, &mut entries)? {
        return Ok(Err(Defect::Outside(entries_lba)));
    }
    if crc32fast::hash(&entries) != u32_at(&header, 88) {
        return Ok(Err(Defect::EntriesCrc));
    }
    Ok(decode_entries(&header, &entries, empty))
}

/// Where the entries are: (sector, bytes).
fn check_header(header: &[u8], lba: u64) -> Result<(u64, u64), Defect> {
    if &header[..8] != SIGNATURE {
        return Err(Defect::Signature);
    }
    let size = u32_at(header, 12) as usize;
    if u32_at(header, 8) != REVISION {
        return Err(Defect::Geometry("revision"));
    }
    if size < HEADER_BYTES || size > header.len() {
        return Err(Defect::Geometry("header size"));
    }
    let mut copy = header[..size].to_vec();
    copy[16..20].fill(0);
    if crc32fast::hash(&copy) != u32_at(header, 16) {
        return Err(Defect::HeaderCrc);
    }
    if u64_at(header, 24) != lba {
        return Err(Defect::Geometry("own sector number"));
    }
    let entry_bytes = u32_at(header, 84);
    if !entry_bytes.is_power_of_two() || entry_bytes < ENTRY_BYTES {
        return Err(Defect::Geometry("entry size"));
    }
    let array_bytes = u64::from(entry_bytes) * u64::from(u32_at(header, 80));
    if array_bytes == 0 || array_bytes > ENTRY_ARRAY_BYTES_MAX {
        return Err(Defect::Geometry("entry count"));
    }
    Ok((u64_at(header, 72), array_bytes))
}

fn decode_entries(header: &[u8], entries: &[u8], empty: &Table) -> Result<Side, Defect> {
    let mut side =
        Side { disk_guid: guid_at(header, 56), alternate_lba: u64_at(header, 32), partitions: Vec::new() };
    // Inserting into a scratch table applies the same rules as writing does: range, overlap, numbers.
    let mut check = empty.clone();
    for (i, raw) in entries.chunks_exact(u32_at(header, 84) as usize).enumerate() {
        let type_guid = guid_at(raw, 0);
        if type_guid.is_zero() {
            continue;
        }
        let units: Vec<u16> = raw[56..128]
            .chunks_exact(2)
            .map(|u| u16::from_le_bytes([u[0], u[1]]))
            .take_while(|&u| u != 0)
            .collect();
        let partition = Partition {
            type_guid,
            guid: guid_at(raw, 16),
            first_lba: u64_at(raw, 32),
            last_lba: u64_at(raw, 40),
            attributes: u64_at(raw, 48),
            name: String::from_utf16_lossy(&units),
        };
        let number = i as u32 + 1;
        check.insert(number, partition.clone()).map_err(|e| Defect::Content(e.to_string()))?;
        side.partitions.push((number, partition));
    }
    Ok(side)
}
