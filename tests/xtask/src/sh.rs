//! The one place where xtask starts programs: every command is printed before it runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// PATH with the directories of administration tools, which an ordinary user's lacks: the oracles live there.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Runs `cargo ARGS` in `dir`; an unsuccessful end is an error.
pub(crate) fn cargo(dir: &Path, args: &[&str]) -> Result<()> {
    cargo_env(dir, args, &[])
}

/// [`cargo`] with extra environment.
pub(crate) fn cargo_env(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    step(dir, &cargo, args, env)
}

/// Runs a program with inherited output; an unsuccessful end is an error that repeats the command line.
#[allow(clippy::disallowed_methods, reason = "this module is xtask's subprocess wrapper")]
pub(crate) fn step(dir: &Path, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let shown: Vec<String> = env
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .chain([program.to_owned()])
        .chain(args.iter().map(|a| (*a).to_owned()))
        .collect();
    let shown = shown.join(" ");
    println!("\n$ {shown}");
    let mut command = Command::new(program);
    // What cargo says of xtask's own package: build scripts that look at it would be run anew, and all that uses them.
    let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| own.iter().any(|known| name.starts_with(known))) {
            command.env_remove(name);
        }
    }
    let status = command
        .args(args)
        .env("PATH", search_path())
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs a program and returns its standard output; an unsuccessful end is an error with the output.
#[allow(clippy::disallowed_methods, reason = "this module is xtask's subprocess wrapper")]
pub(crate) fn output(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !out.status.success() {
        bail!("{program} {}: {}\n{}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Wall time and CPU time (user + system, children included) of a command, and its peak resident memory.
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_kib: u64,
}

/// Measures a command with `/usr/bin/env time`-like accounting read from the kernel's own `wait4` report.
#[allow(clippy::disallowed_methods, reason = "this module is xtask's subprocess wrapper and its stopwatch")]
pub(crate) fn measure(dir: &Path, program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Cost> {
    // GNU time reports what wait4 says without unsafe code here; %e wall, %U %S CPU, %M peak KiB.
    let report = std::env::temp_dir().join(format!("xtask-time-{}", std::process::id()));
    let started = std::time::Instant::now();
    let status = Command::new("/usr/bin/time")
        .args(["-f", "%U %S %M", "-o"])
        .arg(&report)
        .arg(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot start /usr/bin/time (Debian package `time`)")?;
    let wall = started.elapsed();
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    if !status.success() {
        bail!("{program} {} failed: {status}", args.join(" "));
    }
    let last = text.lines().last().unwrap_or_default();
    let fields: Vec<f64> = last.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    let [user, system, peak] = fields[..] else { bail!("GNU time said {last:?}") };
    Ok(Cost { wall, cpu_seconds: user + system, peak_kib: peak as u64 })
}
