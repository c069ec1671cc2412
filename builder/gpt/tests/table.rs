//! Round trips, damage, growth, and sgdisk's opinion.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
use std::io::Cursor;

use dyad_gpt::{ATTRIBUTE_READ_ONLY, Copy, Defect, Error, Guid, Partition, Table, read, types};
use proptest::prelude::*;

fn part(type_guid: Guid, guid: u128, name: &str) -> Partition {
    Partition {
        type_guid,
        guid: Guid::from_u128(guid),
        first_lba: 0,
        last_lba: 0,
        attributes: 0,
        name: name.into(),
    }
}

fn sample(sector: u32, disk_bytes: u64) -> Table {
    let mut t = Table::new(sector, disk_bytes / u64::from(sector), Guid::from_u128(7)).unwrap();
    t.add(1, Some(8 << 20), part(types::ESP, 1, "esp")).unwrap();
    let mut root = part(types::ROOT_X86_64, 2, "lab_0.1.0");
    root.attributes = ATTRIBUTE_READ_ONLY;
    t.add(2, Some(3_000_000), root).unwrap();
    t.add(3, Some(1), part(types::ROOT_X86_64_VERITY, 3, "lab_0.1.0_verity")).unwrap();
    t
}

fn image(t: &Table) -> Vec<u8> {
    let e = t.encode();
    let mut disk = vec![0u8; (t.disk_sectors() * u64::from(t.sector_size())) as usize];
    disk[..e.head.len()].copy_from_slice(&e.head);
    disk[e.tail_offset as usize..].copy_from_slice(&e.tail);
    disk
}

fn reread(disk: &[u8], sector: u32) -> Result<dyad_gpt::Found, Error> {
    read(&mut Cursor::new(disk), sector, disk.len() as u64)
}

#[test]
fn round_trip_in_both_sector_sizes() {
    for sector in [512, 4096] {
        let t = sample(sector, 64 << 20);
        let disk = image(&t);
        let found = reread(&disk, sector).unwrap();
        assert!(found.is_good());
        assert_eq!(found.table, t);
        let detect = |disk: &[u8]| dyad_gpt::detect_sector_size(&mut Cursor::new(disk)).unwrap();
        assert_eq!(detect(&disk), Some(sector));
        let mut headless = disk.clone();
        headless[..1 << 20].fill(0);
        assert_eq!(detect(&headless), Some(sector));
        assert_eq!(reread(&headless, sector).unwrap().table, t);
        assert_eq!(detect(&headless[..2 << 20]), None);
        for p in t.partitions().values() {
            assert_eq!(p.first_lba * u64::from(sector) % (1 << 20), 0);
            assert_eq!(p.sectors() * u64::from(sector) % (1 << 20), 0);
        }
    }
}

#[test]
fn either_copy_alone_is_enough_and_the_damage_is_told() {
    let t = sample(512, 64 << 20);
    let good = image(&t);
    let mut disk = good.clone();
    disk[512 + 60] ^= 1;
    let found = reread(&disk, 512).unwrap();
    assert_eq!((found.primary, found.backup), (Copy::Damaged(Defect::HeaderCrc), Copy::Good));
    assert_eq!(found.table, t);

    let mut disk = good.clone();
    let n = disk.len();
    disk[n - 33 * 512] ^= 1; // the backup's first entry
    let found = reread(&disk, 512).unwrap();
    assert_eq!((found.primary, found.backup), (Copy::Good, Copy::Damaged(Defect::EntriesCrc)));
    assert_eq!(found.table, t);

    disk[1024] ^= 1;
    let error = reread(&disk, 512).unwrap_err().to_string();
    assert!(error.contains("primary copy has a wrong entry checksum"), "{error}");
}

#[test]
fn grows_to_a_larger_disk_and_keeps_what_was_there() {
    let t = sample(512, 32 << 20);
    let mut disk = image(&t);
    disk.resize(256 << 20, 0);
    let mut found = reread(&disk, 512).unwrap();
    assert_eq!(found.backup, Copy::Misplaced((32 << 20) / 512 - 1));
    found.table.add(4, Some(3 << 20), part(types::ROOT_X86_64, 4, "_empty")).unwrap();
    let rest = found.table.add(7, None, part(types::LVM, 7, "data")).unwrap();
    assert!(rest.sectors * 512 > 230 << 20);
    let again = reread(&image(&found.table), 512).unwrap();
    assert!(again.is_good());
    assert_eq!(again.table.partitions()[&2], t.partitions()[&2]);

    let mut small = found.table.clone();
    assert!(matches!(small.grow(32 << 11), Err(Error::Shrink { number: 7, .. })));
    assert!(matches!(small.add(8, None, part(types::LVM, 8, "x")), Err(Error::NoSpace { .. })));
}

#[test]
fn refuses_unsound_partitions() {
    let mut t = sample(512, 64 << 20);
    let mut p = part(types::LINUX, 9, "x");
    (p.first_lba, p.last_lba) = (2048, 4095);
    assert!(matches!(t.insert(9, p.clone()), Err(Error::Overlap(1, 9))));
    (p.first_lba, p.last_lba) = (33, 40);
    assert!(matches!(t.insert(9, p.clone()), Err(Error::Range { .. })));
    assert!(matches!(t.insert(1, p.clone()), Err(Error::NumberTaken(1))));
    assert!(matches!(t.insert(129, p.clone()), Err(Error::Number(129))));
    p.name = "x".repeat(37);
    assert!(matches!(t.insert(9, p), Err(Error::Name(_))));
    assert!(matches!(Table::new(1024, 1 << 20, Guid::ZERO), Err(Error::SectorSize(1024))));
    assert!(matches!(Table::new(512, 60, Guid::ZERO), Err(Error::DiskTooSmall { .. })));
}

#[test]
fn guids_read_and_print_the_text_order() {
    let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    let guid: Guid = text.to_uppercase().parse().unwrap();
    assert_eq!(guid, types::ESP);
    assert_eq!(guid.to_string(), text);
    assert_eq!(guid.to_disk()[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
    assert_eq!(Guid::from_disk(guid.to_disk()), guid);
    for bad in ["", "c12a7328f81f11d2ba4b00a0c93ec93b", "g12a7328-f81f-11d2-ba4b-00a0c93ec93b", "\u{e9}"] {
        assert!(bad.parse::<Guid>().is_err(), "{bad}");
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "tests run outside oracles")]
fn sgdisk_finds_no_problem() {
    let t = sample(512, 64 << 20);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, image(&t)).unwrap();
    let run = |args: &[&str]| {
        let out =
            std::process::Command::new("sgdisk").args(args).arg(&path).output().expect("sgdisk (gdisk)");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(run(&["-v"]).contains("No problems found"), "{}", run(&["-v"]));
    let info = run(&["-i", "2"]);
    assert!(info.contains("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), "{info}");
    assert!(info.contains("Partition name: 'lab_0.1.0'"), "{info}");
    assert!(info.contains("Attribute flags: 1000000000000000"), "{info}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]
    #[test]
    fn never_panics_on_damage(hits in prop::collection::vec((0usize..40_960, any::<u8>()), 1..40), crc in any::<bool>()) {
        let t = sample(512, 16 << 20);
        let mut disk = image(&t);
        let n = disk.len();
        for (at, value) in hits {
            let at = if at < 20_480 { at } else { n - 40_960 + at };
            disk[at] = value;
        }
        if crc {
            // Right checksums let the damage through to the content checks.
            for base in [512, n - 512] {
                disk[base + 12..base + 16].copy_from_slice(&92u32.to_le_bytes());
                let entries = if base == 512 { 1024 } else { n - 33 * 512 };
                let sum = crc32fast::hash(&disk[entries..entries + 16_384]);
                disk[base + 88..base + 92].copy_from_slice(&sum.to_le_bytes());
                disk[base + 16..base + 20].fill(0);
                let sum = crc32fast::hash(&disk[base..base + 92]);
                disk[base + 16..base + 20].copy_from_slice(&sum.to_le_bytes());
            }
        }
        if let Ok(found) = reread(&disk, 512) {
            let again = reread(&image(&found.table), 512).unwrap();
            prop_assert_eq!(again.table, found.table);
        }
    }
}
