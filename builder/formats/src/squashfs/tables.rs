//! Inodes, directories, the export table and the id table.

use std::collections::{BTreeSet, HashMap};

use super::data::{Data, FileData};
use super::meta::MetaWriter;
use super::xattrs::Xattrs;
use super::{Error, NONE_U32};
use crate::cpio::names_by_inode;
use crate::tree::{Inode, InodeId, Kind, Tree};

/// Entries under one directory header.
const HEADER_ENTRIES_MAX: usize = 256;
/// The format counts "." and ".." and one more into the size of a directory.
const DIR_SIZE_EXTRA: u32 = 3;
const NAME_BYTES_MAX: usize = 256;

/// Type numbers of basic inodes; extended ones are 7 higher.
fn type_number(kind: &Kind) -> u16 {
    match kind {
        Kind::Dir => 1,
        Kind::File(_) => 2,
        Kind::Symlink(_) => 3,
        Kind::Block(..) => 4,
        Kind::Char(..) => 5,
        Kind::Fifo => 6,
        Kind::Socket => 7,
    }
}

const EXTENDED: u16 = 7;

/// Encoded tables.
pub(super) struct Tables {
    pub(super) inode_table: Vec<u8>,
    pub(super) directory_table: Vec<u8>,
    /// Reference of inode number i + 1.
    pub(super) export: Vec<u64>,
    pub(super) ids: Vec<u32>,
    pub(super) xattrs: Xattrs,
    pub(super) inodes: u32,
    pub(super) root: u64,
}

/// An entry of a directory, ready to be listed.
struct Listed<'a> {
    name: &'a [u8],
    reference: u64,
    number: u32,
    kind: u16,
}

/// Where a listing went.
struct Listing {
    block: u32,
    offset: u16,
    bytes: u32,
    /// (position in the listing, metadata block, first name) of headers in later metadata blocks.
    index: Vec<(u32, u32, Vec<u8>)>,
}

struct Builder<'a> {
    tree: &'a Tree,
    data: &'a Data,
    inodes: MetaWriter,
    directories: MetaWriter,
    numbers: HashMap<InodeId, u32>,
    links: HashMap<InodeId, u32>,
    references: HashMap<InodeId, u64>,
    ids: Vec<u32>,
    xattrs: Xattrs,
}

impl Tables {
    pub(super) fn build(tree: &Tree, data: &Data, level: i32) -> Result<Self, Error> {
        let mut numbers = HashMap::new();
        let mut ids = BTreeSet::new();
        for (_, id, inode) in tree.iter() {
            let next = numbers.len() as u32 + 1;
            numbers.entry(id).or_insert(next);
            ids.extend([inode.meta.uid, inode.meta.gid]);
        }
        if ids.len() > usize::from(u16::MAX) {
            return Err(limit("/", "squashfs holds at most 65535 different users and groups"));
        }
        let mut builder = Builder {
            tree,
            data,
            inodes: MetaWriter::new(level),
            directories: MetaWriter::new(level),
            links: names_by_inode(tree).into_iter().map(|(id, names)| (id, names.len() as u32)).collect(),
            references: HashMap::new(),
            ids: ids.into_iter().collect(),
            xattrs: Xattrs::default(),
            numbers,
        };
        let root_id = tree.id(b"/").ok_or_else(|| limit("/", "the tree has no root directory"))?;
        // As mksquashfs does it: the root's parent is a number that no inode has.
        let above_root = builder.numbers.len() as u32 + 1;
        let root = builder.directory(b"/", root_id, above_root)?;
        let mut export = vec![0u64; builder.numbers.len()];
        for (id, reference) in &builder.references {
            export[builder.numbers[id] as usize - 1] = *reference;
        }
        Ok(Tables {
            inode_table: builder.inodes.finish()?,
            directory_table: builder.directories.finish()?,
            inodes: export.len() as u32,
            export,
            ids: builder.ids,
            xattrs: builder.xattrs,
            root,
        })
    }
}

fn limit(path: &str, what: &'static str) -> Error {
    Error::Limit { path: path.to_owned(), what }
}

impl Builder<'_> {
    /// Writes a directory behind everything that it holds; returns its reference.
    fn directory(&mut self, path: &[u8], id: InodeId, parent: u32) -> Result<u64, Error> {
        let own = self.numbers[&id];
        let mut entries = Vec::new();
        let mut subdirectories = 0;
        let tree = self.tree;
        for (name, child) in tree.children(path) {
            let mut full = if path == b"/" { Vec::new() } else { path.to_vec() };
            full.push(b'/');
            full.extend(name);
            if name.len() > NAME_BYTES_MAX {
                return Err(limit(&String::from_utf8_lossy(&full), "names have at most 256 bytes"));
            }
            let inode = tree.inode(child);
            let reference = match (&inode.kind, self.references.get(&child)) {
                (Kind::Dir, _) => {
                    subdirectories += 1;
                    self.directory(&full, child, own)?
                }
                (_, Some(&known)) => known,
                (_, None) => self.leaf(&full, child, inode)?,
            };
            let kind = type_number(&inode.kind);
            entries.push(Listed { name, reference, number: self.numbers[&child], kind });
        }
        let listing = self.list(&entries)?;
        let inode = tree.inode(id);
        let xattr = self.xattrs.intern(path, &inode.meta.xattrs)?;
        self.directory_inode(id, inode, parent, 2 + subdirectories, xattr, &listing)
    }

    fn list(&mut self, entries: &[Listed]) -> Result<Listing, Error> {
        let (block, offset) = self.directories.position();
        let mut listing = Listing { block: block as u32, offset, bytes: 0, index: Vec::new() };
        let mut indexed_block = block as u32;
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let header_block = first.reference >> 16;
            let run = rest
                .iter()
                .take(HEADER_ENTRIES_MAX)
                .take_while(|e| {
                    e.reference >> 16 == header_block
                        && i16::try_from(i64::from(e.number) - i64::from(first.number)).is_ok()
                })
                .count();
            let (now, _) = self.directories.position();
            if now as u32 != indexed_block {
                indexed_block = now as u32;
                listing.index.push((listing.bytes, indexed_block, first.name.to_vec()));
            }
            let mut out = Vec::new();
            out.extend((run as u32 - 1).to_le_bytes());
            out.extend((header_block as u32).to_le_bytes());
            out.extend(first.number.to_le_bytes());
            for entry in &rest[..run] {
                out.extend((entry.reference as u16).to_le_bytes());
                out.extend((entry.number.wrapping_sub(first.number) as u16).to_le_bytes());
                out.extend(entry.kind.to_le_bytes());
                out.extend((entry.name.len() as u16 - 1).to_le_bytes());
                out.extend(entry.name);
            }
            self.directories.write(&out)?;
            listing.bytes += out.len() as u32;
            rest = &rest[run..];
        }
        Ok(listing)
    }

    fn head(&self, kind: u16, id: InodeId, inode: &Inode) -> Vec<u8> {
        let index = |id: u32| self.ids.binary_search(&id).map_or(0, |i| i as u16);
        let mut out = Vec::new();
        for half in [kind, inode.meta.mode & 0o7777, index(inode.meta.uid), index(inode.meta.gid)] {
            out.extend(half.to_le_bytes());
        }
        out.extend(inode.meta.mtime.to_le_bytes());
        out.extend(self.numbers[&id].to_le_bytes());
        out
    }

    fn put(&mut self, id: InodeId, encoded: &[u8]) -> Result<u64, Error> {
        let reference = self.inodes.reference();
        self.inodes.write(encoded)?;
        self.references.insert(id, reference);
        Ok(reference)
    }

    fn directory_inode(
        &mut self,
        id: InodeId,
        inode: &Inode,
        parent: u32,
        links: u32,
        xattr: u32,
        listing: &Listing,
    ) -> Result<u64, Error> {
        let size = listing.bytes + DIR_SIZE_EXTRA;
        let mut out;
        match u16::try_from(size) {
            Ok(size) if xattr == NONE_U32 && listing.index.is_empty() => {
                out = self.head(1, id, inode);
                out.extend(listing.block.to_le_bytes());
                out.extend(links.to_le_bytes());
                out.extend(size.to_le_bytes());
                out.extend(listing.offset.to_le_bytes());
                out.extend(parent.to_le_bytes());
            }
            _ => {
                out = self.head(1 + EXTENDED, id, inode);
                for word in [links, size, listing.block, parent] {
                    out.extend(word.to_le_bytes());
                }
                out.extend((listing.index.len() as u16).to_le_bytes());
                out.extend(listing.offset.to_le_bytes());
                out.extend(xattr.to_le_bytes());
                for (position, block, name) in &listing.index {
                    for word in [*position, *block, name.len() as u32 - 1] {
                        out.extend(word.to_le_bytes());
                    }
                    out.extend(name);
                }
            }
        }
        self.put(id, &out)
    }

    /// Anything but a directory.
    fn leaf(&mut self, path: &[u8], id: InodeId, inode: &Inode) -> Result<u64, Error> {
        let links = self.links[&id];
        let xattr = self.xattrs.intern(path, &inode.meta.xattrs)?;
        let extended = if xattr == NONE_U32 { 0 } else { EXTENDED };
        let kind = type_number(&inode.kind);
        let mut out;
        match &inode.kind {
            Kind::Dir => unreachable!("directories are written by Builder::directory"),
            Kind::File(content) => {
                let empty = FileData::default();
                let data = self.data.file(id).unwrap_or(&empty);
                out = self.file_inode(id, inode, content.len() as u64, data, links, xattr);
            }
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > 65_535 {
                    let path = String::from_utf8_lossy(path);
                    return Err(limit(&path, "symbolic links have 1 to 65535 bytes"));
                }
                out = self.head(kind + extended, id, inode);
                out.extend(links.to_le_bytes());
                out.extend((target.len() as u32).to_le_bytes());
                out.extend(target);
            }
            Kind::Char(major, minor) | Kind::Block(major, minor) => {
                if *major > 0xfff || *minor > 0xf_ffff {
                    let path = String::from_utf8_lossy(path);
                    return Err(limit(&path, "device numbers are at most 4095 and 1048575"));
                }
                out = self.head(kind + extended, id, inode);
                out.extend(links.to_le_bytes());
                // The kernel's encoding: 8 low bits of the minor, 12 of the major, 12 high bits of the minor.
                out.extend((minor & 0xff | major << 8 | (minor & !0xff) << 12).to_le_bytes());
            }
            Kind::Fifo | Kind::Socket => {
                out = self.head(kind + extended, id, inode);
                out.extend(links.to_le_bytes());
            }
        }
        if extended != 0 && !matches!(inode.kind, Kind::File(_)) {
            out.extend(xattr.to_le_bytes());
        }
        self.put(id, &out)
    }

    fn file_inode(
        &self,
        id: InodeId,
        inode: &Inode,
        bytes: u64,
        data: &FileData,
        links: u32,
        xattr: u32,
    ) -> Vec<u8> {
        let (fragment, offset) = data.fragment.unwrap_or((NONE_U32, 0));
        let mut out;
        match (u32::try_from(data.start), u32::try_from(bytes)) {
            (Ok(start), Ok(bytes)) if xattr == NONE_U32 && links == 1 && data.sparse == 0 => {
                out = self.head(2, id, inode);
                for word in [start, fragment, offset, bytes] {
                    out.extend(word.to_le_bytes());
                }
            }
            _ => {
                out = self.head(2 + EXTENDED, id, inode);
                for long in [data.start, bytes, data.sparse] {
                    out.extend(long.to_le_bytes());
                }
                for word in [links, fragment, offset, xattr] {
                    out.extend(word.to_le_bytes());
                }
            }
        }
        for size in &data.sizes {
            out.extend(size.to_le_bytes());
        }
        out
    }
}
