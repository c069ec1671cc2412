//! FAT32 against fsck.fat and mtools, in both directions.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use common::{MTIME, noise, run, text};
use dyad_formats::fat::{Error, Image, Options, Timestamp, Volume, write};
use proptest::prelude::*;

fn options(sector_size: u32, bytes: u64) -> Options {
    let timestamp = Timestamp::from_unix(MTIME);
    Options { sector_size, bytes, volume_id: 0x1234_abcd, label: "ESP".into(), timestamp }
}

fn files() -> Vec<(String, Bytes)> {
    let mut files = vec![
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), noise(140_891, 1)),
        ("EFI/Linux/dyad_0.1.0+3-0.efi".into(), noise(5_000_001, 2)),
        ("EFI/Linux/dyad_0.1.1+2-1.efi".into(), noise(4096, 3)),
        ("loader/loader.conf".into(), text(60, 4)),
        ("loader/empty".into(), Bytes::new()),
        ("dyad/site.toml".into(), text(5000, 5)),
        ("dyad/exactly-13-ch".into(), text(1, 6)),
        ("dyad/thirteen-char".into(), text(512, 7)),
        ("dyad/Name with spaces & pl+us (x).txt".into(), text(513, 8)),
        ("dyad/m\u{fc}ller \u{1f600}.txt".into(), text(10, 9)),
        ("UPPER.TXT".into(), text(11, 10)),
    ];
    files.extend((0..200).map(|i| (format!("many/configuration-{i}.json"), text(i, i))));
    files
}

fn save(image: &Image, path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    file.set_len(image.bytes).unwrap();
    let mut end = 0;
    for (at, bytes) in &image.extents {
        assert!(*at >= end && at + bytes.len() as u64 <= image.bytes, "extents overlap or leave the volume");
        end = at + bytes.len() as u64;
        file.seek(SeekFrom::Start(*at)).unwrap();
        file.write_all(bytes).unwrap();
    }
}

fn compare(path: &Path, want: &[(String, Bytes)]) {
    let mut volume = Volume::open(std::fs::File::open(path).unwrap()).unwrap();
    let mut got = volume.files().unwrap();
    let mut want = want.to_vec();
    got.sort();
    want.sort();
    assert_eq!(
        got.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        want.iter().map(|(n, _)| n).collect::<Vec<_>>()
    );
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        assert!(got == want, "{name}: content");
    }
}

#[test]
fn fsck_and_mtools_agree() {
    let dir = tempfile::tempdir().unwrap();
    for (sector, bytes, cluster) in [(512, 36 << 20, 512), (512, 1 << 30, 4096), (4096, 1 << 30, 4096)] {
        let files = files();
        let image = write(&options(sector, bytes), &files).unwrap();
        assert_eq!(image, write(&options(sector, bytes), &files).unwrap());
        let path = dir.path().join("esp");
        save(&image, &path);
        run("fsck.fat", &["-n", "esp"], dir.path());
        let boot = run("fsck.fat", &["-n", "-v", "esp"], dir.path());
        assert!(boot.contains(&format!("{cluster} bytes per cluster")), "{boot}");
        compare(&path, &files);
        for (name, content) in files.iter().filter(|(name, _)| name.is_ascii()) {
            run("mcopy", &["-n", "-o", "-i", "esp", &format!("::{name}"), "got"], dir.path());
            assert!(std::fs::read(dir.path().join("got")).unwrap() == *content, "{name}");
        }
        let listed = run("mdir", &["-i", "esp", "::EFI/Linux"], dir.path());
        assert!(listed.contains("dyad_0.1.0+3-0.efi") && listed.contains("2026-01-02   3:04"), "{listed}");
        assert!(listed.contains("Volume Serial Number is 1234-ABCD"), "{listed}");
    }
}

#[test]
fn reads_what_mkfs_and_mcopy_made() {
    let dir = tempfile::tempdir().unwrap();
    run("truncate", &["-s", "64M", "esp"], dir.path());
    run("mkfs.fat", &["-F", "32", "-s", "1", "-n", "THEIRS", "esp"], dir.path());
    let files: Vec<_> = files().into_iter().filter(|(name, _)| name.is_ascii()).collect();
    let mut made = std::collections::BTreeSet::new();
    for (name, content) in &files {
        let path = dir.path().join("tree").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        made.insert(name.split('/').next().unwrap().to_owned());
    }
    for top in made {
        run("mcopy", &["-s", "-i", "esp", &format!("tree/{top}"), "::"], dir.path());
    }
    // A hole in the middle of the directory, and a fragmented file in the place of the deleted one.
    run("mdel", &["-i", "esp", "::many/configuration-7.json"], dir.path());
    std::fs::write(dir.path().join("big"), noise(300_000, 11)).unwrap();
    run("mcopy", &["-i", "esp", "big", "::many/lower.txt"], dir.path());
    let mut files: Vec<_> =
        files.into_iter().filter(|(name, _)| name != "many/configuration-7.json").collect();
    files.push(("many/lower.txt".into(), noise(300_000, 11)));
    compare(&dir.path().join("esp"), &files);
    let volume = Volume::open(std::fs::File::open(dir.path().join("esp")).unwrap()).unwrap();
    assert_eq!(volume.label, "THEIRS");
}

#[test]
fn refuses_by_name() {
    let text_of = |result: Result<Image, Error>| result.unwrap_err().to_string();
    let one = |name: &str| vec![(name.to_owned(), Bytes::from_static(b"x"))];
    let small = text_of(write(&options(4096, 256 << 20), &one("a")));
    assert!(small.contains("65525") && small.contains("4096-byte sectors"), "{small}");
    for (name, want) in [
        ("a/../b", "\"..\" component"),
        ("a//b", "an empty"),
        ("/a", "an empty"),
        ("a/b:c", "not accepted"),
        ("a.", "end with a space or a dot"),
        ("nul\0", "not accepted"),
    ] {
        let error = text_of(write(&options(512, 36 << 20), &one(name)));
        assert!(error.contains(want), "{name}: {error}");
    }
    let mut twice = one("EFI/a.txt");
    twice.extend(one("efi/b.txt"));
    assert!(text_of(write(&options(512, 36 << 20), &twice)).contains("in another case"));
    let big = vec![("big".to_owned(), Bytes::from(vec![1u8; 40 << 20]))];
    assert!(
        text_of(write(&options(512, 36 << 20), &big)).contains("need 81921 clusters of 512 bytes"),
        "too large a file"
    );
    let label = Options { label: "lower".into(), ..options(512, 36 << 20) };
    assert!(text_of(write(&label, &one("a"))).contains("label \"lower\""));
}

#[test]
fn times_follow_the_calendar() {
    let dir = tempfile::tempdir().unwrap();
    for (unix, want) in [
        (0, "1980-01-01   0:00"),
        (951_782_399, "2000-02-28  23:59"),
        (951_868_799, "2000-02-29  23:59"),
        (4_102_444_799, "2099-12-31  23:59"),
    ] {
        let options = Options { timestamp: Timestamp::from_unix(unix), ..options(512, 36 << 20) };
        let image = write(&options, &[("A.TXT".to_owned(), text(3, 1))]).unwrap();
        save(&image, &dir.path().join("esp"));
        let listed = run("mdir", &["-i", "esp", "::A.TXT"], dir.path());
        assert!(listed.contains(want), "{want}: {listed}");
    }
}

/// The start of a volume: boot sectors, the used part of the tables, directories and small files.
fn head() -> Vec<u8> {
    let few: Vec<_> = files().into_iter().filter(|(_, content)| content.len() < 10_000).take(20).collect();
    let image = write(&options(512, 36 << 20), &few).unwrap();
    let end = image.extents.iter().map(|(at, b)| at + b.len() as u64).max().unwrap();
    let mut out = vec![0u8; end as usize];
    for (at, bytes) in &image.extents {
        out[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn damage_never_panics(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..3), 1..20)) {
        static HEAD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = HEAD.get_or_init(head).clone();
        let n = bytes.len();
        for (at, value, region) in hits {
            // Boot sector, first table, what is behind the tables.
            let range = [11..90, 16_384..16_600, n - 40_000..n][region].clone();
            bytes[range.start + at.index(range.len())] = value;
        }
        if let Ok(mut volume) = Volume::open(Cursor::new(&bytes)) {
            for entry in volume.entries().unwrap_or_default() {
                let _ = volume.read(&entry);
            }
        }
    }
}
