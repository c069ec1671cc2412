//! dm-verity against veritysetup.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::Cursor;

use common::{noise, run};
use dyad_formats::verity::{self, Error, Superblock, hex};
use proptest::prelude::*;

const SALT: &[u8] = b"0123456789abcdef0123456789abcdef";
const UUID: [u8; 16] =
    [0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x41, 0xd2, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

fn hashed(data: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut out = Vec::new();
    let root = verity::write(&mut Cursor::new(data), data.len() as u64, SALT, UUID, &mut out).unwrap();
    assert_eq!(out.len() as u64, verity::hash_bytes(data.len() as u64));
    (out, root)
}

#[test]
fn veritysetup_makes_and_accepts_the_same() {
    let dir = tempfile::tempdir().unwrap();
    // One block, one level exactly full, two levels, three levels.
    for blocks in [1usize, 2, 128, 129, 16_384, 16_385] {
        let data = noise(blocks * 4096, blocks as u64);
        let (hashes, root) = hashed(&data);
        std::fs::write(dir.path().join("data"), &data).unwrap();
        std::fs::write(dir.path().join("ours"), &hashes).unwrap();
        let _ = std::fs::remove_file(dir.path().join("theirs"));
        let salt = format!("--salt={}", hex(SALT));
        let uuid = "--uuid=c12a7328-f81f-41d2-ba4b-00a0c93ec93b";
        let told = run("veritysetup", &["format", &salt, uuid, "data", "theirs"], dir.path());
        assert!(told.contains(&hex(&root)), "{blocks} blocks: {told}");
        let theirs = std::fs::read(dir.path().join("theirs")).unwrap();
        assert!(theirs == hashes, "{blocks} blocks: hash areas differ");
        run("veritysetup", &["verify", "data", "ours", &hex(&root)], dir.path());
        let sb = verity::verify(&mut Cursor::new(&data), &mut Cursor::new(&theirs), &root).unwrap();
        assert_eq!(sb, Superblock { uuid: UUID, data_blocks: blocks as u64, salt: SALT.to_vec() });
    }
}

#[test]
fn damage_is_named() {
    let data = noise(300 * 4096, 1);
    let (hashes, root) = hashed(&data);
    let check = |data: &[u8], hashes: &[u8], root: &[u8; 32]| {
        verity::verify(&mut Cursor::new(data), &mut Cursor::new(hashes), root)
    };
    let mut bad = data.to_vec();
    bad[200 * 4096 + 17] ^= 1;
    assert!(matches!(check(&bad, &hashes, &root), Err(Error::DataBlock(200))));
    let mut bad = hashes.clone();
    bad[3 * 4096] ^= 1; // second block of the lower level
    assert!(matches!(check(&data, &bad, &root), Err(Error::HashBlock(3))));
    assert!(matches!(check(&data, &hashes, &[7; 32]), Err(Error::Root { .. })));
    assert!(matches!(check(&data[4096..], &hashes, &root), Err(Error::ShortData { .. })));
    assert!(matches!(check(&data, &hashes[..8192], &root), Err(Error::ShortHashes(2))));
    let short = verity::write(&mut Cursor::new(&data), 301 * 4096, SALT, UUID, &mut Vec::new());
    assert!(matches!(short, Err(Error::ShortData { .. })));
    let odd = verity::write(&mut Cursor::new(&data), 4097, SALT, UUID, &mut Vec::new());
    assert!(matches!(odd, Err(Error::DataSize(4097))));
}

/// What the kernel's target does when the whole device is read: every block, or an error instead of a wrong one.
#[test]
fn five_hundred_flips_in_every_region_never_give_wrong_data() {
    const FLIPS: usize = 500;
    /// Of these so many are shown to veritysetup, which costs a process each.
    const ASKED: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let data = noise(300 * 4096, 9).to_vec();
    let (hashes, root) = hashed(&data);
    // Partitions are larger than what is in them.
    let (mut data_part, mut hash_part) = (data.clone(), hashes.clone());
    data_part.resize(data.len() + 8 * 4096, 0);
    hash_part.resize(hashes.len() + 8 * 4096, 0);
    let regions = [
        ("data", false, 0..data.len()),
        ("padding of the data partition", false, data.len()..data_part.len()),
        ("superblock", true, 0..4096),
        ("hash tree", true, 4096..hashes.len()),
        ("padding of the hash partition", true, hashes.len()..hash_part.len()),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for (name, in_hashes, range) in regions {
        let mut refused = 0;
        for flip in 0..FLIPS {
            let at = range.start + random(range.len());
            let mask = 1 << random(8);
            let part = if in_hashes { &mut hash_part } else { &mut data_part };
            part[at] ^= mask;
            let result = verity::verify(&mut Cursor::new(&data_part), &mut Cursor::new(&hash_part), &root);
            let read = &data_part[..data.len()];
            assert!(result.is_err() || read == data, "{name}: byte {at}: wrong data was called right");
            refused += usize::from(result.is_err());
            if flip < ASKED {
                std::fs::write(dir.path().join("data"), &data_part).unwrap();
                std::fs::write(dir.path().join("hashes"), &hash_part).unwrap();
                let theirs =
                    common::try_run("veritysetup", &["verify", "data", "hashes", &hex(&root)], dir.path());
                // Of the superblock veritysetup checks more: a version it does not know, a UUID it cannot print.
                let same = theirs == result.is_ok() || name == "superblock";
                assert!(same, "{name}: byte {at}: veritysetup says {theirs}, we {result:?}");
            }
            let part = if in_hashes { &mut hash_part } else { &mut data_part };
            part[at] ^= mask;
        }
        match name {
            "data" | "hash tree" => assert_eq!(refused, FLIPS, "{name}"),
            "superblock" => assert!(refused > 0, "{name}"),
            _ => assert_eq!(refused, 0, "{name}: nothing reads it"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    /// Any flip in data or tree is found, whatever it hits; in the superblock only what is not hashed may pass.
    #[test]
    fn no_flip_passes(at in any::<prop::sample::Index>(), bit in 0u8..8, in_hashes in any::<bool>()) {
        let data = noise(140 * 4096, 3);
        let (mut hashes, root) = hashed(&data);
        let mut data = data.to_vec();
        let region = if in_hashes { &mut hashes } else { &mut data };
        let at = at.index(region.len());
        region[at] ^= 1 << bit;
        let result = verity::verify(&mut Cursor::new(&data), &mut Cursor::new(&hashes), &root);
        // The UUID and padding of the superblock's block say nothing about the data.
        let unhashed = [16..32, 82..88, 88 + SALT.len()..4096];
        let harmless = in_hashes && unhashed.iter().any(|range| range.contains(&at));
        prop_assert_eq!(result.is_ok(), harmless, "byte {} of {}", at, if in_hashes { "hashes" } else { "data" });
    }

    #[test]
    fn superblocks_never_panic(raw in prop::collection::vec(any::<u8>(), 0..600), real in any::<bool>()) {
        let mut raw = raw;
        if real && raw.len() >= 512 {
            let sb = Superblock { uuid: UUID, data_blocks: 5, salt: vec![] }.encode().unwrap();
            raw[..72].copy_from_slice(&sb[..72]);
        }
        if let Ok(sb) = Superblock::decode(&raw) {
            let _ = sb.hash_bytes();
            let _ = verity::verify(&mut Cursor::new(&raw), &mut Cursor::new(&raw), &[0; 32]);
        }
    }
}
