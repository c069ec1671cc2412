//! `cargo xtask bench NAME`: measurements that are made side by side in one run and reported as ratios.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Runs the named benchmark.
pub(crate) fn run(root: &Path, name: &str) -> Result<bool> {
    match name {
        "build" => build(root).map(|()| true),
        _ => bail!("unknown benchmark {name}; there is: build"),
    }
}

/// Image builds from cached packages: with empty and with warm block cache, and after a one-line change.
fn build(root: &Path) -> Result<()> {
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    let work = std::env::temp_dir().join(format!("dyad-bench-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let dyad = root.join("target/release/dyad");
    let dyad = dyad.to_str().context("the checkout's path is not UTF-8")?;
    println!("| image | state of the cache | wall s | CPU s | peak MiB |\n|---|---|---|---|---|");
    for image in ["lab", "appliance"] {
        let definition = root.join(format!("images/{image}.toml"));
        let definition = definition.to_str().context("the checkout's path is not UTF-8")?;
        let blocks = work.join(format!("blocks-{image}"));
        let out = work.join(image);
        let args = [
            "build",
            definition,
            "--out",
            out.to_str().unwrap_or_default(),
            "--format",
            "raw",
            "--format",
            "qcow2",
        ];
        let env = [("DYAD_BLOCK_CACHE", blocks.to_str().unwrap_or_default())];
        // The first build of all fills the package cache, so that only our own work is measured.
        sh::measure(root, dyad, &args, &env)?;
        std::fs::remove_dir_all(&blocks)?;
        for state in ["packages only", "packages and blocks"] {
            let cost = sh::measure(root, dyad, &args, &env)?;
            println!(
                "| {image} | {state} | {:.1} | {:.1} | {} |",
                cost.wall.as_secs_f64(),
                cost.cpu_seconds,
                cost.peak_kib / 1024
            );
        }
    }
    std::fs::remove_dir_all(&work)?;
    Ok(())
}
