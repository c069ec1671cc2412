//! Caches and images that were damaged, builds that were killed, slots that are too small: found, named, survived.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dyad_image_tests::{Installed, Surroundings, text};
use serde_json::Value;

fn here(installed: &Installed) -> Surroundings {
    Surroundings { directory: Some(installed.path("src")), ..Surroundings::default() }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("the directory can be read") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// A damaged cache, and builds that are killed at any moment, change no byte of what the next build makes.
#[test]
fn a_build_after_damage_or_a_kill_gives_the_same_bytes() {
    let installed = Installed::new();
    let (around, out) = (here(&installed), installed.path("out"));
    let good = installed.digests(&around, &out, &["raw", "qcow2"], &["--locked"]);

    let entries = files(&installed.blocks);
    assert!(entries.len() > 100, "{} entries are too few to be the cache", entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let file = fs::File::options().read(true).write(true).open(entry).expect("an entry can be opened");
        let length = file.metadata().expect("it is open").len();
        match number % 3 {
            0 => file.set_len(length / 2).expect("an entry can be cut"),
            1 => file.set_len(0).expect("an entry can be emptied"),
            _ => {
                let at = (number as u64 * 7919) % length;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("an entry can be read");
                file.write_all_at(&[byte[0] ^ 0x40], at).expect("an entry can be changed");
            }
        }
    }
    assert_eq!(installed.digests(&around, &out, &["raw", "qcow2"], &["--locked"]), good, "damaged cache");

    let cold = Surroundings { cold: true, ..around.clone() };
    for milliseconds in [50, 200, 500, 1000, 2000, 4000, 7000] {
        let out = installed.path("killed");
        let deadline = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
        let mut argv = vec!["timeout".to_owned(), "--signal=KILL".to_owned(), deadline];
        argv.extend(installed.build_line(&out, &["raw", "qcow2"], &["--locked"]));
        let ended = installed.command(&cold, &argv).status.success();
        let left: Vec<PathBuf> = if out.is_dir() { files(&out) } else { Vec::new() };
        let finished = left.iter().filter(|path| path.parent() == Some(&out)).count();
        // Renaming is the last thing that a build does, one file after the other.
        assert!(ended || finished == 0, "killed after {milliseconds} ms: {left:?}");
    }
    assert_eq!(installed.digests(&around, &installed.path("killed"), &["raw", "qcow2"], &["--locked"]), good);
}

/// Outputs on a disk of `$1` bytes, mounted over `$2`, with the cache of blocks at `$3`; what lies there, bytes in use.
const SMALL_DISK: &str = "mount -t tmpfs -o size=$1 none \"$2\" && disk=$2 blocks=$3 && shift 3 && \
    DYAD_BLOCK_CACHE=\"$blocks\" \"$@\" >/dev/null; code=$?; \
    echo \"$code $(ls -A \"$disk/out\" | tr '\\n' ' ')\"; df --output=used -B1 \"$disk\" | tail -1";

/// A disk that is full at any moment of a build: the message names the place, and nothing is left under a final name.
#[test]
fn a_disk_that_fills_up_at_any_stage_leaves_nothing() {
    let installed = Installed::new();
    let around = here(&installed);
    let disk = installed.path("disk");
    fs::create_dir(&disk).expect("a directory can be made");
    let build = |bytes: u64, blocks: &Path| {
        let size = bytes.to_string();
        let wrapper = ["unshare", "-Urm", "sh", "-c", SMALL_DISK, "sh", &size, text(&disk), text(blocks)];
        let mut argv: Vec<String> = wrapper.map(str::to_owned).into();
        argv.extend(installed.build_line(&disk.join("out"), &["raw", "qcow2"], &["--locked"]));
        let output = installed.command(&around, &argv);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut lines = shown.lines();
        let (left, used) = (lines.next().unwrap_or_default().to_owned(), lines.next().unwrap_or_default());
        (left, used.trim().parse::<u64>().unwrap_or_else(|_| panic!("{shown}{said}")), said)
    };
    let (left, used, said) = build(1 << 30, &installed.blocks);
    assert!(left.starts_with("0 ") && left.contains("lab_0.1.0.raw"), "{left}: {said}");
    let mut stages = BTreeSet::new();
    for tenths in 0..10 {
        // Once with the cache on the same disk: it must give way.
        let same = disk.join("blocks");
        let blocks = if tenths == 5 { &same } else { &installed.blocks };
        let (left, _, said) = build((used * tenths / 10).max(1 << 20), blocks);
        let last = said.lines().last().unwrap_or_default();
        println!("{tenths}/10: {left}: {last}");
        assert_eq!(left.trim_end(), "1", "nothing is left: {said}");
        let (stage, error) = last.split_once(text(&disk)).unwrap_or_else(|| panic!("no place named: {said}"));
        assert!(error.contains("No space left on device"), "{said}");
        stages.insert(stage.to_owned());
    }
    assert!(stages.len() >= 2, "the disk was never full at another moment: {stages:?}");
}

#[test]
fn a_root_larger_than_its_slot_is_refused() {
    let installed = Installed::new();
    let path = installed.path("src/images/lab.toml");
    let text = fs::read_to_string(&path).expect("the definition can be read");
    let small = text
        .replace("root = \"512MiB\"", "root = \"16MiB\"")
        .replace("verity = \"8MiB\"", "verity = \"1MiB\"");
    assert_ne!(small, text, "images/lab.toml states the sizes of its slots");
    fs::write(&path, small).expect("the definition can be written");
    let out = installed.path("out");
    let output = installed.command(&here(&installed), &installed.build_line(&out, &["raw"], &[]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("lab_0.1.0 has ") && said.contains("bytes, its slot 16777216: make the slot larger"),
        "{said}"
    );
    assert!(files(&out).is_empty(), "nothing is left");
}

/// `dyad verify` of a copy with one byte changed must fail, with the record beside it and without.
#[test]
fn a_flipped_byte_anywhere_is_noticed() {
    let installed = Installed::new();
    let (around, out) = (here(&installed), installed.path("out"));
    let program = text(&installed.path("bin/dyad")).to_owned();
    let dyad = |words: &[&str]| {
        let mut argv = vec![program.clone()];
        argv.extend(words.iter().map(|w| (*w).to_owned()));
        installed.command(&around, &argv)
    };
    let key = installed.path("key");
    assert!(dyad(&["key", "new", text(&key)]).status.success());
    let (private, public) = (installed.path("key.key"), installed.path("key.pub"));
    installed.ok(&around, &installed.build_line(&out, &["raw", "qcow2"], &["--key", text(&private)]));
    for format in ["raw", "qcow2"] {
        let image = out.join(format!("lab_0.1.0.{format}"));
        let signed = dyad(&["verify", text(&image), "--key", text(&public)]);
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        let facts = dyad(&["inspect", "--json", text(&image)]).stdout;
        let facts: Value = serde_json::from_slice(&facts).expect("--json prints JSON");
        let alone = installed.path(&format!("alone.{format}"));
        fs::rename(&image, &alone).expect("a file can be moved");
        let length = fs::metadata(&alone).expect("it is there").len();
        let file = fs::File::options().read(true).write(true).open(&alone).expect("it can be opened");
        for (what, at) in places(format, length, &facts) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("it can be read");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("it can be written");
            let output = dyad(&["verify", text(&alone)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("{format}, {what}, byte {at}: {}", said.trim());
            assert_eq!(output.status.code(), Some(1), "{format}, {what}, byte {at}: {said}");
            fs::rename(&alone, &image).expect("a file can be moved");
            let output = dyad(&["verify", text(&image), "--key", text(&public)]);
            assert_eq!(output.status.code(), Some(1), "{format}, {what}, byte {at}, with its record");
            fs::rename(&image, &alone).expect("a file can be moved");
            file.write_all_at(&byte, at).expect("it can be written");
        }
        assert!(dyad(&["verify", text(&alone)]).status.success(), "every flip was taken back");
    }
}

/// Bytes in every region of an image file.
fn places(format: &str, length: u64, facts: &Value) -> Vec<(&'static str, u64)> {
    if format == "qcow2" {
        return vec![
            ("version", 7),
            ("size", 28),
            ("padding of the header", 4000),
            ("first cluster", 65_536 + 100),
            ("a cluster", length / 3),
            ("another cluster", length / 2),
            ("tables", length - 3 * 65_536 + 9),
            ("refcounts", length - 65_536 - 40_000),
            ("refcount table", length - 65_536 + 3),
            ("last byte", length - 1),
        ];
    }
    let part = |number: u64, name: &str| {
        let parts = facts["partitions"].as_array().expect("a disk has partitions");
        let found = parts.iter().find(|p| p["number"] == number).expect("it is there");
        found[name].as_u64().expect("a number")
    };
    let end = |number| part(number, "offset") + part(number, "bytes");
    let root = facts["root"]["bytes"].as_u64().expect("a number");
    vec![
        ("protective MBR", 450),
        ("primary header", 512 + 40),
        ("primary entries", 1024 + 60),
        ("padding behind the primary table", 900_000),
        ("boot sector's code", part(1, "offset") + 100),
        ("FSInfo", part(1, "offset") + 512 + 490),
        ("first file allocation table", part(1, "offset") + 32 * 512 + 400),
        ("file allocation table, a free cluster", part(1, "offset") + 600 * 512 + 400),
        ("somewhere in the kernel image", part(1, "offset") + (6 << 20)),
        ("unused part of the ESP", end(1) - 5000),
        ("root superblock", part(2, "offset") + 9),
        ("root", part(2, "offset") + root / 2),
        ("padding of the root", part(2, "offset") + root + 8192),
        ("superblock of the hash tree: identity", part(3, "offset") + 20),
        ("superblock of the hash tree: padding", part(3, "offset") + 3000),
        ("hash tree", part(3, "offset") + 4096 + 5),
        ("padding of the hash tree", end(3) - 10),
        ("backup entries", length - 33 * 512 + 60),
        ("backup header", length - 512 + 40),
        ("last byte", length - 1),
    ]
}
