//! What a tree looks like when all goes well.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Tar, laid, merged, package};
use dyad_formats::tree::{Kind, Tree};
use dyad_spec::compiled::{ImageTable, ModuleIndex};
use tar::EntryType;

fn file(tree: &Tree, path: &str) -> Vec<u8> {
    match tree.get(path.as_bytes()).map(|i| &i.kind) {
        Some(Kind::File(data)) => data.to_vec(),
        other => panic!("{path}: {other:?}"),
    }
}

fn link(tree: &Tree, path: &str) -> String {
    match tree.get(path.as_bytes()).map(|i| &i.kind) {
        Some(Kind::Symlink(target)) => String::from_utf8(target.clone()).unwrap(),
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn the_contract_with_init() {
    let built = common::build_with(vec![], &merged("", &[]), vec![]).unwrap();
    let ids: Vec<u32> = built.root.iter().map(|(_, id, _)| id.0).collect();
    assert!(ids.iter().copied().eq(0..ids.len() as u32), "inodes of dropped files are freed");
    assert_eq!(
        (&built.kernel[..], &built.stub[..], &built.bootloader[..]),
        (&b"kernel"[..], &b"stub"[..], &b"boot"[..])
    );
    let root = &built.root;
    for gone in ["/boot", "/usr/lib/systemd/boot", "/usr/lib/modules/6.1.0/kernel/unused.ko"] {
        assert!(root.get(gone.as_bytes()).is_none(), "{gone}");
    }
    for mount_point in ["/proc", "/sys", "/dev", "/run", "/tmp", "/var", "/state", "/data", "/efi"] {
        assert_eq!(root.get(mount_point.as_bytes()).map(|i| &i.kind), Some(&Kind::Dir), "{mount_point}");
        assert!(root.children(mount_point.as_bytes()).is_empty(), "{mount_point}");
    }
    for name in ["machine-id", "hostname", "hosts", "resolv.conf"] {
        assert_eq!(link(root, &format!("/etc/{name}")), format!("/run/dyad/etc/{name}"));
    }
    assert_eq!(link(root, "/bin"), "usr/bin");
    assert!(root.iter().all(|(_, _, inode)| inode.meta.mtime == 1_700_000_000));
    assert_eq!(file(root, "/usr/lib/dyad/init"), b"init");
    assert_eq!(ImageTable::decode(&file(root, "/usr/lib/dyad/image.bin")).unwrap(), built.image);
    let index = ModuleIndex::decode(&file(root, "/usr/lib/dyad/modules.bin")).unwrap();
    let names: Vec<&str> = index.modules.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["dm_mod", "dm_verity", "squashfs"]);
    assert_eq!(index.modules[1].needs, [0]);
    assert_eq!(index.initrd, ["dm_verity", "squashfs"]);
    let initrd: Vec<String> =
        built.initrd.iter().map(|(path, _, _)| String::from_utf8(path.to_vec()).unwrap()).collect();
    let files: Vec<&str> =
        initrd.iter().map(String::as_str).filter(|p| p.ends_with(".ko") || p.ends_with(".bin")).collect();
    assert!(initrd.contains(&"/init".to_owned()));
    assert_eq!(files.len(), 4, "{files:?}");
    let dropped = built.report.dropped.iter().find(|d| d.path.ends_with("unused.ko")).unwrap();
    assert_eq!(dropped.rule, "derived: kernel module that nothing selects");
}

#[test]
fn the_order_of_inputs_does_not_matter() {
    let merged = merged("", &[("one", "description = \"d\"\n")]);
    let build = |reverse: bool| {
        let mut packages: Vec<_> = (0..20)
            .map(|i| {
                package(&format!("p{i}"), "", Tar::default().dir("./opt").file(&format!("./opt/{i}"), b"x"))
            })
            .collect();
        let mut files = vec![laid("one", "/etc/a", b"1"), laid("one", "/etc/b", b"2")];
        if reverse {
            packages.reverse();
            files.reverse();
        }
        let built = common::build_with(packages, &merged, files).unwrap();
        let paths = |tree: &Tree| tree.iter().map(|(p, _, i)| (p.to_vec(), i.clone())).collect::<Vec<_>>();
        (paths(&built.root), paths(&built.initrd), built.report)
    };
    assert_eq!(build(false), build(true));
}

#[test]
fn owners_by_name_links_devices_and_attributes() {
    let data = Tar::default().file("./usr/bin/a", b"content").link("./usr/bin/b", "./usr/bin/a").entry(
        b"./opt/fifo",
        EntryType::Fifo,
        0o600,
        b"",
        b"",
    );
    let built = common::build_with(vec![package("p", "", data)], &merged("", &[]), vec![]).unwrap();
    assert_eq!(built.root.id(b"/usr/bin/a"), built.root.id(b"/usr/bin/b"));
    assert_eq!(built.root.get(b"/opt/fifo").unwrap().kind, Kind::Fifo);
    assert_eq!(built.root.get(b"/etc/shadow").unwrap().meta.gid, 42);
}

#[test]
fn a_directory_over_anothers_link() {
    let link_owner = package("a", "", Tar::default().dir("./srv/real").symlink("./srv/lock", "real"));
    let dir_owner = package("b", "", Tar::default().dir("./srv/lock").file("./srv/lock/x", b"1"));
    let built = common::build_with(vec![link_owner, dir_owner], &merged("", &[]), vec![]).unwrap();
    assert_eq!(link(&built.root, "/srv/lock"), "real");
    assert_eq!(file(&built.root, "/srv/real/x"), b"1");
    assert!(built.report.notes.iter().any(|n| n.starts_with("/srv/lock:")), "{:?}", built.report.notes);
    let escape = package("a", "", Tar::default().symlink("./srv/lock", "../../../etc"));
    let dir_owner = package("b", "", Tar::default().dir("./srv/lock").file("./srv/lock/x", b"1"));
    let text = common::build_with(vec![escape, dir_owner], &merged("", &[]), vec![]).map(|_| ()).unwrap_err();
    assert!(text.to_string().contains("leads out of the image"), "{text}");
}

#[test]
fn prune_and_keep() {
    let overlay = "description = \"d\"\n\
        [[prune]]\npath = \"/usr/share/doc\"\nreason = \"why not\"\n\
        [[keep]]\npath = \"/usr/share/doc/*/copyright\"\nreason = \"law\"\n";
    let merged = merged("", &[("one", overlay)]);
    let data = Tar::default()
        .dir("./usr/share/doc/p")
        .file("./usr/share/doc/p/copyright", b"c")
        .file("./usr/share/doc/p/changelog", b"12345")
        .link("./usr/bin/log", "./usr/share/doc/p/changelog");
    let built = common::build_with(vec![package("p", "", data)], &merged, vec![]).unwrap();
    assert!(built.root.get(b"/usr/share/doc/p/changelog").is_none());
    assert_eq!(file(&built.root, "/usr/share/doc/p/copyright"), b"c");
    assert_eq!(file(&built.root, "/usr/bin/log"), b"12345", "a kept name of a pruned file keeps the content");
    let dropped = built.report.dropped.iter().find(|d| d.path.ends_with("changelog")).unwrap();
    assert_eq!((dropped.bytes, dropped.origin.as_str()), (5, "package p 1.0"));
    assert_eq!(dropped.rule, "overlay one: /usr/share/doc: why not");
}

#[test]
fn why_names_the_chain() {
    let data = Tar::default().file("./usr/bin/a", b"1");
    let built = common::build_with(vec![package("p", "", data)], &merged("", &[]), vec![]).unwrap();
    let chains =
        [("p".to_owned(), vec!["overlay one asks for q".to_owned(), "q depends on p".to_owned()])].into();
    let steps = dyad_tree::why(&built.root, &chains, b"/bin/a").unwrap();
    assert_eq!(steps, ["overlay one asks for q", "q depends on p", "package p 1.0"]);
    assert_eq!(dyad_tree::why(&built.root, &chains, b"/usr/bin/zz"), None);
    assert_eq!(dyad_tree::why(&built.root, &chains, b"/proc").unwrap(), ["derived mount point"]);
}

#[test]
fn extended_attributes_and_long_names() {
    let long = format!("./usr/share/{}/{}", "d".repeat(120), "f".repeat(120));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(1);
    let attribute = ("SCHILY.xattr.security.capability", &b"\x01\x02\xff"[..]);
    builder.append_pax_extensions([attribute, ("gname", b"shadow")]).unwrap();
    builder.append_data(&mut header, "./usr/bin/capable", &b"x"[..]).unwrap();
    let mut plain = tar::Header::new_gnu();
    plain.set_entry_type(EntryType::Regular);
    plain.set_mode(0o644);
    plain.set_uid(7);
    plain.set_gid(7);
    plain.set_mtime(0);
    plain.set_size(1);
    builder.append_data(&mut plain, &long, &b"y"[..]).unwrap();
    let deb = common::raw_deb("p", "", "data.tar.xz", &common::xz(&builder.into_inner().unwrap(), 512));
    let built = common::build_with(vec![common::input("p", deb)], &merged("", &[]), vec![]).unwrap();
    let capable = built.root.get(b"/usr/bin/capable").unwrap();
    assert_eq!(capable.meta.xattrs[&b"security.capability"[..]], [1, 2, 255]);
    assert_eq!((capable.meta.uid, capable.meta.gid), (0, 42), "the group by its name");
    assert_eq!(built.root.get(&long.as_bytes()[1..]).unwrap().meta.uid, 7);
}
