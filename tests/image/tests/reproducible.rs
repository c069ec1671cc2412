//! One definition and one set of packages give one set of bytes, wherever and by whomever they are built.

use std::fs;

use dyad_image_tests::everywhere::{self, Place};
use dyad_image_tests::{Digests, Installed, PROGRAMS, Surroundings, payload_dir, target_dir, text};

const ALL: [&str; 4] = ["raw", "qcow2", "pxe", "tree"];

#[test]
fn one_definition_gives_one_image_everywhere() {
    let installed = Installed::new();
    let plain = Surroundings { directory: Some(installed.path("src")), ..Surroundings::default() };
    let first: Digests = installed.digests(&plain, &installed.path("out"), &ALL, &["--locked"]);
    assert_eq!(
        first.len(),
        9,
        "raw, qcow2, tar, three files for PXE, manifest, bill of materials and build record: {first:?}"
    );
    // The cache is warm now: what comes out of it is what was put in.
    assert_eq!(installed.digests(&plain, &installed.path("out"), &ALL, &["--locked"]), first, "warm cache");
    // The first of the thirty that `cargo xtask soak builds` makes; the fifth starts with an empty cache.
    for place in everywhere::places(&installed, 5) {
        let Place { name, around, out } = place;
        assert_eq!(installed.digests(&around, &out, &ALL, &["--locked"]), first, "{name}");
    }
    // Without the lock file the same packages are chosen while the archive is the same: only the manifest, which then
    // says why each package is there, has more in it.
    let mut resolved = installed.digests(&plain, &installed.path("out"), &ALL, &[]);
    let mut pinned = first;
    assert_ne!(resolved.remove("lab_0.1.0.manifest.json"), pinned.remove("lab_0.1.0.manifest.json"));
    assert_eq!(resolved, pinned, "resolved anew");
}

/// Where and by whom it was compiled must not be readable in a program of the image.
#[test]
fn programs_of_the_image_name_no_path_of_this_machine() {
    let _compiled = Installed::new();
    let home = std::env::var("HOME").expect("HOME is set");
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    let rustup = std::env::var("RUSTUP_HOME").unwrap_or_else(|_| format!("{home}/.rustup"));
    let checkout = dyad_vm_tests::root();
    let payload = payload_dir();
    let target = target_dir();
    let traces = [text(&checkout), text(&target), &cargo, &rustup];
    for program in PROGRAMS {
        let bytes = fs::read(payload.join(program)).expect("the payload was compiled");
        let places = |trace: &str| -> Vec<usize> {
            let hits = bytes.windows(trace.len()).enumerate().filter(|(_, w)| *w == trace.as_bytes());
            hits.map(|(at, _)| at).collect()
        };
        for trace in traces {
            assert_eq!(places(trace), [0; 0], "{program} names {trace}");
        }
        // Below CARGO_HOME paths are the same everywhere, and that is what they must be below.
        let sources = places("registry/src/");
        assert!(
            !sources.is_empty(),
            "{program} names no source at all: does this test look at the right file?"
        );
        for at in sources {
            assert!(bytes[..at].ends_with(b"/cargo/"), "{program} names a path outside /cargo at byte {at}");
        }
    }
}
