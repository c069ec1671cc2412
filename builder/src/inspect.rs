//! `dyad inspect`: what is in an image.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use dyad_formats::squashfs::{self, EntryKind};
use dyad_formats::tree::{self, Tree};
use dyad_formats::{uki, verity};
use dyad_gpt::types;
use serde_json::{Value, json};

use crate::cli::InspectArgs;
use crate::image::{self, Disk, Entry, ImageFile, Kind, Window};
use crate::manifest::Manifest;

/// Packages listed by `--size`.
const SIZE_LINES: usize = 40;

fn sections(list: &[uki::Section]) -> Value {
    list.iter().map(|s| json!({"name": s.name, "address": s.address, "bytes": s.data.len()})).collect()
}

fn root_facts(reader: &mut squashfs::Reader<impl std::io::Read + std::io::Seek>) -> Result<Value> {
    let entries = reader.entries().context("reading the root")?;
    let count = |wanted: fn(&EntryKind) -> bool| entries.iter().filter(|e| wanted(&e.kind)).count();
    Ok(json!({
        "bytes": reader.bytes_used(),
        "block_bytes": reader.block_bytes(),
        "paths": entries.len(),
        "files": count(|k| matches!(k, EntryKind::File(_))),
        "directories": count(|k| matches!(k, EntryKind::Dir)),
        "links": count(|k| matches!(k, EntryKind::Symlink(_))),
    }))
}

fn disk_facts(disk: &mut Disk) -> Result<Value> {
    let table = disk.found.table.clone();
    let partitions: Vec<Value> = table
        .partitions()
        .iter()
        .map(|(number, p)| {
            let (offset, bytes) = table.byte_range(*number).unwrap_or_default();
            json!({
                "number": number, "name": p.name, "type": p.type_guid.to_string(), "partuuid": p.guid.to_string(),
                "offset": offset, "bytes": bytes,
            })
        })
        .collect();
    let (files, entries) = disk.esp()?;
    let esp: Vec<Value> =
        files.iter().filter(|f| !f.is_dir).map(|f| json!({"path": f.path, "bytes": f.bytes})).collect();
    let boot: Vec<Value> = entries
        .iter()
        .map(|e| {
            json!({
                "path": e.path, "command_line": e.text(".cmdline"), "kernel": e.text(".uname"),
                "sections": sections(&e.sections),
            })
        })
        .collect();
    let mut root = Value::Null;
    if let Some((_, range)) = disk.find(types::ROOT_X86_64, None) {
        root = root_facts(&mut squashfs::Reader::open(Window::new(&mut disk.reader, range))?)?;
    }
    Ok(json!({
        "kind": "disk",
        "sector_size": table.sector_size(),
        "disk_bytes": table.disk_sectors() * u64::from(table.sector_size()),
        "table": {"primary": disk.found.primary.to_string(), "backup": disk.found.backup.to_string()},
        "partitions": partitions,
        "esp": esp,
        "boot": boot,
        "root": root,
    }))
}

fn archive_facts(tree: &Tree, kind: Kind) -> Value {
    let sum = |wanted: fn(&tree::Kind) -> bool| tree.iter().filter(|(_, _, i)| wanted(&i.kind)).count();
    let bytes = |kind: &tree::Kind| if let tree::Kind::File(data) = kind { data.len() } else { 0 };
    json!({
        "kind": if kind == Kind::Tar { "tar" } else { "cpio" },
        "paths": tree.len(),
        "files": sum(|k| matches!(k, tree::Kind::File(_))),
        "directories": sum(|k| matches!(k, tree::Kind::Dir)),
        "links": sum(|k| matches!(k, tree::Kind::Symlink(_))),
        "bytes": tree.iter().map(|(_, _, i)| bytes(&i.kind)).sum::<usize>(),
    })
}

fn facts(mut file: ImageFile) -> Result<Value> {
    match file.kind {
        Kind::RawDisk | Kind::Qcow2Disk => disk_facts(&mut Disk::read(file)?),
        Kind::Squashfs => Ok(
            json!({"kind": "squashfs", "root": root_facts(&mut squashfs::Reader::open(&mut file.reader)?)?}),
        ),
        Kind::Cpio | Kind::Tar => Ok(archive_facts(&image::archive(file.kind, file.reader)?, file.kind)),
        Kind::Uki => {
            let mut data = Vec::new();
            file.reader.read_to_end(&mut data)?;
            let list = uki::sections(&data.into())?;
            let entry = Entry { path: String::new(), sections: list };
            Ok(
                json!({"kind": "uki", "command_line": entry.text(".cmdline"), "sections": sections(&entry.sections)}),
            )
        }
    }
}

/// Indented text of a value: one fact a line.
fn print(value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Object(_) | Value::Array(_) => {
                        println!("{pad}{key}:");
                        print(value, indent + 2);
                    }
                    Value::String(text) => println!("{pad}{key}: {text}"),
                    Value::Null | Value::Bool(_) | Value::Number(_) => println!("{pad}{key}: {value}"),
                }
            }
        }
        Value::Array(list) => {
            for item in list {
                match item {
                    Value::Object(map) => {
                        let words: Vec<String> = map
                            .iter()
                            .filter(|(_, v)| !v.is_array() && !v.is_object())
                            .map(|(k, v)| {
                                format!("{k} {}", v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                            })
                            .collect();
                        println!("{pad}- {}", words.join(", "));
                    }
                    Value::Array(_) | Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {
                        println!("{pad}- {item}");
                    }
                }
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => println!("{pad}{value}"),
    }
}

/// The root hash that an image boots, where it is a disk.
fn root_hash(path: &Path) -> Result<Option<String>> {
    let file = image::open(path)?;
    Ok(match file.kind {
        Kind::RawDisk | Kind::Qcow2Disk => {
            let (_, entries) = Disk::read(file)?.esp()?;
            entries.first().and_then(Entry::root_hash).map(|hash| verity::hex(&hash))
        }
        Kind::Squashfs | Kind::Uki | Kind::Cpio | Kind::Tar => None,
    })
}

fn why(path: &Path, wanted: &str) -> Result<()> {
    let manifest = Manifest::read(path, root_hash(path)?.as_deref())?;
    let steps = manifest
        .why(wanted)
        .with_context(|| format!("{wanted} is not in the image, and no package shipped it"))?;
    for (depth, step) in steps.iter().enumerate() {
        println!("{}{step}", "  ".repeat(depth));
    }
    Ok(())
}

/// Bytes that each package and overlay puts into the root, and what pruning saved.
fn size(path: &Path) -> Result<()> {
    let manifest = Manifest::read(path, root_hash(path)?.as_deref())?;
    let file = image::open(path)?;
    let (Kind::RawDisk | Kind::Qcow2Disk) = file.kind else { bail!("--size needs a disk image") };
    let mut disk = Disk::read(file)?;
    let (_, range) = disk.find(types::ROOT_X86_64, None).context("the disk has no root partition")?;
    let mut root = squashfs::Reader::open(Window::new(&mut disk.reader, range))?;
    let mut kept: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for entry in root.entries()? {
        let EntryKind::File(blocks) = &entry.kind else { continue };
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let Some(origin) = manifest.origins.get(&path) else { continue };
        let slot = kept.entry(origin).or_default();
        *slot = (slot.0 + 1, slot.1 + blocks.bytes, slot.2 + blocks.stored_bytes());
    }
    let mut rows: Vec<_> = kept.into_iter().collect();
    rows.sort_by_key(|(_, (_, bytes, stored))| std::cmp::Reverse((*stored, *bytes)));
    println!("{:>8} {:>12} {:>12}  origin", "files", "bytes", "in blocks");
    for (origin, (files, bytes, stored)) in rows.iter().take(SIZE_LINES) {
        println!("{files:>8} {bytes:>12} {stored:>12}  {origin}");
    }
    println!("(small files and tails share fragments, which are not counted above)");
    let mut dropped: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for path in &manifest.dropped {
        let slot = dropped.entry(&path.rule).or_default();
        *slot = (slot.0 + 1, slot.1 + path.bytes);
    }
    let mut rows: Vec<_> = dropped.into_iter().collect();
    rows.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    println!("\n{:>8} {:>12}  left out by", "paths", "bytes");
    for (rule, (paths, bytes)) in rows.iter().take(SIZE_LINES) {
        println!("{paths:>8} {bytes:>12}  {rule}");
    }
    Ok(())
}

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    if let Some(path) = &args.why {
        return why(&args.file, path);
    }
    if args.size {
        return size(&args.file);
    }
    let value = facts(image::open(&args.file)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print(&value, 0);
    }
    Ok(())
}
