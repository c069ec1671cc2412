//! What people get wrong, and the words they get for it.
//!
//! Each directory of `tests/rejections/` is one mistake: `definition.toml` (with `NAME.overlay.toml` files beside it)
//! or `site.toml`, and `expected.txt` with the whole message. `UPDATE_GOLDEN=1` writes the expected files anew.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dyad_spec::site::Site;
use dyad_spec::{Diagnostics, Source, merge::merge};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rejections");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    cases
}

fn source(path: &Path) -> Source {
    Source::new(path.file_name().unwrap().to_str().unwrap(), std::fs::read_to_string(path).unwrap())
}

fn refuse(case: &Path) -> Diagnostics {
    let site = case.join("site.toml");
    if site.exists() {
        return Site::parse(source(&site)).expect_err("a site file that must be refused");
    }
    let mut overlays = BTreeMap::new();
    for entry in std::fs::read_dir(case).unwrap() {
        let path = entry.unwrap().path();
        if let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".overlay.toml") {
            overlays.insert(name.to_owned(), source(&path));
        }
    }
    merge(source(&case.join("definition.toml")), &overlays).expect_err("a definition that must be refused")
}

#[test]
fn every_mistake_is_answered_in_the_expected_words() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let found = format!("{}\n", refuse(&case));
        let expected = case.join("expected.txt");
        if update {
            std::fs::write(&expected, &found).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("{}:\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "other words than expected:\n{}", wrong.join("\n"));
    assert!(cases().len() > 40, "the cases are where this test looks for them");
}

#[test]
fn colour_only_when_asked() {
    let errors = Site::parse(Source::new("site.toml", "cluster = 1")).unwrap_err();
    assert!(!errors.to_string().contains('\u{1b}'));
    assert!(errors.render(true).contains('\u{1b}'));
    assert_eq!(errors.iter().next().unwrap().line(), 1);
}
