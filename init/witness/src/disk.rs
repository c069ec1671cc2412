//! The seam to the disk: a directory of small files. The crash tests put a disk behind it that forgets.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::record::FILE_BYTES;

/// A directory of small files. Calls block; none is made on the thread that serves connections.
pub trait Disk: Send + Sync + 'static {
    /// All names.
    fn names(&self) -> io::Result<Vec<String>>;
    /// A file's content, up to one byte more than any file of ours has.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes a file, in place of an older one of the name, and flushes its content, not yet its name.
    fn make(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Renames, not yet for good.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes, not yet for good.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names so far stand for good.
    fn sync_names(&self) -> io::Result<()>;
    /// Writes into an existing file and flushes it. After an error any part may be on disk, now or later.
    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Makes or replaces a file as a whole: after a crash there is the old one or the new one.
pub(crate) fn replace(disk: &impl Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.new");
    disk.make(&temporary, bytes)?;
    disk.rename(&temporary, name)?;
    disk.sync_names()
}

/// A real directory.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// An existing one.
    pub fn new(path: &Path) -> Self {
        Directory(path.to_owned())
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.0.join(name))?.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn make(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
        // Opened anew, so that a link or a mode that was left there is not used.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| file.sync_all());
        if written.is_err() {
            // On a full disk the half-written file would keep the space from everybody.
            let _ = fs::remove_file(&path);
        }
        written
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // One descriptor for both: an error of the write-back is reported to descriptors that were open by then.
        let file = OpenOptions::new().write(true).open(self.0.join(name))?;
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    }
}
