//! The last touches: mount points, links that make a read-only /etc work, and the refusal of secrets.

use std::sync::Arc;

use dyad_formats::tree::{Kind, Tree};

use crate::Error;
use crate::lay::Layer;
use crate::path::show;
use crate::report::Dropped;

/// Directories that other file systems cover at run time: what packages put there would never be seen.
const MOUNT_POINTS: [(&str, u16); 9] = [
    ("/data", 0o755),
    ("/dev", 0o755),
    ("/efi", 0o755),
    ("/proc", 0o555),
    ("/run", 0o755),
    ("/state", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/var", 0o755),
];

/// Files below a read-only /etc that change at run time.
const RUNTIME_ETC: [&str; 4] = ["machine-id", "hostname", "hosts", "resolv.conf"];

/// Empties and makes the mount points.
pub(crate) fn mount_points(layer: &mut Layer<'_>, dropped: &mut Vec<Dropped>) -> Result<(), Error> {
    let origin: Arc<str> = Arc::from("derived mount point");
    for (path, mode) in MOUNT_POINTS {
        drop_below(
            layer.tree,
            path.as_bytes(),
            "derived: another file system is mounted here at run time",
            dropped,
        );
        layer.tree.remove(path.as_bytes());
        layer.put(path.as_bytes(), Kind::Dir, mode, (0, 0), origin.clone())?;
    }
    Ok(())
}

/// Points the changing files of /etc to where PID 1 writes them.
pub(crate) fn runtime_etc(layer: &mut Layer<'_>) -> Result<(), Error> {
    let origin: Arc<str> = Arc::from("derived run-time file of /etc");
    for name in RUNTIME_ETC {
        let path = format!("/etc/{name}");
        layer.tree.remove(path.as_bytes());
        let target = format!("/run/dyad/etc/{name}").into_bytes();
        layer.put(path.as_bytes(), Kind::Symlink(target), 0o777, (0, 0), origin.clone())?;
    }
    Ok(())
}

/// Removes everything strictly below a directory and remembers it; directories and links count as empty files.
pub(crate) fn drop_below(tree: &mut Tree, dir: &[u8], rule: &str, dropped: &mut Vec<Dropped>) {
    let doomed: Vec<Vec<u8>> = tree.below(dir).map(|(path, _)| path.to_vec()).collect();
    for path in doomed.iter().rev() {
        drop_path(tree, path, rule, dropped);
    }
}

/// Removes one path and remembers it.
pub(crate) fn drop_path(tree: &mut Tree, path: &[u8], rule: &str, dropped: &mut Vec<Dropped>) {
    let Some(inode) = tree.get(path) else { return };
    let bytes = if let Kind::File(data) = &inode.kind { data.len() as u64 } else { 0 };
    dropped.push(Dropped {
        path: show(path),
        origin: inode.origin.to_string(),
        rule: rule.to_owned(),
        bytes,
    });
    tree.remove(path);
}

/// What must not be the same on two machines.
pub(crate) fn refuse_secrets(tree: &Tree) -> Result<(), Error> {
    for (path, _, inode) in tree.iter() {
        let Kind::File(data) = &inode.kind else { continue };
        let name = show(path);
        let secret = |what| Err(Error::Secret { path: name.clone(), what });
        if name.starts_with("/etc/ssl/private/") {
            return secret("a private TLS key");
        }
        if name.starts_with("/etc/ssh/ssh_host_") && name.ends_with("_key") {
            return secret("an SSH host key");
        }
        if name == "/etc/machine-id" || name == "/var/lib/dbus/machine-id" {
            return secret("a machine id");
        }
        let laid = inode.origin.starts_with("overlay ") || name.starts_with("/etc/");
        if laid && contains(data, b"PRIVATE KEY-----") && contains(data, b"-----BEGIN ") {
            return secret("it contains a private key");
        }
    }
    Ok(())
}

fn contains(data: &[u8], word: &[u8]) -> bool {
    data.windows(word.len()).any(|w| w == word)
}
