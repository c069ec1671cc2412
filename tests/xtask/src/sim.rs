//! `cargo xtask sim` and `cargo xtask mutate`: the worlds in which the decision core is proven, built for speed.

use std::path::Path;

use anyhow::Result;

use crate::sh;

/// Runs `dyad-sim ARGS`.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<()> {
    // Optimised as a whole: half of the time of a history that only the two crates are optimised for.
    let mut all = vec!["run", "--quiet", "--release", "--locked", "--package", "dyad-sim", "--"];
    all.extend(args);
    sh::cargo(root, &all)
}
