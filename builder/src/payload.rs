//! The programs of our own that go into the image: static binaries whose bytes depend on the source alone.
//!
//! In a source checkout they are compiled here; an installed `dyad` finds them beside itself and needs no cargo.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use dyad_archive::process;
use dyad_tree::PayloadFile;

/// Cargo packages and the binaries they make, with the place each takes in the root.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("init", "init", INIT),
    ("supervisor", "supervisor", "/usr/lib/dyad/supervisor"),
    ("dyadctl", "dyadctl", "/usr/bin/dyadctl"),
    // No node needs it: the lab runs it, and a machine that is to be a third vote takes it from here.
    ("dyad-witness", "dyad-witness", "/usr/bin/dyad-witness"),
];
/// Libraries that other programs load: packages, files that cargo makes, places in the root. They cannot be linked
/// statically, so they are a build of their own.
const LIBRARIES: &[(&str, &str, &str)] = &[
    ("dyad-guard", "libdyad_guard.so", "/usr/lib/postgresql/15/lib/dyad_guard.so"),
    ("dyad-journal", "libdyad_journal.so", "/usr/lib/dyad/dyad_journal.so"),
];
/// Path of PID 1 in the root; the initrd carries the same bytes.
const INIT: &str = "/usr/lib/dyad/init";
/// glibc can be linked statically for this target; naming it keeps proc-macros dynamic.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A cold build with LTO on two shared cores stays far below this.
const COMPILE_DEADLINE: Duration = Duration::from_secs(3600);

/// One program and where it belongs.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Absolute path in the root tree.
    pub(crate) path: &'static str,
    /// The ELF file.
    pub(crate) bytes: Bytes,
}

/// PID 1, which the initrd carries too, and everything else, as the tree takes them.
pub(crate) fn files(programs: Vec<Program>) -> Result<(Bytes, Vec<PayloadFile>)> {
    let mut files: Vec<PayloadFile> = programs
        .into_iter()
        .map(|p| PayloadFile { path: p.path.to_owned(), data: p.bytes, mode: 0o755 })
        .collect();
    let init = files.iter().position(|p| p.path == INIT).context("no init among the programs")?;
    Ok((files.remove(init).data, files))
}

/// The source checkout that this very program was built from, if it is still there.
fn checkout() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let ours = root.join("init/Cargo.toml").is_file() && root.join("Cargo.lock").is_file();
    ours.then(|| root.to_owned())
}

fn beside_self() -> Option<PathBuf> {
    let dir = std::env::current_exe().ok()?.parent()?.join("payload");
    dir.join("init").is_file().then_some(dir)
}

fn home(variable: &str, fallback: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from);
    set.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(fallback)))
}

/// Flags that make the bytes independent of directory, user and host: paths in panic messages are renamed. The last
/// prefix that fits counts, so the target directory, which may lie in the checkout, comes after it.
fn rustflags(root: &Path, target_dir: &Path, linked: Linked) -> String {
    let mut flags: Vec<String> = match linked {
        Linked::Statically => vec!["-Ctarget-feature=+crt-static".to_owned()],
        Linked::AtRunTime => Vec::new(),
    };
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    if let Some(cargo) = home("CARGO_HOME", ".cargo") {
        remap(&cargo, "/cargo");
    }
    if let Some(rustup) = home("RUSTUP_HOME", ".rustup") {
        remap(&rustup, "/rustup");
    }
    remap(root, "/dyad");
    // Sources that build scripts wrote are compiled from there.
    remap(target_dir, "/target");
    // Separated as CARGO_ENCODED_RUSTFLAGS wants it, so that a path may hold spaces.
    flags.join("\x1f")
}

/// Where cargo is: the one that runs us, or the first on PATH.
fn cargo() -> Result<PathBuf> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        return Ok(cargo.into());
    }
    process::find("cargo").context(
        "a source checkout compiles init, supervisor and dyadctl itself; install Rust, or put the finished programs \
         into a directory `payload` beside the dyad program",
    )
}

/// How a build of ours finds the C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linked {
    Statically,
    AtRunTime,
}

/// Whether cargo sets this for what it runs, of the package that it runs. Build scripts that look at such a variable (ring's
/// does) are run anew when it changes: `dyad` started by `cargo run`, by a test or by a shell would compile half of
/// everything again.
fn tells_of_a_package(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"]
        .iter()
        .any(|known| name.starts_with(known))
}

/// Compiles packages; returns the directory that holds what came of it.
fn compile(root: &Path, offline: bool, packages: &[&str], linked: Linked) -> Result<PathBuf> {
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    // Absolute, as cargo hands it to the compiler; relative ones are the caller's. Other flags have their own directory,
    // or each build would throw away the other's.
    let target_dir = std::path::absolute(target_dir)?.join(match linked {
        Linked::Statically => "payload",
        Linked::AtRunTime => "payload-guard",
    });
    let mut args: Vec<String> =
        ["build", "--release", "--locked", "--target", TARGET].map(str::to_owned).to_vec();
    if offline {
        args.push("--offline".into());
    }
    for package in packages {
        args.push("--package".into());
        args.push((*package).into());
    }
    // cargo needs the user's environment (CARGO_HOME, proxies); the encoded flags take the place of RUSTFLAGS.
    let command = process::Command::new(cargo()?).args(args).directory(root).inherit_env();
    let names = std::env::vars_os().map(|(name, _)| name);
    let outer = names.filter(|name| name.to_str().is_some_and(tells_of_a_package));
    outer
        .fold(command, process::Command::env_remove)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, &target_dir, linked))
        .deadline(COMPILE_DEADLINE)
        .run_checked()
        .with_context(|| format!("compiling {} for the image", packages.join(", ")))?;
    Ok(target_dir.join(TARGET).join("release"))
}

/// Compiles or finds the programs.
pub(crate) fn programs(offline: bool) -> Result<Vec<Program>> {
    let (dir, library_dir) = match (beside_self(), checkout()) {
        (Some(dir), _) => (dir.clone(), dir),
        (None, Some(root)) => {
            let packages = |all: &[(&'static str, &str, &str)]| -> Vec<&'static str> {
                all.iter().map(|(package, _, _)| *package).collect()
            };
            let all = packages(LIBRARIES);
            // Side by side: mostly both have nothing to do but to find that out.
            std::thread::scope(|scope| {
                let libraries = scope.spawn(|| compile(&root, offline, &all, Linked::AtRunTime));
                let programs = compile(&root, offline, &packages(PROGRAMS), Linked::Statically);
                let libraries = libraries.join().map_err(|_| anyhow!("compiling the libraries panicked"))?;
                anyhow::Ok((programs?, libraries?))
            })?
        }
        (None, None) => bail!(
            "neither a directory `payload` with init, supervisor, dyadctl and the libraries beside this program nor the \
             source checkout it was built from is there"
        ),
    };
    let all = PROGRAMS.iter().map(|&(_, name, path)| (dir.join(name), path));
    all.chain(LIBRARIES.iter().map(|&(_, name, path)| (library_dir.join(name), path)))
        .map(|(file, path)| {
            let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            Ok(Program { path, bytes: bytes.into() })
        })
        .collect()
}
