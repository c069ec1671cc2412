//! Programs that others wrote read the images that people get, and agree on every file in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use backhand::{FilesystemReader, InnerNode};
use dyad_image_tests::text;
use dyad_vm_tests::{program, run, stdout};
use serde_json::Value;
use tempfile::TempDir;

/// One image in every format, with the parts of its disk as files of their own.
struct Image {
    dir: TempDir,
    stem: String,
    /// What `dyad build --json` said.
    record: Value,
}

/// Runs a program that must succeed.
fn ask(name: &str, args: &[&str]) -> String {
    stdout(&format!("{name} {args:?}"), &program(name, args))
}

impl Image {
    fn build(name: &str) -> Image {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let definition = format!("images/{name}.toml");
        let mut args = vec!["build", &definition, "--json", "--out", text(dir.path())];
        for format in ["raw", "qcow2", "tree"] {
            args.extend(["--format", format]);
        }
        let record = stdout("dyad build", &run(&args, &[]));
        let record: Value = serde_json::from_str(&record).expect("--json prints JSON");
        let word = |key: &str| record[key].as_str().expect("the record names it").to_owned();
        let stem = format!("{}_{}", word("name"), word("version"));
        Image { dir, stem, record }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn output(&self, suffix: &str) -> PathBuf {
        self.path(&format!("{}.{suffix}", self.stem))
    }

    fn root_hash(&self) -> &str {
        self.record["root"]["verity_root_hash"].as_str().expect("the record names it")
    }

    /// A partition of the raw disk, found as sgdisk finds it, as a sparse file.
    fn partition(&self, number: u32, name: &str) -> PathBuf {
        let (raw, part) = (self.output("raw"), self.path(name));
        let facts = ask("sgdisk", &[&format!("-i={number}"), text(&raw)]);
        let sector = |label: &str| -> u64 {
            let line = facts.lines().find_map(|l| l.strip_prefix(label)).expect("sgdisk names it");
            line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
        };
        let (first, last) = (sector("First sector: "), sector("Last sector: "));
        assert_eq!((first % 2048, (last + 1) % 2048), (0, 0), "partition {number} is not on 1 MiB");
        let (skip, count) =
            (format!("skip={}", first / 2048), format!("count={}", (last + 1 - first) / 2048));
        let (from, to) = (format!("if={}", text(&raw)), format!("of={}", text(&part)));
        ask("dd", &[&from, &to, "bs=1M", "conv=sparse", "status=none", &skip, &count]);
        part
    }
}

/// A line of a listing by tar or unsquashfs: (kind and mode, owner, size where it is the file's, time, link's target).
type Line = (String, String, Option<String>, String, Option<String>);

/// Both programs print `MODE UID/GID SIZE DATE TIME PATH[ -> TARGET]`; what they differ in is taken out. Names with
/// spaces are whole: only the five words in front are split off.
fn listing(text: &str) -> BTreeMap<String, Line> {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut links = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty()) {
        let mut words = [""; 5];
        let mut rest = line;
        for word in &mut words {
            (*word, rest) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
        }
        let [mode, owner, size, day, time] = words;
        let clean = |path: &str| format!("/{}", path.trim_start_matches("./").trim_matches('/'));
        if let Some((path, target)) = rest.split_once(" link to ").filter(|_| mode.starts_with('h')) {
            links.push((clean(path), clean(target)));
            continue;
        }
        let (path, target) = match rest.split_once(" -> ").filter(|_| mode.starts_with('l')) {
            Some((path, target)) => (path, Some(target.to_owned())),
            None => (rest, None),
        };
        let size = mode.starts_with('-').then(|| size.to_owned());
        lines.insert(clean(path), (mode.to_owned(), owner.to_owned(), size, format!("{day} {time}"), target));
    }
    for (path, target) in links {
        let line = lines.get(&target).expect("a hard link follows its file").clone();
        lines.insert(path, line);
    }
    lines
}

/// `drwxr-xr-x` -> 0o755, with the bits above.
fn mode_bits(shown: &str) -> u16 {
    let letters = shown.as_bytes();
    let bit = |at: usize| u16::from(matches!(letters[at], b'r' | b'w' | b'x' | b's' | b't'));
    let special = |at: usize| u16::from(matches!(letters[at], b's' | b'S' | b't' | b'T'));
    let plain = (1..10).fold(0, |mode, at| mode << 1 | bit(at));
    plain | special(3) << 11 | special(6) << 10 | special(9) << 9
}

/// GNU tar's and unsquashfs' views of one tree: every path with owner, mode, time, size and target, then every byte.
fn tree(image: &Image, squashfs: &Path) -> (BTreeMap<String, Line>, PathBuf) {
    let archive = image.output("tar");
    let ours = ask("tar", &["--numeric-owner", "--utc", "-tvf", text(&archive)]);
    let theirs = ask("env", &["TZ=UTC", "unsquashfs", "-no-progress", "-lln", "-d", "", text(squashfs)]);
    // unsquashfs says a few words of its own first.
    let theirs: Vec<&str> =
        theirs.lines().filter(|l| l.split_whitespace().nth(1).is_some_and(|w| w.contains('/'))).collect();
    let (ours, theirs) = (listing(&ours), listing(&theirs.join("\n")));
    assert!(ours.len() > 1500, "{} paths", ours.len());
    for (path, line) in &theirs {
        assert_eq!(Some(line), ours.get(path).or((path == "/").then_some(line)), "{path}");
    }
    for path in ours.keys() {
        assert!(theirs.contains_key(path), "{path} is not in the squashfs");
    }

    let out = image.path("unpacked");
    // As an ordinary user it can set no owners, and says so with status 2; the listing has them.
    let unpacked = program("unsquashfs", &["-no-progress", "-quiet", "-d", text(&out), text(squashfs)]);
    assert!(matches!(unpacked.status.code(), Some(0 | 2)), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let compared = program("tar", &["--compare", "-f", text(&archive), "-C", text(&out)]);
    let differs = String::from_utf8_lossy(&compared.stdout).into_owned();
    let differs: Vec<&str> =
        differs.lines().filter(|l| !l.ends_with(": Uid differs") && !l.ends_with(": Gid differs")).collect();
    assert!(differs.is_empty(), "{differs:#?}");
    (theirs, out)
}

/// A reader of squashfs that shares nothing with ours.
fn backhand(squashfs: &Path, listed: &BTreeMap<String, Line>, unpacked: &Path) {
    let file = BufReader::new(fs::File::open(squashfs).expect("the partition was copied"));
    let system = FilesystemReader::from_reader(file).expect("backhand reads the squashfs");
    let (mut paths, mut bytes) = (0, 0);
    for node in system.files() {
        let path = node.fullpath.to_str().expect("paths of an image are UTF-8");
        let (mode, owner, ..) = listed.get(path).unwrap_or_else(|| panic!("only backhand sees {path}"));
        assert_eq!(*owner, format!("{}/{}", node.header.uid, node.header.gid), "{path}");
        let kind = match &node.inner {
            InnerNode::File(_) => '-',
            InnerNode::Symlink(_) => 'l',
            InnerNode::Dir(_) => 'd',
            _ => '?',
        };
        assert!(mode.starts_with(kind), "{path}: {kind} is not {mode}");
        assert!(kind == 'l' || node.header.permissions & 0o7777 == mode_bits(mode), "{path}: {mode}");
        if let InnerNode::File(file) = &node.inner {
            let mut got = Vec::new();
            system.file(file).reader().read_to_end(&mut got).expect("backhand reads the file");
            let want = fs::read(unpacked.join(path.trim_start_matches('/'))).expect("it was unpacked");
            assert!(got == want, "{path}: backhand and unsquashfs read other bytes");
            bytes += got.len();
        }
        paths += 1;
    }
    assert_eq!(paths, listed.len(), "backhand misses paths");
    println!("backhand: {paths} paths, {bytes} bytes of content, as unsquashfs reads them");
}

/// fsck, mtools, binutils, zstd and cpio on what the firmware and the kernel read.
fn boot(image: &Image) {
    let esp = image.partition(1, "esp");
    println!("{}", ask("fsck.fat", &["-n", text(&esp)]).trim());
    let version = image.record["version"].as_str().expect("the record names it");
    let entry = format!("::/EFI/Linux/dyad_{version}+3-0.efi");
    let listed = ask("mdir", &["-b", "-/", "-i", text(&esp), "::"]);
    for name in ["::/EFI/BOOT/BOOTX64.EFI", &entry, "::/loader/loader.conf", "::/dyad/sha256sums"] {
        assert!(listed.lines().any(|l| l.eq_ignore_ascii_case(name)), "{name} is not in {listed}");
    }
    let uki = image.path("uki.efi");
    ask("mcopy", &["-i", text(&esp), &entry, text(&uki)]);
    let headers = ask("objdump", &["-h", text(&uki)]);
    let section = |name: &str| {
        assert!(headers.lines().any(|l| l.split_whitespace().nth(1) == Some(name)), "{name}: {headers}");
        let to = image.path(name.trim_start_matches('.'));
        ask("objcopy", &["-O", "binary", &format!("--only-section={name}"), text(&uki), text(&to)]);
        to
    };
    let [_, _, line, initrd] = [".linux", ".osrel", ".cmdline", ".initrd"].map(section);
    let line = fs::read_to_string(line).expect("a command line is text");
    assert!(line.contains(&format!("dyad.root={}", image.root_hash())), "{line}");
    let script = format!("set -e; zstd -dc {0} > {0}.cpio; cpio -t --quiet < {0}.cpio", text(&initrd));
    let listed = ask("sh", &["-c", &script]);
    for name in ["init", "usr/lib/dyad/modules.bin"] {
        assert!(listed.lines().any(|l| l == name), "{name} is not in {listed}");
    }
    println!("cpio: {} paths in the initrd", listed.lines().count());
}

fn agree(name: &str) {
    let image = Image::build(name);
    let (raw, qcow2) = (image.output("raw"), image.output("qcow2"));
    let verified = ask("sgdisk", &["-v", text(&raw)]);
    assert!(verified.contains("No problems found"), "{verified}");
    println!("{}", ask("qemu-img", &["check", "-f", "qcow2", text(&qcow2)]).trim());
    println!(
        "{}",
        ask("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&qcow2)]).trim()
    );
    boot(&image);
    let (root, hashes) = (image.partition(2, "root"), image.partition(3, "verity"));
    ask("veritysetup", &["verify", text(&root), text(&hashes), image.root_hash()]);
    let (listed, unpacked) = tree(&image, &root);
    println!("tar and unsquashfs: {} paths, the same content", listed.len());
    backhand(&root, &listed, &unpacked);
}

#[test]
fn outside_programs_agree_on_the_lab_image() {
    agree("lab");
}

#[test]
fn outside_programs_agree_on_the_appliance_image() {
    agree("appliance");
}
