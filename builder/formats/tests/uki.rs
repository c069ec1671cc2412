//! Unified kernel images against objdump, on Debian's stub.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use bytes::Bytes;
use common::{noise, run, text};
use dyad_formats::uki::{Error, Parts, add_sections, assemble, sections};
use proptest::prelude::*;

fn stub() -> Vec<u8> {
    std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("systemd-boot-efi must be installed")
}

fn parts() -> Parts {
    Parts {
        os_release: Bytes::from_static(b"ID=dyad\nVERSION_ID=0.1.0\n"),
        cmdline: "dyad.root=00 console=ttyS0".into(),
        uname: "6.1.0-41-amd64".into(),
        microcode: Some(noise(9000, 1)),
        linux: noise(1_000_001, 2),
        initrd: noise(3_000_003, 3),
    }
}

#[test]
fn objdump_sees_every_section() {
    let bytes = assemble(&stub(), &parts()).unwrap();
    assert_eq!(bytes, assemble(&stub(), &parts()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("uki.efi"), &bytes).unwrap();
    let listed = run("objdump", &["-h", "uki.efi"], dir.path());
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>())
        .filter(|r| r.first().is_some_and(|c| c.parse::<u32>().is_ok()))
        .collect();
    let ours = sections(&Bytes::from(bytes.clone())).unwrap();
    assert_eq!(rows.len(), ours.len());
    let mut end = 0;
    for (row, section) in rows.iter().zip(&ours) {
        assert_eq!(row[1], section.name);
        assert_eq!(u64::from_str_radix(row[3], 16).unwrap() & 0xffff_ffff, u64::from(section.address));
        let from = usize::from_str_radix(row[5], 16).unwrap();
        assert_eq!(bytes[from..from + section.data.len()], section.data);
        assert!(section.address >= end, "{} overlaps", section.name);
        end = section.address + section.data.len() as u32;
    }
    for (name, data) in
        [(".osrel", &parts().os_release), (".linux", &parts().linux), (".initrd", &parts().initrd)]
    {
        let found: Vec<_> = ours.iter().filter(|s| s.name == name).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].data, data);
        let target = format!("{name}=out");
        run(
            "objcopy",
            &["-O", "binary", "--only-section", name, "--dump-section", &target, "uki.efi", "x"],
            dir.path(),
        );
        assert!(std::fs::read(dir.path().join("out")).unwrap().starts_with(data), "{name}");
    }
    assert!(ours.iter().any(|s| s.name == ".sbat" && s.data.starts_with(b"sbat,1")));
    let private = run("objdump", &["-p", "uki.efi"], dir.path());
    let size = private.lines().find_map(|l| l.strip_prefix("SizeOfImage")).unwrap().trim().to_owned();
    assert_eq!(u32::from_str_radix(&size, 16).unwrap(), end.next_multiple_of(4096));
    assert!(private.contains("Time/Date\t\tThu Jan  1 00:00:00 1970"), "{private}");
}

#[test]
fn refuses_what_does_not_fit() {
    let named: Vec<String> = (0..40).map(|i| format!(".s{i}")).collect();
    let many: Vec<(&str, &[u8])> = named.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
    assert!(matches!(add_sections(&stub(), &many), Err(Error::NoRoom { wanted: 40, room: 1..40 })));
    let twice = assemble(&assemble(&stub(), &parts()).unwrap(), &parts()).unwrap_err();
    assert!(matches!(twice, Error::Duplicate(_)), "{twice}");
    assert!(matches!(add_sections(&stub(), &[(".too-long", b"x")]), Err(Error::Name(_))));
    assert!(assemble(&text(5000, 1), &parts()).unwrap_err().to_string().contains("no DOS header"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]
    #[test]
    fn damaged_headers_never_panic(hits in prop::collection::vec((0usize..1024, any::<u8>()), 1..20), cut in 0usize..90_000) {
        static STUB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = STUB.get_or_init(stub).clone();
        for (at, value) in hits {
            bytes[at] = value;
        }
        bytes.truncate(cut.max(100));
        let _ = sections(&Bytes::from(bytes.clone()));
        let _ = assemble(&bytes, &Parts { linux: Bytes::from_static(b"x"), ..Parts::default() });
    }
}
