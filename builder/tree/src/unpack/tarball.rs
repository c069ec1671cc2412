//! Tar members as data: names checked and made canonical, contents as slices of the archive.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Cursor;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tar::EntryType;

use super::{Limits, UnpackError};
use crate::path;

/// What a member is; `C` stands for the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind<C = Bytes> {
    /// A directory.
    Dir,
    /// A regular file; bytes are a slice of the decoded archive.
    File(C),
    /// A symbolic link, target verbatim.
    Symlink(Vec<u8>),
    /// Another name of an earlier file (canonical path).
    HardLink(Vec<u8>),
    /// Character device (major, minor).
    Char(u32, u32),
    /// Block device (major, minor).
    Block(u32, u32),
    /// Named pipe.
    Fifo,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member<C = Bytes> {
    /// Canonical absolute path: merged-/usr aliases are resolved.
    pub path: Vec<u8>,
    /// Type and content.
    pub kind: MemberKind<C>,
    /// Permission bits, 0o7777.
    pub mode: u16,
    /// Owner by number; used when the name is not known in the image.
    pub uid: u32,
    /// Group by number.
    pub gid: u32,
    /// Owner by name, which counts before the number, as in dpkg.
    pub user: String,
    /// Group by name.
    pub group: String,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Shape {
    Dir,
    Link,
    Other,
}

struct Seen {
    raw: Vec<u8>,
    shape: Shape,
    member: usize,
}

struct Reader<'a> {
    part: &'a str,
    archive: &'a Bytes,
    limits: &'a Limits,
    seen: HashMap<Vec<u8>, Seen>,
    /// Files that hard links may name, whichever of their names comes first.
    files: HashSet<Vec<u8>>,
    out: Vec<Member>,
}

/// Reads a whole archive: its members in order; `part` names it in errors.
pub(super) fn read(part: &str, archive: &Bytes, limits: &Limits) -> Result<Vec<Member>, UnpackError> {
    let broken = |what: String| UnpackError::Tar { part: part.to_owned(), what };
    let mut reader =
        Reader { part, archive, limits, seen: HashMap::new(), files: HashSet::new(), out: Vec::new() };
    let mut tar = tar::Archive::new(Cursor::new(&archive[..]));
    let mut end = 0u64;
    for (count, entry) in tar.entries_with_seek().map_err(|e| broken(e.to_string()))?.enumerate() {
        if count == limits.members_max {
            return Err(UnpackError::TooMany { part: part.to_owned(), limit: limits.members_max });
        }
        let mut entry = entry.map_err(|e| broken(e.to_string()))?;
        end = entry.raw_file_position().saturating_add(entry.size()).div_ceil(512).saturating_mul(512);
        reader.entry(&mut entry)?;
    }
    // The end of an archive is two blocks of zeros; without them it may have been cut between members.
    let tail = archive.get(end as usize..).unwrap_or_default();
    if tail.len() < 1024 || tail.iter().any(|&b| b != 0) {
        return Err(broken(
            "no end mark (two zero blocks) after the last member, or data behind it".to_owned(),
        ));
    }
    reader.check_ancestors()?;
    Ok(reader.out)
}

impl Reader<'_> {
    fn entry<R: std::io::Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        let is_dir = kind == EntryType::Directory;
        let path = self.name(&raw, is_dir)?;
        let lossy = || String::from_utf8_lossy(&raw).into_owned();
        let mut member = self.meta(entry, path)?;
        let data = self.content(entry)?;
        let header = entry.header();
        let device = |what| UnpackError::Name { name: lossy(), what };
        let numbers = || -> Result<(u32, u32), UnpackError> {
            match (header.device_major(), header.device_minor()) {
                (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
                _ => Err(device("device numbers are missing")),
            }
        };
        member.kind = match kind {
            EntryType::Directory => MemberKind::Dir,
            EntryType::Regular => MemberKind::File(data.clone()),
            EntryType::Symlink => MemberKind::Symlink(self.link_name(entry, &lossy())?),
            EntryType::Link => {
                let target = self.link_name(entry, &lossy())?;
                MemberKind::HardLink(self.name(&target, false)?)
            }
            EntryType::Char => numbers().map(|(major, minor)| MemberKind::Char(major, minor))?,
            EntryType::Block => numbers().map(|(major, minor)| MemberKind::Block(major, minor))?,
            EntryType::Fifo => MemberKind::Fifo,
            other => return Err(UnpackError::Kind { name: lossy(), kind: other.as_byte() as char }),
        };
        if !data.is_empty() && kind != EntryType::Regular {
            return Err(UnpackError::Name { name: lossy(), what: "has content but is not a regular file" });
        }
        self.add(raw, member)
    }

    fn add(&mut self, raw: Vec<u8>, member: Member) -> Result<(), UnpackError> {
        let shape = match member.kind {
            MemberKind::Dir => Shape::Dir,
            MemberKind::Symlink(_) => Shape::Link,
            _ => Shape::Other,
        };
        if let Some(seen) = self.seen.get(&member.path) {
            return self.twice(&raw, member, seen.shape, seen.member, seen.raw == raw);
        }
        match &member.kind {
            MemberKind::HardLink(target) if !self.files.contains(target) => {
                return Err(UnpackError::LinkTarget {
                    name: String::from_utf8_lossy(&raw).into_owned(),
                    target: String::from_utf8_lossy(target).into_owned(),
                });
            }
            MemberKind::File(_) | MemberKind::HardLink(_) => {
                self.files.insert(member.path.clone());
            }
            _ => {}
        }
        self.seen.insert(member.path.clone(), Seen { raw, shape, member: self.out.len() });
        self.out.push(member);
        Ok(())
    }

    /// A second member at a canonical path: fine only where merged-/usr aliasing made two names one.
    fn twice(
        &mut self,
        raw: &[u8],
        member: Member,
        shape: Shape,
        at: usize,
        same_name: bool,
    ) -> Result<(), UnpackError> {
        let duplicate = || UnpackError::Duplicate(String::from_utf8_lossy(raw).into_owned());
        if same_name {
            return Err(duplicate());
        }
        match (&member.kind, shape) {
            (MemberKind::Dir, Shape::Dir) => Ok(()),
            // `/bin/x -> /usr/bin/x`, which is `x -> x` once /bin is /usr/bin: the file stays.
            (MemberKind::Symlink(target), Shape::Other)
                if path::link_target(&member.path, target) == Some(member.path.clone()) =>
            {
                Ok(())
            }
            (MemberKind::File(_), Shape::Link) => {
                let MemberKind::Symlink(target) = &self.out[at].kind else { return Err(duplicate()) };
                if path::link_target(&member.path, target) != Some(member.path.clone()) {
                    return Err(duplicate());
                }
                self.files.insert(member.path.clone());
                self.out[at] = member;
                Ok(())
            }
            _ => Err(duplicate()),
        }
    }

    fn name(&self, raw: &[u8], is_dir: bool) -> Result<Vec<u8>, UnpackError> {
        if raw.len() > self.limits.name_bytes_max {
            let name = String::from_utf8_lossy(&raw[..64]).into_owned();
            return Err(UnpackError::Name { name, what: "longer than a path may be" });
        }
        path::from_archive(raw, is_dir)
            .map_err(|what| UnpackError::Name { name: String::from_utf8_lossy(raw).into_owned(), what })
    }

    fn link_name<R: std::io::Read>(
        &self,
        entry: &tar::Entry<'_, R>,
        name: &str,
    ) -> Result<Vec<u8>, UnpackError> {
        let bad = |what| Err(UnpackError::Name { name: name.to_owned(), what });
        match entry.link_name_bytes() {
            None => bad("is a link without a target"),
            Some(target) if target.is_empty() => bad("is a link without a target"),
            Some(target) if target.len() > self.limits.name_bytes_max => {
                bad("link target longer than a path may be")
            }
            Some(target) if std::str::from_utf8(&target).is_err() => bad("link target is not UTF-8"),
            Some(target) if target.iter().any(u8::is_ascii_control) => {
                bad("link target has control characters")
            }
            Some(target) => Ok(target.into_owned()),
        }
    }

    fn content<R: std::io::Read>(&self, entry: &tar::Entry<'_, R>) -> Result<Bytes, UnpackError> {
        let start = entry.raw_file_position();
        let end = start.checked_add(entry.size()).filter(|&end| end <= self.archive.len() as u64);
        match end {
            Some(end) => Ok(self.archive.slice(start as usize..end as usize)),
            None => Err(UnpackError::Truncated { what: "tar member" }),
        }
    }

    fn meta<R: std::io::Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        path: Vec<u8>,
    ) -> Result<Member, UnpackError> {
        let broken = |e: std::io::Error| UnpackError::Tar {
            part: self.part.to_owned(),
            what: format!("{}: {e}", String::from_utf8_lossy(&path)),
        };
        let header = entry.header();
        let id = |value: std::io::Result<u64>| -> std::io::Result<u32> {
            u32::try_from(value?).map_err(|_| std::io::Error::other("owner number above 32 bits"))
        };
        let text = |name: Option<&[u8]>| String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        let mut member = Member {
            kind: MemberKind::Dir,
            mode: (header.mode().map_err(broken)? & 0o7777) as u16,
            uid: id(header.uid()).map_err(broken)?,
            gid: id(header.gid()).map_err(broken)?,
            user: text(header.username_bytes()),
            group: text(header.groupname_bytes()),
            xattrs: BTreeMap::new(),
            path: path.clone(),
        };
        let Some(extensions) = entry.pax_extensions().map_err(broken)? else { return Ok(member) };
        for extension in extensions {
            let extension = extension.map_err(broken)?;
            let value = extension.value_bytes();
            match extension.key_bytes() {
                b"uid" => {
                    member.uid = parse(value).ok_or_else(|| broken(std::io::Error::other("PAX uid")))?
                }
                b"gid" => {
                    member.gid = parse(value).ok_or_else(|| broken(std::io::Error::other("PAX gid")))?
                }
                b"uname" => member.user = text(Some(value)),
                b"gname" => member.group = text(Some(value)),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(broken(std::io::Error::other("sparse file")));
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        member.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(member)
    }

    /// Independent of member order: nothing may lie below a path that the same package makes a link or a file.
    fn check_ancestors(&self) -> Result<(), UnpackError> {
        for (member, seen) in &self.seen {
            for ancestor in path::ancestors(member) {
                if self.seen.get(ancestor).is_some_and(|s| s.shape != Shape::Dir) {
                    return Err(UnpackError::ThroughLink {
                        name: String::from_utf8_lossy(&seen.raw).into_owned(),
                        parent: String::from_utf8_lossy(ancestor).into_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn parse(value: &[u8]) -> Option<u32> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
