//! A disk as `dyad build` would have written it, put together from what is on the disk: every byte that differs is damage.
//!
//! Checksums cover the partition tables, the root and what the list on the ESP names. Everything else on a fresh disk
//! follows from those: file allocation tables, directories, padding, unused sectors, and the tables of a qcow2 file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dyad_formats::disk::{self, DiskImage, Input, qcow2};
use dyad_formats::{fat, squashfs, verity};
use dyad_gpt::types;
use sha2::{Digest, Sha256};

use crate::emit;
use crate::image::{self, Disk, Entry, ImageFile, Kind, Window, slot_guids};

/// Bytes compared in one go.
const CHUNK_BYTES: u64 = 4 << 20;
/// Partitions of a disk that was never booted.
const FRESH_PARTITIONS: usize = 3;

/// Whether a disk is as it was built: first boot adds partitions and counts on the ESP.
pub(crate) fn is_fresh(disk: &Disk) -> bool {
    disk.found.table.partitions().len() == FRESH_PARTITIONS
}

/// The files of the ESP against their list.
fn check_sums(files: &[(String, Bytes)]) -> Result<()> {
    let (_, list) = files
        .iter()
        .find(|(path, _)| path == emit::SUMS_PATH)
        .with_context(|| format!("the EFI system partition has no {}", emit::SUMS_PATH))?;
    let found = emit::sums(files);
    if *list == found {
        return Ok(());
    }
    let said = String::from_utf8_lossy(list);
    let odd = String::from_utf8_lossy(&found)
        .lines()
        .find(|line| !said.lines().any(|l| l == *line))
        .map(str::to_owned);
    let odd = odd.as_deref().and_then(|line| line.get(66..)).unwrap_or("a file that is gone").to_owned();
    bail!("EFI system partition: {odd} is not what {} says", emit::SUMS_PATH)
}

/// Where root and hash tree are, and how much of them is used.
struct Places {
    root: (u64, u64),
    hashes: (u64, u64),
    root_bytes: u64,
    hash_bytes: u64,
}

fn places(disk: &Disk, hash: &[u8; 32], superblock: &verity::Superblock) -> Result<Places> {
    let (root_guid, verity_guid) = slot_guids(hash);
    let (_, root) = disk.find(types::ROOT_X86_64, Some(root_guid)).context("the root partition is gone")?;
    let (_, hashes) =
        disk.find(types::ROOT_X86_64_VERITY, Some(verity_guid)).context("the verity partition is gone")?;
    let root_bytes = superblock.data_blocks * verity::BLOCK_BYTES as u64;
    Ok(Places { root, hashes, root_bytes, hash_bytes: superblock.hash_bytes() })
}

/// The superblock has fields that no hash covers: they follow from the content.
fn check_superblock(disk: &mut Disk, places: &Places) -> Result<()> {
    let mut content = Sha256::new();
    let mut root = Window::new(&mut disk.reader, (places.root.0, places.root_bytes));
    let mut buffer = vec![0; 1 << 20];
    loop {
        match root.read(&mut buffer)? {
            0 => break,
            got => content.update(&buffer[..got]),
        }
    }
    let (salt, uuid) = emit::verity_identity(&content.finalize().into());
    let data_blocks = places.root_bytes / verity::BLOCK_BYTES as u64;
    let wanted = verity::Superblock { uuid, data_blocks, salt: salt.to_vec() }.encode()?;
    let mut found = [0; verity::BLOCK_BYTES];
    Window::new(&mut disk.reader, places.hashes).read_exact(&mut found)?;
    if let Some(at) = found.iter().zip(&wanted).position(|(a, b)| a != b) {
        bail!("superblock of the hash tree: byte {at} is not what the root's content makes it");
    }
    Ok(())
}

/// The disk that the parts of this one make.
fn expected(disk: &mut Disk, entry: &Entry, hash: &[u8; 32], places: &Places) -> Result<DiskImage> {
    let (_, esp) = disk.find(types::ESP, None).context("the disk has no EFI system partition")?;
    let sector_size = disk.found.table.sector_size();
    let files = fat::Volume::open(Window::new(&mut disk.reader, esp))?.files()?;
    check_sums(&files)?;
    let mut root = squashfs::Reader::open(Window::new(&mut disk.reader, places.root))?;
    let time = root.entries()?.first().map_or(0, |top| top.meta.mtime);
    let line = entry.text(".cmdline").unwrap_or_default();
    let label = line.split(' ').find_map(|word| word.strip_prefix("dyad.image="));
    let label = label.with_context(|| format!("{}: no dyad.image= on its command line", entry.path))?;
    let volume = emit::esp_volume((sector_size, esp.1, time), hash, &files)?;
    let slots = [places.root.1, places.hashes.1];
    let content = [places.root_bytes, places.hash_bytes];
    Ok(disk::layout(&emit::layout((sector_size, label), hash, volume, slots, content))?.0)
}

/// Root and hash tree of an image file as inputs of the disk that is put together.
fn inputs(path: &Path, places: &Places) -> Result<[Part; 2]> {
    let part = |start, len| -> Result<Part> { Ok(Part { file: image::open(path)?, start, len, at: 0 }) };
    Ok([part(places.root.0, places.root_bytes)?, part(places.hashes.0, places.hash_bytes)?])
}

/// A range of an image file with a handle of its own.
struct Part {
    file: ImageFile,
    start: u64,
    len: u64,
    at: u64,
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut window = Window::new(&mut self.file.reader, (self.start, self.len));
        window.seek(SeekFrom::Start(self.at))?;
        let got = window.read(buf)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Which part of a disk a byte lies in.
pub(crate) fn region(disk: &Disk, at: u64) -> String {
    let table = &disk.found.table;
    let within = table.partitions().iter().find_map(|(number, p)| {
        let (start, len) = table.byte_range(*number)?;
        (start..start + len).contains(&at).then(|| format!("partition {number}, {}", p.name))
    });
    let first =
        table.partitions().keys().filter_map(|n| table.byte_range(*n)).map(|r| r.0).min().unwrap_or(0);
    within.unwrap_or_else(|| {
        let text = if at < first { "primary partition table" } else { "backup partition table" };
        text.to_owned()
    })
}

/// Compares a fresh disk, and the qcow2 file around it, with what its parts make. `entry` is its boot entry, `superblock`
/// that of the checked hash tree.
pub(crate) fn check(
    path: &Path,
    kind: Kind,
    disk: &mut Disk,
    entry: &Entry,
    superblock: &verity::Superblock,
) -> Result<()> {
    let hash = entry.root_hash().context("no dyad.root= on the command line")?;
    let places = places(disk, &hash, superblock)?;
    check_superblock(disk, &places)?;
    let image = expected(disk, entry, &hash, &places)?;
    let [mut root, mut hashes] = inputs(path, &places)?;
    let mut inputs: [&mut dyn Input; 2] = [&mut root, &mut hashes];
    let bytes = disk.reader.seek(SeekFrom::End(0))?;
    if bytes != image.size() {
        bail!("the disk has {bytes} bytes, its parts make one of {}", image.size());
    }
    let (mut wanted, mut found) = (vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]);
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(CHUNK_BYTES) as usize;
        image.read_at(&mut inputs, at, &mut wanted[..len])?;
        Window::new(&mut disk.reader, (at, len as u64)).read_exact(&mut found[..len])?;
        if wanted[..len] != found[..len] {
            let first = wanted.iter().zip(&found).position(|(a, b)| a != b).unwrap_or(0) as u64;
            bail!("byte {} ({}) is not what dyad writes there", at + first, region(disk, at + first));
        }
        at += len as u64;
    }
    if kind == Kind::Qcow2Disk {
        check_qcow2(path, &image, &mut inputs)?;
    }
    Ok(())
}

fn check_qcow2(path: &Path, image: &DiskImage, inputs: &mut [&mut dyn Input]) -> Result<()> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let zstd = qcow2::Reader::open(BufReader::new(file.try_clone()?))?.zstd;
    let clusters = if zstd { emit::QCOW2_CLUSTERS } else { qcow2::Clusters::Plain };
    let mut same = Same { file: BufReader::with_capacity(1 << 20, file), at: 0, differs: None };
    same.rewind()?;
    let wanted = qcow2::write(image, inputs, clusters, &mut same)?;
    match same.differs {
        Some(at) => bail!(
            "byte {at} of the qcow2 file is not what this dyad writes for its disk: damage, or another version"
        ),
        None if wanted != bytes => bail!("the qcow2 file has {bytes} bytes, its disk makes one of {wanted}"),
        None => Ok(()),
    }
}

/// Takes what is written as a claim about a file, and remembers the first that is wrong.
struct Same {
    file: BufReader<File>,
    at: u64,
    differs: Option<u64>,
}

impl Write for Same {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut found = vec![0; data.len()];
        let mut got = 0;
        while got < found.len() {
            match self.file.read(&mut found[got..])? {
                0 => break,
                n => got += n,
            }
        }
        let equal = found[..got].iter().zip(data).take_while(|(a, b)| a == b).count();
        if equal < data.len() {
            let at = self.at + equal as u64;
            self.differs = Some(self.differs.map_or(at, |first| first.min(at)));
        }
        self.at += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Same {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
