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

/// Why a tree refused a change. Paths are shown lossily; they are bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not `/`-rooted, or with an empty, `.` or `..` component, or a NUL.
    #[error("path {0:?} is not an absolute, normalised path")]
    BadPath(String),
    /// The parent is missing or is not a directory.
    #[error("{0}: its parent directory does not exist in the tree")]
    NoParent(String),
    /// A directory would replace a non-directory or the reverse.
    #[error("{0}: exists already as something else")]
    Clash(String),
    /// A hard link to something that is not there.
    #[error("{0}: hard link to {1}, which does not exist")]
    NoTarget(String, String),
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The parent of a normalised path: `/a/b` -> `/a`, `/a` -> `/`, `/` -> `/`.
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        Some(0) | None => b"/",
        Some(i) => &path[..i],
    }
}

/// The last component of a normalised path (empty for the root).
pub fn base_name(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        Some(i) => &path[i + 1..],
        None => path,
    }
}

fn check_path(path: &[u8]) -> Result<(), TreeError> {
    if path == b"/" {
        return Ok(());
    }
    let ok = path.first() == Some(&b'/')
        && !path.contains(&0)
        && path[1..].split(|&b| b == b'/').all(|c| !c.is_empty() && c != b"." && c != b"..");
    if ok { Ok(()) } else { Err(TreeError::BadPath(lossy(path))) }
}

impl Tree {
    /// A tree that holds only `/` (root-owned, 0755).
    pub fn new(mtime: u32) -> Self {
        let mut tree = Tree::default();
        tree.inodes.push(Inode {
            meta: Meta { mode: 0o755, mtime, ..Meta::default() },
            kind: Kind::Dir,
            origin: Arc::from("derived root directory"),
        });
        tree.paths.insert(b"/".to_vec(), InodeId(0));
        tree
    }

    /// Looks a path up without following symbolic links.
    pub fn get(&self, path: &[u8]) -> Option<&Inode> {
        self.paths.get(path).map(|id| self.inode(*id))
    }

    /// The inode id behind a path.
    pub fn id(&self, path: &[u8]) -> Option<InodeId> {
        self.paths.get(path).copied()
    }

    /// Mutable access by path; a hard-linked inode changes under all its names.
    pub fn get_mut(&mut self, path: &[u8]) -> Option<&mut Inode> {
        let id = *self.paths.get(path)?;
        self.inodes.get_mut(id.0 as usize)
    }

    /// The inode of an id that this tree handed out.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// Adds or replaces a path. The parent must exist; a directory over a directory replaces only its meta data.
    pub fn insert(&mut self, path: &[u8], inode: Inode) -> Result<InodeId, TreeError> {
        self.check_slot(path, matches!(inode.kind, Kind::Dir))?;
        if let (Some(id), Kind::Dir) = (self.id(path), &inode.kind) {
            self.inodes[id.0 as usize] = inode;
            return Ok(id);
        }
        let id = InodeId(self.inodes.len() as u32);
        self.inodes.push(inode);
        self.paths.insert(path.to_vec(), id);
        Ok(id)
    }

    /// Gives `target`'s inode a second name.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<InodeId, TreeError> {
        self.check_slot(path, false)?;
        let id = match self.id(target) {
            Some(id) if !matches!(self.inode(id).kind, Kind::Dir) => id,
            _ => return Err(TreeError::NoTarget(lossy(path), lossy(target))),
        };
        self.paths.insert(path.to_vec(), id);
        Ok(id)
    }

    /// Removes a path; a directory goes with everything below it. Returns how many paths went.
    pub fn remove(&mut self, path: &[u8]) -> usize {
        if path == b"/" {
            return 0;
        }
        let mut doomed: Vec<Vec<u8>> = self.below(path).map(|(p, _)| p.to_vec()).collect();
        if self.paths.contains_key(path) {
            doomed.push(path.to_vec());
        }
        for p in &doomed {
            self.paths.remove(p);
        }
        doomed.len()
    }

    /// Frees inodes that no path names any more. Ids that were handed out before are void; new ones are in path order.
    pub fn compact(&mut self) {
        let mut moved = BTreeMap::new();
        let mut inodes = Vec::new();
        for id in self.paths.values_mut() {
            *id = *moved.entry(*id).or_insert_with(|| {
                inodes.push(self.inodes[id.0 as usize].clone());
                InodeId(inodes.len() as u32 - 1)
            });
        }
        self.inodes = inodes;
    }

    /// Every path in byte order of the full path, with its inode.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], InodeId, &Inode)> {
        self.paths.iter().map(|(p, id)| (p.as_slice(), *id, self.inode(*id)))
    }

    /// Every path strictly below a directory, in byte order.
    pub fn below<'a>(&'a self, dir: &[u8]) -> impl Iterator<Item = (&'a [u8], InodeId)> + use<'a> {
        let mut prefix = dir.to_vec();
        if prefix.last() != Some(&b'/') {
            prefix.push(b'/');
        }
        let root = prefix == b"/";
        self.paths
            .range(prefix.clone()..)
            .take_while(move |(p, _)| p.starts_with(&prefix))
            .filter(move |(p, _)| !root || p.len() > 1)
            .map(|(p, id)| (p.as_slice(), *id))
    }

    /// The direct entries of a directory as (name, id), in byte order of the name.
    pub fn children<'a>(&'a self, dir: &[u8]) -> Vec<(&'a [u8], InodeId)> {
        let skip = if dir == b"/" { 1 } else { dir.len() + 1 };
        let mut list: Vec<_> = self
            .below(dir)
            .filter(|(p, _)| !p[skip..].contains(&b'/'))
            .map(|(p, id)| (&p[skip..], id))
            .collect();
        list.sort_unstable();
        list
    }

    /// How many paths there are, the root included.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Never true for a tree made by [`Tree::new`].
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    fn check_slot(&self, path: &[u8], dir: bool) -> Result<(), TreeError> {
        check_path(path)?;
        if path != b"/" && !matches!(self.get(parent(path)).map(|i| &i.kind), Some(Kind::Dir)) {
            return Err(TreeError::NoParent(lossy(path)));
        }
        match self.get(path).map(|i| matches!(i.kind, Kind::Dir)) {
            Some(was_dir) if was_dir != dir => Err(TreeError::Clash(lossy(path))),
            _ => Ok(()),
        }
    }
}
