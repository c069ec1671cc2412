//! Files -> the non-zero extents of a volume.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::names;
use super::{
    ATTR_ARCHIVE, ATTR_DIR, ATTR_LABEL, CLUSTERS_MAX, CLUSTERS_MIN, END_OF_CHAIN, ENTRY_BYTES, Error,
    Timestamp,
};

/// Clusters are at most this large, as mkfs.fat chooses for volumes of this kind.
const CLUSTER_BYTES_MAX: u64 = 4096;
const RESERVED_SECTORS_MIN: u64 = 32;
const BACKUP_BOOT_SECTOR: u64 = 6;
const ROOT_CLUSTER: u32 = 2;

/// Everything about a volume but its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a sector: that of the disk.
    pub sector_size: u32,
    /// Size of the volume in bytes.
    pub bytes: u64,
    /// Serial number.
    pub volume_id: u32,
    /// 1 to 11 upper-case characters.
    pub label: String,
    /// Of every entry.
    pub timestamp: Timestamp,
}

/// A volume: everything outside the extents is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Size in bytes.
    pub bytes: u64,
    /// (offset, content), in rising order, not overlapping.
    pub extents: Vec<(u64, Bytes)>,
}

/// Where the parts of a volume are.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    sector: u64,
    sectors: u64,
    per_cluster: u64,
    reserved: u64,
    fat_sectors: u64,
    clusters: u64,
}

impl Geometry {
    fn choose(options: &Options) -> Result<Self, Error> {
        if options.sector_size != 512 && options.sector_size != 4096 {
            return Err(Error::SectorSize(options.sector_size));
        }
        let sector = u64::from(options.sector_size);
        let sectors = options.bytes / sector;
        if sectors > u64::from(u32::MAX) {
            return Err(Error::TooLarge(options.bytes));
        }
        let mut per_cluster = CLUSTER_BYTES_MAX / sector;
        loop {
            let g = Self::with(sector, sectors, per_cluster);
            match g.clusters {
                CLUSTERS_MIN..=CLUSTERS_MAX => return Ok(g),
                0..CLUSTERS_MIN if per_cluster > 1 => per_cluster /= 2,
                0..CLUSTERS_MIN => {
                    return Err(Error::TooSmall {
                        bytes: options.bytes,
                        sector_size: options.sector_size,
                        clusters: g.clusters,
                    });
                }
                _ => return Err(Error::TooLarge(options.bytes)),
            }
        }
    }

    fn with(sector: u64, sectors: u64, per_cluster: u64) -> Self {
        let data = sectors.saturating_sub(RESERVED_SECTORS_MIN);
        // A little more than needed, as it counts the tables themselves as data.
        let fat_sectors = ((data / per_cluster + 2) * 4).div_ceil(sector);
        // Clusters start on their own boundary, so that a file's blocks are the disk's blocks.
        let start = (RESERVED_SECTORS_MIN + 2 * fat_sectors).next_multiple_of(per_cluster);
        let clusters = sectors.saturating_sub(start) / per_cluster;
        Geometry { sector, sectors, per_cluster, reserved: start - 2 * fat_sectors, fat_sectors, clusters }
    }

    fn cluster_bytes(&self) -> u64 {
        self.per_cluster * self.sector
    }

    fn cluster_offset(&self, cluster: u32) -> u64 {
        (self.reserved + 2 * self.fat_sectors) * self.sector
            + u64::from(cluster - ROOT_CLUSTER) * self.cluster_bytes()
    }
}

/// A directory or file, and the clusters that it got.
enum Node {
    Dir { children: BTreeMap<String, Node>, first: u32 },
    File { data: Bytes, first: u32 },
}

/// Makes a volume. Paths have `/` between components and none in front (`EFI/BOOT/BOOTX64.EFI`); directories come by
/// themselves. Equal options and files give equal bytes.
pub fn write(options: &Options, files: &[(String, Bytes)]) -> Result<Image, Error> {
    let geometry = Geometry::choose(options)?;
    let label = label(&options.label)?;
    let mut root = Node::Dir { children: BTreeMap::new(), first: ROOT_CLUSTER };
    for (path, data) in files {
        place(&mut root, path, data)?;
    }
    let mut writer = Writer { geometry, options, fat: vec![0x0fff_fff8, END_OF_CHAIN], extents: Vec::new() };
    writer.allocate(&mut root, true)?;
    writer.emit(&root, ROOT_CLUSTER, 0, Some(&label))?;
    Ok(writer.finish(&label))
}

fn label(text: &str) -> Result<names::Short, Error> {
    let ok = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || b" _-".contains(&c);
    if text.is_empty() || text.len() > 11 || !text.bytes().all(ok) {
        return Err(Error::Label(text.to_owned()));
    }
    let mut out = [b' '; 11];
    out[..text.len()].copy_from_slice(text.as_bytes());
    Ok(out)
}

fn place(mut node: &mut Node, path: &str, data: &Bytes) -> Result<(), Error> {
    let refuse = |why| Error::Name { name: path.to_owned(), why };
    if u32::try_from(data.len()).is_err() {
        return Err(Error::FileTooLarge(path.to_owned()));
    }
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        if let Some(why) = names::refuse(part) {
            return Err(refuse(why));
        }
        let Node::Dir { children, .. } = node else {
            return Err(refuse("a file stands where its directory would be"));
        };
        // Names are one when they differ only in case: firmware folds them.
        let folded = part.to_lowercase();
        if children.keys().any(|k| k != part && k.to_lowercase() == folded) {
            return Err(refuse("exists already in another case"));
        }
        if parts.peek().is_none() {
            if children.contains_key(part) {
                return Err(refuse("exists already"));
            }
            children.insert(part.to_owned(), Node::File { data: data.clone(), first: 0 });
            return Ok(());
        }
        node = children
            .entry(part.to_owned())
            .or_insert_with(|| Node::Dir { children: BTreeMap::new(), first: 0 });
    }
    Ok(())
}

struct Writer<'a> {
    geometry: Geometry,
    options: &'a Options,
    fat: Vec<u32>,
    extents: Vec<(u64, Bytes)>,
}

impl Writer<'_> {
    /// Gives every node a run of clusters, a directory before what is in it.
    fn allocate(&mut self, node: &mut Node, is_root: bool) -> Result<(), Error> {
        match node {
            Node::File { data, first } => *first = self.run(data.len() as u64)?,
            Node::Dir { children, first } => {
                // Volume label, or "." and "..", then the end mark that a full last cluster does not need.
                let fixed = if is_root { 1 } else { 2 };
                let mut taken = BTreeSet::new();
                let mut records = fixed;
                for name in children.keys() {
                    records += 1 + long_count(name, &mut taken)?;
                }
                *first = self.run((records * ENTRY_BYTES) as u64)?;
                for child in children.values_mut() {
                    self.allocate(child, false)?;
                }
            }
        }
        Ok(())
    }

    /// A chain of consecutive clusters; 0 for an empty file.
    fn run(&mut self, bytes: u64) -> Result<u32, Error> {
        let count = bytes.div_ceil(self.geometry.cluster_bytes());
        if count == 0 {
            return Ok(0);
        }
        let first = self.fat.len() as u64;
        let needed = first - 2 + count;
        if needed > self.geometry.clusters {
            return Err(Error::Full {
                needed,
                available: self.geometry.clusters,
                cluster_bytes: self.geometry.cluster_bytes(),
            });
        }
        self.fat.extend((first + 1..first + count).map(|next| next as u32));
        self.fat.push(END_OF_CHAIN);
        Ok(first as u32)
    }

    fn emit(
        &mut self,
        node: &Node,
        own: u32,
        parent: u32,
        label: Option<&names::Short>,
    ) -> Result<(), Error> {
        let children = match node {
            Node::File { data, first } => {
                if !data.is_empty() {
                    self.extents.push((self.geometry.cluster_offset(*first), data.clone()));
                }
                return Ok(());
            }
            Node::Dir { children, .. } => children,
        };
        let mut records = Vec::new();
        match label {
            Some(label) => records.extend(self.record(label, ATTR_LABEL, 0, 0)),
            None => {
                records.extend(self.record(b".          ", ATTR_DIR, own, 0));
                records.extend(self.record(b"..         ", ATTR_DIR, parent, 0));
            }
        }
        let mut taken = BTreeSet::new();
        for (name, child) in children {
            let (short, long) = names::assign(name, &mut taken).ok_or_else(|| exhausted(name))?;
            if long {
                records.extend(names::long_records(name, &short).concat());
            }
            let record = match child {
                Node::Dir { first, .. } => self.record(&short, ATTR_DIR, *first, 0),
                Node::File { data, first } => self.record(&short, ATTR_ARCHIVE, *first, data.len() as u32),
            };
            records.extend(record);
        }
        self.extents.push((self.geometry.cluster_offset(own), records.into()));
        // "..", by convention, says 0 for the root.
        let as_parent = if own == ROOT_CLUSTER { 0 } else { own };
        for child in children.values() {
            let first = match child {
                Node::Dir { first, .. } | Node::File { first, .. } => *first,
            };
            self.emit(child, first, as_parent, None)?;
        }
        Ok(())
    }

    fn record(&self, short: &names::Short, attributes: u8, first: u32, size: u32) -> [u8; ENTRY_BYTES] {
        let Timestamp { date, time } = self.options.timestamp;
        let mut r = [0u8; ENTRY_BYTES];
        r[..11].copy_from_slice(short);
        r[11] = attributes;
        for at in [14, 22] {
            r[at..at + 2].copy_from_slice(&time.to_le_bytes());
        }
        for at in [16, 18, 24] {
            r[at..at + 2].copy_from_slice(&date.to_le_bytes());
        }
        r[20..22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
        r[26..28].copy_from_slice(&(first as u16).to_le_bytes());
        r[28..32].copy_from_slice(&size.to_le_bytes());
        r
    }

    fn finish(mut self, label: &names::Short) -> Image {
        let g = self.geometry;
        let boot: Bytes = self.boot_sector(label).into();
        let info: Bytes = self.info_sector().into();
        for base in [0, BACKUP_BOOT_SECTOR] {
            self.extents.push((base * g.sector, boot.clone()));
            self.extents.push(((base + 1) * g.sector, info.clone()));
        }
        let fat: Bytes = self.fat.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>().into();
        self.extents.push((g.reserved * g.sector, fat.clone()));
        self.extents.push(((g.reserved + g.fat_sectors) * g.sector, fat));
        self.extents.sort_by_key(|(offset, _)| *offset);
        Image { bytes: g.sectors * g.sector, extents: self.extents }
    }

    fn boot_sector(&self, label: &names::Short) -> Vec<u8> {
        let g = self.geometry;
        let mut b = vec![0u8; g.sector as usize];
        b[0..3].copy_from_slice(&[0xeb, 0x58, 0x90]);
        b[3..11].copy_from_slice(b"DYAD    ");
        b[11..13].copy_from_slice(&(g.sector as u16).to_le_bytes());
        b[13] = g.per_cluster as u8;
        b[14..16].copy_from_slice(&(g.reserved as u16).to_le_bytes());
        b[16] = 2; // file allocation tables
        b[21] = 0xf8; // fixed disk
        b[24..26].copy_from_slice(&63u16.to_le_bytes());
        b[26..28].copy_from_slice(&255u16.to_le_bytes());
        b[32..36].copy_from_slice(&(g.sectors as u32).to_le_bytes());
        b[36..40].copy_from_slice(&(g.fat_sectors as u32).to_le_bytes());
        b[44..48].copy_from_slice(&ROOT_CLUSTER.to_le_bytes());
        b[48..50].copy_from_slice(&1u16.to_le_bytes()); // FSInfo sector
        b[50..52].copy_from_slice(&(BACKUP_BOOT_SECTOR as u16).to_le_bytes());
        b[64] = 0x80;
        b[66] = 0x29;
        b[67..71].copy_from_slice(&self.options.volume_id.to_le_bytes());
        b[71..82].copy_from_slice(label);
        b[82..90].copy_from_slice(b"FAT32   ");
        b[90..92].copy_from_slice(&[0xeb, 0xfe]); // whoever boots this as BIOS code waits for ever
        b[510..512].copy_from_slice(&[0x55, 0xaa]);
        b
    }

    fn info_sector(&self) -> Vec<u8> {
        let used = self.fat.len() as u64 - 2;
        let mut b = vec![0u8; self.geometry.sector as usize];
        b[0..4].copy_from_slice(b"RRaA");
        b[484..488].copy_from_slice(b"rrAa");
        b[488..492].copy_from_slice(&((self.geometry.clusters - used) as u32).to_le_bytes());
        b[492..496].copy_from_slice(&(self.fat.len() as u32).to_le_bytes());
        b[508..512].copy_from_slice(&[0, 0, 0x55, 0xaa]);
        b
    }
}

fn exhausted(name: &str) -> Error {
    Error::Name { name: name.to_owned(), why: "the directory has run out of short names" }
}

/// How many long-name records a name needs.
fn long_count(name: &str, taken: &mut BTreeSet<names::Short>) -> Result<usize, Error> {
    let (_, long) = names::assign(name, taken).ok_or_else(|| exhausted(name))?;
    Ok(if long { name.encode_utf16().count().div_ceil(names::UNITS_PER_RECORD) } else { 0 })
}
