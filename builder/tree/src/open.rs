//! Packages to members: from their files, or from what an earlier build remembered of them.
//!
//! Decoding a package costs a hundred times what reading its members costs, and most of it is never used: prune rules
//! and module selection decide by path and by what modules say of themselves. So an entry of the cache holds the list of
//! all members, but the contents of only those files that a build wanted. A build that wants more of a package, or finds
//! its entry damaged, opens the package's file again.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dyad_debian::{Digest, LockedPackage};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::modules;
use crate::unpack::{self, Filter, Limits, Member, MemberKind, Package};
use crate::{Error, PackageInput};

/// Start of an entry. The number changes with everything that decides which list a package's file gives.
const MAGIC: &[u8; 16] = b"dyad package 01\n";
const HEAD_BYTES: usize = MAGIC.len() + 8 + 32;

/// A package's file, read only where no earlier build remembers it.
pub trait Deb: fmt::Debug + Send + Sync {
    /// The bytes, whose digest is the locked one.
    fn read(&self) -> io::Result<Bytes>;
}

impl Deb for Bytes {
    fn read(&self) -> io::Result<Bytes> {
        Ok(self.clone())
    }
}

/// What earlier builds remember of packages, by the digest of the package's file.
///
/// Called from several threads. Entries are checked here; an implementation need not.
pub trait PackageCache: Sync {
    /// What was `put` under the digest, if it is there.
    fn get(&self, deb: &Digest) -> Option<Bytes>;
    /// Remembers these parts, one behind the other.
    fn put(&self, deb: &Digest, parts: &[Bytes]);
}

/// A file of a package, whose number its member carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileFacts {
    bytes: u64,
    /// What module selection reads of it.
    facts: Option<Vec<u8>>,
    /// Place among the entry's contents, and digest.
    stored: Option<(u64, [u8; 32])>,
}

/// The list of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Listing {
    package: Package<u32>,
    files: Vec<FileFacts>,
}

enum Contents {
    /// By file number, from the package's file.
    Fresh(Vec<Bytes>),
    /// What the entry holds.
    Remembered(Bytes),
}

/// A package whose members are known; the contents come with [`Opened::load`].
pub(crate) struct Opened {
    pub(crate) locked: LockedPackage,
    /// Members that the filter kept, files by number.
    pub(crate) package: Package<u32>,
    listing: Listing,
    deb: Arc<dyn Deb>,
    contents: Contents,
}

fn name(locked: &LockedPackage) -> String {
    format!("{} {}", locked.name, locked.version)
}

/// Numbers the files and takes their contents out.
fn list(package: Package) -> Result<(Listing, Vec<Bytes>), Error> {
    let (mut files, mut contents) = (Vec::new(), Vec::new());
    let mut members = Vec::with_capacity(package.members.len());
    for member in package.members {
        let kind = match member.kind {
            MemberKind::File(data) => {
                let facts = modules::facts(&member.path, &data)?;
                files.push(FileFacts { bytes: data.len() as u64, facts, stored: None });
                contents.push(data);
                MemberKind::File(files.len() as u32 - 1)
            }
            MemberKind::Dir => MemberKind::Dir,
            MemberKind::Symlink(target) => MemberKind::Symlink(target),
            MemberKind::HardLink(target) => MemberKind::HardLink(target),
            MemberKind::Char(major, minor) => MemberKind::Char(major, minor),
            MemberKind::Block(major, minor) => MemberKind::Block(major, minor),
            MemberKind::Fifo => MemberKind::Fifo,
        };
        let Member { path, mode, uid, gid, user, group, xattrs, .. } = member;
        members.push(Member { path, kind, mode, uid, gid, user, group, xattrs });
    }
    let Package { name, version, architecture, replaces, diverts, .. } = package;
    let package = Package { name, version, architecture, replaces, diverts, members, pruned: Vec::new() };
    Ok((Listing { package, files }, contents))
}

/// The list in an entry and the contents behind it; `None` for anything but a whole, undamaged entry's head.
fn parse(entry: &Bytes) -> Option<(Listing, Bytes)> {
    let head = entry.get(..HEAD_BYTES)?;
    let len = u64::from_le_bytes(head[MAGIC.len()..MAGIC.len() + 8].try_into().ok()?);
    let end = HEAD_BYTES.checked_add(usize::try_from(len).ok()?)?;
    let list = entry.get(HEAD_BYTES..end)?;
    if &head[..MAGIC.len()] != MAGIC || Sha256::digest(list)[..] != head[MAGIC.len() + 8..] {
        return None;
    }
    Some((postcard::from_bytes(list).ok()?, entry.slice(end..)))
}

impl Opened {
    /// Lists a package, and checks that it is the one that the lock names.
    pub(crate) fn new(
        input: PackageInput,
        limits: &Limits,
        cache: Option<&dyn PackageCache>,
        filter: &Filter<'_>,
    ) -> Result<Self, Error> {
        let PackageInput { locked, deb } = input;
        let remembered = cache.and_then(|cache| parse(&cache.get(&locked.sha256)?));
        let (listing, contents) = match remembered {
            Some((listing, contents)) => (listing, Contents::Remembered(contents)),
            None => {
                let (listing, contents) = unpacked(&locked, &*deb, limits)?;
                (listing, Contents::Fresh(contents))
            }
        };
        let found = &listing.package;
        let found = (&found.name, &found.version, &found.architecture);
        if found != (&locked.name, &locked.version, &locked.arch) {
            return Err(Error::WrongPackage {
                expected: format!("{} {}", name(&locked), locked.arch),
                found: format!("{} {} {}", found.0, found.1, found.2),
            });
        }
        let bytes = |number: &u32| listing.files.get(*number as usize).map_or(0, |f| f.bytes);
        let (members, pruned) = unpack::apply(&listing.package.members, &bytes, filter);
        let package = Package { members, pruned, ..head(&listing.package) };
        Ok(Opened { locked, package, listing, deb, contents })
    }

    /// Bytes of a file, by number.
    pub(crate) fn bytes(&self, number: u32) -> u64 {
        self.listing.files.get(number as usize).map_or(0, |f| f.bytes)
    }

    /// What a file says to module selection: its path, and what [`modules::facts`] found in it.
    pub(crate) fn facts(&self) -> impl Iterator<Item = (&[u8], u64, &[u8])> {
        self.package.members.iter().filter_map(|member| match member.kind {
            MemberKind::File(number) => {
                let file = self.listing.files.get(number as usize)?;
                Some((member.path.as_slice(), file.bytes, file.facts.as_deref()?))
            }
            _ => None,
        })
    }

    /// The members that are left, with their contents; what is new goes into the cache.
    pub(crate) fn load(
        mut self,
        limits: &Limits,
        cache: Option<&dyn PackageCache>,
    ) -> Result<(Package, LockedPackage), Error> {
        let numbers = self.package.members.iter().filter_map(|m| match m.kind {
            MemberKind::File(number) => Some(number),
            _ => None,
        });
        let numbers: Vec<u32> = numbers.collect();
        if let Contents::Remembered(stored) = &self.contents {
            if let Some(found) = self.recall(stored, &numbers) {
                return Ok((self.with(found.into_iter(), usize::MAX), self.locked));
            }
            let (fresh, contents) = unpacked(&self.locked, &*self.deb, limits)?;
            if fresh.package != self.listing.package || fresh.files.len() != self.listing.files.len() {
                return Err(Error::Remembered(name(&self.locked)));
            }
            self.contents = Contents::Fresh(contents);
        }
        let Contents::Fresh(contents) = &self.contents else {
            return Err(Error::Remembered(name(&self.locked)));
        };
        let all: usize = contents.iter().map(Bytes::len).sum();
        let wanted: Vec<Bytes> =
            numbers.iter().map(|&n| contents.get(n as usize).cloned().unwrap_or_default()).collect();
        if let Some(cache) = cache {
            cache.put(&self.locked.sha256, &self.entry(contents, &numbers));
        }
        Ok((self.with(wanted.into_iter(), all), self.locked))
    }

    /// Contents by number from an entry; `None` if one is not in it or is damaged.
    fn recall(&self, stored: &Bytes, numbers: &[u32]) -> Option<Vec<Bytes>> {
        let one = |&number: &u32| {
            let file = self.listing.files.get(number as usize)?;
            let (at, digest) = file.stored?;
            let end = at.checked_add(file.bytes)?;
            stored.get(at as usize..end as usize)?;
            let data = stored.slice(at as usize..end as usize);
            (Sha256::digest(&data)[..] == digest).then_some(data)
        };
        numbers.iter().map(one).collect()
    }

    /// The entry for what is wanted now or was wanted before, in parts.
    fn entry(&self, contents: &[Bytes], numbers: &[u32]) -> Vec<Bytes> {
        let mut listing = self.listing.clone();
        for &number in numbers {
            if let Some(file) = listing.files.get_mut(number as usize) {
                file.stored = Some((0, [0; 32]));
            }
        }
        let (mut parts, mut at) = (vec![Bytes::new(); 2], 0);
        for (file, data) in listing.files.iter_mut().zip(contents).filter(|(file, _)| file.stored.is_some()) {
            file.stored = Some((at, Sha256::digest(data).into()));
            at += file.bytes;
            parts.push(data.clone());
        }
        let list = postcard::to_allocvec(&listing).expect("plain data always serialises");
        let mut head = MAGIC.to_vec();
        head.extend((list.len() as u64).to_le_bytes());
        head.extend(Sha256::digest(&list));
        (parts[0], parts[1]) = (head.into(), list.into());
        parts
    }

    /// The package with contents in the order of its files; `all` is what they are slices of.
    fn with(&self, mut contents: impl Iterator<Item = Bytes>, all: usize) -> Package {
        let member = |m: &Member<u32>| Member {
            kind: match &m.kind {
                MemberKind::File(_) => MemberKind::File(contents.next().unwrap_or_default()),
                MemberKind::Dir => MemberKind::Dir,
                MemberKind::Symlink(target) => MemberKind::Symlink(target.clone()),
                MemberKind::HardLink(target) => MemberKind::HardLink(target.clone()),
                MemberKind::Char(major, minor) => MemberKind::Char(*major, *minor),
                MemberKind::Block(major, minor) => MemberKind::Block(*major, *minor),
                MemberKind::Fifo => MemberKind::Fifo,
            },
            path: m.path.clone(),
            user: m.user.clone(),
            group: m.group.clone(),
            xattrs: m.xattrs.clone(),
            mode: m.mode,
            uid: m.uid,
            gid: m.gid,
        };
        let mut members: Vec<Member> = self.package.members.iter().map(member).collect();
        if all < usize::MAX {
            unpack::release(&mut members, all);
        }
        Package { members, pruned: self.package.pruned.clone(), ..head(&self.package) }
    }
}

/// A package's own fields.
fn head<C, D>(package: &Package<C>) -> Package<D> {
    Package {
        name: package.name.clone(),
        version: package.version.clone(),
        architecture: package.architecture.clone(),
        replaces: package.replaces.clone(),
        diverts: package.diverts,
        members: Vec::new(),
        pruned: Vec::new(),
    }
}

fn unpacked(locked: &LockedPackage, deb: &dyn Deb, limits: &Limits) -> Result<(Listing, Vec<Bytes>), Error> {
    let data = deb.read().map_err(|error| Error::Read { package: name(locked), error })?;
    let package =
        unpack::open(&data, limits).map_err(|error| Error::Unpack { package: name(locked), error })?;
    list(package)
}
