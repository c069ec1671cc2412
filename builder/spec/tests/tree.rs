//! The images and overlays of this repository.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dyad_spec::Source;
use dyad_spec::compile::{Accounts, compile};
use dyad_spec::compiled::ImageTable;
use dyad_spec::image::Merged;
use dyad_spec::merge::merge;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn source(path: &Path) -> Source {
    let file = path.strip_prefix(root()).unwrap().display().to_string();
    Source::new(file, std::fs::read_to_string(path).unwrap())
}

fn overlays() -> BTreeMap<String, Source> {
    let entries = std::fs::read_dir(root().join("overlays")).unwrap();
    let all = entries.map(|e| e.unwrap().path());
    all.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), source(&p.join("overlay.toml"))))
        .collect()
}

fn image(name: &str) -> Merged {
    let merged = merge(source(&root().join("images").join(format!("{name}.toml"))), &overlays());
    merged.unwrap_or_else(|errors| panic!("{errors}"))
}

/// The accounts of an image as the base system and its overlays make them.
struct Table<'a>(&'a Merged);

impl Accounts for Table<'_> {
    fn user(&self, name: &str) -> Option<(u32, u32)> {
        if name == "root" {
            return Some((0, 0));
        }
        let user = self.0.users.iter().find(|u| u.name == name)?;
        Some((user.uid, self.group(&user.group)?))
    }
    fn group(&self, name: &str) -> Option<u32> {
        if name == "root" {
            return Some(0);
        }
        self.0.groups.iter().find(|g| g.name == name)?.gid
    }
}

#[test]
fn every_image_merges_compiles_and_round_trips() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join("images")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let merged = image(&name);
        assert_eq!(merged.name, name, "a definition is named as its file");
        let table = compile(&merged, &Table(&merged)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ImageTable::decode(&table.encode()).unwrap(), table);
        for (index, service) in table.services.iter().enumerate() {
            assert!(service.after.iter().all(|&a| usize::from(a) < index), "{}: order", service.name);
        }
        for window in table.directories.windows(2) {
            assert!(window[0].path < window[1].path, "parents come first, nothing twice");
        }
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["appliance", "lab"]);
}
