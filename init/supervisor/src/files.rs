//! Files that are wholly ours: written atomically, durable when the call returns, compared before they are touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A step on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}", path = .path.display())]
pub struct FileError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Whether the file system is full.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Adds the step and the path to an I/O error.
pub(crate) trait At<T> {
    /// `step` reads as the start of a sentence: `write`, `rename`.
    fn at(self, step: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { step, path: path.to_path_buf(), source: source.into() })
    }
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

impl Access {
    /// The supervisor's own: root's on the appliance.
    pub(crate) fn own(mode: u32) -> Self {
        Self { mode, uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// Replaces `path` by a file with these bytes: after a crash there is the old file or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), FileError> {
    let mut name = path.file_name().expect("paths of ours name a file").to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    // The directory may belong to a service: what it may have put at the temporary name is removed, never followed. The
    // new file is readable by root alone until it has its owner.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &new),
        Ok(()) | Err(_) => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).at("create", &new)?;
    file.write_all(bytes).at("write", &new)?;
    std::os::unix::fs::fchown(&file, Some(access.uid), Some(access.gid)).at("change the owner of", &new)?;
    file.set_permissions(fs::Permissions::from_mode(access.mode)).at("change the mode of", &new)?;
    file.sync_all().at("flush", &new)?;
    fs::rename(&new, path).at("rename into place", path)?;
    sync_dir(path.parent().expect("paths of ours have a parent"))
}

/// Makes the file hold exactly these bytes with this access; says whether anything had to be done.
pub(crate) fn ensure(path: &Path, bytes: &[u8], access: Access) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {
            let same = found.mode() & 0o7777 == access.mode
                && found.uid() == access.uid
                && found.gid() == access.gid
                && found.len() == bytes.len() as u64
                && fs::read(path).at("read", path)? == bytes;
            if same {
                return Ok(false);
            }
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).at("look at", path),
    }
    write(path, bytes, access)?;
    Ok(true)
}

/// Makes the directory exist with this access; parents are not made.
pub(crate) fn ensure_dir(path: &Path, access: Access) -> Result<(), FileError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).at("create directory", path),
    }
    std::os::unix::fs::lchown(path, Some(access.uid), Some(access.gid)).at("change the owner of", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode)).at("change the mode of", path)
}

/// Removes a file, durably; nothing if there is none.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().expect("paths of ours have a parent")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at("remove", path),
    }
}

/// The bytes of a file, `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}

/// The text of a file in a directory of a service: a link there is not followed, `None` if there is no such file.
pub(crate) fn read_plain(path: &Path) -> Result<Option<String>, FileError> {
    use rustix::fs::{Mode, OFlags};
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => {
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).at("read", path)?;
            Ok(Some(text))
        }
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error).at("open", path),
    }
}

/// Flushes a directory's entries.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).at("flush directory", path)
}

/// How large a file system is, and how much of it is free, for those who are not root: what it keeps back for root (on ext4 a
/// twentieth, unless its maker said otherwise) is in neither, as in what `df` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Used and free together.
    pub(crate) total_bytes: u64,
    /// Free.
    pub(crate) free_bytes: u64,
}

/// The extent of the file system that holds `path`.
pub(crate) fn extent(path: &Path) -> Result<Extent, FileError> {
    let fs = rustix::fs::statvfs(path).at("look at", path)?;
    let used = fs.f_blocks.saturating_sub(fs.f_bfree);
    Ok(Extent { total_bytes: (used + fs.f_bavail) * fs.f_frsize, free_bytes: fs.f_bavail * fs.f_frsize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensure_writes_once_and_repairs_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        assert!(ensure(&path, b"x", Access::own(0o640)).unwrap());
        assert!(!ensure(&path, b"x", Access::own(0o640)).unwrap(), "the second run changes nothing");
        fs::write(&path, b"y").unwrap();
        assert!(ensure(&path, b"x", Access::own(0o640)).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(ensure(&path, b"x", Access::own(0o640)).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a.conf"), dir.path().join("other"));
        fs::write(&other, b"keep").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(ensure(&path, b"keep", Access::own(0o600)).unwrap());
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read(&other).unwrap(), b"keep");
    }

    #[test]
    fn errors_name_the_step_and_the_path() {
        let error = write(Path::new("/nowhere/at/all"), b"", Access::own(0o600)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("create /nowhere/at/all.new: "), "{error}");
    }
}
