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
    "faketime",
    "gdisk",
    "gnupg",
    "gpgv",
    "iproute2",
    "iputils-ping",
    "lvm2",
    "mtools",
    "ovmf",
    "postgresql-15",
    "postgresql-client-15",
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
    sh::cargo(root, &["test", "--locked", "--package", IMAGE_TESTS, "--", "--test-threads=1"])?;
    if vm {
        sh::cargo(root, &["test", "--locked", "--package", VM_TESTS, "--", "--test-threads=1"])?;
    }
    let after = sh::output(root, "git", &["status", "--porcelain"])?;
    if before != after {
        bail!("the checks changed the tree:\n{after}");
    }
    println!("\nverify: all checks passed");
    Ok(true)
}
