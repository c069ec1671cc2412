//! What a package may not do: each refusal with the words that a person gets.

mod common;

use bytes::Bytes;
use common::{Tar, ar, control, deb, laid, merged, package, raw_deb, xz};
use dyad_tree::unpack::{Limits, Verdict, unpack};
use tar::EntryType;

fn refusal(deb: &Bytes) -> String {
    unpack(deb, &Limits::default(), &|_| Verdict::Keep).expect_err("was accepted").to_string()
}

fn refused(data: Tar) -> String {
    refusal(&deb("p", "", data))
}

#[test]
fn names_that_leave_the_root() {
    let file = |name: &[u8]| refused(Tar::default().entry(name, EntryType::Regular, 0o644, b"x", b""));
    assert_eq!(file(b"./../etc/passwd"), "member \"./../etc/passwd\": has a `..` component");
    assert_eq!(file(b"./usr/../../etc"), "member \"./usr/../../etc\": has a `..` component");
    assert_eq!(file(b"/etc/passwd"), "member \"/etc/passwd\": is an absolute path (accepted: ./relative)");
    assert_eq!(file(b"./a\xff"), "member \"./a\u{fffd}\": is not UTF-8");
    assert_eq!(file(b"./a\nb"), "member \"./a\\nb\": has control characters");
    assert_eq!(file(b"./a//b"), "member \"./a//b\": has an empty component");
}

#[test]
fn links_that_leave_the_root() {
    let through = Tar::default().symlink("./a", "/etc").file("./a/passwd", b"x");
    let text = "member \"./a/passwd\" lies below \"/a\", which this package ships as something other than a directory";
    assert_eq!(refused(through), text);
    let late = Tar::default().file("./a/passwd", b"x").symlink("./a", "/etc");
    assert_eq!(refused(late), text, "whatever the order");
    let file = Tar::default().file("./a", b"x").file("./a/b", b"x");
    assert!(refused(file).contains("other than a directory"));
    let hard = Tar::default().link("./a", "/etc/shadow");
    assert_eq!(refused(hard), "member \"/etc/shadow\": is an absolute path (accepted: ./relative)");
    let hard = Tar::default().link("./a", "./b").file("./b", b"x");
    assert_eq!(
        refused(hard),
        "member \"./a\" is a hard link to \"/b\", which is not an earlier file of this package"
    );
}

#[test]
fn duplicates() {
    assert_eq!(refused(Tar::default().file("./a", b"1").file("./a", b"1")), "member \"./a\" occurs twice");
    // Two names of one place, once /bin is /usr/bin.
    let twice = Tar::default().file("./bin/a", b"1").file("./usr/bin/a", b"1");
    assert_eq!(refused(twice), "member \"./usr/bin/a\" occurs twice");
    let link = Tar::default().file("./usr/bin/a", b"1").symlink("./bin/a", "/usr/bin/a");
    let package = unpack(&deb("p", "", link), &Limits::default(), &|_| Verdict::Keep).unwrap();
    assert_eq!(package.members.len(), 1, "the link would point to itself");
}

#[test]
fn kinds_and_content() {
    let kind = |kind| refused(Tar::default().entry(b"./a", kind, 0o644, b"", b""));
    assert!(kind(EntryType::Continuous).contains("type '7' is not accepted"));
    assert!(kind(EntryType::XGlobalHeader).contains("type 'g' is not accepted"));
    let fat = Tar::default().entry(b"./a", EntryType::Directory, 0o755, b"data", b"");
    assert!(refused(fat).contains("has content but is not a regular file"));
    let empty = Tar::default().symlink("./a", "");
    assert!(refused(empty).contains("is a link without a target"));
}

#[test]
fn truncation_anywhere() {
    let tar = Tar::default().dir("./").file("./a", &[7; 700]).file("./b", &[8; 10]);
    let whole = deb("p", "", tar.clone());
    for cut in 0..whole.len() {
        let text = refusal(&whole.slice(..cut));
        assert!(!text.is_empty());
    }
    assert_eq!(refusal(&whole.slice(..whole.len() - 1)), "truncated: ar member ends early");
    // A tar cut between members inside an intact package.
    let text = refusal(&raw_deb("p", "", "data.tar", &tar.0));
    assert!(text.contains("no end mark"), "{text}");
    let compressed = xz(&tar.done(), 512);
    for cut in 0..compressed.len() {
        let text = refusal(&raw_deb("p", "", "data.tar.xz", &compressed[..cut]));
        assert!(text.starts_with("data.tar.xz: damaged xz data"), "{text}");
    }
}

#[test]
fn every_compression() {
    let tar = Tar::default().dir("./").file("./a", &[7; 7000]).done();
    let zst = zstd::encode_all(&tar[..], 3).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gz, &tar).unwrap();
    let gz = gz.finish().unwrap();
    for (part, data) in
        [("data.tar", &tar), ("data.tar.xz", &xz(&tar, 1024)), ("data.tar.zst", &zst), ("data.tar.gz", &gz)]
    {
        let keep = |_: &[u8]| Verdict::Keep;
        let package = unpack(&raw_deb("p", "", part, data), &Limits::default(), &keep).unwrap();
        assert_eq!(package.members.len(), 2, "{part}");
        if part != "data.tar" {
            for cut in [0, 1, data.len() / 2, data.len() - 1] {
                let text = refusal(&raw_deb("p", "", part, &data[..cut]));
                assert!(text.starts_with(part), "{text}");
            }
        }
    }
    assert!(refusal(&raw_deb("p", "", "data.tar.lz4", &tar)).contains("unknown compression"));
}

#[test]
fn bombs() {
    let limits = Limits { data_bytes_max: 1 << 20, members_max: 100, ..Limits::default() };
    let refusal =
        |deb: &Bytes| unpack(deb, &limits, &|_| Verdict::Keep).expect_err("was accepted").to_string();
    let zeros = vec![0u8; 8 << 20];
    let zst = zstd::encode_all(&zeros[..], 19).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut gz, &zeros).unwrap();
    for (part, data) in
        [("data.tar.xz", xz(&zeros, 1 << 24)), ("data.tar.zst", zst), ("data.tar.gz", gz.finish().unwrap())]
    {
        assert_eq!(
            refusal(&raw_deb("p", "", part, &data)),
            format!("{part}: unpacks to more than 1048576 bytes")
        );
    }
    let many = (0..101).fold(Tar::default(), |tar, i| tar.file(&format!("./{i}"), b""));
    assert_eq!(refusal(&deb("p", "", many)), "data.tar: more than 100 members");
}

#[test]
fn the_container() {
    let (control, data) = (control("Package: p\nVersion: 1\nArchitecture: all\n"), Tar::default().done());
    let (binary, c, d) =
        (("debian-binary", &b"2.0\n"[..]), ("control.tar", &control[..]), ("data.tar", &data[..]));
    let text = |members: &[(&str, &[u8])]| refusal(&ar(members).into());
    assert!(text(&[c, d]).contains("no debian-binary"));
    assert!(text(&[("debian-binary", b"3.0\n"), c, d]).contains("does not say 2.x"));
    assert!(text(&[binary, d, c]).contains("no control.tar"));
    assert!(text(&[binary, c]).contains("no data.tar"));
    assert!(text(&[binary, c, d, d]).contains("unexpected member \"data.tar\""));
    assert_eq!(
        refusal(&Bytes::from_static(b"PK\x03\x04")),
        "not a Debian package: it does not start with `!<arch>`"
    );
    let unnamed = common::control("Version: 1\nArchitecture: all\n");
    assert!(text(&[binary, ("control.tar", &unnamed), d]).contains("no `Package` field"));
}

#[test]
fn a_file_that_is_another_package() {
    let merged = merged("", &[]);
    let wrong = common::input("expected", deb("other", "", Tar::default()));
    let text = common::build_with(vec![wrong], &merged, vec![]).unwrap_err().to_string();
    assert_eq!(text, "package expected 1.0 amd64: the file says it is other 1.0 amd64");
}

#[test]
fn paths_shipped_twice() {
    let merged = merged("", &[]);
    let two = |extra: &str, other: &[u8]| {
        let a = package("a", "", Tar::default().file("./usr/lib/x", b"1"));
        let b = package("b", extra, Tar::default().file("./lib/x", other));
        common::build_with(vec![b, a], &merged, vec![])
    };
    let text = two("", b"2").unwrap_err().to_string();
    assert_eq!(text, "/usr/lib/x: shipped by both a and b, and neither replaces the other");
    let text = two("Replaces: a (<< 1.0)\n", b"2").unwrap_err().to_string();
    assert!(text.contains("neither replaces"), "{text}");
    let content = |built: dyad_tree::Built| match &built.root.get(b"/usr/lib/x").unwrap().kind {
        dyad_formats::tree::Kind::File(data) => data.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(content(two("Replaces: a (<= 1.0)\n", b"2").unwrap()), "2");
    assert_eq!(content(two("", b"1").unwrap()), "1");
}

#[test]
fn overlays() {
    let merged = merged("", &[("one", "description = \"d\"\n"), ("two", "description = \"d\"\n")]);
    let lay = |files| common::build_with(vec![], &merged, files).map(|_| ()).unwrap_err().to_string();
    let text = lay(vec![laid("two", "/etc/x", b"2"), laid("one", "/etc/x", b"1")]);
    assert_eq!(text, "/etc/x: laid by both overlay one and overlay two; one of them must give way");
    let text = lay(vec![laid("two", "/bin/x", b"2"), laid("one", "/usr/bin/x", b"1")]);
    assert!(text.contains("laid by both"), "{text}");
    let text = lay(vec![laid("one", "/etc/../x", b"")]);
    assert_eq!(text, "overlay one: file \"/etc/../x\": has a `..` component");
}

#[test]
fn secrets() {
    let merged = merged("", &[("one", "description = \"d\"\n")]);
    let lay =
        |path, data: &[u8]| common::build_with(vec![], &merged, vec![laid("one", path, data)]).map(|_| ());
    let text = lay("/etc/ssl/private/ssl-cert-snakeoil.key", b"k").unwrap_err().to_string();
    assert_eq!(
        text,
        "/etc/ssl/private/ssl-cert-snakeoil.key: a private TLS key; it would be the same on every machine"
    );
    assert!(lay("/etc/ssh/ssh_host_ed25519_key", b"k").unwrap_err().to_string().contains("SSH host key"));
    let pem = b"-----BEGIN RSA PRIVATE KEY-----\nxx\n";
    assert!(lay("/opt/key.pem", pem).unwrap_err().to_string().contains("contains a private key"));
    lay("/opt/key.pub", b"-----BEGIN PUBLIC KEY-----\n").unwrap();
}

#[test]
fn missing_parts() {
    let merged = merged("", &[]);
    let without = |name: &str| {
        let packages = common::base().into_iter().filter(|p| p.locked.name != name).collect();
        let (init, payload, limits) = (Bytes::new(), vec![], Limits::default());
        let inputs = dyad_tree::Inputs {
            packages,
            merged: &merged,
            overlay_files: vec![],
            init,
            payload,
            limits,
            cache: None,
        };
        dyad_tree::build(inputs).map(|_| ()).unwrap_err().to_string()
    };
    assert!(without("base-passwd").contains("the image needs package base-passwd"));
    assert!(without("linux-image").starts_with("no kernel"));
    assert!(without("systemd-boot-efi").contains("the image needs package systemd-boot-efi"));
    let typo = common::merged("[modules]\nroot = [\"squashfz\"]\n", &[]);
    let text = common::build_with(vec![], &typo, vec![]).map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("kernel 6.1.0 has no module squashfz (nearest: squashfs"), "{text}");
}
