//! An image -> its entries and their content. Bounded, so that a hostile image costs memory and time in proportion to
//! what a lawful one would.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::meta::{META_BYTES, META_STORED};
use super::xattrs::PREFIXES;
use super::{
    BLOCK_BYTES_MAX, COMPRESSOR_ZSTD, Error, MAGIC, NONE_U32, NONE_U64, STORED, SUPERBLOCK_BYTES, Superblock,
};
use crate::field;
use crate::tree::{Inode, Kind, Meta, Tree, TreeError};

/// Bytes of paths, link targets, attributes and block lists that a listing may hold.
const LISTING_BYTES_MAX: usize = 512 << 20;
const ENTRIES_MAX: usize = 1 << 21;
const PATH_BYTES_MAX: usize = 4096;
/// File data that [`Reader::verify`] decodes: a small hostile image can claim any amount.
const VERIFY_BYTES_MAX: u64 = 64 << 30;
/// Decoded metadata kept: 64 MiB.
const META_CACHE_BLOCKS: usize = 8192;

/// A path of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path; `/` for the root.
    pub path: Vec<u8>,
    /// Owner, mode, time, attributes.
    pub meta: Meta,
    /// Type, and where the content is.
    pub kind: EntryKind,
    /// Equal numbers are hard links.
    pub inode: u32,
    /// Names of the inode, as it claims.
    pub links: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file.
    File(FileBlocks),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Character device (major, minor).
    Char(u32, u32),
    /// Block device (major, minor).
    Block(u32, u32),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBlocks {
    /// Size of the file.
    pub bytes: u64,
    start: u64,
    sizes: Vec<u32>,
    fragment: u32,
    fragment_offset: u32,
}

impl FileBlocks {
    /// Offset in the image of the file's own blocks, which follow one another.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes that the file's own blocks take in the image; its share of a fragment is not counted.
    pub fn stored_bytes(&self) -> u64 {
        self.sizes.iter().map(|size| u64::from(size & !STORED)).sum()
    }
}

/// A metadata block: content and the position of the next one.
type MetaBlock = Arc<(Vec<u8>, u64)>;

/// An open image.
pub struct Reader<R> {
    input: R,
    sb: Superblock,
    ids: Vec<u32>,
    fragments: Vec<(u64, u32)>,
    xattrs: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
    metas: HashMap<u64, MetaBlock>,
    fragment: Option<(u32, Vec<u8>)>,
}

/// A place in a run of metadata blocks.
struct Cursor {
    block: u64,
    offset: usize,
}

/// Where a directory's entries are, and their size as the inode states it.
struct Listing {
    cursor: Cursor,
    bytes: u32,
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Malformed(what.into()))
}

fn half(b: &[u8], at: usize) -> u16 {
    field::u16_le(b, at).unwrap_or(0)
}

fn word(b: &[u8], at: usize) -> u32 {
    field::u32_le(b, at).unwrap_or(0)
}

fn long(b: &[u8], at: usize) -> u64 {
    field::u64_le(b, at).unwrap_or(0)
}

impl<R: Read + Seek> Reader<R> {
    /// Reads the superblock and the small tables.
    pub fn open(mut input: R) -> Result<Self, Error> {
        let mut b = [0u8; SUPERBLOCK_BYTES];
        input.seek(SeekFrom::Start(0))?;
        if field::read_full(&mut input, &mut b)? < b.len() || word(&b, 0) != MAGIC {
            return bad("no superblock");
        }
        if half(&b, 28) != 4 || half(&b, 30) != 0 {
            return bad(format!("version {}.{}: 4.0 is accepted", half(&b, 28), half(&b, 30)));
        }
        if half(&b, 20) != COMPRESSOR_ZSTD {
            return bad(format!("compressor {}: zstd (6) is accepted", half(&b, 20)));
        }
        let sb = Superblock {
            inodes: word(&b, 4),
            mtime: word(&b, 8),
            block_bytes: word(&b, 12),
            fragments: word(&b, 16),
            flags: half(&b, 24),
            ids: half(&b, 26),
            root: long(&b, 32),
            bytes_used: long(&b, 40),
            id_table: long(&b, 48),
            xattr_table: long(&b, 56),
            inode_table: long(&b, 64),
            directory_table: long(&b, 72),
            fragment_table: long(&b, 80),
            export_table: long(&b, 88),
        };
        if !sb.block_bytes.is_power_of_two() || !(4096..=BLOCK_BYTES_MAX).contains(&sb.block_bytes) {
            return bad(format!("block size {}", sb.block_bytes));
        }
        let mut reader = Reader {
            input,
            sb,
            ids: Vec::new(),
            fragments: Vec::new(),
            xattrs: Vec::new(),
            metas: HashMap::new(),
            fragment: None,
        };
        let ids = reader.lookup_table(sb.id_table, usize::from(sb.ids) * 4)?;
        reader.ids = ids.chunks_exact(4).map(|id| word(id, 0)).collect();
        if sb.fragments > 0 {
            let table = reader.lookup_table(sb.fragment_table, sb.fragments as usize * 16)?;
            reader.fragments = table.chunks_exact(16).map(|e| (long(e, 0), word(e, 8))).collect();
        }
        if sb.xattr_table != NONE_U64 {
            reader.read_xattrs()?;
        }
        Ok(reader)
    }

    /// Bytes of the image without padding.
    pub fn bytes_used(&self) -> u64 {
        self.sb.bytes_used
    }

    /// Bytes of a data block.
    pub fn block_bytes(&self) -> u32 {
        self.sb.block_bytes
    }

    fn exact_at(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        self.input.seek(SeekFrom::Start(at))?;
        let mut out = Vec::new();
        // Grows with what is there: a lying length cannot reserve memory.
        self.input.by_ref().take(bytes as u64).read_to_end(&mut out)?;
        if out.len() < bytes { bad(format!("the image ends before {bytes} bytes at {at}")) } else { Ok(out) }
    }

    fn meta_block(&mut self, at: u64) -> Result<MetaBlock, Error> {
        if let Some(block) = self.metas.get(&at) {
            return Ok(block.clone());
        }
        let head = half(&self.exact_at(at, 2)?, 0);
        let size = usize::from(head & !META_STORED);
        if size > META_BYTES {
            return bad(format!("a metadata block of {size} bytes at {at}"));
        }
        let raw = self.exact_at(at.saturating_add(2), size)?;
        let content = if head & META_STORED != 0 { raw } else { unpack(&raw, META_BYTES, at)? };
        let block = Arc::new((content, at + 2 + size as u64));
        if self.metas.len() >= META_CACHE_BLOCKS {
            self.metas.clear();
        }
        self.metas.insert(at, block.clone());
        Ok(block)
    }

    /// Reads on through as many metadata blocks as it takes.
    fn meta(&mut self, cursor: &mut Cursor, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        while out.len() < bytes {
            let block = self.meta_block(cursor.block)?;
            let Some(rest) = block.0.get(cursor.offset..) else {
                return bad(format!("a reference behind the metadata block at {}", cursor.block));
            };
            if rest.is_empty() {
                if block.0.is_empty() {
                    return bad(format!("an empty metadata block at {}", cursor.block));
                }
                *cursor = Cursor { block: block.1, offset: 0 };
                continue;
            }
            let len = rest.len().min(bytes - out.len());
            out.extend(&rest[..len]);
            cursor.offset += len;
        }
        Ok(out)
    }

    /// A table whose pages are found through a list of positions.
    fn lookup_table(&mut self, at: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let pages = bytes.div_ceil(META_BYTES);
        let list = self.exact_at(at, pages * 8)?;
        let mut out = Vec::new();
        for (i, start) in list.chunks_exact(8).enumerate() {
            let mut cursor = Cursor { block: long(start, 0), offset: 0 };
            out.extend(self.meta(&mut cursor, (bytes - i * META_BYTES).min(META_BYTES))?);
        }
        Ok(out)
    }

    fn read_xattrs(&mut self) -> Result<(), Error> {
        let head = self.exact_at(self.sb.xattr_table, 16)?;
        let (pairs_start, lists) = (long(&head, 0), word(&head, 8) as usize);
        let table = self.lookup_table(self.sb.xattr_table.saturating_add(16), lists * 16)?;
        let mut budget = LISTING_BYTES_MAX;
        for list in table.chunks_exact(16) {
            let reference = long(list, 0);
            let mut cursor = at_reference(pairs_start, reference);
            let mut pairs = BTreeMap::new();
            for _ in 0..word(list, 8) {
                let head = self.meta(&mut cursor, 4)?;
                let space = half(&head, 0);
                let Some(prefix) = PREFIXES.get(usize::from(space)) else {
                    return bad(format!("extended attribute of type {space:#x}"));
                };
                let mut name = prefix.to_vec();
                name.extend(self.meta(&mut cursor, usize::from(half(&head, 2)))?);
                let bytes = word(&self.meta(&mut cursor, 4)?, 0) as usize;
                if bytes > 65_536 {
                    return bad(format!("extended attribute of {bytes} bytes"));
                }
                let value = self.meta(&mut cursor, bytes)?;
                spend(&mut budget, 64 + name.len() + value.len())?;
                pairs.insert(name, value);
            }
            spend(&mut budget, 64)?;
            self.xattrs.push(pairs);
        }
        Ok(())
    }

    /// Every path, a directory before what is in it, names in the order of the image.
    pub fn entries(&mut self) -> Result<Vec<Entry>, Error> {
        let mut budget = LISTING_BYTES_MAX;
        let mut out: Vec<Entry> = Vec::new();
        let mut visited = HashSet::new();
        let mut pending = vec![(b"/".to_vec(), self.sb.root)];
        while let Some((path, reference)) = pending.pop() {
            if out.len() >= ENTRIES_MAX {
                return bad(format!("more than {ENTRIES_MAX} paths"));
            }
            if path.len() > PATH_BYTES_MAX {
                return bad(format!("a path of more than {PATH_BYTES_MAX} bytes"));
            }
            let (entry, listing) = self.inode(&path, reference, &mut budget)?;
            out.push(entry);
            let Some(Listing { mut cursor, bytes }) = listing else { continue };
            if !visited.insert(reference) {
                return bad(format!("{}: directory reached twice", String::from_utf8_lossy(&path)));
            }
            let mut children = self.listing(&path, &mut cursor, bytes, &mut budget)?;
            children.reverse();
            pending.append(&mut children);
        }
        Ok(out)
    }

    fn listing(
        &mut self,
        path: &[u8],
        cursor: &mut Cursor,
        size: u32,
        budget: &mut usize,
    ) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let mut left = i64::from(size) - 3;
        let mut out = Vec::new();
        while left > 0 {
            let header = self.meta(cursor, 12)?;
            left -= 12;
            let count = u64::from(word(&header, 0)) + 1;
            if count > 256 {
                return bad(format!("a directory header over {count} entries"));
            }
            for _ in 0..count {
                let entry = self.meta(cursor, 8)?;
                let name = self.meta(cursor, usize::from(half(&entry, 6)) + 1)?;
                left -= 8 + name.len() as i64;
                if name.contains(&b'/') || name.contains(&0) || name == b"." || name == b".." {
                    return bad(format!("a name {:?}", String::from_utf8_lossy(&name)));
                }
                let mut full = if path == b"/" { Vec::new() } else { path.to_vec() };
                full.push(b'/');
                full.extend(name);
                spend(budget, 64 + full.len())?;
                out.push((full, u64::from(word(&header, 4)) << 16 | u64::from(half(&entry, 0))));
            }
        }
        Ok(out)
    }

    /// Decodes an inode; for a directory also where its listing is and how long.
    fn inode(
        &mut self,
        path: &[u8],
        reference: u64,
        budget: &mut usize,
    ) -> Result<(Entry, Option<Listing>), Error> {
        let mut cursor = at_reference(self.sb.inode_table, reference);
        let head = self.meta(&mut cursor, 16)?;
        let id = |at| match self.ids.get(usize::from(half(&head, at))) {
            Some(id) => Ok(*id),
            None => bad(format!("user or group index {} of {}", half(&head, at), self.ids.len())),
        };
        let mut meta = Meta {
            mode: half(&head, 2) & 0o7777,
            uid: id(4)?,
            gid: id(6)?,
            mtime: word(&head, 8),
            xattrs: BTreeMap::new(),
        };
        let number = half(&head, 0);
        let extended = number > 7;
        let basic = if extended { number - 7 } else { number };
        let (mut links, mut xattr, mut listing) = (1, NONE_U32, None);
        let kind = match basic {
            1 => {
                listing = Some(self.directory(&mut cursor, extended, &mut links, &mut xattr)?);
                EntryKind::Dir
            }
            2 => EntryKind::File(self.file(&mut cursor, extended, &mut links, &mut xattr, budget)?),
            3 => {
                let body = self.meta(&mut cursor, 8)?;
                links = word(&body, 0);
                let bytes = word(&body, 4) as usize;
                if bytes > 65_535 {
                    return bad(format!("a symbolic link of {bytes} bytes"));
                }
                spend(budget, bytes)?;
                EntryKind::Symlink(self.meta(&mut cursor, bytes)?)
            }
            4 | 5 => {
                let body = self.meta(&mut cursor, 8)?;
                links = word(&body, 0);
                let device = word(&body, 4);
                let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
                if basic == 4 { EntryKind::Block(major, minor) } else { EntryKind::Char(major, minor) }
            }
            6 | 7 => {
                links = word(&self.meta(&mut cursor, 4)?, 0);
                if basic == 6 { EntryKind::Fifo } else { EntryKind::Socket }
            }
            _ => return bad(format!("an inode of type {number}")),
        };
        if extended && basic > 2 {
            xattr = word(&self.meta(&mut cursor, 4)?, 0);
        }
        if xattr != NONE_U32 {
            let Some(list) = self.xattrs.get(xattr as usize) else {
                return bad(format!("extended attribute list {xattr} of {}", self.xattrs.len()));
            };
            spend(budget, list.iter().map(|(k, v)| k.len() + v.len() + 64).sum())?;
            meta.xattrs = list.clone();
        }
        let entry = Entry { path: path.to_vec(), meta, kind, inode: word(&head, 12), links };
        Ok((entry, listing))
    }

    fn directory(
        &mut self,
        cursor: &mut Cursor,
        extended: bool,
        links: &mut u32,
        xattr: &mut u32,
    ) -> Result<Listing, Error> {
        let body = self.meta(cursor, if extended { 24 } else { 16 })?;
        let (block, bytes, offset) = if extended {
            (*links, *xattr) = (word(&body, 0), word(&body, 20));
            (word(&body, 8), word(&body, 4), half(&body, 18))
        } else {
            *links = word(&body, 4);
            (word(&body, 0), u32::from(half(&body, 8)), half(&body, 10))
        };
        let block = self.sb.directory_table.saturating_add(u64::from(block));
        Ok(Listing { cursor: Cursor { block, offset: usize::from(offset) }, bytes })
    }

    fn file(
        &mut self,
        cursor: &mut Cursor,
        extended: bool,
        links: &mut u32,
        xattr: &mut u32,
        budget: &mut usize,
    ) -> Result<FileBlocks, Error> {
        let body = self.meta(cursor, if extended { 40 } else { 16 })?;
        let (start, bytes, fragment, fragment_offset) = if extended {
            (*links, *xattr) = (word(&body, 24), word(&body, 36));
            (long(&body, 0), long(&body, 8), word(&body, 28), word(&body, 32))
        } else {
            (u64::from(word(&body, 0)), u64::from(word(&body, 12)), word(&body, 4), word(&body, 8))
        };
        let block = u64::from(self.sb.block_bytes);
        let count = if fragment == NONE_U32 { bytes.div_ceil(block) } else { bytes / block };
        let list_bytes = usize::try_from(count.saturating_mul(4)).unwrap_or(usize::MAX);
        spend(budget, list_bytes)?;
        let sizes: Vec<u32> = self.meta(cursor, list_bytes)?.chunks_exact(4).map(|s| word(s, 0)).collect();
        Ok(FileBlocks { bytes, start, sizes, fragment, fragment_offset })
    }

    /// Writes a file's content to `out`, every block decoded.
    pub fn read_file(&mut self, file: &FileBlocks, out: &mut (impl Write + ?Sized)) -> Result<(), Error> {
        let block = self.sb.block_bytes as usize;
        let mut at = file.start;
        let mut left = file.bytes;
        for &size in &file.sizes {
            let want = left.min(block as u64) as usize;
            let content = if size == 0 { vec![0; want] } else { self.data_block(at, size)? };
            if content.len() != want {
                return bad(format!("the block at {at} holds {} bytes, expected {want}", content.len()));
            }
            out.write_all(&content)?;
            at = at.saturating_add(u64::from(size & !STORED));
            left -= want as u64;
        }
        if left == 0 {
            return Ok(());
        }
        let Some(&(start, size)) = self.fragments.get(file.fragment as usize) else {
            return bad(format!("fragment {} of {}", file.fragment, self.fragments.len()));
        };
        if self.fragment.as_ref().is_none_or(|(have, _)| *have != file.fragment) {
            let content = self.data_block(start, size)?;
            self.fragment = Some((file.fragment, content));
        }
        let content = self.fragment.as_ref().map_or(&[][..], |(_, content)| content);
        let from = file.fragment_offset as usize;
        match content.get(from..from.saturating_add(left as usize)) {
            Some(tail) => Ok(out.write_all(tail)?),
            None => bad(format!("a tail of {left} bytes at {from} leaves fragment {}", file.fragment)),
        }
    }

    fn data_block(&mut self, at: u64, size: u32) -> Result<Vec<u8>, Error> {
        let block = self.sb.block_bytes as usize;
        let stored = (size & !STORED) as usize;
        if stored > block {
            return bad(format!("a block of {stored} bytes at {at}"));
        }
        let raw = self.exact_at(at, stored)?;
        if size & STORED != 0 { Ok(raw) } else { unpack(&raw, block, at) }
    }

    /// The whole image as a tree, contents included, of at most `bytes_max` bytes of files.
    pub fn tree(&mut self, origin: &str, bytes_max: u64) -> Result<Tree, Error> {
        let origin: Arc<str> = Arc::from(origin);
        let mut tree = Tree::new(self.sb.mtime);
        let mut first: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut left = bytes_max;
        for entry in self.entries()? {
            let told = |e: TreeError| Error::Malformed(e.to_string());
            if let Some(original) = first.get(&entry.inode).filter(|_| entry.kind != EntryKind::Dir) {
                tree.hard_link(&entry.path, original).map_err(told)?;
                continue;
            }
            let kind = match entry.kind {
                EntryKind::Dir => Kind::Dir,
                EntryKind::File(file) => {
                    left = left.checked_sub(file.bytes).ok_or_else(|| {
                        Error::Malformed(format!("its files have more than {bytes_max} bytes"))
                    })?;
                    let mut content = Vec::new();
                    self.read_file(&file, &mut content)?;
                    Kind::File(content.into())
                }
                EntryKind::Symlink(target) => Kind::Symlink(target),
                EntryKind::Char(major, minor) => Kind::Char(major, minor),
                EntryKind::Block(major, minor) => Kind::Block(major, minor),
                EntryKind::Fifo => Kind::Fifo,
                EntryKind::Socket => Kind::Socket,
            };
            let inode = Inode { meta: entry.meta, kind, origin: origin.clone() };
            tree.insert(&entry.path, inode).map_err(told)?;
            first.insert(entry.inode, entry.path);
        }
        Ok(tree)
    }

    /// Lists everything and decodes every block once; returns the entries. Blocks carry no checksum: damage that still
    /// decodes is for dm-verity to find.
    pub fn verify(&mut self) -> Result<Vec<Entry>, Error> {
        let entries = self.entries()?;
        let mut seen = HashSet::new();
        let mut left = VERIFY_BYTES_MAX;
        for entry in &entries {
            let EntryKind::File(file) = &entry.kind else { continue };
            if !seen.insert(entry.inode) {
                continue;
            }
            let Some(rest) = left.checked_sub(file.bytes) else {
                return bad(format!("its files have more than {VERIFY_BYTES_MAX} bytes"));
            };
            left = rest;
            self.read_file(file, &mut std::io::sink()).map_err(|e| match e {
                Error::Malformed(what) => {
                    Error::Malformed(format!("{}: {what}", String::from_utf8_lossy(&entry.path)))
                }
                other => other,
            })?;
        }
        Ok(entries)
    }
}

fn at_reference(table: u64, reference: u64) -> Cursor {
    Cursor { block: table.saturating_add(reference >> 16), offset: (reference & 0xffff) as usize }
}

fn spend(budget: &mut usize, bytes: usize) -> Result<(), Error> {
    match budget.checked_sub(bytes) {
        Some(left) => {
            *budget = left;
            Ok(())
        }
        None => bad(format!("its listing needs more than {LISTING_BYTES_MAX} bytes")),
    }
}

fn unpack(raw: &[u8], bytes_max: usize, at: u64) -> Result<Vec<u8>, Error> {
    zstd::bulk::decompress(raw, bytes_max)
        .or_else(|e| bad(format!("the block at {at} does not decompress to at most {bytes_max} bytes: {e}")))
}
