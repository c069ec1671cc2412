//! Files and directories that must be there after a power cut.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Doing, PhaseError};

/// Replaces a file so that after a power cut either the old or the whole new content is there.
///
/// The order matters: content to the medium, then the name, then the directory that holds the name.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), PhaseError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .doing("create", &temporary)?;
    file.write_all(content).doing("write", &temporary)?;
    // Mode bits given to open are cut by the umask.
    file.set_permissions(Permissions::from_mode(mode)).doing("set the mode of", &temporary)?;
    file.sync_all().doing("flush", &temporary)?;
    fs::rename(&temporary, path).doing("rename into place", path)?;
    sync_parent(path)
}

/// A directory with a mode and owner, made durable with its parent. What is right already is left alone.
pub(crate) fn directory(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<bool, PhaseError> {
    use std::os::unix::fs::MetadataExt;
    let made = match fs::DirBuilder::new().mode(mode & 0o777).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error).doing("make the directory", path),
    };
    let now = fs::symlink_metadata(path).doing("look at", path)?;
    if !now.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory)).doing("use as a directory", path);
    }
    let mut changed = made;
    // chown clears set-id bits, so the mode comes after it.
    if (now.uid(), now.gid()) != (uid, gid) {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).doing("set the owner of", path)?;
        changed = true;
    }
    if fs::symlink_metadata(path).doing("look at", path)?.mode() & 0o7777 != mode {
        fs::set_permissions(path, Permissions::from_mode(mode)).doing("set the mode of", path)?;
        changed = true;
    }
    if changed {
        sync(path)?;
        sync_parent(path)?;
    }
    Ok(changed)
}

/// Removes a file that may be missing.
pub(crate) fn remove(path: &Path) -> Result<(), PhaseError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.doing("remove", path)?;
            sync_parent(path)
        }
    }
}

/// Flushes a file, a directory or a block device.
pub(crate) fn sync(path: &Path) -> Result<(), PhaseError> {
    File::open(path).and_then(|file| file.sync_all()).doing("flush", path)
}

fn sync_parent(path: &Path) -> Result<(), PhaseError> {
    path.parent().map_or(Ok(()), sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_over_temporary_file_does_not_matter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        fs::write(path.with_extension("tmp"), "a much longer rest of an earlier try").unwrap();
        write(&path, b"new\n", 0o444).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o444);
        assert!(!path.with_extension("tmp").exists());
    }

    #[test]
    fn a_directory_is_repaired_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("journal");
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        assert!(directory(&path, 0o2755, uid, gid).unwrap());
        assert!(!directory(&path, 0o2755, uid, gid).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        assert!(directory(&path, 0o2755, uid, gid).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2755);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("journal");
        fs::write(&path, "").unwrap();
        let error = directory(&path, 0o755, 0, 0).unwrap_err().to_string();
        assert!(error.starts_with("use as a directory ") && error.contains("journal"), "{error}");
    }
}
