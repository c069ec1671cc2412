//! Parsers take anything and answer with a value or a message, never with a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use dyad_spec::merge::merge;
use dyad_spec::site::Site;
use dyad_spec::{Diagnostics, Source};
use proptest::prelude::*;

const SITE: &str = include_str!("site/full.toml");
const DEFINITION: &str = include_str!("../../../images/appliance.toml");
const OVERLAY: &str = include_str!("../../../overlays/journald/overlay.toml");

/// Renders every message: spans must lie in the text they belong to.
fn show(result: Result<(), Diagnostics>) {
    if let Err(errors) = result {
        assert!(errors.iter().count() > 0);
        assert!(errors.iter().all(|e| e.line() >= 1 && !e.title().is_empty()));
        assert!(errors.render(true).len() >= errors.render(false).len());
    }
}

fn all(text: &str) {
    show(Site::parse(Source::new("site.toml", text)).map(drop));
    show(merge(Source::new("images/a.toml", text), &BTreeMap::new()).map(drop));
    let definition = "name='a'\nversion='1'\ndescription='a'\nsuite='bookworm'\narchitecture='amd64'\nkernel='k1'\n\
                      source_date_epoch=1767225600\noverlays=['a']\n[layout]\nroot='100MiB'\nverity='1MiB'\n";
    let overlays = BTreeMap::from([("a".to_owned(), Source::new("overlays/a/overlay.toml", text))]);
    show(merge(Source::new("images/a.toml", definition), &overlays).map(drop));
}

/// A valid file with a piece of it replaced.
fn damaged() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(String::new()),
        Just("\"".to_owned()),
        Just("[".to_owned()),
        Just("\n".to_owned()),
        Just("=1".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("\u{1f980}".to_owned()),
        "[a-z0-9_.\\[\\]{}=\"', \n]{0,12}",
        any::<String>(),
    ];
    let file = prop_oneof![Just(SITE), Just(DEFINITION), Just(OVERLAY)];
    (file, any::<prop::sample::Index>(), 0..40usize, piece).prop_map(|(file, at, length, piece)| {
        let characters: Vec<char> = file.chars().collect();
        let from = at.index(characters.len());
        let to = (from + length).min(characters.len());
        characters[..from]
            .iter()
            .copied()
            .chain(piece.chars())
            .chain(characters[to..].iter().copied())
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_text(text in any::<String>()) {
        all(&text);
    }

    #[test]
    fn text_that_looks_like_toml(text in "(\\[{0,2}[a-z.]{0,9}\\]{0,2}|[a-z_]{1,9} ?= ?[\\[{\"'0-9a-z., ]{0,12}|\n){0,20}") {
        all(&text);
    }

    #[test]
    fn valid_files_with_damage(text in damaged()) {
        all(&text);
    }
}

/// A file deep enough to exhaust a stack, and one with more errors than anybody reads.
#[test]
fn depth_and_width_are_bounded() {
    all(&format!("dns = {}", "[".repeat(100_000)));
    all(&format!("a{} = 1", ".a".repeat(100_000)));
    all(&format!("a = {}1", "{ a = ".repeat(100_000)));
    let many: String = (0..10_000).map(|n| format!("key{n} = 1\n")).collect();
    let errors = Site::parse(Source::new("site.toml", many)).unwrap_err();
    assert_eq!(errors.iter().count(), 64);
}
