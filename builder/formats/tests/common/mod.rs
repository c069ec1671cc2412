//! What the oracle tests share: a tree with every kind of inode, and running a tool.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses its part; a test may fail")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dyad_formats::tree::{Inode, Kind, Meta, Tree};

/// 2026-01-02 03:04:06 UTC.
pub(crate) const MTIME: u32 = 1_767_323_046;

/// Bytes that do not compress, always the same.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

pub(crate) fn text(len: usize, seed: usize) -> Bytes {
    (0u64..)
        .flat_map(|i| format!("line {} of {seed}\n", i * i).into_bytes())
        .take(len)
        .collect::<Vec<_>>()
        .into()
}

pub(crate) fn inode(kind: Kind, mode: u16, uid: u32, gid: u32) -> Inode {
    let meta = Meta { mode, uid, gid, mtime: MTIME, xattrs: BTreeMap::new() };
    Inode { meta, kind, origin: Arc::from("test") }
}

pub(crate) fn put(tree: &mut Tree, path: &str, kind: Kind, mode: u16) {
    tree.insert(path.as_bytes(), inode(kind, mode, 0, 0)).unwrap();
}

/// Directories, files of every size class, links, devices. Nothing that cpio cannot hold.
pub(crate) fn plain_tree() -> Tree {
    let mut t = Tree::new(MTIME);
    for dir in ["/etc", "/usr", "/usr/bin", "/usr/lib", "/dev", "/many", "/empty"] {
        put(&mut t, dir, Kind::Dir, 0o755);
    }
    t.insert(b"/tmp", inode(Kind::Dir, 0o1777, 0, 0)).unwrap();
    put(&mut t, "/etc/empty", Kind::File(Bytes::new()), 0o600);
    put(&mut t, "/etc/hostname", Kind::Symlink(b"/run/dyad/etc/hostname".to_vec()), 0o777);
    t.insert(b"/etc/shadow", inode(Kind::File(text(900, 1)), 0o640, 0, 42)).unwrap();
    t.insert(b"/usr/bin/su", inode(Kind::File(noise(70_001, 2)), 0o4755, 0, 0)).unwrap();
    put(&mut t, "/usr/bin/tool", Kind::File(text(3_000_000, 3)), 0o755);
    t.hard_link(b"/usr/bin/tool-alias", b"/usr/bin/tool").unwrap();
    t.hard_link(b"/usr/lib/tool", b"/usr/bin/tool").unwrap();
    put(&mut t, "/usr/lib/noise.bin", Kind::File(noise(2 << 20, 4)), 0o644);
    put(&mut t, "/usr/lib/copy.bin", Kind::File(noise(2 << 20, 4)), 0o644);
    let mut sparse = vec![0u8; 5 << 20];
    sparse[3 << 20] = 7;
    sparse.extend(b"tail");
    put(&mut t, "/usr/lib/sparse.bin", Kind::File(sparse.into()), 0o644);
    put(&mut t, "/usr/lib/zeros.bin", Kind::File(vec![0u8; 2 << 20].into()), 0o644);
    t.insert(b"/usr/lib/far-owner", inode(Kind::File(text(10, 9)), 0o644, 4_000_000, 70_000)).unwrap();
    put(&mut t, "/dev/null", Kind::Char(1, 3), 0o666);
    put(&mut t, "/dev/nvme", Kind::Block(259, 300), 0o660);
    put(&mut t, "/dev/pipe", Kind::Fifo, 0o600);
    let long = format!("/usr/lib/{}", "long-name-".repeat(14));
    put(&mut t, &long, Kind::File(text(77, 5)), 0o644);
    put(&mut t, "/usr/lib/b\u{fc}ro", Kind::Symlink("x".repeat(180).into_bytes()), 0o777);
    for i in 0..2500 {
        put(&mut t, &format!("/many/file-with-a-name-{i:05}"), Kind::File(text(i % 300, i)), 0o644);
    }
    t
}

/// Also sockets and extended attributes.
pub(crate) fn full_tree() -> Tree {
    let mut t = plain_tree();
    put(&mut t, "/dev/log", Kind::Socket, 0o666);
    let caps = vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |t: &mut Tree, path: &str, name: &str, value: Vec<u8>| {
        t.get_mut(path.as_bytes()).unwrap().meta.xattrs.insert(name.into(), value);
    };
    set(&mut t, "/usr/bin/tool", "security.capability", caps.clone());
    set(&mut t, "/usr/bin/su", "security.capability", caps);
    set(&mut t, "/usr/bin/su", "user.note", b"two\nlines".to_vec());
    set(&mut t, "/etc", "user.dir", b"d".to_vec());
    set(&mut t, "/usr/lib/noise.bin", "trusted.x", vec![0; 300]);
    t
}

/// Whether a tool succeeds.
#[allow(clippy::disallowed_methods, reason = "tests run outside oracles")]
pub(crate) fn try_run(tool: &str, args: &[&str], dir: &Path) -> bool {
    let out = std::process::Command::new(tool).args(args).current_dir(dir).output();
    out.unwrap_or_else(|e| panic!("{tool} must be installed: {e}")).status.success()
}

/// Runs a tool that must succeed; returns what it printed.
#[allow(clippy::disallowed_methods, reason = "tests run outside oracles")]
pub(crate) fn run(tool: &str, args: &[&str], dir: &Path) -> String {
    let mut command = std::process::Command::new(tool);
    command.args(args).current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC");
    let out = command.output().unwrap_or_else(|e| panic!("{tool} must be installed: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{tool} {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}
