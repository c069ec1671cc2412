//! squashfs against unsquashfs, backhand and our own reader.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Mutex;

use bytes::Bytes;
use common::{full_tree, put, run, text};
use dyad_formats::squashfs::{BlockCache, BlockKey, EntryKind, Options, Reader, Stats, write};
use dyad_formats::tree::{Kind, Tree};
use proptest::prelude::*;

fn image(tree: &Tree, options: &Options) -> (Vec<u8>, Stats) {
    let mut out = Cursor::new(Vec::new());
    let stats = write(tree, options, &mut out).unwrap();
    assert_eq!(out.get_ref().len() as u64, stats.bytes);
    (out.into_inner(), stats)
}

/// Our reader's view of an image must be the tree.
fn compare_with_reader(tree: &Tree, image: &[u8]) {
    let mut reader = Reader::open(Cursor::new(image)).unwrap();
    let entries = reader.verify().unwrap();
    assert_eq!(entries.len(), tree.len());
    let mut inodes = HashMap::new();
    for entry in entries {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let want = tree.get(&entry.path).unwrap_or_else(|| panic!("{shown} is not in the tree"));
        assert_eq!(entry.meta, want.meta, "{shown}");
        let id = tree.id(&entry.path).unwrap();
        assert_eq!(*inodes.entry(entry.inode).or_insert(id), id, "{shown}");
        match (&entry.kind, &want.kind) {
            (EntryKind::Dir, Kind::Dir)
            | (EntryKind::Fifo, Kind::Fifo)
            | (EntryKind::Socket, Kind::Socket) => {}
            (EntryKind::File(file), Kind::File(content)) => {
                let mut got = Vec::new();
                reader.read_file(file, &mut got).unwrap();
                assert!(got == *content, "{shown}: content differs");
            }
            (EntryKind::Symlink(a), Kind::Symlink(b)) => assert_eq!(a, b, "{shown}"),
            (EntryKind::Char(a, b), Kind::Char(c, d)) | (EntryKind::Block(a, b), Kind::Block(c, d)) => {
                assert_eq!((a, b), (c, d), "{shown}");
            }
            (got, want) => panic!("{shown}: {got:?} instead of {want:?}"),
        }
    }
}

#[test]
fn our_reader_sees_the_tree() {
    for block_bytes in [4096, 128 << 10, 1 << 20] {
        let tree = full_tree();
        let (bytes, stats) = image(&tree, &Options { block_bytes, ..Options::default() });
        compare_with_reader(&tree, &bytes);
        assert!(stats.duplicates > 0 && stats.fragments > 0, "{stats:?}");
    }
    let empty = Tree::new(0);
    compare_with_reader(&empty, &image(&empty, &Options::default()).0);
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn unsquashfs_extracts_the_tree() {
    let tree = full_tree();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), image(&tree, &Options::default()).0).unwrap();
    // Owners and devices can be made only by root.
    run("unsquashfs", &["-quiet", "-no-progress", "-xattrs", "-d", "out", "image"], dir.path());
    let out = dir.path().join("out");
    let mut inodes = HashMap::new();
    for (path, id, want) in tree.iter() {
        let shown = std::str::from_utf8(path).unwrap();
        let file = out.join(shown.trim_start_matches('/'));
        let got = std::fs::symlink_metadata(&file).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_eq!((got.uid(), got.gid()), (want.meta.uid, want.meta.gid), "{shown}");
        assert_eq!(got.mtime(), i64::from(want.meta.mtime), "{shown}");
        assert_eq!(*inodes.entry(got.ino()).or_insert(id), id, "{shown}");
        let kind = got.file_type();
        if !kind.is_symlink() {
            assert_eq!(got.mode() & 0o7777, u32::from(want.meta.mode), "{shown}");
        }
        let device = |major: u32, minor: u32| u64::from(minor & 0xff | major << 8 | (minor & !0xff) << 12);
        match &want.kind {
            Kind::Dir => assert!(kind.is_dir()),
            Kind::File(content) => assert!(std::fs::read(&file).unwrap() == *content, "{shown}: content"),
            Kind::Symlink(target) => {
                assert_eq!(std::fs::read_link(&file).unwrap().to_str().unwrap().as_bytes(), target);
            }
            Kind::Char(a, b) => assert!(kind.is_char_device() && got.rdev() == device(*a, *b), "{shown}"),
            Kind::Block(a, b) => assert!(kind.is_block_device() && got.rdev() == device(*a, *b), "{shown}"),
            Kind::Fifo => assert!(kind.is_fifo()),
            Kind::Socket => assert!(kind.is_socket()),
        }
    }
    let names: std::collections::HashSet<_> = tree.iter().map(|(_, id, _)| id).collect();
    assert_eq!(inodes.len(), names.len(), "hard links");
    let xattrs = run("getfattr", &["-R", "-h", "-d", "-m", "-", "-e", "hex", "out"], dir.path());
    let blocks: BTreeMap<&str, Vec<&str>> = xattrs
        .split("# file: ")
        .filter_map(|block| block.split_once('\n'))
        .map(|(name, pairs)| (name, pairs.lines().filter(|l| !l.is_empty()).collect()))
        .collect();
    for (path, _, want) in tree.iter() {
        let name = format!("out{}", String::from_utf8_lossy(path).trim_end_matches('/'));
        let wanted: Vec<String> = want
            .meta
            .xattrs
            .iter()
            .map(|(k, v)| format!("{}=0x{}", String::from_utf8_lossy(k), dyad_formats::verity::hex(v)))
            .collect();
        let got = blocks.get(name.as_str()).cloned().unwrap_or_default();
        assert_eq!(got, wanted, "{name}");
    }
}

#[test]
fn backhand_reads_it() {
    let tree = full_tree();
    let (bytes, _) = image(&tree, &Options::default());
    let fs = backhand::FilesystemReader::from_reader(std::io::BufReader::new(Cursor::new(bytes))).unwrap();
    let mut files = 0;
    for node in fs.files() {
        let path = node.fullpath.to_str().unwrap();
        let want = tree.get(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not in the tree"));
        assert_eq!((node.header.uid, node.header.gid), (want.meta.uid, want.meta.gid), "{path}");
        assert_eq!(node.header.permissions & 0o7777, want.meta.mode, "{path}");
        if let (backhand::InnerNode::File(file), Kind::File(content)) = (&node.inner, &want.kind) {
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut fs.file(file).reader(), &mut got).unwrap();
            assert!(got == *content, "{path}: content");
            files += 1;
        }
    }
    assert!(files > 2500);
}

#[derive(Default)]
struct Memory(Mutex<HashMap<BlockKey, Bytes>>);

impl BlockCache for Memory {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        self.0.lock().unwrap().get(key).cloned()
    }
    fn put(&self, key: &BlockKey, compressed: &[u8]) {
        self.0.lock().unwrap().insert(*key, Bytes::copy_from_slice(compressed));
    }
}

#[test]
fn bytes_depend_on_the_tree_alone() {
    let mut tree = full_tree();
    let with_threads = |threads: usize, options: &Options| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| image(&tree, options))
    };
    let cold = with_threads(1, &Options::default());
    assert!(with_threads(7, &Options::default()) == cold, "thread count reaches the bytes");
    let cache = Memory::default();
    let options = Options { cache: Some(&cache), ..Options::default() };
    assert!(with_threads(2, &options).0 == cold.0, "the cache reaches the bytes");
    let (bytes, stats) = with_threads(3, &options);
    assert!(bytes == cold.0, "a warm cache reaches the bytes");
    assert_eq!(stats.cached_blocks, stats.blocks);

    // One more small file in the middle of many: all but a few blocks are known.
    put(&mut tree, "/many/file-with-a-name-00007x", Kind::File(text(100, 7)), 0o644);
    let (_, stats) = image(&tree, &options);
    assert!(stats.blocks - stats.cached_blocks <= 2, "{stats:?}");
}

#[test]
fn refuses_what_the_format_cannot_hold() {
    let mut tree = Tree::new(0);
    tree.get_mut(b"/").unwrap().meta.xattrs.insert(b"system.acl".to_vec(), Vec::new());
    let error = write(&tree, &Options::default(), &mut Cursor::new(Vec::new())).unwrap_err();
    assert!(error.to_string().contains("/: extended attribute \"system.acl\""), "{error}");
    let options = Options { block_bytes: 5000, ..Options::default() };
    let error = write(&Tree::new(0), &options, &mut Cursor::new(Vec::new())).unwrap_err();
    assert!(error.to_string().contains("block size 5000"), "{error}");
}

#[test]
fn damaged_blocks_are_named_with_their_file() {
    let mut tree = Tree::new(0);
    put(&mut tree, "/a", Kind::File(text(3_000_000, 1)), 0o644);
    put(&mut tree, "/b", Kind::File(text(5000, 2)), 0o644);
    let (good, _) = image(&tree, &Options::default());
    // The first block's frame header, and the position of the id table's only page.
    let used = Reader::open(Cursor::new(&good)).unwrap().bytes_used() as usize;
    for (range, want) in [(96..104, "squashfs: /a: the block at 96 does not"), (used - 8..used, "squashfs: ")]
    {
        let mut bytes = good.clone();
        bytes[range].fill(0xff);
        let result = Reader::open(Cursor::new(bytes)).and_then(|mut r| r.verify());
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
    let error = Reader::open(Cursor::new(&good[..good.len() / 2])).err().unwrap().to_string();
    assert!(error.contains("the image ends before"), "{error}");
}

/// Without the many files. At the lowest level nothing shrinks, so that all tables are stored as they are and damage
/// reaches what parses them.
fn small_image(stored: bool) -> Vec<u8> {
    static IMAGES: std::sync::OnceLock<[Vec<u8>; 2]> = std::sync::OnceLock::new();
    let images = IMAGES.get_or_init(|| {
        let mut tree = full_tree();
        tree.remove(b"/many");
        [6, -131_072]
            .map(|level| image(&tree, &Options { block_bytes: 16384, level, ..Options::default() }).0)
    });
    let names = images[1].windows(10).any(|w| w == b"sparse.bin");
    assert!(names, "the tables of the second image are compressed");
    images[usize::from(stored)].clone()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn damage_never_panics(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..3), 1..12), stored in any::<bool>()) {
        let mut bytes = small_image(stored);
        let n = bytes.len();
        for (at, value, region) in hits {
            // Superblock, tables, anywhere: tables are where the decisions are.
            let range = [0..96, n - 4096..n, 0..n][region].clone();
            let at = range.start + at.index(range.len());
            bytes[at] = value;
        }
        if let Ok(mut reader) = Reader::open(Cursor::new(&bytes)) {
            let _ = reader.verify();
        }
    }

    #[test]
    fn noise_behind_a_superblock_never_panics(tail in prop::collection::vec(any::<u8>(), 0..4096), head in prop::collection::vec(0u64..5000, 8)) {
        let mut bytes = small_image(false)[..96].to_vec();
        for (i, value) in head.iter().enumerate() {
            bytes[32 + 8 * i..40 + 8 * i].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend(tail);
        if let Ok(mut reader) = Reader::open(Cursor::new(&bytes)) {
            let _ = reader.verify();
        }
    }
}
