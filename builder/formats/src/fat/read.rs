//! A FAT32 volume -> its files. Also reads what mkfs.fat and mcopy made.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;

use super::names::{LongName, Short, short_text};
use super::{ATTR_DIR, ATTR_LABEL, ATTR_LONG_NAME, ATTR_READ_ONLY, CLUSTERS_MAX, ENTRY_BYTES, Error};
use crate::field;

/// Bounds for hostile volumes; an ESP stays far below them.
const ENTRIES_MAX: usize = 65_536;
const DEPTH_MAX: usize = 32;
const DIR_BYTES_MAX: u64 = 2 << 20;

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path without a leading slash.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether the read-only attribute is set.
    pub read_only: bool,
    /// Bytes of the file.
    pub bytes: u32,
    first_cluster: u32,
}

/// An open volume.
#[derive(Debug)]
pub struct Volume<R> {
    input: R,
    /// Bytes of a sector.
    pub sector_size: u32,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Number of clusters.
    pub clusters: u64,
    /// Size of the volume.
    pub bytes: u64,
    /// Serial number.
    pub volume_id: u32,
    /// Label of the boot sector, without padding.
    pub label: String,
    root_cluster: u32,
    fat_offset: u64,
    data_offset: u64,
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Malformed(what.into()))
}

impl<R: Read + Seek> Volume<R> {
    /// Reads the boot sector.
    pub fn open(mut input: R) -> Result<Self, Error> {
        let mut b = [0u8; 512];
        input.seek(SeekFrom::Start(0))?;
        if field::read_full(&mut input, &mut b)? < b.len() || b[510..] != [0x55, 0xaa] {
            return bad("no boot sector");
        }
        let half = |at| field::u16_le(&b, at).unwrap_or(0);
        let word = |at| field::u32_le(&b, at).unwrap_or(0);
        let (sector, per_cluster) = (u32::from(half(11)), u32::from(b[13]));
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return bad(format!("sector size {sector}"));
        }
        if !per_cluster.is_power_of_two() {
            return bad(format!("{per_cluster} sectors in a cluster"));
        }
        if half(17) != 0 || half(22) != 0 || word(36) == 0 {
            return bad("FAT12 or FAT16: only FAT32 is accepted");
        }
        let sectors = if half(19) != 0 { u64::from(half(19)) } else { u64::from(word(32)) };
        let reserved = u64::from(half(14));
        let data_sector = reserved + u64::from(b[16]) * u64::from(word(36));
        if reserved == 0 || b[16] == 0 || data_sector >= sectors {
            return bad("the file allocation tables do not fit the volume");
        }
        let fat_entries = u64::from(word(36)) * u64::from(sector) / 4;
        let clusters = (sectors - data_sector) / u64::from(per_cluster);
        if clusters > CLUSTERS_MAX || clusters + 2 > fat_entries {
            return bad("more clusters than the file allocation table has entries");
        }
        Ok(Volume {
            input,
            sector_size: sector,
            cluster_bytes: u64::from(sector) * u64::from(per_cluster),
            clusters,
            bytes: sectors * u64::from(sector),
            volume_id: word(67),
            label: String::from_utf8_lossy(&b[71..82]).trim_end().to_owned(),
            root_cluster: word(44),
            fat_offset: reserved * u64::from(sector),
            data_offset: data_sector * u64::from(sector),
        })
    }

    /// Every file and directory, a directory before what is in it, in the order of the disk.
    pub fn entries(&mut self) -> Result<Vec<Entry>, Error> {
        let mut out = Vec::new();
        let mut visited = BTreeSet::new();
        self.walk(self.root_cluster, "", 0, &mut visited, &mut out)?;
        Ok(out)
    }

    fn walk(
        &mut self,
        cluster: u32,
        prefix: &str,
        depth: usize,
        visited: &mut BTreeSet<u32>,
        out: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return bad(format!("{prefix}: more than {DEPTH_MAX} levels of directories"));
        }
        if !visited.insert(cluster) {
            return bad(format!("{prefix}: directory reached twice (cluster {cluster})"));
        }
        let raw = self.read_chain(cluster, DIR_BYTES_MAX, None)?;
        for entry in parse_directory(&raw, prefix)? {
            if out.len() >= ENTRIES_MAX {
                return bad(format!("more than {ENTRIES_MAX} files"));
            }
            out.push(entry.clone());
            if entry.is_dir {
                self.walk(entry.first_cluster, &entry.path, depth + 1, visited, out)?;
            }
        }
        Ok(())
    }

    /// Content of a file.
    pub fn read(&mut self, entry: &Entry) -> Result<Vec<u8>, Error> {
        if entry.is_dir {
            return bad(format!("{} is a directory", entry.path));
        }
        if entry.bytes == 0 {
            return Ok(Vec::new());
        }
        let data = self.read_chain(entry.first_cluster, u64::from(entry.bytes), Some(entry.bytes))?;
        if data.len() < entry.bytes as usize {
            return bad(format!("{}: its cluster chain ends after {} bytes", entry.path, data.len()));
        }
        Ok(data)
    }

    /// Every file with its content, in the shape that [`super::write`] takes: how a volume is rebuilt with one file more.
    /// Directories without a file in or below them are not in it.
    pub fn files(&mut self) -> Result<Vec<(String, Bytes)>, Error> {
        let entries = self.entries()?;
        // Only files that share clusters can be larger than the volume together.
        let total: u64 = entries.iter().map(|e| u64::from(e.bytes)).sum();
        if total > self.bytes {
            return bad(format!("files of {total} bytes together in a volume of {}", self.bytes));
        }
        let mut out = Vec::new();
        for entry in entries.iter().filter(|e| !e.is_dir) {
            out.push((entry.path.clone(), self.read(entry)?.into()));
        }
        Ok(out)
    }

    /// Follows a chain. With `exact` it stops there; without, more than `bytes_max` is an error.
    fn read_chain(&mut self, first: u32, bytes_max: u64, exact: Option<u32>) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut cluster = first;
        loop {
            if cluster < 2 || u64::from(cluster) >= self.clusters + 2 {
                return bad(format!("cluster {cluster} is outside the volume"));
            }
            if out.len() as u64 >= bytes_max {
                return bad(format!("a directory of more than {bytes_max} bytes, or a chain that loops"));
            }
            let wanted = (bytes_max - out.len() as u64).min(self.cluster_bytes);
            let offset = self.data_offset + u64::from(cluster - 2) * self.cluster_bytes;
            self.input.seek(SeekFrom::Start(offset))?;
            let got = self.input.by_ref().take(wanted).read_to_end(&mut out)?;
            if (got as u64) < wanted {
                return bad(format!("the volume ends within cluster {cluster}"));
            }
            if exact.is_some_and(|e| out.len() >= e as usize) {
                return Ok(out);
            }
            cluster = self.next_cluster(cluster)?;
            if cluster >= 0x0fff_fff8 {
                return Ok(out);
            }
        }
    }

    fn next_cluster(&mut self, cluster: u32) -> Result<u32, Error> {
        let mut raw = [0u8; 4];
        self.input.seek(SeekFrom::Start(self.fat_offset + u64::from(cluster) * 4))?;
        self.input.read_exact(&mut raw)?;
        Ok(u32::from_le_bytes(raw) & 0x0fff_ffff)
    }
}

fn parse_directory(raw: &[u8], prefix: &str) -> Result<Vec<Entry>, Error> {
    let mut out = Vec::new();
    let mut long = LongName::default();
    for record in raw.chunks_exact(ENTRY_BYTES) {
        let attributes = record[11];
        match record[0] {
            0x00 => break,
            0xe5 => {
                long = LongName::default();
                continue;
            }
            _ => {}
        }
        if attributes & 0x3f == ATTR_LONG_NAME {
            long.push(record);
            continue;
        }
        let mut short = Short::default();
        short.copy_from_slice(&record[..11]);
        let name = long.take(&short).unwrap_or_else(|| short_text(&short, record[12]));
        if attributes & ATTR_LABEL != 0 || name.is_empty() || name == "." || name == ".." {
            continue;
        }
        if name.contains(|c: char| c == '/' || c.is_control()) {
            return bad(format!("{prefix}: a name with a slash or a control character: {name:?}"));
        }
        let high = field::u16_le(record, 20).unwrap_or(0);
        let low = field::u16_le(record, 26).unwrap_or(0);
        out.push(Entry {
            path: if prefix.is_empty() { name } else { format!("{prefix}/{name}") },
            is_dir: attributes & ATTR_DIR != 0,
            read_only: attributes & ATTR_READ_ONLY != 0,
            bytes: field::u32_le(record, 28).unwrap_or(0),
            first_cluster: u32::from(high) << 16 | u32::from(low),
        });
    }
    Ok(out)
}
