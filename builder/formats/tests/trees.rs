//! Random trees through every format that holds a whole tree, and back.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::Cursor;

use bytes::Bytes;
use common::{full_tree, inode, noise, plain_tree, text};
use dyad_formats::tree::{Kind, Tree};
use dyad_formats::{cpio, squashfs, tar};
use proptest::prelude::*;

/// Same paths, meta data, contents and hard links; origins are the reader's.
fn assert_same(a: &Tree, b: &Tree) {
    assert_eq!(a.len(), b.len());
    let mut ids = std::collections::HashMap::new();
    for ((path, id, want), (other, other_id, got)) in a.iter().zip(b.iter()) {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(path, other);
        assert_eq!(want.meta, got.meta, "{shown}");
        assert!(want.kind == got.kind, "{shown}");
        assert_eq!(*ids.entry(id).or_insert(other_id), other_id, "{shown}");
    }
    assert_eq!(ids.len(), ids.values().collect::<std::collections::HashSet<_>>().len());
}

fn through_squashfs(tree: &Tree, block_bytes: u32) -> Tree {
    let mut image = Cursor::new(Vec::new());
    let options = squashfs::Options { block_bytes, level: 1, cache: None };
    squashfs::write(tree, &options, &mut image).unwrap();
    squashfs::Reader::open(image).unwrap().tree("test", u64::MAX).unwrap()
}

fn through_tar(tree: &Tree) -> Tree {
    let mut out = Vec::new();
    tar::write(tree, &mut out).unwrap();
    tar::read(&out.into(), "test").unwrap()
}

#[test]
fn the_full_tree_comes_back() {
    let mut tree = full_tree();
    assert_same(&tree, &through_squashfs(&tree, 1 << 20));
    tree.remove(b"/dev/log");
    assert_same(&tree, &through_tar(&tree));
}

#[test]
fn bounds_are_named() {
    let mut image = Cursor::new(Vec::new());
    squashfs::write(&plain_tree(), &squashfs::Options::default(), &mut image).unwrap();
    let error = squashfs::Reader::open(image).unwrap().tree("test", 1 << 20).unwrap_err();
    assert_eq!(error.to_string(), "squashfs: its files have more than 1048576 bytes");
    let mut out = Vec::new();
    tar::write(&Tree::new(0), &mut out).unwrap();
    for (damage, want) in [(0..1, "wrong checksum"), (100..512, "wrong checksum")] {
        let mut bytes = out.clone();
        bytes[damage].fill(b'7');
        assert!(tar::read(&bytes.into(), "x").unwrap_err().to_string().contains(want));
    }
    let cut = Bytes::copy_from_slice(&out[..512]);
    assert!(tar::read(&cut, "x").unwrap_err().to_string().contains("byte 512: the archive ends without"));
}

#[derive(Debug, Clone)]
enum Step {
    Dir(usize, String),
    File(usize, String, usize, u64),
    Special(usize, String, u8, u32),
    Link(usize, String, usize),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,3}", "[ -.0-~]{1,40}", "[a-z]{90,255}", "\\PC{1,20}"].prop_filter("a name", |n| {
        !n.contains('/') && n != "." && n != ".." && n.len() < 256 && !n.contains('\0')
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<usize>(), name()).prop_map(|(at, n)| Step::Dir(at, n)),
        (any::<usize>(), name(), prop_oneof![0usize..200, 0usize..30_000, Just(8192usize)], 0u64..6)
            .prop_map(|(at, n, len, seed)| Step::File(at, n, len, seed)),
        (any::<usize>(), name(), 0u8..5, any::<u32>()).prop_map(|(at, n, k, v)| Step::Special(at, n, k, v)),
        (any::<usize>(), name(), any::<usize>()).prop_map(|(at, n, to)| Step::Link(at, n, to)),
    ]
}

/// Applies what the tree accepts.
fn grow(steps: &[Step], xattrs: bool, sockets: bool) -> Tree {
    let mut tree = Tree::new(77);
    let (mut dirs, mut leaves) = (vec![b"/".to_vec()], Vec::<Vec<u8>>::new());
    for (i, step) in steps.iter().enumerate() {
        let (Step::Dir(at, n) | Step::File(at, n, ..) | Step::Special(at, n, ..) | Step::Link(at, n, _)) =
            step;
        let parent = &dirs[at % dirs.len()];
        let mut path = if parent == b"/" { Vec::new() } else { parent.clone() };
        path.push(b'/');
        path.extend(n.as_bytes());
        if path.len() > 3000 || tree.get(&path).is_some() {
            continue;
        }
        let kind = match step {
            Step::Dir(..) => Kind::Dir,
            Step::File(_, _, len, 0) => Kind::File(vec![0; *len].into()),
            Step::File(_, _, len, seed @ 1..3) => Kind::File(noise(*len, *seed)),
            Step::File(_, _, len, seed) => Kind::File(text(*len, *seed as usize)),
            Step::Special(_, _, 0, v) => Kind::Char(v % 4096, v % 1_048_576),
            Step::Special(_, _, 1, v) => Kind::Block(v % 4096, v % 1_048_576),
            Step::Special(_, _, 2, _) => Kind::Fifo,
            Step::Special(_, _, 3, _) if sockets => Kind::Socket,
            Step::Special(_, n, ..) => Kind::Symlink(n.clone().into_bytes()),
            Step::Link(_, _, to) => {
                if let Some(target) = leaves.get(to % leaves.len().max(1)) {
                    tree.hard_link(&path, target).unwrap();
                }
                continue;
            }
        };
        let list = if kind == Kind::Dir { &mut dirs } else { &mut leaves };
        list.push(path.clone());
        let mut inode = inode(kind, (i * 7919 % 0o7777) as u16, i as u32 % 5 * 1_000_000, i as u32 % 3);
        if xattrs && i % 3 == 0 {
            inode.meta.xattrs.insert(format!("user.{}", i % 4).into(), text(i % 90, i % 2).to_vec());
        }
        tree.insert(&path, inode).unwrap();
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]
    #[test]
    fn random_trees_come_back(steps in prop::collection::vec(step(), 0..120)) {
        let tree = grow(&steps, true, true);
        assert_same(&tree, &through_squashfs(&tree, 8192));
        let tree = grow(&steps, true, false);
        assert_same(&tree, &through_tar(&tree));
        let mut tree = grow(&steps, false, true);
        // cpio leaves the root out.
        tree.get_mut(b"/").unwrap().meta.mtime = 0;
        let mut out = Vec::new();
        cpio::write(&tree, &mut out).unwrap();
        assert_same(&tree, &cpio::read(&out.into(), "test").unwrap());
    }

    #[test]
    fn damaged_tar_never_panics(hits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"01234567xg5 \0=\n".to_vec())), 1..30)) {
        let steps: Vec<_> = (0..8).map(|i| Step::File(0, format!("{i}{}", "n".repeat(110)), 40, 3)).collect();
        let mut out = Vec::new();
        tar::write(&grow(&steps, true, false), &mut out).unwrap();
        for (at, value) in hits {
            let at = at.index(out.len());
            out[at] = value;
        }
        // Right checksums let the damage through to the members.
        for header in out.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        let _ = tar::read(&out.into(), "x");
    }
}
