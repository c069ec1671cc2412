//! qcow2, version 3: what QEMU boots and what travels well.
//!
//! Layout of a written file, always the same: header, data clusters in disk order, L2 tables, L1 table, refcount blocks,
//! refcount table. Clusters that hold only zeros are not in the file.

use std::io::{Read, Seek, SeekFrom, Write};

use rayon::prelude::*;

use super::{DiskImage, Error, Input, is_zero};
use crate::field;

const MAGIC: u32 = 0x5146_49fb;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table, and of a refcount table's cluster.
const TABLE_ENTRIES: u64 = CLUSTER / 8;
/// 16-bit refcounts in a cluster.
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER / 2;
const HEADER_BYTES: usize = 112;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Incompatible feature: the compression type is stated in the header.
const FEATURE_COMPRESSION_TYPE: u64 = 1 << 3;
const COMPRESSION_ZSTD: u8 = 1;
/// Compressed entries hold the offset in the low bits and the number of further 512-byte sectors above.
const COMPRESSED_OFFSET_BITS: u32 = 62 - (CLUSTER_BITS - 8);
const SECTOR: u64 = 512;
/// Clusters read and compressed in one go: bounds the memory.
const BATCH_CLUSTERS: u64 = 128;
/// QEMU's own bound for the L1 table, in bytes.
const L1_BYTES_MAX: u64 = 32 << 20;

/// How data clusters are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clusters {
    /// As they are.
    Plain,
    /// One zstd frame each, at this level.
    Zstd(i32),
}

/// Writes a qcow2 file. Equal disks give equal bytes for any number of threads. Returns the file's size.
pub fn write(
    image: &DiskImage,
    inputs: &mut [&mut dyn Input],
    clusters: Clusters,
    out: &mut (impl Write + Seek),
) -> Result<u64, Error> {
    let l1_entries = image.size().div_ceil(CLUSTER * TABLE_ENTRIES).max(1);
    if l1_entries * 8 > L1_BYTES_MAX || image.size() % SECTOR != 0 {
        return Err(Error::Qcow2(format!(
            "a disk of {} bytes is too large or has half a sector",
            image.size()
        )));
    }
    let mut file =
        Writer { out, end: CLUSTER, refcounts: vec![1], l2: vec![Vec::new(); l1_entries as usize] };
    file.out.seek(SeekFrom::Start(CLUSTER))?;
    let total = image.size().div_ceil(CLUSTER);
    let mut first = 0;
    while first < total {
        let count = BATCH_CLUSTERS.min(total - first);
        if !image.is_hole(first * CLUSTER, count * CLUSTER) {
            file.batch(image, inputs, clusters, first, count)?;
        }
        first += count;
    }
    file.finish(image.size(), clusters)
}

/// A file under construction.
struct Writer<'a, W> {
    out: &'a mut W,
    /// Bytes written so far.
    end: u64,
    /// Of every cluster of the file.
    refcounts: Vec<u16>,
    /// Entries by L1 index; empty where nothing is allocated.
    l2: Vec<Vec<u64>>,
}

impl<W: Write + Seek> Writer<'_, W> {
    fn batch(
        &mut self,
        image: &DiskImage,
        inputs: &mut [&mut dyn Input],
        clusters: Clusters,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        let mut buf = vec![0u8; (count * CLUSTER) as usize];
        let bytes = (image.size() - first * CLUSTER).min(count * CLUSTER) as usize;
        image.read_at(inputs, first * CLUSTER, &mut buf[..bytes])?;
        // None: zeros. Some(Some): compressed. Some(None): stored as it is.
        let packed: Vec<Option<Option<Vec<u8>>>> = buf
            .par_chunks(CLUSTER as usize)
            .map(|cluster| match clusters {
                _ if is_zero(cluster) => Ok(None),
                Clusters::Plain => Ok(Some(None)),
                Clusters::Zstd(level) => {
                    let frame = zstd::bulk::compress(cluster, level)?;
                    Ok(Some((frame.len() < cluster.len()).then_some(frame)))
                }
            })
            .collect::<Result<_, std::io::Error>>()?;
        for ((number, cluster), packed) in (first..).zip(buf.chunks(CLUSTER as usize)).zip(packed) {
            let entry = match packed {
                None => continue,
                Some(None) => self.append_cluster(cluster)? | COPIED,
                Some(Some(frame)) => self.append_compressed(&frame)?,
            };
            let table = &mut self.l2[(number / TABLE_ENTRIES) as usize];
            table.resize(TABLE_ENTRIES as usize, 0);
            table[(number % TABLE_ENTRIES) as usize] = entry;
        }
        Ok(())
    }

    /// Pads to a cluster boundary.
    fn align(&mut self) -> Result<(), Error> {
        let pad = self.end.next_multiple_of(CLUSTER) - self.end;
        self.out.write_all(&vec![0u8; pad as usize])?;
        self.end += pad;
        Ok(())
    }

    /// Whole clusters with refcount one; returns their offset.
    fn append_cluster(&mut self, data: &[u8]) -> Result<u64, Error> {
        self.align()?;
        let offset = self.end;
        self.out.write_all(data)?;
        self.end += data.len() as u64;
        self.align()?;
        self.refcounts.resize((self.end / CLUSTER) as usize, 1);
        Ok(offset)
    }

    /// Packs a frame right behind what is there. Each cluster of the file that it touches counts it once.
    fn append_compressed(&mut self, frame: &[u8]) -> Result<u64, Error> {
        let offset = self.end;
        self.out.write_all(frame)?;
        self.end += frame.len() as u64;
        let last = self.end - 1;
        let sectors = last / SECTOR - offset / SECTOR;
        self.refcounts.resize((last / CLUSTER + 1) as usize, 0);
        for cluster in offset / CLUSTER..=last / CLUSTER {
            self.refcounts[cluster as usize] += 1;
        }
        Ok(COMPRESSED | sectors << COMPRESSED_OFFSET_BITS | offset)
    }

    fn finish(mut self, size: u64, clusters: Clusters) -> Result<u64, Error> {
        let mut l1 = Vec::new();
        for table in std::mem::take(&mut self.l2) {
            let entry = if table.is_empty() { 0 } else { self.append_cluster(&big_endian(&table))? | COPIED };
            l1.push(entry);
        }
        let l1_offset = self.append_cluster(&big_endian(&l1))?;

        // The refcounts count their own clusters: find the size at which they do.
        let used = self.refcounts.len() as u64;
        let (mut blocks, mut table_clusters) = (0, 1);
        loop {
            let need = (used + blocks + table_clusters).div_ceil(REFCOUNTS_PER_BLOCK);
            let need_table = need.div_ceil(TABLE_ENTRIES);
            if need == blocks && need_table == table_clusters {
                break;
            }
            (blocks, table_clusters) = (need, need_table);
        }
        self.refcounts.resize((used + blocks + table_clusters) as usize, 1);
        let mut counts: Vec<u8> = self.refcounts.iter().flat_map(|c| c.to_be_bytes()).collect();
        counts.resize((blocks * CLUSTER) as usize, 0);
        let blocks_offset = self.append_cluster(&counts)?;
        let table: Vec<u64> = (0..blocks).map(|i| blocks_offset + i * CLUSTER).collect();
        let table_offset = self.append_cluster(&big_endian(&table))?;

        let mut header = Vec::with_capacity(HEADER_BYTES);
        let zstd = matches!(clusters, Clusters::Zstd(_));
        header.extend(MAGIC.to_be_bytes());
        header.extend(3u32.to_be_bytes());
        header.extend([0u8; 12]); // no backing file
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(size.to_be_bytes());
        header.extend(0u32.to_be_bytes()); // not encrypted
        header.extend((l1.len() as u32).to_be_bytes());
        header.extend(l1_offset.to_be_bytes());
        header.extend(table_offset.to_be_bytes());
        header.extend((table_clusters as u32).to_be_bytes());
        header.extend([0u8; 12]); // no snapshots
        header.extend(if zstd { FEATURE_COMPRESSION_TYPE } else { 0 }.to_be_bytes());
        header.extend([0u8; 16]); // compatible and autoclear features
        header.extend(4u32.to_be_bytes()); // 16-bit refcounts
        header.extend((HEADER_BYTES as u32).to_be_bytes());
        header.extend([if zstd { COMPRESSION_ZSTD } else { 0 }, 0, 0, 0, 0, 0, 0, 0]);
        header.resize(CLUSTER as usize, 0); // an end mark for header extensions, and padding
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.seek(SeekFrom::Start(self.end))?;
        Ok(self.end)
    }
}

fn big_endian(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

/// An open qcow2 file without backing file, encryption, snapshots in use or external data.
/// Reads as the disk that it holds.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether compressed clusters are zstd frames.
    pub zstd: bool,
    cluster_bits: u32,
    l1: Vec<u64>,
    /// The L2 table read last: (L1 index, entries).
    l2: Option<(usize, Vec<u64>)>,
    /// The cluster decompressed last: (L2 entry, content).
    cluster: Option<(u64, Vec<u8>)>,
    position: u64,
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Qcow2(what.into()))
}

fn be<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    field::bytes(b, at).unwrap_or([0; N])
}

impl<R: Read + Seek> Reader<R> {
    /// Reads header and L1 table.
    pub fn open(mut input: R) -> Result<Self, Error> {
        let mut h = [0u8; HEADER_BYTES];
        input.seek(SeekFrom::Start(0))?;
        if field::read_full(&mut input, &mut h)? < h.len() || u32::from_be_bytes(be(&h, 0)) != MAGIC {
            return bad("not a qcow2 file");
        }
        let word = |at| u32::from_be_bytes(be(&h, at));
        let long = |at| u64::from_be_bytes(be(&h, at));
        let (version, cluster_bits, size) = (word(4), word(20), long(24));
        if version != 3 {
            return bad(format!("version {version}: 3 is accepted"));
        }
        if long(8) != 0 || word(32) != 0 {
            return bad("backing files and encryption are not accepted");
        }
        if !(9..=21).contains(&cluster_bits) {
            return bad(format!("clusters of 2^{cluster_bits} bytes: 9 to 21 are accepted"));
        }
        let features = long(72);
        if features & !FEATURE_COMPRESSION_TYPE != 0 {
            return bad(format!(
                "incompatible features {features:#x}: only the compression type is accepted"
            ));
        }
        let zstd = features != 0 && word(100) > 104 && h[104] == COMPRESSION_ZSTD;
        if !zstd && features != 0 && h[104] != 0 {
            return bad(format!("compression type {}", h[104]));
        }
        let l1_entries = u64::from(word(36));
        let needed = size.div_ceil(1 << (2 * cluster_bits - 3));
        if l1_entries < needed || l1_entries * 8 > L1_BYTES_MAX {
            return bad(format!("an L1 table of {l1_entries} entries for a disk of {size} bytes"));
        }
        let table = long(40);
        if table % (1 << cluster_bits) != 0 || table & !OFFSET_MASK != 0 {
            return bad(format!("an L1 table at {table}: it must begin on a cluster below 2^56"));
        }
        input.seek(SeekFrom::Start(table))?;
        let l1 = read_table(&mut input, l1_entries as usize)?;
        Ok(Reader { input, size, zstd, cluster_bits, l1, l2: None, cluster: None, position: 0 })
    }

    /// Reads part of the disk.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return bad(format!("read of {} bytes at {offset} leaves the disk", buf.len()));
        }
        let cluster_bytes = 1u64 << self.cluster_bits;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = at % cluster_bytes;
            let len = ((cluster_bytes - within) as usize).min(buf.len() - done);
            self.read_within(at / cluster_bytes, within, &mut buf[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    fn read_within(&mut self, cluster: u64, within: u64, buf: &mut [u8]) -> Result<(), Error> {
        let entry = self.entry(cluster)?;
        let offset = entry & OFFSET_MASK;
        if entry & COMPRESSED != 0 {
            let data = self.decompress(entry)?;
            let from = within as usize;
            buf.copy_from_slice(&data[from..from + buf.len()]);
        } else if offset == 0 || entry & 1 != 0 {
            buf.fill(0);
        } else {
            self.input.seek(SeekFrom::Start(offset + within))?;
            if field::read_full(&mut self.input, buf)? < buf.len() {
                return bad(format!("the file ends within the cluster at {offset}"));
            }
        }
        Ok(())
    }

    fn entry(&mut self, cluster: u64) -> Result<u64, Error> {
        let per_table = 1u64 << (self.cluster_bits - 3);
        let index = (cluster / per_table) as usize;
        if self.l2.as_ref().is_none_or(|(have, _)| *have != index) {
            let offset = self.l1[index] & OFFSET_MASK;
            let table = if offset == 0 {
                vec![0; per_table as usize]
            } else {
                self.input.seek(SeekFrom::Start(offset))?;
                read_table(&mut self.input, per_table as usize)?
            };
            self.l2 = Some((index, table));
        }
        Ok(self.l2.as_ref().map_or(0, |(_, table)| table[(cluster % per_table) as usize]))
    }

    fn decompress(&mut self, entry: u64) -> Result<&[u8], Error> {
        if self.cluster.as_ref().is_none_or(|(have, _)| *have != entry) {
            if !self.zstd {
                return bad("deflate clusters are not accepted, only zstd");
            }
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & !COMPRESSED) >> bits & ((1 << (self.cluster_bits - 8)) - 1);
            let bytes = (sectors + 1) * SECTOR - offset % SECTOR;
            let mut frame = Vec::new();
            self.input.seek(SeekFrom::Start(offset))?;
            self.input.by_ref().take(bytes).read_to_end(&mut frame)?;
            let mut data = Vec::new();
            let limit = 1u64 << self.cluster_bits;
            // Behind the frame stands whatever shares its last sector: one frame only.
            let decoder = zstd::stream::Decoder::with_buffer(frame.as_slice())?.single_frame();
            decoder.take(limit).read_to_end(&mut data)?;
            if data.len() as u64 != limit {
                return bad(format!("the compressed cluster at {offset} holds {} bytes", data.len()));
            }
            self.cluster = Some((entry, data));
        }
        Ok(self.cluster.as_ref().map_or(&[], |(_, data)| data))
    }
}

fn read_table(input: &mut impl Read, entries: usize) -> Result<Vec<u64>, Error> {
    let mut raw = Vec::new();
    input.by_ref().take(entries as u64 * 8).read_to_end(&mut raw)?;
    if raw.len() < entries * 8 {
        return bad("the file ends within a table");
    }
    Ok(raw.chunks_exact(8).map(|w| u64::from_be_bytes(be(w, 0))).collect())
}

impl<R: Read + Seek> Read for Reader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.size.saturating_sub(self.position);
        let len = left.min(buf.len() as u64) as usize;
        self.read_at(self.position, &mut buf[..len]).map_err(|e| match e {
            Error::Io(e) => e,
            other => std::io::Error::other(other),
        })?;
        self.position += len as u64;
        Ok(len)
    }
}

impl<R: Read + Seek> Seek for Reader<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
