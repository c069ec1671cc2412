//! `dyad verify`: every checksum, hash and structure of an image, from the partition table to the last block.

use std::path::Path;

use anyhow::{Context, Result, bail};
use dyad_formats::{squashfs, uki, verity};
use dyad_gpt::types;

use crate::image::{self, Disk, Entry, Kind, Window, slot_guids};
use crate::{canonical, record};

/// Checks the root of a boot entry block by block, and that its blocks decode.
fn slot(disk: &mut Disk, entry: &Entry) -> Result<(String, verity::Superblock)> {
    let hash =
        entry.root_hash().with_context(|| format!("{}: no dyad.root= on its command line", entry.path))?;
    let (root_guid, verity_guid) = slot_guids(&hash);
    let (number, root) = disk
        .find(types::ROOT_X86_64, Some(root_guid))
        .with_context(|| format!("{}: no root partition has PARTUUID {root_guid}", entry.path))?;
    let (_, hashes) = disk
        .find(types::ROOT_X86_64_VERITY, Some(verity_guid))
        .with_context(|| format!("{}: no verity partition has PARTUUID {verity_guid}", entry.path))?;
    // The two windows are read in turn from one reader: the hash tree is small, so it is taken into memory.
    let mut tree = Vec::new();
    std::io::Read::read_to_end(&mut Window::new(&mut disk.reader, hashes), &mut tree)?;
    let superblock =
        verity::verify(&mut Window::new(&mut disk.reader, root), &mut std::io::Cursor::new(tree), &hash)
            .with_context(|| format!("partition {number}"))?;
    let mut root = squashfs::Reader::open(Window::new(&mut disk.reader, root))?;
    let entries = root.verify().with_context(|| format!("partition {number}"))?;
    let text = format!(
        "{}: root hash {}, {} blocks of 4096 bytes, {} paths",
        entry.path,
        verity::hex(&hash),
        superblock.data_blocks,
        entries.len()
    );
    Ok((text, superblock))
}

fn disk(path: &Path, file: image::ImageFile) -> Result<()> {
    let kind = file.kind;
    let mut disk = Disk::read(file)?;
    if !disk.found.is_good() {
        bail!("partition table: primary copy {}, backup copy {}", disk.found.primary, disk.found.backup);
    }
    println!("partition table: {} partitions, both copies agree", disk.found.table.partitions().len());
    let (files, entries) = disk.esp()?;
    println!("EFI system partition: {} files and directories", files.len());
    if entries.is_empty() {
        bail!("the EFI system partition has no boot entry below EFI/Linux");
    }
    let mut superblocks = Vec::new();
    for entry in &entries {
        let (text, superblock) = slot(&mut disk, entry)?;
        println!("{text}");
        superblocks.push(superblock);
    }
    match (&entries[..], &superblocks[..]) {
        ([entry], [superblock]) if canonical::is_fresh(&disk) => {
            canonical::check(path, kind, &mut disk, entry, superblock)?;
            println!("every other byte: as dyad writes it");
        }
        _ => println!("this disk was booted: what lies outside of tables and roots is not compared"),
    }
    Ok(())
}

/// Checks a file; every kind of damage is an error that says where.
pub(crate) fn run(path: &Path, key: Option<&Path>) -> Result<()> {
    let mut file = image::open(path)?;
    match file.kind {
        Kind::RawDisk | Kind::Qcow2Disk => disk(path, file)?,
        Kind::Squashfs => {
            let entries = squashfs::Reader::open(&mut file.reader)?.verify()?;
            println!(
                "squashfs: {} paths; without its hash tree nothing says that they are the right ones",
                entries.len()
            );
        }
        Kind::Uki => {
            let mut data = Vec::new();
            file.reader.read_to_end(&mut data)?;
            let list = uki::sections(&data.into())?;
            println!("unified kernel image: {} sections", list.len());
        }
        Kind::Cpio | Kind::Tar => {
            let tree = image::archive(file.kind, file.reader)?;
            println!("archive: {} paths; of their content it has no checksums", tree.len());
        }
    }
    if let Some(text) = record::check(path, key)? {
        println!("{text}");
    }
    println!("{}: good", path.display());
    Ok(())
}
