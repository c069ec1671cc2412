//! Lays packages and overlays into one tree, in an order that depends on nothing but their names.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::sync::Arc;

use dyad_debian::parse_relations;
use dyad_formats::tree::{Inode, Kind, Meta, Tree, parent};

use crate::Error;
use crate::accounts::Accounts;
use crate::lookup::LINKS_MAX;
use crate::path::{self, USR_LINKS, show};
use crate::unpack::{Member, MemberKind, Package};

/// Directories that one package ships and another makes a symbolic link: members below land at the link's target.
#[derive(Default)]
struct Aliases(BTreeMap<Vec<u8>, Vec<u8>>);

impl Aliases {
    fn find(packages: &[Package]) -> Result<Self, Error> {
        let mut dirs = BTreeSet::new();
        let mut links = BTreeMap::new();
        for package in packages {
            for member in &package.members {
                match &member.kind {
                    MemberKind::Dir => {
                        dirs.insert(member.path.as_slice());
                    }
                    MemberKind::Symlink(target) => {
                        links.insert(member.path.as_slice(), (target, package));
                    }
                    _ => {}
                }
            }
        }
        let mut aliases = BTreeMap::new();
        for (link, (target, package)) in links {
            if dirs.contains(link) {
                let resolved = path::link_target(link, target)
                    .ok_or_else(|| Error::LinkEscapes { path: show(link), package: package.name.clone() })?;
                aliases.insert(link.to_vec(), resolved);
            }
        }
        Ok(Aliases(aliases))
    }

    /// The path with every aliased ancestor followed; `itself` also follows the path's own alias.
    fn follow(&self, path: &[u8], itself: bool) -> Result<Vec<u8>, Error> {
        let mut path = path.to_vec();
        for _ in 0..LINKS_MAX {
            let own = itself.then_some(path.as_slice());
            let hit = path::ancestors(&path).chain(own).find_map(|a| Some((a.len(), self.0.get(a)?)));
            let Some((len, target)) = hit else { return Ok(path) };
            path = [target, &path[len..]].concat();
        }
        Err(Error::LinkLoop(show(&path)))
    }
}

/// Where a path's content comes from while several packages still compete for it.
#[derive(Clone, Copy)]
struct Winner {
    package: usize,
    member: usize,
}

/// Lays the packages; returns the tree and notes for the report. `packages` must be sorted by name.
pub(crate) fn packages(
    packages: &[Package],
    accounts: &Accounts,
    mtime: u32,
) -> Result<(Tree, Vec<String>), Error> {
    let mut notes = Vec::new();
    let aliases = Aliases::find(packages)?;
    for (link, target) in &aliases.0 {
        notes.push(format!(
            "{}: a directory in one package, a link to {} in another: the link stays",
            show(link),
            show(target)
        ));
    }
    let mut winners: BTreeMap<Vec<u8>, Winner> = BTreeMap::new();
    for (index, package) in packages.iter().enumerate() {
        if package.diverts {
            notes.push(format!("package {}: its scripts use dpkg-divert, which is not run", package.name));
        }
        for (at, member) in package.members.iter().enumerate() {
            let path = aliases.follow(&member.path, member.kind == MemberKind::Dir)?;
            let new = Winner { package: index, member: at };
            match winners.entry(path) {
                btree_map::Entry::Vacant(slot) => {
                    slot.insert(new);
                }
                btree_map::Entry::Occupied(mut slot) => {
                    let old = *slot.get();
                    let winner = contest(slot.key(), packages, old, new, &mut notes)?;
                    slot.insert(winner);
                }
            }
        }
    }
    let mut tree = Tree::new(mtime);
    let mut layer = Layer { tree: &mut tree, accounts, mtime, origins: origins(packages) };
    layer.usr_links(packages)?;
    let mut links = Vec::new();
    for (path, winner) in &winners {
        let member = &packages[winner.package].members[winner.member];
        match &member.kind {
            MemberKind::HardLink(target) => links.push((path, aliases.follow(target, false)?, *winner)),
            _ => layer.place(path, member, winner.package)?,
        }
    }
    for (path, target, winner) in links {
        match winners.get(&target) {
            Some(other) if other.package == winner.package => {
                layer.parents(path)?;
                layer.tree.hard_link(path, &target).map_err(Error::Tree)?;
            }
            // The linked file lost its path to another package: this name keeps its own package's content.
            _ => layer.own_copy(path, &packages[winner.package], winner)?,
        }
    }
    Ok((tree, notes))
}

fn origins(packages: &[Package]) -> Vec<Arc<str>> {
    packages.iter().map(|p| Arc::from(format!("package {} {}", p.name, p.version))).collect()
}

/// Two packages ship one path: who wins, by dpkg's rules.
fn contest(
    path: &[u8],
    packages: &[Package],
    old: Winner,
    new: Winner,
    notes: &mut Vec<String>,
) -> Result<Winner, Error> {
    let (first, second) = (&packages[old.package], &packages[new.package]);
    let (a, b) = (&first.members[old.member], &second.members[new.member]);
    if a.kind == MemberKind::Dir && b.kind == MemberKind::Dir {
        // base-files owns the skeleton; else the first package by name. Differences are worth knowing.
        if (a.mode, &a.user, &a.group) != (b.mode, &b.user, &b.group) && path != b"/" {
            notes.push(format!(
                "{}: {} says {:o} {}:{}, {} says {:o} {}:{}",
                show(path),
                first.name,
                a.mode,
                a.user,
                a.group,
                second.name,
                b.mode,
                b.user,
                b.group
            ));
        }
        return Ok(if second.name == "base-files" { new } else { old });
    }
    // A directory gives way to a link of the same name (see Aliases); the alias was followed before.
    if matches!((&a.kind, &b.kind), (MemberKind::Symlink(_), MemberKind::Dir)) {
        return Ok(old);
    }
    if matches!((&a.kind, &b.kind), (MemberKind::Dir, MemberKind::Symlink(_))) {
        return Ok(new);
    }
    if first.name == second.name {
        return Err(Error::SamePath {
            path: show(path),
            first: first.name.clone(),
            second: second.name.clone(),
        });
    }
    let second_replaces = replaces(second, first);
    match (replaces(first, second), second_replaces) {
        (true, false) => Ok(old),
        (_, true) => Ok(new),
        (false, false) if a.kind == b.kind && a.mode == b.mode => Ok(old),
        (false, false) => {
            Err(Error::SamePath { path: show(path), first: first.name.clone(), second: second.name.clone() })
        }
    }
}

/// Whether `by` may take over files of `what`. The field was checked when the package was unpacked.
fn replaces(by: &Package, what: &Package) -> bool {
    let clauses = parse_relations(&by.replaces, &by.architecture).unwrap_or_default();
    clauses.iter().flat_map(|c| &c.alternatives).any(|alternative| {
        alternative.name == what.name && alternative.constraint.is_none_or(|c| c.accepts(&what.version))
    })
}

pub(crate) struct Layer<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) accounts: &'a Accounts,
    pub(crate) mtime: u32,
    pub(crate) origins: Vec<Arc<str>>,
}

impl Layer<'_> {
    /// The top-level links of merged /usr, for those that something lies below.
    fn usr_links(&mut self, packages: &[Package]) -> Result<(), Error> {
        let origin: Arc<str> = Arc::from("derived merged /usr");
        for name in USR_LINKS {
            let below = [b"/usr/", name.as_bytes()].concat();
            let used = packages.iter().flat_map(|p| &p.members).any(|m| m.path == below);
            if used || ["bin", "sbin", "lib", "lib64"].contains(&name) {
                let target = format!("usr/{name}").into_bytes();
                self.parents(&[&below[..], b"/x"].concat())?;
                self.put(
                    format!("/{name}").as_bytes(),
                    Kind::Symlink(target),
                    0o777,
                    (0, 0),
                    origin.clone(),
                )?;
            }
        }
        Ok(())
    }

    fn place(&mut self, path: &[u8], member: &Member, package: usize) -> Result<(), Error> {
        let kind = match &member.kind {
            MemberKind::Dir => Kind::Dir,
            MemberKind::File(data) => Kind::File(data.clone()),
            MemberKind::Symlink(target) => Kind::Symlink(target.clone()),
            MemberKind::Char(major, minor) => Kind::Char(*major, *minor),
            MemberKind::Block(major, minor) => Kind::Block(*major, *minor),
            MemberKind::Fifo => Kind::Fifo,
            MemberKind::HardLink(_) => return Ok(()),
        };
        self.insert(path, kind, member, package)
    }

    fn own_copy(&mut self, path: &[u8], package: &Package, winner: Winner) -> Result<(), Error> {
        let link = &package.members[winner.member];
        let MemberKind::HardLink(target) = &link.kind else { return Ok(()) };
        let data = package.members.iter().find_map(|m| match &m.kind {
            MemberKind::File(data) if m.path == *target => Some(data.clone()),
            _ => None,
        });
        let data = data.ok_or_else(|| Error::LinkLoop(show(path)))?;
        self.insert(path, Kind::File(data), link, winner.package)
    }

    fn insert(&mut self, path: &[u8], kind: Kind, member: &Member, package: usize) -> Result<(), Error> {
        self.parents(path)?;
        let meta = Meta {
            mode: member.mode,
            uid: self.accounts.uid(&member.user).unwrap_or(member.uid),
            gid: self.accounts.gid(&member.group).unwrap_or(member.gid),
            mtime: self.mtime,
            xattrs: member.xattrs.clone(),
        };
        let origin = self.origins[package].clone();
        self.tree.insert(path, Inode { meta, kind, origin }).map_err(Error::Tree)?;
        Ok(())
    }

    /// Puts a root-made inode at a path, making missing parents.
    pub(crate) fn put(
        &mut self,
        path: &[u8],
        kind: Kind,
        mode: u16,
        owner: (u32, u32),
        origin: Arc<str>,
    ) -> Result<(), Error> {
        self.parents(path)?;
        let meta = Meta { mode, uid: owner.0, gid: owner.1, mtime: self.mtime, xattrs: BTreeMap::new() };
        self.tree.insert(path, Inode { meta, kind, origin }).map_err(Error::Tree)?;
        Ok(())
    }

    /// Makes the directories above a path that no package ships.
    pub(crate) fn parents(&mut self, path: &[u8]) -> Result<(), Error> {
        if self.tree.get(parent(path)).is_some() {
            return Ok(());
        }
        for dir in path::ancestors(path) {
            if self.tree.get(dir).is_none() {
                let meta = Meta { mode: 0o755, mtime: self.mtime, ..Meta::default() };
                let inode = Inode { meta, kind: Kind::Dir, origin: Arc::from("derived parent directory") };
                self.tree.insert(dir, inode).map_err(Error::Tree)?;
            }
        }
        Ok(())
    }
}
