//! The parsers of foreign bytes, one function each: whatever comes in, they answer, they do not panic, and they take
//! memory in proportion to what they were given.
//!
//! `cargo xtask fuzz` runs them under libFuzzer (`harness/`); the ordinary test replays `corpus/`, where every input that
//! once broke something stays.

mod cluster;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use bytes::Bytes;
use dyad_api::control::{Message, Request};
use dyad_debian::{Origin, Release, Universe};
use dyad_formats::{cpio, disk::qcow2, fat, squashfs, tar, uki, verity};
use dyad_spec::Source;
use dyad_spec::site::Site;
use dyad_tree::unpack::{Limits, Verdict, unpack};

/// What a target may unpack: small inputs cannot hold much more.
const UNPACKED_BYTES_MAX: u64 = 16 << 20;

/// A parser under test.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 27] = [
    ("deb", deb),
    ("tar", tar_member),
    ("xz", xz),
    ("packages", packages),
    ("inrelease", inrelease),
    ("lock", lock),
    ("gpt", gpt),
    ("fat", fat),
    ("squashfs", squashfs),
    ("qcow2", qcow2),
    ("cpio", cpio),
    ("tar_tree", tar_tree),
    ("uki", uki),
    ("verity", verity),
    ("definition", definition),
    ("site", site),
    ("modinfo", modinfo),
    ("control", control),
    ("notify", dyad_init::fuzz::notify),
    ("uevent", dyad_init::fuzz::uevent),
    ("modalias", dyad_init::fuzz::modalias),
    ("mountinfo", mountinfo),
    ("shared_memory", dyad_init::fuzz::shared_memory),
    ("boots", dyad_init::fuzz::boots),
    ("wire", cluster::wire),
    ("mirror", cluster::mirror),
    ("eventlog", cluster::eventlog),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, run)| *run)
}

fn limits() -> Limits {
    Limits {
        data_bytes_max: UNPACKED_BYTES_MAX,
        control_bytes_max: UNPACKED_BYTES_MAX,
        members_max: 10_000,
        ..Limits::default()
    }
}

fn deb(data: &[u8]) {
    if let Ok(package) = unpack(&Bytes::copy_from_slice(data), &limits(), &|_| Verdict::Keep) {
        for member in &package.members {
            assert!(member.path.starts_with(b"/"), "{:?}", member.path);
            assert!(!member.path.split(|&b| b == b'/').any(|part| part == b".."), "{:?}", member.path);
        }
    }
}

/// A package around one part, so that the fuzzer need not find the container first.
fn package(part: &str, data: &[u8]) -> Vec<u8> {
    const CONTROL: &[u8] = b"Package: p\nVersion: 1\nArchitecture: all\n";
    let mut header = [0u8; 512];
    let fields: [(usize, &[u8]); 6] = [
        (0, b"./control"),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (136, b"00000000000\0"),
        (257, b"ustar\x0000"),
    ];
    for (at, field) in fields {
        header[at..at + field.len()].copy_from_slice(field);
    }
    header[124..136].copy_from_slice(format!("{:011o}\0", CONTROL.len()).as_bytes());
    header[156] = b'0';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut control = header.to_vec();
    control.extend(CONTROL);
    control.resize(512 * 4, 0);
    let mut out = b"!<arch>\n".to_vec();
    for (name, data) in [("debian-binary", &b"2.0\n"[..]), ("control.tar", &control), (part, data)] {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, data.len()).bytes());
        out.extend_from_slice(data);
        if data.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

fn tar_member(data: &[u8]) {
    deb(&package("data.tar", data));
}

fn xz(data: &[u8]) {
    deb(&package("data.tar.xz", data));
}

fn packages(data: &[u8]) {
    let mut universe = Universe::new("amd64");
    let origin = Origin { suite: "bookworm".to_owned(), component: "main".to_owned() };
    if universe.add(origin, data.to_vec()).is_ok() {
        let wanted = ["a", "libc6"].iter().filter_map(|name| name.parse().ok()).collect();
        let request = dyad_debian::Request { packages: wanted, ..Default::default() };
        let _ = dyad_debian::resolve(&universe, &request);
    }
}

fn inrelease(data: &[u8]) {
    let _ = dyad_debian::check_clearsign(data);
    let _ = Release::parse(data);
}

fn lock(data: &[u8]) {
    if let Ok(lock) = dyad_debian::Lock::parse(&String::from_utf8_lossy(data)) {
        assert_eq!(dyad_debian::Lock::parse(&lock.to_toml()).as_ref(), Ok(&lock));
    }
}

fn gpt(data: &[u8]) {
    for sector in [512, 4096] {
        if let Ok(found) = dyad_gpt::read(&mut Cursor::new(data), sector, data.len() as u64) {
            let encoded = found.table.encode();
            assert!(encoded.tail_offset + encoded.tail.len() as u64 <= data.len() as u64);
        }
    }
    let _ = dyad_gpt::detect_sector_size(&mut Cursor::new(data));
}

fn fat(data: &[u8]) {
    if let Ok(mut volume) = fat::Volume::open(Cursor::new(data)) {
        if volume.bytes <= UNPACKED_BYTES_MAX {
            let _ = volume.files();
        }
    }
}

fn squashfs(data: &[u8]) {
    if let Ok(mut reader) = squashfs::Reader::open(Cursor::new(data)) {
        let _ = reader.tree("fuzz", UNPACKED_BYTES_MAX);
    }
}

fn qcow2(data: &[u8]) {
    if let Ok(reader) = qcow2::Reader::open(Cursor::new(data)) {
        let _ = std::io::copy(&mut reader.take(UNPACKED_BYTES_MAX), &mut std::io::sink());
    }
}

fn cpio(data: &[u8]) {
    let _ = cpio::read(&Bytes::copy_from_slice(data), "fuzz");
}

fn tar_tree(data: &[u8]) {
    let _ = tar::read(&Bytes::copy_from_slice(data), "fuzz");
}

fn uki(data: &[u8]) {
    let _ = uki::sections(&Bytes::copy_from_slice(data));
    let _ = uki::add_sections(data, &[(".linux", b"kernel")]);
}

fn verity(data: &[u8]) {
    if let Ok(superblock) = verity::Superblock::decode(data) {
        let _ = superblock.hash_bytes();
    }
    let half = data.len() / 2;
    let _ = verity::verify(&mut &data[..half], &mut Cursor::new(&data[half..]), &[0; 32]);
}

/// A definition and, behind a line of dashes, an overlay that it may name.
fn definition(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (definition, overlay) = text.split_once("\n---\n").unwrap_or((&text, "description = \"d\"\n"));
    let overlays = BTreeMap::from([("a".to_owned(), Source::new("a", overlay))]);
    if let Err(told) = dyad_spec::merge::merge(Source::new("image.toml", definition), &overlays) {
        assert!(told.render(false).starts_with("error"));
    }
}

fn site(data: &[u8]) {
    if let Err(told) = Site::parse(Source::new("site.toml", String::from_utf8_lossy(data))) {
        assert!(told.render(true).contains("error"));
    }
}

fn modinfo(data: &[u8]) {
    dyad_tree::read_module(&Bytes::copy_from_slice(data));
}

/// PID 1's protocol, both ways: what is accepted has one meaning.
fn control(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        let again = request.encode().expect("what was short enough to be read is short enough to be written");
        assert_eq!(Request::decode(&again).as_ref(), Ok(&request));
    }
    if let Ok(message) = Message::decode(data) {
        let again = message.encode().expect("what was short enough to be read is short enough to be written");
        assert_eq!(Message::decode(&again).as_ref(), Ok(&message));
    }
}

fn mountinfo(data: &[u8]) {
    dyad_init::fuzz::mountinfo(&String::from_utf8_lossy(data));
}
