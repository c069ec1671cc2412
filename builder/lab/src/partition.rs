//! A partition of a disk image as a file of its own.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use dyad_gpt::Guid;

/// The first partition of some type.
pub(crate) struct Part {
    file: File,
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    at: u64,
}

impl Part {
    /// Finds it. The outer error is the system's, the inner one the image's.
    pub(crate) fn open(image: &Path, type_guid: Guid) -> io::Result<Result<Self, String>> {
        let mut file = File::open(image)?;
        let bytes = file.metadata()?.len();
        Ok(find(&mut file, bytes, type_guid).map(|(offset, length)| Part { file, offset, length, at: 0 }))
    }
}

fn find(disk: &mut File, bytes: u64, type_guid: Guid) -> Result<(u64, u64), String> {
    let size = dyad_gpt::detect_sector_size(disk).map_err(|e| e.to_string())?;
    let size = size.ok_or("it has no partition table (GPT)")?;
    let table = dyad_gpt::read(disk, size, bytes).map_err(|e| e.to_string())?.table;
    let found = table.partitions().iter().find(|(_, p)| p.type_guid == type_guid).map(|(number, _)| *number);
    found.and_then(|number| table.byte_range(number)).ok_or_else(|| "it has none".into())
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
