//! What maintainer scripts would have made, derived from what the packages ship.

use std::sync::Arc;

use bytes::Bytes;
use dyad_formats::tree::{Kind, Tree};

use crate::Error;
use crate::lay::Layer;

/// Files that postinst scripts copy into place when nothing is there yet.
const COPIES: [(&str, &str); 6] = [
    ("/usr/share/libc-bin/nsswitch.conf", "/etc/nsswitch.conf"),
    ("/usr/share/base-files/profile", "/etc/profile"),
    ("/usr/share/base-files/motd", "/etc/motd"),
    ("/usr/share/base-files/dot.profile", "/root/.profile"),
    ("/usr/share/base-files/dot.bashrc", "/root/.bashrc"),
    ("/usr/share/debianutils/shells", "/etc/shells"),
];

/// Where ca-certificates keeps its certificates, and the bundle that its script makes of them.
const CERTIFICATES: &[u8] = b"/usr/share/ca-certificates";
const BUNDLE: &[u8] = b"/etc/ssl/certs/ca-certificates.crt";

/// Paths that this crate reads after unpacking: prune rules are applied to them at the end, not at unpack.
pub(crate) const INPUTS: [&str; 9] = [
    "/usr/share/base-passwd/",
    "/usr/share/libc-bin/",
    "/usr/share/base-files/",
    "/usr/share/debianutils/",
    "/usr/share/ca-certificates/",
    "/etc/ld.so.conf",
    "/boot/vmlinuz-",
    "/usr/lib/systemd/boot/efi/",
    "/usr/lib/modules/",
];

/// The content of a regular file.
pub(crate) fn file<'a>(tree: &'a Tree, path: &[u8]) -> Option<&'a Bytes> {
    match tree.get(path).map(|i| &i.kind) {
        Some(Kind::File(data)) => Some(data),
        _ => None,
    }
}

/// Copies and generated files that depend on nothing but the tree.
pub(crate) fn all(layer: &mut Layer<'_>) -> Result<(), Error> {
    for (from, to) in COPIES {
        if let (Some(data), None) =
            (file(layer.tree, from.as_bytes()).cloned(), layer.tree.get(to.as_bytes()))
        {
            layer.put(
                to.as_bytes(),
                Kind::File(data),
                0o644,
                (0, 0),
                Arc::from(format!("derived copy of {from}")),
            )?;
        }
    }
    if layer.tree.get(b"/usr/share/zoneinfo/Etc/UTC").is_some() && layer.tree.get(b"/etc/localtime").is_none()
    {
        let target = b"/usr/share/zoneinfo/Etc/UTC".to_vec();
        layer.put(b"/etc/localtime", Kind::Symlink(target), 0o777, (0, 0), Arc::from("derived time zone"))?;
    }
    certificates(layer)
}

/// All certificates of ca-certificates in one file, in byte order of their names, as update-ca-certificates does.
fn certificates(layer: &mut Layer<'_>) -> Result<(), Error> {
    let mut bundle = Vec::new();
    for (path, id) in layer.tree.below(CERTIFICATES) {
        if let (true, Kind::File(data)) = (path.ends_with(b".crt"), &layer.tree.inode(id).kind) {
            bundle.extend_from_slice(data);
            if !data.ends_with(b"\n") {
                bundle.push(b'\n');
            }
        }
    }
    if !bundle.is_empty() && layer.tree.get(BUNDLE).is_none() {
        let kind = Kind::File(Bytes::from(bundle));
        layer.put(BUNDLE, kind, 0o644, (0, 0), Arc::from("derived certificate bundle"))?;
    }
    Ok(())
}
