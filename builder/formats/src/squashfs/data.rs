//! File data: which blocks there are, which files share them, and compressing them on every core.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{BlockKey, Error, Options, STORED, Stats};
use crate::disk::is_zero;
use crate::tree::{InodeId, Kind, Tree};

/// Blocks compressed before any of them is written: bounds the memory at some 64 MiB.
const BATCH_BLOCKS: usize = 64;
/// A fragment may be closed early behind a path whose hash is divisible by this.
const FRAGMENT_CUT: u64 = 8;

/// Where a file's data went.
#[derive(Debug, Clone, Default)]
pub(super) struct FileData {
    /// Position of the first block.
    pub(super) start: u64,
    /// Stored size of every full block; 0 for a hole.
    pub(super) sizes: Vec<u32>,
    /// (fragment, offset in it) of the tail.
    pub(super) fragment: Option<(u32, u32)>,
    /// Bytes of the holes.
    pub(super) sparse: u64,
    started: bool,
}

/// Where a compressed block goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    Block { file: usize, slot: usize },
    Fragment(usize),
}

struct Job {
    parts: Vec<Bytes>,
    target: Target,
}

/// A block as it is stored.
struct Packed {
    parts: Vec<Bytes>,
    size: u32,
}

/// All data of a tree.
pub(super) struct Data {
    files: Vec<FileData>,
    by_inode: HashMap<InodeId, usize>,
    jobs: Vec<Job>,
    /// (position, stored size) of every fragment.
    pub(super) fragments: Vec<(u64, u32)>,
    file_bytes: u64,
    duplicates: u64,
}

/// The open fragment.
#[derive(Default)]
struct Fragment {
    parts: Vec<Bytes>,
    bytes: usize,
}

impl Data {
    /// Cuts every file into blocks and packs the tails, in path order. Equal files are stored once.
    pub(super) fn plan(tree: &Tree, block_bytes: u32) -> Result<Self, Error> {
        let block = block_bytes as usize;
        let originals = find_duplicates(tree);
        let mut data = Data {
            files: Vec::new(),
            by_inode: HashMap::new(),
            jobs: Vec::new(),
            fragments: Vec::new(),
            file_bytes: 0,
            duplicates: 0,
        };
        let mut fragment = Fragment::default();
        for (path, id, inode) in tree.iter() {
            let Kind::File(content) = &inode.kind else { continue };
            if data.by_inode.contains_key(&id) {
                continue;
            }
            data.file_bytes += content.len() as u64;
            if let Some(&same) = originals.get(&id).and_then(|original| data.by_inode.get(original)) {
                data.by_inode.insert(id, same);
                data.duplicates += 1;
                continue;
            }
            let index = data.files.len();
            data.by_inode.insert(id, index);
            let mut file = data.cut_blocks(index, content, block);
            let tail = content.slice(content.len() / block * block..);
            if !tail.is_empty() {
                if fragment.bytes + tail.len() > block {
                    data.close(&mut fragment);
                }
                file.fragment = Some((data.fragments.len() as u32, fragment.bytes as u32));
                fragment.bytes += tail.len();
                fragment.parts.push(tail);
                // Cutting where the names say so, not only where the block is full: behind a file that was added or has
                // grown, the fragments soon fall back into step, and the cache knows them.
                if fragment.bytes >= block / 4 * 3 && path_hash(path) % FRAGMENT_CUT == 0 {
                    data.close(&mut fragment);
                }
            }
            data.files.push(file);
        }
        data.close(&mut fragment);
        Ok(data)
    }

    fn cut_blocks(&mut self, index: usize, content: &Bytes, block: usize) -> FileData {
        let mut file = FileData::default();
        for slot in 0..content.len() / block {
            let part = content.slice(slot * block..(slot + 1) * block);
            file.sizes.push(0);
            if is_zero(&part) {
                file.sparse += block as u64;
            } else {
                self.jobs.push(Job { parts: vec![part], target: Target::Block { file: index, slot } });
            }
        }
        file
    }

    fn close(&mut self, fragment: &mut Fragment) {
        let done = std::mem::take(fragment);
        if done.bytes > 0 {
            self.jobs.push(Job { parts: done.parts, target: Target::Fragment(self.fragments.len()) });
            self.fragments.push((0, 0));
        }
    }

    /// Compresses and writes everything; returns the position behind it.
    pub(super) fn write(
        &mut self,
        options: &Options,
        start: u64,
        out: &mut impl Write,
        stats: &mut Stats,
    ) -> Result<u64, Error> {
        let cached = AtomicU64::new(0);
        let jobs = std::mem::take(&mut self.jobs);
        let mut position = start;
        for batch in jobs.chunks(BATCH_BLOCKS) {
            let packed: Vec<Packed> = batch
                .par_iter()
                .with_max_len(1)
                .map(|job| pack(job, options, &cached))
                .collect::<Result<_, _>>()?;
            for (job, block) in batch.iter().zip(packed) {
                for part in &block.parts {
                    out.write_all(part)?;
                }
                match job.target {
                    Target::Fragment(index) => self.fragments[index] = (position, block.size),
                    Target::Block { file, slot } => {
                        let file = &mut self.files[file];
                        if !file.started {
                            (file.started, file.start) = (true, position);
                        }
                        file.sizes[slot] = block.size;
                    }
                }
                position += u64::from(block.size & !STORED);
            }
        }
        stats.blocks = jobs.len() as u64;
        stats.cached_blocks = cached.into_inner();
        stats.file_bytes = self.file_bytes;
        stats.duplicates = self.duplicates;
        Ok(position)
    }

    /// A regular file's data.
    pub(super) fn file(&self, id: InodeId) -> Option<&FileData> {
        self.by_inode.get(&id).map(|&index| &self.files[index])
    }

    /// The fragment table's entries.
    pub(super) fn fragment_entries(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.fragments.len() * 16);
        for (position, size) in &self.fragments {
            out.extend(position.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend([0u8; 4]);
        }
        out
    }
}

/// FNV-1a: a spread of bits that never changes, nothing more.
fn path_hash(path: &[u8]) -> u64 {
    path.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Maps every inode whose content stood earlier in path order to the first such inode.
fn find_duplicates(tree: &Tree) -> HashMap<InodeId, InodeId> {
    // Hashing only what has a rival of its own length spares most of the data.
    let mut by_length: HashMap<usize, Vec<(InodeId, &Bytes)>> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for (_, id, inode) in tree.iter() {
        if let Kind::File(content) = &inode.kind {
            if !content.is_empty() && seen.insert(id) {
                by_length.entry(content.len()).or_default().push((id, content));
            }
        }
    }
    let rivals: Vec<(InodeId, &Bytes)> =
        by_length.into_values().filter(|same| same.len() > 1).flatten().collect();
    let hashed: HashMap<InodeId, [u8; 32]> =
        rivals.par_iter().map(|(id, content)| (*id, Sha256::digest(content).into())).collect();
    let mut first: HashMap<[u8; 32], InodeId> = HashMap::new();
    let mut originals = HashMap::new();
    for (_, id, _) in tree.iter() {
        if let Some(digest) = hashed.get(&id) {
            let original = *first.entry(*digest).or_insert(id);
            if original != id {
                originals.insert(id, original);
            }
        }
    }
    originals
}

fn pack(job: &Job, options: &Options, cached: &AtomicU64) -> Result<Packed, Error> {
    let joined;
    let raw: &[u8] = match job.parts.as_slice() {
        [one] => one,
        many => {
            joined = many.concat();
            &joined
        }
    };
    let stored = || Packed { parts: job.parts.clone(), size: raw.len() as u32 | STORED };
    let compressed = |bytes: Bytes| Packed { size: bytes.len() as u32, parts: vec![bytes] };
    let key = options
        .cache
        .map(|cache| (cache, BlockKey { sha256: Sha256::digest(raw).into(), level: options.level }));
    if let Some((cache, key)) = &key {
        if let Some(known) = cache.get(key).filter(|known| known.len() < raw.len()) {
            cached.fetch_add(1, Ordering::Relaxed);
            return Ok(if known.is_empty() { stored() } else { compressed(known) });
        }
    }
    // A fresh context for every block: what a reused one has seen must not be able to reach the output.
    let mut frame = zstd::bulk::compress(raw, options.level)?;
    if frame.len() >= raw.len() {
        frame.clear();
    }
    if let Some((cache, key)) = &key {
        cache.put(key, &frame);
    }
    Ok(if frame.is_empty() { stored() } else { compressed(frame.into()) })
}
