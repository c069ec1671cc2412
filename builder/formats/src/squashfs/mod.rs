//! squashfs 4.0 with zstd: the root file system of an image.
//!
//! Written bytes depend on the tree and the options alone, not on the number of threads or on the cache. Data comes
//! first, then the tables in the order that the kernel checks: inodes, directories, fragments, export, ids, attributes.

mod data;
mod meta;
mod read;
mod tables;
mod xattrs;

use std::io::{self, Seek, Write};

use bytes::Bytes;

use crate::tree::Tree;

pub use read::{Entry, EntryKind, Reader};

pub(crate) const MAGIC: u32 = 0x7371_7368;
pub(crate) const SUPERBLOCK_BYTES: usize = 96;
pub(crate) const COMPRESSOR_ZSTD: u16 = 6;
/// "There is none" for tables, fragments and attribute lists.
pub(crate) const NONE_U64: u64 = u64::MAX;
pub(crate) const NONE_U32: u32 = u32::MAX;
/// In a block's size: stored as it is.
pub(crate) const STORED: u32 = 1 << 24;
/// Images are padded to this, the block size of dm-verity.
const PAD_BYTES: u64 = 4096;
const FLAG_DUPLICATES: u16 = 0x40;
const FLAG_EXPORTABLE: u16 = 0x80;
const FLAG_NO_XATTRS: u16 = 0x200;

/// Largest block of the format, and the default here: a third smaller tables and better ratios than 128 KiB.
pub const BLOCK_BYTES_MAX: u32 = 1 << 20;

/// Why an image could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input or output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The block size is not a power of two from 4 KiB to 1 MiB.
    #[error("squashfs: block size {0}: a power of two from 4096 to {BLOCK_BYTES_MAX} is accepted")]
    BlockSize(u32),
    /// Only three name spaces can be stored.
    #[error("{path}: extended attribute {name:?}: squashfs holds user., trusted. and security. only")]
    Xattr {
        /// The file.
        path: String,
        /// The attribute.
        name: String,
    },
    /// A bound of the format.
    #[error("{path}: {what}")]
    Limit {
        /// The file, or what exceeds the bound.
        path: String,
        /// The bound.
        what: &'static str,
    },
    /// The image does not follow the format.
    #[error("squashfs: {0}")]
    Malformed(String),
}

/// How to write.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Bytes of a data block: a power of two up to 1 MiB.
    pub block_bytes: u32,
    /// zstd level.
    pub level: i32,
    /// Compressed blocks of earlier builds.
    pub cache: Option<&'a dyn BlockCache>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        // A block is read whole for any byte of it, and libraries smaller than a block share one: with 1 MiB a root is a
        // twelfth smaller, and a boot of it takes a second longer.
        Options { block_bytes: 128 << 10, level: 6, cache: None }
    }
}

/// What a compressed block is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// SHA-256 of the uncompressed block.
    pub sha256: [u8; 32],
    /// zstd level.
    pub level: i32,
}

/// Remembers compressed blocks between builds, so that a rebuild compresses only what changed.
///
/// Called from several threads. `get` must give exactly what was `put` under the key, or nothing: an implementation on
/// disk checks what it reads. An empty value stands for "does not shrink".
pub trait BlockCache: Sync {
    /// The compressed block, if it is known.
    fn get(&self, key: &BlockKey) -> Option<Bytes>;
    /// Offers a block that was just compressed.
    fn put(&self, key: &BlockKey, compressed: &[u8]);
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes of the image, padded to 4096.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u32,
    /// Bytes of all files, each inode once.
    pub file_bytes: u64,
    /// Files that share another file's data.
    pub duplicates: u64,
    /// Data blocks and fragments that were stored.
    pub blocks: u64,
    /// Of these, how many the cache knew.
    pub cached_blocks: u64,
    /// Fragments: blocks shared by small files and tails.
    pub fragments: u32,
}

/// Writes an image at the start of `out`.
pub fn write(tree: &Tree, options: &Options, out: &mut (impl Write + Seek)) -> Result<Stats, Error> {
    let block = options.block_bytes;
    if !block.is_power_of_two() || !(4096..=BLOCK_BYTES_MAX).contains(&block) {
        return Err(Error::BlockSize(block));
    }
    out.rewind()?;
    out.write_all(&[0u8; SUPERBLOCK_BYTES])?;
    let mut stats = Stats::default();
    let mut data = data::Data::plan(tree, block)?;
    let data_end = data.write(options, SUPERBLOCK_BYTES as u64, out, &mut stats)?;
    let tables = tables::Tables::build(tree, &data, options.level)?;

    let mut sb = Superblock {
        inodes: tables.inodes,
        mtime: tree.get(b"/").map_or(0, |root| root.meta.mtime),
        block_bytes: block,
        fragments: data.fragments.len() as u32,
        ids: tables.ids.len() as u16,
        flags: FLAG_DUPLICATES | FLAG_EXPORTABLE | if tables.xattrs.is_empty() { FLAG_NO_XATTRS } else { 0 },
        root: tables.root,
        fragment_table: NONE_U64,
        xattr_table: NONE_U64,
        inode_table: data_end,
        ..Superblock::default()
    };
    let mut tail = meta::Tail::new(data_end, options.level);
    tail.raw(&tables.inode_table);
    sb.directory_table = tail.position();
    tail.raw(&tables.directory_table);
    if !data.fragments.is_empty() {
        sb.fragment_table = tail.lookup_table(&data.fragment_entries())?;
    }
    let export: Vec<u8> = tables.export.iter().flat_map(|r| r.to_le_bytes()).collect();
    sb.export_table = tail.lookup_table(&export)?;
    let ids: Vec<u8> = tables.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    sb.id_table = tail.lookup_table(&ids)?;
    if !tables.xattrs.is_empty() {
        sb.xattr_table = tables.xattrs.write(&mut tail)?;
    }
    sb.bytes_used = tail.position();
    tail.pad(PAD_BYTES);
    out.write_all(tail.bytes())?;
    stats.bytes = tail.position();
    stats.inodes = sb.inodes;
    stats.fragments = sb.fragments;
    out.rewind()?;
    out.write_all(&sb.encode())?;
    out.seek(io::SeekFrom::Start(stats.bytes))?;
    Ok(stats)
}

/// The head of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Superblock {
    pub(crate) inodes: u32,
    pub(crate) mtime: u32,
    pub(crate) block_bytes: u32,
    pub(crate) fragments: u32,
    pub(crate) flags: u16,
    pub(crate) ids: u16,
    pub(crate) root: u64,
    pub(crate) bytes_used: u64,
    pub(crate) id_table: u64,
    pub(crate) xattr_table: u64,
    pub(crate) inode_table: u64,
    pub(crate) directory_table: u64,
    pub(crate) fragment_table: u64,
    pub(crate) export_table: u64,
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(SUPERBLOCK_BYTES);
        for word in [MAGIC, self.inodes, self.mtime, self.block_bytes, self.fragments] {
            b.extend(word.to_le_bytes());
        }
        for half in [COMPRESSOR_ZSTD, self.block_bytes.trailing_zeros() as u16, self.flags, self.ids, 4, 0] {
            b.extend(half.to_le_bytes());
        }
        for long in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            b.extend(long.to_le_bytes());
        }
        b
    }
}
