//! A node's disk: a sparse copy of the built image with the node's files on its ESP, grown to its size.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use crate::error::{AtPath, Result, refuse};
use crate::esp::Esp;

/// The most that is asked of one copy call.
const STEP_MAX: usize = 1 << 30;

/// Copies `image` to `disk` without its holes, sharing blocks where the file system can, and grows it to `size` bytes.
/// `files` (path and content) are added to its ESP; without any the ESP stays as it is.
/// A failure leaves no half disk under the final name.
pub(crate) fn make(image: &Path, disk: &Path, size: u64, files: &[(String, Bytes)]) -> Result<()> {
    let source = File::open(image).at("open", image)?;
    let length = source.metadata().at("look at", image)?.len();
    if length > size {
        return refuse(format!(
            "{} is {length} bytes, larger than the disk of {size} bytes; give a larger --disk",
            image.display()
        ));
    }
    let esp = if files.is_empty() { None } else { Some(Esp::with(image, files)?) };
    let fresh = disk.with_extension("new");
    let target = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&fresh)
        .at("create", &fresh)?;
    match &esp {
        None => copy_data(&source, &target, 0, length),
        Some(esp) => copy_data(&source, &target, 0, esp.offset)
            .and_then(|()| copy_data(&source, &target, esp.offset + esp.length, length))
            .and_then(|()| esp.write(&target)),
    }
    .at("copy the image to", &fresh)?;
    target.set_len(size).at("grow", &fresh)?;
    std::fs::rename(&fresh, disk).at("rename into place", disk)
}

/// Copies what lies in `start..end` and is not a hole.
fn copy_data(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut at, end) = (start as i64, end as i64);
    while at < end {
        let data = match lseek(source, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let hole = lseek(source, data, Whence::SeekHole)?;
        copy_extent(source, target, data, hole.min(end))?;
        at = hole;
    }
    Ok(())
}

fn copy_extent(source: &File, target: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(STEP_MAX).min(STEP_MAX);
        match copy_file_range(source.as_fd(), Some(&mut from), target.as_fd(), Some(&mut to), length) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) => {}
            // Between two file systems on an older kernel.
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: i64, end: i64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let (mut at, end) = (start as u64, end as u64);
    while at < end {
        let length = buffer.len().min(usize::try_from(end - at).unwrap_or(buffer.len()));
        source.read_exact_at(&mut buffer[..length], at)?;
        target.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use dyad_formats::fat;
    use dyad_gpt::{Guid, Partition, Table, types};

    use super::*;
    use crate::esp::SITE_PATH;

    #[test]
    fn copies_data_keeps_holes_and_grows() {
        let temp = tempfile::tempdir().unwrap();
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk.raw"));
        let file = File::create(&image).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 5000], (32 << 20) + 100).unwrap();
        make(&image, &disk, 1 << 30, &[]).unwrap();
        let copy = File::open(&disk).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 1 << 30);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "holes stayed holes");
        let mut back = [0; 5000];
        copy.read_exact_at(&mut back, (32 << 20) + 100).unwrap();
        assert_eq!(back, [7; 5000]);

        let by_hand = File::create_new(temp.path().join("hand")).unwrap();
        copy_by_hand(&file_again(&image), &by_hand, 32 << 20, (32 << 20) + 5100).unwrap();
        assert_eq!(by_hand.metadata().unwrap().len(), (32 << 20) + 5100);
    }

    fn file_again(path: &Path) -> File {
        File::open(path).unwrap()
    }

    /// An image as the builder lays it out: an ESP with two files, then a root.
    fn image_with_esp(path: &Path) -> (u64, u64) {
        const MIB: u64 = 1 << 20;
        let options = fat::Options {
            sector_size: 512,
            bytes: 40 * MIB,
            volume_id: 7,
            label: "ESP".into(),
            timestamp: fat::Timestamp::from_unix(0),
        };
        let files =
            ["EFI/BOOT/BOOTX64.EFI", "DYAD/SITE.TOML"].map(|p| (p.to_owned(), Bytes::from_static(b"old")));
        let esp = fat::write(&options, &files).unwrap();
        let mut table = Table::new(512, 64 * 2048, Guid::from_u128(1)).unwrap();
        let mut add = |number, bytes, type_guid, guid| {
            let name = format!("part{number}");
            let p = Partition { type_guid, guid, first_lba: 0, last_lba: 0, attributes: 0, name };
            table.add(number, bytes, p).unwrap();
        };
        add(1, Some(40 * MIB), types::ESP, Guid::from_u128(2));
        add(2, None, Guid::from_u128(4), Guid::from_u128(3));
        let (offset, _) = table.byte_range(1).unwrap();
        let (root, _) = table.byte_range(2).unwrap();
        let file = File::create(path).unwrap();
        file.set_len(64 * MIB).unwrap();
        let encoded = table.encode();
        file.write_all_at(&encoded.head, 0).unwrap();
        file.write_all_at(&encoded.tail, encoded.tail_offset).unwrap();
        esp.extents.iter().for_each(|(at, bytes)| file.write_all_at(bytes, offset + at).unwrap());
        file.write_all_at(b"root", root).unwrap();
        (offset, root)
    }

    #[test]
    fn the_site_file_takes_the_place_of_an_old_one_and_nothing_else_changes() {
        let temp = tempfile::tempdir().unwrap();
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk.raw"));
        let (esp, root) = image_with_esp(&image);
        let site = [(SITE_PATH.to_owned(), Bytes::from_static(b"cluster = 'new'"))];
        make(&image, &disk, 128 << 20, &site).unwrap();
        let made = File::open(&disk).unwrap();
        let mut there = [0; 4];
        made.read_exact_at(&mut there, root).unwrap();
        assert_eq!(&there, b"root");
        let mut bytes = vec![0; 40 << 20];
        made.read_exact_at(&mut bytes, esp).unwrap();
        let mut volume = fat::Volume::open(std::io::Cursor::new(bytes)).unwrap();
        let files: Vec<_> = volume.entries().unwrap().into_iter().filter(|e| !e.is_dir).collect();
        let paths: Vec<_> = files.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["EFI/BOOT/BOOTX64.EFI", SITE_PATH]);
        assert_eq!(volume.read(&files[0]).unwrap(), b"old");
        assert_eq!(volume.read(&files[1]).unwrap(), b"cluster = 'new'");
        assert_eq!(volume.volume_id, 7);
    }

    #[test]
    fn a_disk_smaller_than_the_image_is_refused_and_a_failure_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk.raw"));
        std::fs::write(&image, [1; 1000]).unwrap();
        let small = make(&image, &disk, 999, &[]).unwrap_err();
        assert!(small.to_string().contains("1000 bytes"), "{small}");
        let site = [(SITE_PATH.to_owned(), Bytes::from_static(b"x"))];
        let text = make(&image, &disk, 2000, &site).unwrap_err().to_string();
        assert!(text.contains("no partition table") && text.contains("--no-site"), "{text}");
        assert!(!disk.exists());
    }
}
