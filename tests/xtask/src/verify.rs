//! `cargo xtask verify`: the README's test command and all that CI runs.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{provision, sh, tidy};

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

/// Runs every check; `vm`: also those that boot machines. True when all passed.
pub(crate) fn run(root: &Path, vm: bool) -> Result<bool> {
    let arguments: &[&str] = if vm { &["verify"] } else { &["verify", "--no-vm"] };
    if !provision::ready(root, DEBIAN_PACKAGES, arguments)? {
        return Ok(true);
    }
    let before = sh::output(root, "git", &["status", "--porcelain"])?;
    sh::cargo(root, &["fmt", "--all", "--check"])?;
    if !tidy::run(root, false)? {
        return Ok(false);
    }
    sh::cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    let no_unwrap = ["-D", "warnings", "-D", "clippy::unwrap_used"];
    let programs = ["clippy", "--workspace", "--lib", "--bins", "--locked", "--"];
    sh::cargo(root, &[&programs[..], &no_unwrap[..]].concat())?;
    sh::cargo(root, &["test", "--workspace", "--locked", "--exclude", VM_TESTS, "--exclude", IMAGE_TESTS])?;
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    if vm {
        let guest = ["test", "--locked", "--package", VM_TESTS, "--test", "guest", "--", "--test-threads=1"];
        sh::cargo(root, &[&guest[..], &["--skip", "the_life_of_pid_1"][..]].concat())?;
        first_boot(root)?;
    }
    let after = sh::output(root, "git", &["status", "--porcelain"])?;
    if before != after {
        bail!("the checks changed the tree:\n{after}");
    }
    println!("\nverify: all checks passed");
    Ok(true)
}

/// The README's main job: builds the lab's image, boots it, asks PostgreSQL, and takes the lab down.
fn first_boot(root: &Path) -> Result<()> {
    let dyad = sh::target_dir(root).join("release/dyad");
    let dyad = dyad.to_string_lossy();
    let state = std::env::temp_dir().join(format!("dyad-verify-{}", std::process::id()));
    let state = state.to_string_lossy();
    let lab = |words: &[&str]| sh::step(root, &dyad, &[&["lab", "--state", &state][..], words].concat(), &[]);
    let asked = lab(&["up", "images/lab.toml", "--nodes", "1", "--accel", "tcg"])
        .and_then(|()| lab(&["psql", "--", "-XAtc", "select 1"]));
    lab(&["down"])?;
    asked
}

/// The tests that build and boot images for many minutes: `cargo xtask machines`.
pub(crate) fn machines(root: &Path) -> Result<bool> {
    sh::cargo(root, &["build", "--release", "--locked", "--bin", "dyad"])?;
    for package in [IMAGE_TESTS, VM_TESTS] {
        sh::cargo(
            root,
            &["test", "--locked", "--package", package, "--no-fail-fast", "--", "--test-threads=1"],
        )?;
    }
    Ok(true)
}
