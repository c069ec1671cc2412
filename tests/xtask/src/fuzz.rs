//! `cargo xtask fuzz`: the parsers of foreign bytes under libFuzzer.
//!
//! The harness is compiled with the flags that `cargo fuzz` uses, all of them stable; nothing need be installed but a C++
//! compiler. What the fuzzer finds interesting goes below the target directory, never into the tree.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::sh;

const HARNESS: &str = "tests/fuzz/harness";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Coverage for libFuzzer; arithmetic that overflows is a finding.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Cdebug-assertions -Coverflow-checks";
/// One input may take so long, seconds: inputs take milliseconds, and a busy machine must not look like a finding.
const INPUT_SECONDS: &str = "-timeout=60";
/// And so much memory.
const MEMORY_MIB: &str = "-rss_limit_mb=2048";

/// Runs one target, or all of them, each for so many seconds.
pub(crate) fn run(root: &Path, only: Option<&str>, seconds: &str) -> Result<bool> {
    seconds.parse::<u32>().with_context(|| format!("--seconds {seconds:?}: a number is accepted"))?;
    let target_dir = sh::target_dir(root).join("fuzz");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("paths here are UTF-8");
    let env = [("CARGO_TARGET_DIR", text(&target_dir)?), ("RUSTFLAGS", FLAGS.to_owned())];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    sh::cargo_env(&root.join(HARNESS), &["build", "--release", "--target", TARGET], &env)?;
    let program = text(&target_dir.join(TARGET).join("release/any"))?;
    let corpus = root.join("tests/fuzz/corpus");
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(&corpus)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if let Some(only) = only {
        if !names.iter().any(|name| name == only) {
            bail!("there is no target {only}; there are: {}", names.join(", "));
        }
        names.retain(|name| name == only);
    }
    let mut clean = true;
    for name in &names {
        let (grown, found) = (target_dir.join("corpus").join(name), target_dir.join("found").join(name));
        fs::create_dir_all(&grown)?;
        fs::create_dir_all(&found)?;
        let (time, prefix) =
            (format!("-max_total_time={seconds}"), format!("-artifact_prefix={}/", text(&found)?));
        let (grown, seeds) = (text(&grown)?, text(&corpus.join(name))?);
        let args = [
            &time,
            &prefix,
            INPUT_SECONDS,
            MEMORY_MIB,
            "-print_final_stats=1",
            "-verbosity=0",
            &grown,
            &seeds,
        ];
        if let Err(error) = sh::step(root, &program, &args, &[("DYAD_FUZZ_TARGET", name)]) {
            println!(
                "{error:#}\n{name}: the input is in {}; copy it to {seeds} when it is mended",
                found.display()
            );
            clean = false;
        }
    }
    Ok(clean)
}
