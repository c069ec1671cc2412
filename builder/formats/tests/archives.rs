//! cpio against GNU cpio, tar against GNU tar and Python's tarfile.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use common::{full_tree, inode, plain_tree, put, run, text};
use dyad_formats::tree::{Kind, Tree};
use dyad_formats::{cpio, tar, zstd_frame, zstd_unframe};
use proptest::prelude::*;

fn cpio_bytes(tree: &Tree) -> Bytes {
    let mut out = Vec::new();
    cpio::write(tree, &mut out).unwrap();
    out.into()
}

/// What was extracted must be the tree, hard links included; the root's own meta data is not in every archive.
fn compare_on_disk(tree: &Tree, out: &Path, dir_times: bool) {
    let mut inodes = std::collections::HashMap::new();
    for (path, id, want) in tree.iter().skip(1) {
        let shown = std::str::from_utf8(path).unwrap();
        let file = out.join(shown.trim_start_matches('/'));
        let got = std::fs::symlink_metadata(&file).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert_eq!((got.uid(), got.gid()), (want.meta.uid, want.meta.gid), "{shown}");
        assert_eq!(*inodes.entry(got.ino()).or_insert(id), id, "{shown}");
        if !matches!(want.kind, Kind::Symlink(_)) {
            assert_eq!(got.mode() & 0o7777, u32::from(want.meta.mode), "{shown}");
            if dir_times || !matches!(want.kind, Kind::Dir) {
                assert_eq!(got.mtime(), i64::from(want.meta.mtime), "{shown}");
            }
        }
        match &want.kind {
            Kind::File(content) => assert!(std::fs::read(&file).unwrap() == *content, "{shown}: content"),
            Kind::Symlink(target) => {
                assert_eq!(std::fs::read_link(&file).unwrap().to_str().unwrap().as_bytes(), target);
            }
            Kind::Char(a, b) | Kind::Block(a, b) => {
                assert_eq!(got.rdev(), u64::from(b & 0xff | a << 8 | (b & !0xff) << 12), "{shown}");
            }
            Kind::Dir | Kind::Fifo | Kind::Socket => {}
        }
    }
    let names: std::collections::HashSet<_> = tree.iter().skip(1).map(|(_, id, _)| id).collect();
    assert_eq!(inodes.len(), names.len(), "hard links");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn gnu_cpio_lists_and_extracts() {
    let tree = plain_tree();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.cpio"), cpio_bytes(&tree)).unwrap();
    let listed = run("cpio", &["--quiet", "-t", "-F", "a.cpio"], dir.path());
    let names: Vec<String> =
        tree.iter().skip(1).map(|(p, ..)| String::from_utf8_lossy(&p[1..]).into()).collect();
    assert_eq!(listed.lines().count(), names.len());
    assert!(listed.lines().zip(&names).all(|(a, b)| a == b || !b.is_ascii()));
    std::fs::create_dir(dir.path().join("out")).unwrap();
    run("cpio", &["--quiet", "-i", "-m", "-F", "../a.cpio"], &dir.path().join("out"));
    compare_on_disk(&tree, &dir.path().join("out"), false);
}

#[test]
fn cpio_round_trip() {
    let mut tree = plain_tree();
    put(&mut tree, "/dev/log", Kind::Socket, 0o666);
    let bytes = cpio_bytes(&tree);
    let got = cpio::read(&bytes, "test").unwrap();
    assert_eq!(got.len(), tree.len());
    for ((path, _, a), (other, _, b)) in tree.iter().zip(got.iter()).skip(1) {
        assert_eq!((path, a), (other, b));
    }
    assert_eq!(got.id(b"/usr/bin/tool"), got.id(b"/usr/lib/tool"));
    assert_eq!(cpio_bytes(&got), bytes);
}

#[test]
fn reads_what_gnu_cpio_writes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/a"), b"content").unwrap();
    std::fs::hard_link(dir.path().join("d/a"), dir.path().join("d/b")).unwrap();
    run("sh", &["-c", "find d | sort | cpio --quiet -o -H newc -F x.cpio"], dir.path());
    let tree = cpio::read(&std::fs::read(dir.path().join("x.cpio")).unwrap().into(), "x").unwrap();
    assert_eq!(tree.id(b"/d/a"), tree.id(b"/d/b"));
    assert_eq!(tree.get(b"/d/b").unwrap().kind, Kind::File(Bytes::from_static(b"content")));
}

#[test]
fn cpio_refuses_by_name() {
    let tree = full_tree();
    let error = cpio::write(&tree, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("/etc: a cpio archive holds no extended attributes"), "{error}");
    for (bytes, want) in [
        (&b"070707"[..], "ends without a trailer"),
        (&[b'0'; 200][..], "magic number"),
        (&cpio_bytes(&plain_tree())[..3_000_000], "behind the archive"),
    ] {
        let error = cpio::read(&Bytes::copy_from_slice(bytes), "x").unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn zstd_frames_are_stable_and_bounded() {
    let data = text(4_000_000, 1);
    let frame = zstd_frame(&data, 12).unwrap();
    assert_eq!(frame, zstd_frame(&data, 12).unwrap());
    assert_eq!(zstd_unframe(&frame, data.len()).unwrap(), data);
    assert!(zstd_unframe(&frame, data.len() - 1).unwrap_err().to_string().contains("more than 3999999"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f.zst"), &frame).unwrap();
    run("zstd", &["-q", "-t", "f.zst"], dir.path());
}

/// The full tree without the socket, with names and owners that need PAX records.
fn tar_tree() -> Tree {
    let mut tree = full_tree();
    tree.remove(b"/dev/log");
    put(&mut tree, &format!("/usr/{}", "d".repeat(120)), Kind::Dir, 0o755);
    tree.insert(b"/usr/owner", inode(Kind::File(text(3, 3)), 0o644, 3_000_000, 2_500_000)).unwrap();
    tree
}

fn tar_bytes(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    tar::write(tree, &mut out).unwrap();
    out
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn gnu_tar_extracts_the_tree() {
    let tree = tar_tree();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.tar"), tar_bytes(&tree)).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    let args = [
        "-xpf",
        "../a.tar",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--delay-directory-restore",
    ];
    run("tar", &args, &dir.path().join("out"));
    compare_on_disk(&tree, &dir.path().join("out"), true);
    let caps = run("getfattr", &["-h", "-d", "-m", "-", "-e", "hex", "out/usr/bin/su"], dir.path());
    assert!(caps.contains("security.capability=0x0100000200200000"), "{caps}");
    assert!(caps.contains("user.note=0x74776f0a6c696e6573"), "{caps}");
}

#[test]
fn python_reads_the_same_members() {
    let tree = tar_tree();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.tar"), tar_bytes(&tree)).unwrap();
    let script = "import tarfile\nfor m in tarfile.open('a.tar', encoding='utf-8'):\n print(m.name, m.mode, m.uid, \
                  m.gid, m.size, m.mtime, m.type.decode(), sep='|')";
    let listed = run("python3", &["-I", "-X", "utf8", "-c", script], dir.path());
    let mut seen = std::collections::HashSet::new();
    let wanted: Vec<String> = tree
        .iter()
        .map(|(path, id, inode)| {
            let name = format!(".{}", String::from_utf8_lossy(path).trim_end_matches('/'));
            let again = !seen.insert(id);
            let (kind, size) = match &inode.kind {
                _ if again => (1, 0),
                Kind::Dir => (5, 0),
                Kind::File(content) => (0, content.len()),
                Kind::Symlink(_) => (2, 0),
                Kind::Char(..) => (3, 0),
                Kind::Block(..) => (4, 0),
                Kind::Fifo | Kind::Socket => (6, 0),
            };
            let m = &inode.meta;
            format!("{name}|{}|{}|{}|{size}|{}|{kind}", m.mode, m.uid, m.gid, m.mtime)
        })
        .collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn tar_refuses_sockets() {
    let error = tar::write(&full_tree(), &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "/dev/log: a tar archive holds no sockets");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn damaged_cpio_never_panics(hits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789abcdefF\0/.".to_vec())), 1..30)) {
        let mut tree = Tree::new(0);
        put(&mut tree, "/a", Kind::Dir, 0o755);
        put(&mut tree, "/a/b", Kind::File(text(50, 1)), 0o644);
        tree.hard_link(b"/a/c", b"/a/b").unwrap();
        let mut bytes = cpio_bytes(&tree).to_vec();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = cpio::read(&bytes.into(), "x");
    }
}
