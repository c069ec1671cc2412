//! `dyad diff`: how two disk images differ, from packages over files down to every block of 4096 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dyad_formats::squashfs::{self, EntryKind};
use dyad_formats::tree::{Inode, Kind as Node, Tree};
use dyad_formats::{cpio, fat};
use dyad_gpt::types;
use serde::Serialize;

use crate::canonical::region;
use crate::image::{self, ARCHIVE_BYTES_MAX, Disk, Entry, Kind, Window};
use crate::manifest::Manifest;

/// Differences are counted in blocks of this size, that of dm-verity.
const BLOCK_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 4 << 20;
/// List of the packages in a root.
const PACKAGES: &[u8] = b"/usr/lib/dyad/packages.json";

/// What changed about something, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Change {
    /// Package name, path or section.
    what: String,
    /// `added`, `removed`, or what is different.
    how: String,
    /// Who put it there, where the manifest beside the image says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

/// Bytes in blocks that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Changed {
    /// Part of the disk.
    region: String,
    bytes: u64,
}

/// Everything that is different between two images.
#[derive(Debug, Serialize)]
struct Report {
    packages: Vec<Change>,
    root: Vec<Change>,
    boot: Vec<Change>,
    esp: Vec<Change>,
    regions: Vec<Changed>,
}

/// One of the two.
struct Side {
    disk: Disk,
    entry: Entry,
    esp: Vec<(String, Bytes)>,
    root: Tree,
    /// (start, end, path) on the disk of every file's own blocks, sorted.
    files: Vec<(u64, u64, Vec<u8>)>,
    root_start: u64,
    origins: BTreeMap<String, String>,
}

impl Side {
    fn read(path: &Path) -> Result<Self> {
        let file = image::open(path)?;
        if !matches!(file.kind, Kind::RawDisk | Kind::Qcow2Disk) {
            bail!("{}: disk images are compared (raw, qcow2)", path.display());
        }
        let mut disk = Disk::read(file).with_context(|| path.display().to_string())?;
        let (_, entries) = disk.esp().with_context(|| path.display().to_string())?;
        let entry = entries.into_iter().next();
        let entry = entry.with_context(|| format!("{} has no boot entry below EFI/Linux", path.display()))?;
        let (_, range) = disk.find(types::ESP, None).context("the disk has no EFI system partition")?;
        let esp = fat::Volume::open(Window::new(&mut disk.reader, range))?.files()?;
        let (_, range) = disk
            .find(types::ROOT_X86_64, None)
            .with_context(|| format!("{} has no root partition", path.display()))?;
        let mut reader = squashfs::Reader::open(Window::new(&mut disk.reader, range))?;
        let mut files = Vec::new();
        for entry in reader.entries()? {
            if let EntryKind::File(blocks) = &entry.kind {
                let start = range.0 + blocks.start();
                if blocks.stored_bytes() > 0 {
                    files.push((start, start + blocks.stored_bytes(), entry.path));
                }
            }
        }
        files.sort();
        let root =
            reader.tree("root", ARCHIVE_BYTES_MAX as u64).with_context(|| path.display().to_string())?;
        // Without the manifest the differences are the same, only nobody is named.
        let origins = Manifest::read(path, None).map(|m| m.origins).unwrap_or_default();
        Ok(Side { disk, entry, esp, root, files, root_start: range.0, origins })
    }

    fn origin(&self, path: &str) -> Option<String> {
        self.origins.get(path).cloned()
    }

    /// The file that has a block of its own at a place of the disk.
    fn file_at(&self, at: u64) -> Option<&[u8]> {
        let end = at + BLOCK_BYTES as u64;
        let first = self.files.partition_point(|(_, file_end, _)| *file_end <= at);
        self.files.get(first).filter(|(start, ..)| *start < end).map(|(.., path)| path.as_slice())
    }
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Package name -> version.
fn packages(root: &Tree) -> BTreeMap<String, String> {
    let Some(Node::File(list)) = root.get(PACKAGES).map(|i| &i.kind) else { return BTreeMap::new() };
    let list: Vec<serde_json::Value> = serde_json::from_slice(list).unwrap_or_default();
    let field = |p: &serde_json::Value, name: &str| p[name].as_str().unwrap_or_default().to_owned();
    list.iter().map(|p| (field(p, "name"), field(p, "version"))).collect()
}

/// Compares two maps key by key.
fn compare<V>(
    old: &BTreeMap<String, V>,
    new: &BTreeMap<String, V>,
    how: impl Fn(&V, &V) -> Option<String>,
) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let one = |name: &String| {
        let how = match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => how(old, new)?,
            (None, _) => "added".to_owned(),
            (_, None) => "removed".to_owned(),
        };
        Some(Change { what: name.clone(), how, origin: None })
    };
    names.into_iter().filter_map(one).collect()
}

/// What is different about two inodes of one path.
fn inode_change(old: &Inode, new: &Inode) -> Option<String> {
    let mut parts = Vec::new();
    match (&old.kind, &new.kind) {
        (Node::File(a), Node::File(b)) if a != b => {
            parts.push(format!("content ({} -> {} bytes)", a.len(), b.len()))
        }
        (Node::Symlink(a), Node::Symlink(b)) if a != b => {
            parts.push(format!("target {} -> {}", text(a), text(b)))
        }
        (a, b) if std::mem::discriminant(a) != std::mem::discriminant(b) => parts.push("type".to_owned()),
        (a, b) if a != b => parts.push("device numbers".to_owned()),
        _ => {}
    }
    let (a, b) = (&old.meta, &new.meta);
    if a.mode != b.mode {
        parts.push(format!("mode {:o} -> {:o}", a.mode, b.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        parts.push(format!("owner {}:{} -> {}:{}", a.uid, a.gid, b.uid, b.gid));
    }
    if a.mtime != b.mtime {
        parts.push(format!("time {} -> {}", a.mtime, b.mtime));
    }
    if a.xattrs != b.xattrs {
        parts.push("extended attributes".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn by_path(tree: &Tree) -> BTreeMap<String, &Inode> {
    tree.iter().map(|(path, _, inode)| (text(path), inode)).collect()
}

fn initrd(entry: &Entry) -> Result<Tree> {
    let section = entry.sections.iter().find(|s| s.name == ".initrd").context("no .initrd section")?;
    let archive = dyad_formats::zstd_unframe(&section.data, ARCHIVE_BYTES_MAX)?;
    Ok(cpio::read(&archive.into(), "initrd")?)
}

/// Sections of the kernel image, and the files in its initrd.
fn boot(old: &Entry, new: &Entry) -> Result<Vec<Change>> {
    let sections = |entry: &Entry| -> BTreeMap<String, Bytes> {
        entry.sections.iter().map(|s| (s.name.clone(), s.data.clone())).collect()
    };
    let mut changes = compare(&sections(old), &sections(new), |a, b| {
        let short = a.len() < 4096 && b.len() < 4096;
        match (std::str::from_utf8(a), std::str::from_utf8(b)) {
            _ if a == b => None,
            (Ok(a), Ok(b)) if short => Some(format!("{:?} -> {:?}", a.trim_end(), b.trim_end())),
            _ => Some(format!("content ({} -> {} bytes)", a.len(), b.len())),
        }
    });
    if changes.iter().any(|c| c.what == ".initrd") {
        let (old, new) = (initrd(old)?, initrd(new)?);
        let files = compare(&by_path(&old), &by_path(&new), |a, b| inode_change(a, b));
        changes.extend(files.into_iter().map(|c| Change { what: format!(".initrd {}", c.what), ..c }));
    }
    Ok(changes)
}

/// Compares the disks block by block and says of each block that differs what it holds in the new image.
fn regions(old: &mut Side, new: &mut Side, changed: &BTreeSet<String>) -> Result<Vec<Changed>> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    let size = |disk: &mut Disk| disk.reader.seek(std::io::SeekFrom::End(0));
    let (old_bytes, new_bytes) = (size(&mut old.disk)?, size(&mut new.disk)?);
    let (mut a, mut b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < new_bytes.max(old_bytes) {
        let fill = |disk: &mut Disk, bytes: u64, buffer: &mut [u8]| -> Result<()> {
            let len = bytes.saturating_sub(at).min(CHUNK_BYTES as u64);
            buffer.fill(0);
            Window::new(&mut disk.reader, (at, len)).read_exact(&mut buffer[..len as usize])?;
            Ok(())
        };
        fill(&mut old.disk, old_bytes, &mut a)?;
        fill(&mut new.disk, new_bytes, &mut b)?;
        if a != b {
            for (index, (x, y)) in a.chunks(BLOCK_BYTES).zip(b.chunks(BLOCK_BYTES)).enumerate() {
                if x != y {
                    let place = at + (index * BLOCK_BYTES) as u64;
                    *sums.entry(meaning(old, new, changed, place)).or_default() += BLOCK_BYTES as u64;
                }
            }
        }
        at += CHUNK_BYTES as u64;
    }
    let mut rows: Vec<Changed> = sums.into_iter().map(|(region, bytes)| Changed { region, bytes }).collect();
    rows.sort_by(|x, y| {
        (std::cmp::Reverse(x.bytes), &x.region).cmp(&(std::cmp::Reverse(y.bytes), &y.region))
    });
    Ok(rows)
}

/// What a block of the new disk holds; where the new root has ended, what the old one had there.
fn meaning(old: &Side, new: &Side, changed: &BTreeSet<String>, at: u64) -> String {
    let part = region(&new.disk, at);
    if at < new.root_start || !part.starts_with("partition 2,") {
        return part;
    }
    for side in [new, old] {
        let Some(path) = side.file_at(at) else { continue };
        let path = text(path);
        let who = side.origin(&path).unwrap_or_else(|| path.clone());
        return match changed.contains(&path) {
            true => format!("{part}: changed files of {who}"),
            false => format!("{part}: unchanged files at another place"),
        };
    }
    format!("{part}: small files, tables and what was there before")
}

fn show(title: &str, changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    println!("{title}:");
    for change in changes {
        let origin = change.origin.as_ref().map(|o| format!("  ({o})")).unwrap_or_default();
        println!("  {}: {}{origin}", change.what, change.how);
    }
}

/// Runs the command.
pub(crate) fn run(old: &Path, new: &Path, json: bool) -> Result<()> {
    let (mut old, mut new) = (Side::read(old)?, Side::read(new)?);
    let versions = |a: &String, b: &String| (a != b).then(|| format!("{a} -> {b}"));
    let packages = compare(&packages(&old.root), &packages(&new.root), versions);
    let mut root = compare(&by_path(&old.root), &by_path(&new.root), |a, b| inode_change(a, b));
    for change in &mut root {
        change.origin = new.origin(&change.what).or_else(|| old.origin(&change.what));
    }
    let files = |side: &Side| -> BTreeMap<String, Bytes> { side.esp.iter().cloned().collect() };
    let content =
        |a: &Bytes, b: &Bytes| (a != b).then(|| format!("content ({} -> {} bytes)", a.len(), b.len()));
    let changed = root.iter().map(|c| c.what.clone()).collect();
    let report = Report {
        packages,
        boot: boot(&old.entry, &new.entry)?,
        esp: compare(&files(&old), &files(&new), content),
        regions: regions(&mut old, &mut new, &changed)?,
        root,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    if report.regions.is_empty() {
        println!("the disks are the same, byte for byte");
        return Ok(());
    }
    show("packages", &report.packages);
    show("root", &report.root);
    show("kernel image", &report.boot);
    show("EFI system partition", &report.esp);
    println!("blocks of {BLOCK_BYTES} bytes that differ:");
    for row in &report.regions {
        println!("  {:>12} bytes  {}", row.bytes, row.region);
    }
    Ok(())
}
