//! Following symbolic links inside a tree, as the kernel would with the tree as its root.

use dyad_formats::tree::{Kind, Tree};

use crate::path;

/// Links followed for one path before it counts as a loop, as in the kernel.
pub(crate) const LINKS_MAX: usize = 40;

/// Follows links among a path's ancestors, so that an overlay's `/bin/x` lands where it is seen. The path itself need
/// not exist and is not followed. The error is a reason for a message.
pub(crate) fn through_links(tree: &Tree, path: &[u8]) -> Result<Vec<u8>, String> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_MAX {
        let hit = path::ancestors(&path).find_map(|a| match &tree.get(a)?.kind {
            Kind::Symlink(target) => Some((a.to_vec(), target)),
            _ => None,
        });
        let Some((link, target)) = hit else { return Ok(path) };
        let target = path::link_target(&link, target).ok_or("leads out of the image through a link")?;
        path = [&target[..], &path[link.len()..]].concat();
    }
    Err("leads through a loop of links".to_owned())
}

/// The path that remains when every link is followed; `None` if it does not exist.
pub(crate) fn resolve(tree: &Tree, path: &[u8]) -> Option<Vec<u8>> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_MAX {
        path = through_links(tree, &path).ok()?;
        match &tree.get(&path)?.kind {
            Kind::Symlink(target) => path = path::link_target(&path, target)?,
            _ => return Some(path),
        }
    }
    None
}
