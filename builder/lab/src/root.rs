//! The root of a lab of containers: the image's own root file system, unpacked once and shown read-only to every node.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use dyad_formats::squashfs::{self, EntryKind, Reader};
use dyad_formats::tree::{Inode, InodeId, Kind, Tree};
use dyad_gpt::types;

use crate::error::{AtPath, Result, refuse};
use crate::partition::Part;

/// The most that the files of a root may have together: it is held in memory while it is unpacked.
const BYTES_MAX: u64 = 4 << 30;

/// Unpacks the root of a disk image to `root`, in the place of an earlier one. Owners are those of the image, so this runs
/// in the lab's user namespace. Half a root never stands under the final name.
pub(crate) fn unpack(image: &Path, root: &Path) -> Result<()> {
    let tree = read(image)?;
    let fresh = root.with_extension("new");
    for dir in [&fresh, &root.to_path_buf()] {
        remove(dir)?;
    }
    fs::create_dir(&fresh).at("create directory", &fresh)?;
    let mut first: HashMap<InodeId, PathBuf> = HashMap::new();
    for (path, id, inode) in tree.iter() {
        let place = fresh.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
        match first.get(&id) {
            Some(original) => fs::hard_link(original, &place).at("link", &place)?,
            None => {
                lay(inode, &place)?;
                first.insert(id, place);
            }
        }
    }
    fs::rename(&fresh, root).at("rename into place", root)
}

/// Removes a directory tree that may be missing.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

/// The content of one file of a disk image's root; `None` when the image has no root, or the root no such file.
pub(crate) fn file(image: &Path, path: &str) -> Result<Option<Vec<u8>>> {
    let Ok(part) = Part::open(image, types::ROOT_X86_64).at("read", image)? else { return Ok(None) };
    let found = Reader::open(part).and_then(|mut reader| {
        let entries = reader.entries()?;
        let Some(EntryKind::File(blocks)) =
            entries.into_iter().find(|e| e.path == path.as_bytes()).map(|e| e.kind)
        else {
            return Ok(None);
        };
        let mut content = Vec::new();
        reader.read_file(&blocks, &mut content)?;
        Ok(Some(content))
    });
    found.or_else(|e| unreadable(image, &e))
}

fn read(image: &Path) -> Result<Tree> {
    let part = match Part::open(image, types::ROOT_X86_64).at("read", image)? {
        Ok(part) => part,
        Err(why) => return refuse(format!("{}: cannot find its root partition: {why}", image.display())),
    };
    let tree = Reader::open(part).and_then(|mut reader| reader.tree("image", BYTES_MAX));
    tree.or_else(|e| unreadable(image, &e))
}

fn unreadable<T>(image: &Path, error: &squashfs::Error) -> Result<T> {
    refuse(format!("{}: cannot read its root partition: {error}", image.display()))
}

fn lay(inode: &Inode, place: &Path) -> Result<()> {
    let meta = &inode.meta;
    match &inode.kind {
        // The root itself is there already.
        Kind::Dir if place.is_dir() => {}
        Kind::Dir => fs::create_dir(place).at("create directory", place)?,
        Kind::File(content) => fs::write(place, content).at("write", place)?,
        Kind::Symlink(target) => {
            symlink(OsStr::from_bytes(target), place).at("make the link", place)?;
            return lchown(place, Some(meta.uid), Some(meta.gid)).at("set the owner of", place);
        }
        Kind::Char(..) | Kind::Block(..) | Kind::Fifo | Kind::Socket => {
            return refuse(format!(
                "the image's root has a device node, pipe or socket at {}; a container's root has none",
                place.display()
            ));
        }
    }
    // A change of owner clears set-id bits and capabilities: they come after it.
    lchown(place, Some(meta.uid), Some(meta.gid)).at("set the owner of", place)?;
    let mode = fs::Permissions::from_mode(u32::from(meta.mode));
    fs::set_permissions(place, mode).at("set the mode of", place)?;
    for (name, value) in &meta.xattrs {
        rustix::fs::lsetxattr(place, OsStr::from_bytes(name), value, rustix::fs::XattrFlags::empty())
            .at("set an extended attribute of", place)?;
    }
    Ok(())
}
