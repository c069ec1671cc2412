//! Packages made byte by byte, so that a test can break any rule of the formats.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use dyad_debian::LockedPackage;
use dyad_spec::image::Merged;
use dyad_tree::{Error, Inputs, OverlayContent, OverlayFile, PackageInput, build};
use tar::{EntryType, Header};

/// A tar archive whose names are written without any check.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn entry(mut self, name: &[u8], kind: EntryType, mode: u32, data: &[u8], link: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), EntryType::Regular, 0o644, data, b"")
    }

    pub(crate) fn program(self, name: &str, data: &[u8]) -> Self {
        self.entry(name.as_bytes(), EntryType::Regular, 0o755, data, b"")
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(name.as_bytes(), EntryType::Directory, 0o755, b"", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), EntryType::Symlink, 0o777, b"", target.as_bytes())
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(name.as_bytes(), EntryType::Link, 0o644, b"", target.as_bytes())
    }

    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, data) in members {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, data.len()).bytes());
        out.extend_from_slice(data);
        if data.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

pub(crate) fn control(fields: &str) -> Vec<u8> {
    Tar::default().dir("./").file("./control", fields.as_bytes()).done()
}

pub(crate) fn xz(data: &[u8], block: u64) -> Vec<u8> {
    let stream =
        liblzma::stream::MtStreamBuilder::new().threads(1).block_size(block).preset(6).encoder().unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A package with an uncompressed data archive.
pub(crate) fn deb(name: &str, extra: &str, data: Tar) -> Bytes {
    raw_deb(name, extra, "data.tar", &data.done())
}

pub(crate) fn raw_deb(name: &str, extra: &str, part: &str, data: &[u8]) -> Bytes {
    let control = control(&format!("Package: {name}\nVersion: 1.0\nArchitecture: amd64\n{extra}"));
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), (part, data)]).into()
}

pub(crate) fn input(name: &str, deb: Bytes) -> PackageInput {
    let locked = LockedPackage {
        name: name.into(),
        version: "1.0".into(),
        arch: "amd64".into(),
        suite: "bookworm".into(),
        path: format!("pool/{name}.deb"),
        size: deb.len() as u64,
        sha256: "0".repeat(64).parse().unwrap(),
    };
    PackageInput { locked, deb: std::sync::Arc::new(deb) }
}

pub(crate) fn package(name: &str, extra: &str, data: Tar) -> PackageInput {
    input(name, deb(name, extra, data))
}

/// A relocatable ELF file with nothing but `.modinfo`.
pub(crate) fn module(strings: &[&str]) -> Vec<u8> {
    let mut info: Vec<u8> = strings.iter().flat_map(|s| s.bytes().chain([0])).collect();
    info.resize(info.len().next_multiple_of(8), 0);
    let names = b"\0.modinfo\0.shstrtab\0\0\0\0\0";
    let sections_at = 64 + info.len() + names.len();
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |out: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    half(&mut out, &[1, 62]); // relocatable, x86-64
    out.extend(1u32.to_le_bytes());
    out.extend([0; 16]);
    out.extend((sections_at as u64).to_le_bytes());
    out.extend([0; 4]);
    half(&mut out, &[64, 0, 0, 64, 3, 2]);
    out.extend(&info);
    out.extend(names);
    for (name, kind, at, len) in
        [(0u32, 0u32, 0, 0), (1, 1, 64, info.len()), (10, 3, 64 + info.len(), names.len())]
    {
        out.extend(name.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend([0; 16]);
        out.extend((at as u64).to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out.extend([0; 24]);
    }
    out
}

/// The packages without which nothing is an image: accounts, a kernel with four modules, the EFI programs.
pub(crate) fn base() -> Vec<PackageInput> {
    let accounts = Tar::default()
        .dir("./")
        .file("./usr/share/base-passwd/passwd.master", b"root:*:0:0:root:/root:/bin/sh\n")
        .file("./usr/share/base-passwd/group.master", b"root:*:0:\nshadow:*:42:\n");
    let ko = |name: &str| format!("./lib/modules/6.1.0/kernel/{name}.ko");
    let kernel = Tar::default()
        .file("./boot/vmlinuz-6.1.0", b"kernel")
        .file(&ko("dm-mod"), &module(&["name=dm_mod"]))
        .file(&ko("dm-verity"), &module(&["depends=dm-mod", "name=dm_verity"]))
        .file(&ko("squashfs"), &module(&["name=squashfs", "alias=fs-squashfs"]))
        .file(&ko("unused"), &module(&["name=unused", "alias=pci:v*d*"]))
        .file("./lib/modules/6.1.0/modules.builtin", b"kernel/crypto/sha256_generic.ko\n");
    let efi = Tar::default()
        .file("./usr/lib/systemd/boot/efi/linuxx64.efi.stub", b"stub")
        .file("./usr/lib/systemd/boot/efi/systemd-bootx64.efi", b"boot");
    vec![
        package("base-passwd", "", accounts),
        package("linux-image", "", kernel),
        package("systemd-boot-efi", "", efi),
    ]
}

/// A definition with the given overlays (name, text of its overlay.toml).
pub(crate) fn merged(extra: &str, overlays: &[(&str, &str)]) -> Merged {
    let names: Vec<String> = overlays.iter().map(|(name, _)| format!("{name:?}")).collect();
    let text = format!(
        "name = \"t\"\nversion = \"1\"\ndescription = \"d\"\nsuite = \"bookworm\"\narchitecture = \"amd64\"\n\
         kernel = \"linux-image\"\nsource_date_epoch = 1700000000\noverlays = [{}]\n{extra}\n\
         [layout]\nroot = \"512MiB\"\nverity = \"8MiB\"\n",
        names.join(", ")
    );
    let sources: BTreeMap<String, dyad_spec::Source> = overlays
        .iter()
        .map(|(name, text)| ((*name).to_owned(), dyad_spec::Source::new(*name, *text)))
        .collect();
    dyad_spec::merge::merge(dyad_spec::Source::new("t.toml", text), &sources)
        .unwrap_or_else(|e| panic!("{}", e.render(false)))
}

pub(crate) fn laid(overlay: &str, path: &str, data: &[u8]) -> OverlayFile {
    let content = OverlayContent::File { data: Bytes::copy_from_slice(data), executable: false };
    OverlayFile { overlay: overlay.into(), path: path.into(), content }
}

/// Builds the base and more.
pub(crate) fn build_with(
    more: Vec<PackageInput>,
    merged: &Merged,
    overlay_files: Vec<OverlayFile>,
) -> Result<dyad_tree::Built, Error> {
    let packages = base().into_iter().chain(more).collect();
    let (init, payload, limits) = (Bytes::from_static(b"init"), Vec::new(), Default::default());
    build(Inputs { packages, merged, overlay_files, init, payload, limits, cache: None })
}
