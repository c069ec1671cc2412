//! The EFI system partition of a node's disk: the image's files and the node's own beside them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use dyad_formats::fat::{self, Options, Timestamp, Volume};
use dyad_gpt::types;

use crate::error::{AtPath, Result, refuse};

/// What the files that the lab adds are called on the ESP.
pub(crate) const SITE_PATH: &str = "dyad/site.toml";

/// A rewritten ESP and where on the disk it goes.
pub(crate) struct Esp {
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    volume: fat::Image,
}

impl Esp {
    /// Reads the ESP of a disk image and puts `files` (path and content) in it, in the place of what is there by these names.
    pub(crate) fn with(image: &Path, files: &[(String, Bytes)]) -> Result<Self> {
        match read(image, files).at("read", image)? {
            Ok(esp) => Ok(esp),
            Err(why) => refuse(format!(
                "{}: cannot lay the site file on its EFI system partition: {why}; --no-site boots it without",
                image.display()
            )),
        }
    }

    /// Writes the ESP. The disk's bytes there must be zero.
    pub(crate) fn write(&self, disk: &File) -> io::Result<()> {
        self.volume.extents.iter().try_for_each(|(at, bytes)| disk.write_all_at(bytes, self.offset + at))
    }
}

/// The outer error is the system's, the inner one the image's.
fn read(image: &Path, files: &[(String, Bytes)]) -> io::Result<std::result::Result<Esp, String>> {
    let mut disk = File::open(image)?;
    let bytes = disk.metadata()?.len();
    let (offset, length) = match find(&mut disk, bytes) {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let part = Part { file: disk, offset, length, at: 0 };
    Ok(rebuild(part, files).map(|volume| Esp { offset, length, volume }).map_err(|e| e.to_string()))
}

fn find(disk: &mut File, bytes: u64) -> std::result::Result<(u64, u64), String> {
    let size = dyad_gpt::detect_sector_size(disk).map_err(|e| e.to_string())?;
    let size = size.ok_or("it has no partition table (GPT)")?;
    let table = dyad_gpt::read(disk, size, bytes).map_err(|e| e.to_string())?.table;
    let esp = table.partitions().iter().find(|(_, p)| p.type_guid == types::ESP).map(|(number, _)| *number);
    esp.and_then(|number| table.byte_range(number)).ok_or_else(|| "it has none".into())
}

fn rebuild(part: Part, added: &[(String, Bytes)]) -> std::result::Result<fat::Image, fat::Error> {
    let mut volume = Volume::open(part)?;
    let options = Options {
        sector_size: volume.sector_size,
        bytes: volume.bytes,
        volume_id: volume.volume_id,
        label: volume.label.clone(),
        timestamp: Timestamp::from_unix(0),
    };
    let mut files = added.to_vec();
    for entry in volume.entries()?.iter().filter(|e| !e.is_dir) {
        // FAT's names do not tell cases apart.
        if added.iter().all(|(path, _)| !path.eq_ignore_ascii_case(&entry.path)) {
            files.push((entry.path.clone(), Bytes::from(volume.read(entry)?)));
        }
    }
    fat::write(&options, &files)
}

/// A partition as a file of its own.
struct Part {
    file: File,
    offset: u64,
    length: u64,
    at: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let got = self.file.read_at(&mut buffer[..room], self.offset + self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
