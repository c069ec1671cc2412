//! Whole disks: sgdisk on the table, qemu-img on qcow2, our own readers on both.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::{Cursor, Read, Seek, SeekFrom};

use bytes::Bytes;
use common::{MTIME, noise, run, text};
use dyad_formats::disk::qcow2::{self, Clusters};
use dyad_formats::disk::{
    DiskImage, Error, Esp, Input, Layout, LayoutError, Slot, Source, layout, write_raw,
};
use dyad_formats::fat;
use dyad_gpt::Guid;
use proptest::prelude::*;

fn sample(sector_size: u32, esp_bytes: u64) -> Layout {
    let options = fat::Options {
        sector_size,
        bytes: esp_bytes,
        volume_id: 7,
        label: "ESP".into(),
        timestamp: fat::Timestamp::from_unix(MTIME),
    };
    let files = [("EFI/BOOT/BOOTX64.EFI".to_owned(), text(200_000, 1))];
    let mut root_hash = [0u8; 32];
    root_hash.copy_from_slice(&noise(32, 5));
    Layout {
        sector_size,
        disk_guid: Guid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888),
        esp: Esp { volume: fat::write(&options, &files).unwrap(), guid: Guid::from_u128(9) },
        root: Slot {
            source: Source::File { input: 0, offset: 4096, bytes: 5_000_192 },
            bytes: 8 << 20,
            name: "lab_0.1.0".into(),
        },
        verity: Slot {
            source: Source::Bytes(text(40_960, 3)),
            bytes: 1 << 20,
            name: "lab_0.1.0_verity".into(),
        },
        root_hash,
    }
}

/// The root's file: its content starts at 4096 and has both noise and zeros.
fn root_file() -> Cursor<Vec<u8>> {
    let mut bytes = vec![0xffu8; 4096];
    bytes.extend(noise(1_500_000, 2));
    bytes.resize(4_000_000, 0);
    bytes.extend(text(1_500_000, 4));
    Cursor::new(bytes)
}

fn raw_bytes(image: &DiskImage) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let mut file = root_file();
    write_raw(image, &mut [&mut file as &mut dyn Input], &mut out).unwrap();
    assert_eq!(out.get_ref().len() as u64, image.size());
    out.into_inner()
}

fn qcow2_bytes(image: &DiskImage, clusters: Clusters) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let mut file = root_file();
    let size = qcow2::write(image, &mut [&mut file as &mut dyn Input], clusters, &mut out).unwrap();
    assert_eq!(out.get_ref().len() as u64, size);
    out.into_inner()
}

#[test]
fn sgdisk_and_our_readers_accept_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = sample(512, 36 << 20);
    let (image, table) = layout(&wanted).unwrap();
    let raw = raw_bytes(&image);
    std::fs::write(dir.path().join("disk"), &raw).unwrap();
    assert!(run("sgdisk", &["-v", "disk"], dir.path()).contains("No problems found"));
    let hash = dyad_formats::verity::hex(&wanted.root_hash).to_uppercase();
    for (number, half) in [("2", &hash[..32]), ("3", &hash[32..])] {
        let told = run("sgdisk", &["-i", number, "disk"], dir.path()).replace('-', "");
        assert!(told.contains(half), "{told}");
    }
    let found = dyad_gpt::read(&mut Cursor::new(&raw), 512, raw.len() as u64).unwrap();
    assert!(found.is_good() && found.table == table);
    let (start, bytes) = table.byte_range(2).unwrap();
    let content = &root_file().into_inner()[4096..4096 + 5_000_192];
    assert!(raw[start as usize..].starts_with(content));
    assert_eq!(bytes, 8 << 20);
    let (start, bytes) = table.byte_range(1).unwrap();
    std::fs::write(dir.path().join("esp"), &raw[start as usize..(start + bytes) as usize]).unwrap();
    run("fsck.fat", &["-n", "esp"], dir.path());
}

#[test]
fn sectors_of_4096_bytes() {
    let (image, table) = layout(&sample(4096, 280 << 20)).unwrap();
    let mut head = vec![0u8; 1 << 20];
    image.read_at(&mut [], 0, &mut head).unwrap();
    assert_eq!(&head[4096..4104], b"EFI PART");
    assert_eq!(table.byte_range(1).unwrap(), (1 << 20, 280 << 20));
}

#[test]
fn qemu_img_checks_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    let (image, _) = layout(&sample(512, 36 << 20)).unwrap();
    std::fs::write(dir.path().join("disk"), raw_bytes(&image)).unwrap();
    for (clusters, name) in [(Clusters::Plain, "plain"), (Clusters::Zstd(3), "zstd")] {
        let bytes = qcow2_bytes(&image, clusters);
        std::fs::write(dir.path().join(name), &bytes).unwrap();
        let told = run("qemu-img", &["check", "-f", "qcow2", name], dir.path());
        assert!(told.contains("No errors were found"), "{told}");
        let told = run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "disk", name], dir.path());
        assert!(told.contains("Images are identical"), "{told}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(pool.install(|| qcow2_bytes(&image, clusters)) == bytes, "thread count reaches the bytes");
        let mut reader = qcow2::Reader::open(Cursor::new(&bytes)).unwrap();
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert!(back == raw_bytes(&image), "{name}");
        let found = dyad_gpt::read(&mut reader, 512, image.size()).unwrap();
        assert!(found.is_good());
    }
    let info = run("qemu-img", &["info", "zstd"], dir.path());
    assert!(info.contains("compression type: zstd") && info.contains("compat: 1.1"), "{info}");
}

#[test]
fn large_sparse_qcow2() {
    // Several L2 tables, the last one far away, and a size that is no multiple of a cluster.
    let size = (3u64 << 30) + 512;
    let extents = vec![
        (0, Source::Bytes(text(100, 1))),
        ((1 << 30) - 10, Source::Bytes(noise(200_000, 2))),
        (size - 7, Source::Bytes(Bytes::from_static(b"the end"))),
    ];
    let image = DiskImage::new(size, extents).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for clusters in [Clusters::Plain, Clusters::Zstd(1)] {
        let mut out = Cursor::new(Vec::new());
        qcow2::write(&image, &mut [], clusters, &mut out).unwrap();
        std::fs::write(dir.path().join("q"), out.get_ref()).unwrap();
        assert!(run("qemu-img", &["check", "q"], dir.path()).contains("No errors"));
        let mut reader = qcow2::Reader::open(out).unwrap();
        for (at, source) in image.extents() {
            let Source::Bytes(want) = source else { panic!("memory only") };
            let mut got = vec![0u8; want.len()];
            reader.read_at(*at, &mut got).unwrap();
            assert!(got == *want);
        }
    }
}

#[test]
fn reads_what_qemu_img_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = noise(500_000, 1).to_vec();
    raw.resize(3 << 20, 0);
    raw.extend(text(700_416 - 512, 2));
    raw.resize(raw.len().next_multiple_of(512), 0);
    std::fs::write(dir.path().join("raw"), &raw).unwrap();
    for (options, compressed) in [("compat=1.1", false), ("compression_type=zstd,cluster_size=32k", true)] {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(compressed.then_some("-c"));
        args.extend(["raw", "q"]);
        run("qemu-img", &args, dir.path());
        let file = std::fs::File::open(dir.path().join("q")).unwrap();
        let mut back = Vec::new();
        qcow2::Reader::open(file).unwrap().read_to_end(&mut back).unwrap();
        assert!(back == raw, "{options}");
    }
}

#[test]
fn raw_files_have_holes() {
    let image = DiskImage::new(64 << 20, vec![(5 << 20, Source::Bytes(vec![0u8; 9 << 20].into()))]).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut out = &file;
    assert_eq!(write_raw(&image, &mut [], &mut out).unwrap(), 0);
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 64 << 20);
    assert!(std::os::unix::fs::MetadataExt::blocks(&meta) < 64, "the zeros take space");
}

#[test]
fn refuses_what_does_not_fit() {
    let mut l = sample(512, 36 << 20);
    l.root.bytes = 4 << 20;
    let error = layout(&l).unwrap_err();
    assert!(matches!(error, LayoutError::SlotTooSmall { .. }));
    assert_eq!(
        error.to_string(),
        "lab_0.1.0 has 5000192 bytes, its slot 4194304: make the slot larger in the definition"
    );
    let bytes = || Source::Bytes(text(10, 1));
    assert!(matches!(
        DiskImage::new(100, vec![(0, bytes()), (9, bytes())]),
        Err(Error::Extent { offset: 9, .. })
    ));
    assert!(matches!(DiskImage::new(100, vec![(91, bytes())]), Err(Error::Extent { .. })));
    let (image, _) = layout(&sample(512, 36 << 20)).unwrap();
    let mut short = Cursor::new(vec![0u8; 5000]);
    let error = write_raw(&image, &mut [&mut short as &mut dyn Input], &mut Cursor::new(Vec::new()));
    assert!(matches!(error, Err(Error::ShortInput { input: 0, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn damaged_qcow2_never_panics(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), in_header in any::<bool>()) {
        static IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = IMAGE.get_or_init(|| {
            let image = DiskImage::new(300_032, vec![(70_000, Source::Bytes(text(150_000, 1)))]).unwrap();
            let mut out = Cursor::new(Vec::new());
            qcow2::write(&image, &mut [], Clusters::Zstd(1), &mut out).unwrap();
            out.into_inner()
        }).clone();
        let range = if in_header { 0..112 } else { 0..bytes.len() };
        for (at, value) in hits {
            bytes[range.start + at.index(range.len())] = value;
        }
        if let Ok(mut reader) = qcow2::Reader::open(Cursor::new(bytes)) {
            reader.seek(SeekFrom::Start(0)).unwrap();
            let _ = std::io::copy(&mut reader.by_ref().take(1 << 22), &mut std::io::sink());
            let _ = reader.seek(SeekFrom::End(-10)).and_then(|_| reader.read(&mut [0u8; 20]));
        }
    }
}
