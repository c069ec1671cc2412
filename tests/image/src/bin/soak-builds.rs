//! `cargo xtask soak builds`: many builds of one definition in different places, one set of digests.

use std::process::ExitCode;

use dyad_image_tests::{Installed, everywhere};

const FORMATS: [&str; 4] = ["raw", "qcow2", "pxe", "tree"];

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(30);
    let installed = Installed::new();
    let mut first = None;
    for place in everywhere::places(&installed, count) {
        let digests = installed.digests(&place.around, &place.out, &FORMATS, &["--locked"]);
        let expected = first.get_or_insert_with(|| digests.clone());
        if digests != *expected {
            eprintln!("{}\n  gave {digests:#?}\n  the first gave {expected:#?}", place.name);
            return ExitCode::FAILURE;
        }
        println!("same: {}", place.name);
    }
    println!("{count} builds, one digest an output: {first:#?}");
    ExitCode::SUCCESS
}
