//! Opening what a build made: disks (raw, qcow2) with their partitions, and the parts on their own.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dyad_formats::disk::qcow2;
use dyad_formats::tree::Tree;
use dyad_formats::{cpio, fat, tar, uki};
use dyad_gpt::{Found, Guid, types};

use crate::key::unhex;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Archives are read into memory; this bounds what a small hostile one may claim.
pub(crate) const ARCHIVE_BYTES_MAX: usize = 8 << 30;
/// Unified kernel images on an ESP are far smaller; this bounds what is read into memory.
const UKI_BYTES_MAX: u64 = 512 << 20;

/// Anything that can be read at any place.
pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek + ?Sized> ReadSeek for T {}

/// A range of a disk as a file of its own.
pub(crate) struct Window<'a> {
    disk: &'a mut dyn ReadSeek,
    start: u64,
    len: u64,
    at: u64,
    /// The disk stands where the next read starts: seeking would make a buffered reader forget its buffer.
    in_place: bool,
}

impl<'a> Window<'a> {
    pub(crate) fn new(disk: &'a mut dyn ReadSeek, (start, len): (u64, u64)) -> Self {
        Window { disk, start, len, at: 0, in_place: false }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at).min(buf.len() as u64) as usize;
        if left == 0 {
            return Ok(0);
        }
        if !self.in_place {
            self.disk.seek(SeekFrom::Start(self.start + self.at))?;
            self.in_place = true;
        }
        let got = self.disk.read(&mut buf[..left])?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let target =
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        self.in_place &= target == self.at;
        self.at = target;
        Ok(self.at)
    }
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A disk, byte for byte.
    RawDisk,
    /// A disk in qcow2.
    Qcow2Disk,
    /// A root file system.
    Squashfs,
    /// A PE program: a unified kernel image.
    Uki,
    /// An initrd: cpio, as it is or in zstd.
    Cpio,
    /// A tree as a tar archive.
    Tar,
}

/// An open file and what it is.
pub(crate) struct ImageFile {
    pub(crate) kind: Kind,
    pub(crate) reader: Box<dyn ReadSeek>,
    pub(crate) bytes: u64,
}

/// Opens a file and finds out what it is.
pub(crate) fn open(path: &Path) -> Result<ImageFile> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let bytes = file.metadata()?.len();
    let mut head = vec![0; 4096];
    let got = file.read(&mut head)?;
    head.truncate(got);
    file.seek(SeekFrom::Start(0))?;
    let kind = if head.starts_with(b"QFI\xfb") {
        let reader = qcow2::Reader::open(BufReader::new(file)).with_context(|| path.display().to_string())?;
        let bytes = reader.size;
        return Ok(ImageFile { kind: Kind::Qcow2Disk, reader: Box::new(reader), bytes });
    } else if head.starts_with(b"hsqs") {
        Kind::Squashfs
    } else if head.starts_with(b"MZ") {
        Kind::Uki
    } else if head.starts_with(b"070701") || head.starts_with(&ZSTD_MAGIC) {
        Kind::Cpio
    } else if head.get(257..262) == Some(b"ustar") {
        Kind::Tar
    } else if dyad_gpt::detect_sector_size(&mut file)?.is_some() || head.get(510..512) == Some(&[0x55, 0xaa])
    {
        Kind::RawDisk
    } else {
        bail!(
            "{} is none of what dyad makes: a raw disk (GPT), a qcow2 disk, a squashfs, a unified kernel \
             image, an initrd (cpio) or a tree (tar)",
            path.display()
        );
    };
    file.seek(SeekFrom::Start(0))?;
    Ok(ImageFile { kind, reader: Box::new(BufReader::new(file)), bytes })
}

/// A unified kernel image on an ESP.
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) sections: Vec<uki::Section>,
}

impl Entry {
    /// The text of a section.
    pub(crate) fn text(&self, section: &str) -> Option<String> {
        let found = self.sections.iter().find(|s| s.name == section)?;
        Some(String::from_utf8_lossy(&found.data).trim_end_matches(['\0', '\n']).to_owned())
    }

    /// The root hash on its command line.
    pub(crate) fn root_hash(&self) -> Option<[u8; 32]> {
        let line = self.text(".cmdline")?;
        unhex(line.split(' ').find_map(|word| word.strip_prefix("dyad.root="))?)
    }
}

/// A disk with its table read.
pub(crate) struct Disk {
    pub(crate) reader: Box<dyn ReadSeek>,
    pub(crate) found: Found,
}

impl Disk {
    /// Reads the partition table.
    pub(crate) fn read(mut file: ImageFile) -> Result<Self> {
        let sector = dyad_gpt::detect_sector_size(&mut file.reader)?.unwrap_or(512);
        let found = dyad_gpt::read(&mut file.reader, sector, file.bytes)?;
        Ok(Disk { reader: file.reader, found })
    }

    /// Bytes of the partition of this type and, if given, GUID: (number, (offset, length)).
    pub(crate) fn find(&self, type_guid: Guid, guid: Option<Guid>) -> Option<(u32, (u64, u64))> {
        let table = &self.found.table;
        let fits = |p: &dyad_gpt::Partition| p.type_guid == type_guid && guid.is_none_or(|g| p.guid == g);
        let number = *table.partitions().iter().find(|(_, p)| fits(p))?.0;
        Some((number, table.byte_range(number)?))
    }

    /// Files of the ESP, and the boot entries among them.
    pub(crate) fn esp(&mut self) -> Result<(Vec<fat::Entry>, Vec<Entry>)> {
        let (_, range) = self.find(types::ESP, None).context("the disk has no EFI system partition")?;
        let mut volume = fat::Volume::open(Window::new(&mut self.reader, range))?;
        let files = volume.entries()?;
        let mut entries = Vec::new();
        for file in &files {
            if file.path.starts_with("EFI/Linux/") && !file.is_dir {
                if u64::from(file.bytes) > UKI_BYTES_MAX {
                    bail!("{} has {} bytes, more than any kernel image", file.path, file.bytes);
                }
                let data = Bytes::from(volume.read(file)?);
                let sections = uki::sections(&data).with_context(|| file.path.clone())?;
                entries.push(Entry { path: file.path.clone(), sections });
            }
        }
        Ok((files, entries))
    }
}

/// The tree of an initrd or a tar archive. Of an initrd that is several archives, the first.
pub(crate) fn archive(kind: Kind, mut reader: impl Read) -> Result<Tree> {
    let mut data = Vec::new();
    reader.read_to_end(&mut data)?;
    if data.starts_with(&ZSTD_MAGIC) {
        data = dyad_formats::zstd_unframe(&data, ARCHIVE_BYTES_MAX)?;
    }
    let data = Bytes::from(data);
    Ok(if kind == Kind::Tar { tar::read(&data, "tar archive")? } else { cpio::read(&data, "initrd")? })
}

/// PARTUUIDs of the root and verity partitions of a root hash.
pub(crate) fn slot_guids(hash: &[u8; 32]) -> (Guid, Guid) {
    let half = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[at..at + 16]);
        Guid::from_text_order(bytes)
    };
    (half(0), half(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_file_of_its_own() {
        let mut disk = BufReader::with_capacity(16, io::Cursor::new((0..100u8).collect::<Vec<u8>>()));
        let mut window = Window::new(&mut disk, (10, 50));
        let mut all = Vec::new();
        window.read_to_end(&mut all).unwrap();
        assert_eq!(all, (10..60).collect::<Vec<u8>>());
        assert_eq!(window.read(&mut [0; 4]).unwrap(), 0, "the end of the window is the end of the file");
        let mut two = [0; 2];
        for (to, expected) in
            [(SeekFrom::End(-2), [58, 59]), (SeekFrom::Start(3), [13, 14]), (SeekFrom::Current(1), [16, 17])]
        {
            window.seek(to).unwrap();
            window.read_exact(&mut two).unwrap();
            assert_eq!(two, expected, "{to:?}");
        }
        for to in [SeekFrom::Start(u64::MAX), SeekFrom::End(0), SeekFrom::Start(50)] {
            window.seek(to).unwrap();
            assert_eq!(window.read(&mut two).unwrap(), 0, "{to:?}");
        }
        assert!(window.seek(SeekFrom::End(-51)).is_err());
        window.seek(SeekFrom::Start(49)).unwrap();
        assert_eq!(window.read(&mut two).unwrap(), 1, "a read ends at the window's end");
    }

    #[test]
    fn only_sixty_four_hex_digits_are_a_root_hash() {
        let hex = "00ff".repeat(16);
        assert_eq!(unhex::<32>(&hex).unwrap()[..3], [0, 255, 0]);
        for bad in [
            &hex[1..],
            &format!("{hex}0"),
            &hex.replace('f', "g"),
            &hex.replace("0f", "+f"),
            &"\u{e9}".repeat(32),
        ] {
            assert_eq!(unhex::<32>(bad), None, "{bad}");
        }
    }
}
