//! A node's disk: a sparse copy of the built image, grown to its size.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use crate::error::{AtPath, Result, refuse};

/// The most that is asked of one copy call.
const STEP_MAX: usize = 1 << 30;

/// Copies `image` to `disk` without its holes, sharing blocks where the file system can, and grows it to `size` bytes.
/// A failure leaves no half disk under the final name.
pub(crate) fn make(image: &Path, disk: &Path, size: u64, finish: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let source = File::open(image).at("open", image)?;
    let length = source.metadata().at("look at", image)?.len();
    if length > size {
        return refuse(format!(
            "{} is {length} bytes, larger than the disk of {size} bytes; give a larger --disk",
            image.display()
        ));
    }
    let fresh = disk.with_extension("new");
    let target =
        File::options().read(true).write(true).create(true).truncate(true).open(&fresh).at("create", &fresh)?;
    copy_data(&source, &target).at("copy the image to", &fresh)?;
    target.set_len(size).at("grow", &fresh)?;
    finish(&target)?;
    std::fs::rename(&fresh, disk).at("rename into place", disk)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut at: i64 = 0;
    loop {
        let start = match lseek(source, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = lseek(source, start, Whence::SeekHole)?;
        copy_extent(source, target, start, end)?;
        at = end;
    }
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
    let (mut at, end) = (start.cast_unsigned(), end.cast_unsigned());
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

    use super::*;

    #[test]
    fn copies_data_keeps_holes_and_grows() {
        let temp = tempfile::tempdir().unwrap();
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk.raw"));
        let file = File::create(&image).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 5000], (32 << 20) + 100).unwrap();
        make(&image, &disk, 1 << 30, |_| Ok(())).unwrap();
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

    #[test]
    fn a_disk_smaller_than_the_image_is_refused_and_a_failure_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk.raw"));
        std::fs::write(&image, [1; 1000]).unwrap();
        let small = make(&image, &disk, 999, |_| Ok(())).unwrap_err();
        assert!(small.to_string().contains("1000 bytes"), "{small}");
        make(&image, &disk, 2000, |_| refuse("no")).unwrap_err();
        assert!(!disk.exists());
    }
}
