//! `cargo xtask verify`: the README's test command and all that CI runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::{provision, sh, sim, tidy};

/// What the tests need beside Rust and a C compiler: the outside oracles that judge our bytes, and programs under test.
pub(crate) const DEBIAN_PACKAGES: &[&str] = &[
    "attr",
    "binutils",
    "busybox-static",
    "cpio",
    "cryptsetup-bin",
    "dmsetup",
    "dosfstools",
    "e2fsprogs",
    "etcd-client",
    "etcd-server",
    "faketime",
    "gdisk",
    "gnupg",
    "gpgv",
    "iproute2",
    "iputils-ping",
    "lvm2",
    "mtools",
    "nftables",
    "openssl",
    "ovmf",
    "postgresql-15",
    "postgresql-client-15",
    "postgresql-server-dev-15",
    "procps",
    "python3",
    "python3-jsonschema",
    "python3-seccomp",
    "qemu-system-x86",
    "qemu-utils",
    "squashfs-tools",
    "strace",
    "systemd-boot-efi",
    "time",
    "zstd",
];

/// The package whose tests boot machines: it needs the finished program.
const VM_TESTS: &str = "dyad-vm-tests";
/// The package that builds whole images and compares them: like the other it needs the finished program.
const IMAGE_TESTS: &str = "dyad-image-tests";

/// The check without which no machine boots.
const BUILD: &str = "release build";
/// Histories of whole clusters that every run simulates; a million are `cargo xtask sim --seeds 0..1000000`.
const SIMULATED: &str = "0..20000";
/// Seeds within which each broken clause must be noticed.
const MUTATED: &str = "1500";

/// Runs every check, also after one has failed; `vm`: also those that boot machines. True when all passed.
pub(crate) fn run(root: &Path, vm: bool) -> Result<bool> {
    let arguments: &[&str] = if vm { &["verify"] } else { &["verify", "--no-vm"] };
    if !provision::ready(root, DEBIAN_PACKAGES, arguments)? {
        return Ok(true);
    }
    let before = sh::output(root, "git", &["status", "--porcelain"])?;
    let mut checks = Checks::start();
    let cargo = |args: &[&str]| sh::cargo(root, args);
    std::thread::scope(|threads| {
        // Its last third is one processor's work. Before the tests: one of the disk tests builds an image with it.
        let build = threads.spawn(|| cargo(&["build", "--release", "--locked", "--bin", "dyad"]));
        checks.add("format", cargo(&["fmt", "--all", "--check"]));
        checks.add(
            "tidy",
            tidy::run(root, false).and_then(|clean| if clean { Ok(()) } else { bail!("see above") }),
        );
        checks.add(
            "clippy",
            cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
        );
        let no_unwrap = ["-D", "warnings", "-D", "clippy::unwrap_used"];
        let programs = ["clippy", "--workspace", "--lib", "--bins", "--locked", "--"];
        checks.add("no unwrap in programs", cargo(&[&programs[..], &no_unwrap[..]].concat()));
        checks.add(BUILD, build.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))));
    });
    let tests = ["test", "--workspace", "--locked", "--no-fail-fast"];
    checks.add("tests", cargo(&[&tests[..], &["--exclude", VM_TESTS, "--exclude", IMAGE_TESTS]].concat()));
    checks.add("simulated clusters", sim::run(root, &["sim", "--seeds", SIMULATED]));
    checks.add("mutations of the protocol", sim::run(root, &["mutate", "--seeds", MUTATED]));
    if vm && !checks.failed.iter().any(|(name, _)| *name == BUILD) {
        checks.add("first boot", first_boot(root));
        for (name, package) in [("whole images", IMAGE_TESTS), ("tests that boot machines", VM_TESTS)] {
            // One at a time: each builds on two processors or boots machines that are emulated on them.
            let tests =
                ["test", "--locked", "--package", package, "--no-fail-fast", "--", "--test-threads=1"];
            checks.add(name, cargo(&tests));
        }
    }
    let after = sh::output(root, "git", &["status", "--porcelain"])?;
    checks.add(
        "nothing written into the tree",
        if before == after { Ok(()) } else { Err(anyhow!("the checks changed the tree:\n{after}")) },
    );
    Ok(checks.told())
}

/// What passed and what did not, told together at the end, each with the time since the one before it.
struct Checks {
    passed: usize,
    failed: Vec<(&'static str, anyhow::Error)>,
    times: Vec<(&'static str, Duration)>,
    last: Instant,
}

#[allow(clippy::disallowed_methods, reason = "the report names the time of each check; none is judged by it")]
impl Checks {
    fn start() -> Self {
        Checks { passed: 0, failed: Vec::new(), times: Vec::new(), last: Instant::now() }
    }

    fn add(&mut self, name: &'static str, outcome: Result<()>) {
        self.times.push((name, self.last.elapsed()));
        self.last = Instant::now();
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("verify: {name} failed; going on");
                self.failed.push((name, error));
            }
        }
    }

    /// True when nothing failed.
    fn told(&self) -> bool {
        println!();
        for (name, time) in &self.times {
            println!("{:>6} s  {name}", time.as_secs());
        }
        for (name, error) in &self.failed {
            println!("verify: {name}: {error:#}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty()
    }
}

/// The README's main job: builds the lab's image, boots two machines until they are protected, asks PostgreSQL, and takes
/// the lab down.
fn first_boot(root: &Path) -> Result<()> {
    let dyad = sh::target_dir(root).join("release/dyad");
    let dyad = dyad.to_string_lossy();
    let state = std::env::temp_dir().join(format!("dyad-verify-{}", std::process::id()));
    let state = state.to_string_lossy();
    let lab = |words: &[&str]| sh::step(root, &dyad, &[&["lab", "--state", &state][..], words].concat(), &[]);
    let asked = lab(&["up", "images/lab.toml", "--accel", "tcg"])
        .and_then(|()| lab(&["psql", "--", "-XAtc", "select 1"]));
    lab(&["down"])?;
    asked
}

/// One definition built in many places: `cargo xtask soak builds`.
pub(crate) fn soak_builds(root: &Path, count: &str) -> Result<bool> {
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    sh::cargo(root, &["run", "--locked", "--package", IMAGE_TESTS, "--bin", "soak-builds", "--", count])?;
    Ok(true)
}

/// One test of PID 1, many times over: `cargo xtask soak shutdown N`, `faults N`, `first-boot N`.
pub(crate) fn soak_init(root: &Path, package: &str, test: &str, name: &str, count: &str) -> Result<bool> {
    count.parse::<u32>().map_err(|_| anyhow!("soak: {count:?} is no number"))?;
    if std::env::var_os("DYAD_BIN").is_none() {
        sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    }
    let args =
        ["test", "--locked", "--package", package, "--test", test, "--", "--nocapture", "--exact", name];
    sh::cargo_env(root, &args, &[("DYAD_SOAK", count)])?;
    Ok(true)
}

/// Faults by seed on a real cluster: `cargo xtask chaos`.
pub(crate) fn chaos(root: &Path, args: &[&str]) -> Result<()> {
    if std::env::var_os("DYAD_BIN").is_none() {
        sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    }
    let words = ["run", "--locked", "--package", VM_TESTS, "--bin", "chaos", "--"];
    sh::cargo(root, &[&words[..], args].concat())
}

/// journald killed and stopped again and again, at the speed of this machine.
pub(crate) fn soak_journald(root: &Path, count: &str) -> Result<bool> {
    let words = ["--nocapture", "--ignored", "--exact", "journal::journald_is_killed_and_stopped"];
    let args = [&["test", "--locked", "--package", "init", "--test", "namespace", "--"], &words[..]].concat();
    sh::cargo_env(root, &args, &[("DYAD_SOAK", count)])?;
    Ok(true)
}

/// An image's root beside the one that apt and dpkg make: `cargo xtask configured-root`.
pub(crate) fn configured_root(root: &Path, image: &str) -> Result<bool> {
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    sh::cargo(root, &["run", "--locked", "--package", IMAGE_TESTS, "--bin", "configured-root", "--", image])?;
    Ok(true)
}
