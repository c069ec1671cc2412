//! The image's root file system in memory: what every writer takes as input.
//!
//! Paths are absolute byte strings without a trailing slash (`/usr/bin/psql`; the root itself is `/`). Owners, modes,
//! extended attributes and device numbers live here and never on the host's disk, so a plain user can build any of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

/// Index of an inode in its [`Tree`]. Two paths with the same id are hard links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u32);

/// Owner, permission bits and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with set-uid, set-gid and sticky (0o7777), without the file type.
    pub mode: u16,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Modification time, seconds since 1970. Whole images use one fixed time.
    pub mtime: u32,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory; its entries are the paths below it.
    Dir,
    /// A regular file.
    File(Bytes),
    /// A symbolic link and its target, verbatim.
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

/// One inode, and why it is in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Owner, mode, attributes.
    pub meta: Meta,
    /// Type and content.
    pub kind: Kind,
    /// Who put it here: `package NAME VERSION`, `overlay NAME`, `derived RULE`.
    pub origin: Arc<str>,
}

/// A file system: every path in byte order, each naming an inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
    paths: BTreeMap<Vec<u8>, InodeId>,
}
