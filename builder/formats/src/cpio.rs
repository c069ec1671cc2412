//! cpio "newc": what the kernel unpacks as its initrd.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;

use crate::tree::{Inode, InodeId, Kind, Meta, Tree, TreeError};

const MAGIC: &[u8; 6] = b"070701";
const HEADER_BYTES: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// Longest name that the reader accepts (PATH_MAX).
const NAME_BYTES_MAX: usize = 4096;

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// newc has 32-bit sizes.
    #[error("{0}: a cpio archive holds files of less than 4 GiB")]
    TooLarge(String),
    /// newc has no place for them.
    #[error("{0}: a cpio archive holds no extended attributes")]
    Xattrs(String),
    /// The archive does not follow the format.
    #[error("cpio archive, byte {at}: {what}")]
    Malformed {
        /// Offset of the member.
        at: usize,
        /// What was found.
        what: &'static str,
    },
    /// The names do not make a tree.
    #[error("cpio archive, byte {at}: {source}")]
    Tree {
        /// Offset of the member.
        at: usize,
        /// What the tree said.
        source: TreeError,
    },
}

const TYPE_MASK: u32 = 0o170000;

/// The file type bits of `st_mode`.
pub(crate) fn type_bits(kind: &Kind) -> u32 {
    match kind {
        Kind::Dir => 0o040000,
        Kind::File(_) => 0o100000,
        Kind::Symlink(_) => 0o120000,
        Kind::Char(..) => 0o020000,
        Kind::Block(..) => 0o060000,
        Kind::Fifo => 0o010000,
        Kind::Socket => 0o140000,
    }
}

/// Every inode's names, in path order: the shape that hard links need.
pub(crate) fn names_by_inode(tree: &Tree) -> HashMap<InodeId, Vec<&[u8]>> {
    let mut names: HashMap<InodeId, Vec<&[u8]>> = HashMap::new();
    for (path, id, _) in tree.iter() {
        names.entry(id).or_default().push(path);
    }
    names
}

/// Writes a tree. Names have no leading slash; the root itself is left out, as it exists when the kernel unpacks.
/// The content of a hard-linked file stands with its last name, as GNU cpio does it.
pub fn write(tree: &Tree, out: &mut impl Write) -> Result<(), Error> {
    let names = names_by_inode(tree);
    let mut numbers: HashMap<InodeId, u32> = HashMap::new();
    for (path, id, inode) in tree.iter().filter(|(path, ..)| *path != b"/") {
        if !inode.meta.xattrs.is_empty() {
            return Err(Error::Xattrs(String::from_utf8_lossy(path).into_owned()));
        }
        let next = numbers.len() as u32 + 1;
        let ino = *numbers.entry(id).or_insert(next);
        let links = &names[&id];
        let data: &[u8] = match &inode.kind {
            Kind::File(data) if links.last() == Some(&path) => data,
            Kind::Symlink(target) => target,
            _ => b"",
        };
        let nlink = if matches!(inode.kind, Kind::Dir) { 2 } else { links.len() as u32 };
        member(out, &path[1..], inode, ino, nlink, data)?;
    }
    raw_member(out, TRAILER, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], b"")?;
    Ok(())
}

fn member(
    out: &mut impl Write,
    name: &[u8],
    inode: &Inode,
    ino: u32,
    nlink: u32,
    data: &[u8],
) -> Result<(), Error> {
    let size =
        u32::try_from(data.len()).map_err(|_| Error::TooLarge(String::from_utf8_lossy(name).into_owned()))?;
    let (major, minor) = match inode.kind {
        Kind::Char(major, minor) | Kind::Block(major, minor) => (major, minor),
        _ => (0, 0),
    };
    let mode = type_bits(&inode.kind) | u32::from(inode.meta.mode);
    let fields =
        [ino, mode, inode.meta.uid, inode.meta.gid, nlink, inode.meta.mtime, size, 0, 0, major, minor];
    raw_member(out, name, &fields, data)?;
    Ok(())
}

/// `fields`: ino, mode, uid, gid, nlink, mtime, size, device major and minor, rdev major and minor.
fn raw_member(out: &mut impl Write, name: &[u8], fields: &[u32; 11], data: &[u8]) -> io::Result<()> {
    out.write_all(MAGIC)?;
    for field in fields {
        write!(out, "{field:08X}")?;
    }
    write!(out, "{:08X}{:08X}", name.len() + 1, 0)?;
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(out, HEADER_BYTES + name.len() + 1)?;
    out.write_all(data)?;
    pad(out, data.len())
}

fn pad(out: &mut impl Write, len: usize) -> io::Result<()> {
    out.write_all(&[0u8; 3][..len.wrapping_neg() % 4])
}

/// One member as it stands in the archive.
struct Raw {
    at: usize,
    name: Vec<u8>,
    fields: [u32; 11],
    data: Bytes,
}

/// Reads one uncompressed archive into a tree; file contents share `archive`'s memory.
pub fn read(archive: &Bytes, origin: &str) -> Result<Tree, Error> {
    let origin: Arc<str> = Arc::from(origin);
    let mut tree = Tree::new(0);
    // Content may stand with any of a file's names: the first gets the inode, later ones link and may bring the data.
    let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut at = 0;
    while let Some((raw, next)) = next_member(archive, at)? {
        at = next;
        if raw.name == b"." {
            continue;
        }
        let mut path = b"/".to_vec();
        path.extend(raw.name.strip_prefix(b"./").unwrap_or(&raw.name));
        let [ino, mode, .., nlink, _, _, _, _, _, _] = raw.fields;
        let kind = kind_of(&raw)?;
        let linked = nlink > 1 && mode & TYPE_MASK != 0o040000;
        let result = match first_names.get(&ino).filter(|_| linked) {
            Some(first) => {
                let done = tree.hard_link(&path, first);
                if let (Kind::File(data), Some(inode)) = (&kind, tree.get_mut(first)) {
                    if !data.is_empty() {
                        inode.kind = kind;
                    }
                }
                done
            }
            None => {
                first_names.insert(ino, path.clone());
                let [_, _, uid, gid, _, mtime, ..] = raw.fields;
                let meta = Meta { mode: (mode & 0o7777) as u16, uid, gid, mtime, ..Meta::default() };
                tree.insert(&path, Inode { meta, kind, origin: origin.clone() })
            }
        };
        result.map_err(|source| Error::Tree { at: raw.at, source })?;
    }
    Ok(tree)
}

fn kind_of(raw: &Raw) -> Result<Kind, Error> {
    let [.., major, minor] = raw.fields;
    Ok(match raw.fields[1] & TYPE_MASK {
        0o040000 => Kind::Dir,
        0o100000 => Kind::File(raw.data.clone()),
        0o120000 => Kind::Symlink(raw.data.to_vec()),
        0o020000 => Kind::Char(major, minor),
        0o060000 => Kind::Block(major, minor),
        0o010000 => Kind::Fifo,
        0o140000 => Kind::Socket,
        _ => return Err(Error::Malformed { at: raw.at, what: "an unknown file type" }),
    })
}

fn next_member(archive: &Bytes, at: usize) -> Result<Option<(Raw, usize)>, Error> {
    let bad = |what| Error::Malformed { at, what };
    let header =
        archive.get(at..at.saturating_add(HEADER_BYTES)).ok_or(bad("the archive ends without a trailer"))?;
    if &header[..6] != MAGIC {
        return Err(bad("a header without the magic number 070701"));
    }
    let mut values = [0u32; 13];
    for (value, text) in values.iter_mut().zip(header[6..].chunks_exact(8)) {
        let text = std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|c| c.is_ascii_hexdigit()));
        *value = text
            .and_then(|t| u32::from_str_radix(t, 16).ok())
            .ok_or(bad("a header field that is not hexadecimal"))?;
    }
    let mut fields = [0u32; 11];
    fields.copy_from_slice(&values[..11]);
    let name_bytes = values[11] as usize;
    if name_bytes == 0 || name_bytes > NAME_BYTES_MAX {
        return Err(bad("a name of impossible length"));
    }
    let name_at = at + HEADER_BYTES;
    let name =
        archive.get(name_at..name_at + name_bytes).ok_or(bad("a name that ends behind the archive"))?;
    let name = name.strip_suffix(&[0]).ok_or(bad("a name without its final NUL"))?.to_vec();
    let data_at = (name_at + name_bytes).next_multiple_of(4);
    let end = data_at + fields[6] as usize;
    if end > archive.len() {
        return Err(bad("content that ends behind the archive"));
    }
    if name == TRAILER {
        return Ok(None);
    }
    Ok(Some((Raw { at, name, fields, data: archive.slice(data_at..end) }, end.next_multiple_of(4))))
}
