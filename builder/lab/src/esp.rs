//! The EFI system partition of a node's disk: the image's files and the node's own beside them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use dyad_formats::fat::{self, Options, Timestamp, Volume};
use dyad_gpt::types;

use crate::error::{AtPath, Result, refuse};
use crate::partition::Part;

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
    let part = match Part::open(image, types::ESP)? {
        Ok(part) => part,
        Err(why) => return Ok(Err(why)),
    };
    let (offset, length) = (part.offset, part.length);
    Ok(rebuild(part, files).map(|volume| Esp { offset, length, volume }).map_err(|e| e.to_string()))
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
