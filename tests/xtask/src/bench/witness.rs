//! `cargo xtask bench witness`: memory, renewals and changes of the program as it is carried to machines, linked statically.

use std::path::Path;

use anyhow::{Context, Result};

use crate::sh;

/// As the builder's payload: naming the target keeps proc-macros dynamic.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Builds the program and the load generator, and lets it print its table.
pub(super) fn run(root: &Path) -> Result<()> {
    let build = [
        "build",
        "--release",
        "--locked",
        "--target",
        TARGET,
        "--package",
        "dyad-witness",
        "--bin",
        "dyad-witness",
    ];
    sh::cargo_env(root, &build, &[("CARGO_ENCODED_RUSTFLAGS", STATIC)])?;
    let program = std::path::absolute(sh::target_dir(root).join(TARGET).join("release/dyad-witness"))?;
    let program = program.to_str().context("the target directory is not UTF-8")?;
    // The generator is not what is measured: it need not be optimised to the last.
    let quick = [("CARGO_PROFILE_BENCH_LTO", "off"), ("CARGO_PROFILE_BENCH_CODEGEN_UNITS", "16")];
    let load = ["bench", "--locked", "--package", "dyad-witness", "--bench", "load", "--", program];
    sh::cargo_env(root, &load, &quick)
}
