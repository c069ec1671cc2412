//! Network boot: kernel, initrd with the root inside, and command line are all that a machine without a disk needs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use dyad_vm_tests::{run, stdout};

/// Far more than an emulated processor needs.
const BOOT_SECONDS: &str = "400";

#[test]
fn a_machine_without_a_disk_boots_from_the_pxe_files() {
    let out = tempfile::TempDir::new().expect("a temporary directory can be made");
    let dir = out.path().to_str().expect("test paths are UTF-8");
    stdout("dyad build", &run(&["build", "images/lab.toml", "--out", dir, "--format", "pxe"], &[]));
    let file = |suffix: &str| {
        let found = fs::read_dir(out.path())
            .expect("the outputs are there")
            .map(|e| e.expect("they can be listed").path());
        let mut found = found.filter(|p| p.to_string_lossy().ends_with(suffix));
        found.next().unwrap_or_else(|| panic!("the build made no {suffix}")).to_string_lossy().into_owned()
    };
    let line = fs::read_to_string(file(".cmdline")).expect("the command line can be read");
    let console = boot(&file(".vmlinuz"), &file(".initrd"), line.trim_end());
    let text = console.join("\n");
    assert!(!text.contains("Initramfs unpacking failed"), "{text}");
    assert!(text.contains("dyad: initrd: verity"), "the root was not opened through verity:\n{text}");
    assert!(
        console.last().is_some_and(|l| l.contains("dyad: services")),
        "services were not reached:\n{text}"
    );
}

/// Boots until PID 1 says that it has come to its services; the console's lines up to there.
#[allow(clippy::disallowed_methods, reason = "the machine's console is read while it runs")]
fn boot(kernel: &str, initrd: &str, line: &str) -> Vec<String> {
    let mut qemu = Command::new("timeout")
        .args([
            BOOT_SECONDS,
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "1024",
            "-no-reboot",
        ])
        .args(["-display", "none", "-monitor", "none", "-nic", "none", "-serial", "stdio"])
        .args(["-kernel", kernel, "-initrd", initrd, "-append", line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout and qemu-system-x86_64 (needed by this test) can be started");
    let mut console = Vec::new();
    let mut output = BufReader::new(qemu.stdout.take().expect("standard output is a pipe"));
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes).expect("the console can be read") > 0 {
        console.push(String::from_utf8_lossy(&bytes).trim_end().to_owned());
        bytes.clear();
        if console.last().is_some_and(|l| l.contains("dyad: services")) {
            break;
        }
    }
    // SIGTERM reaches QEMU through `timeout`.
    let _ = Command::new("kill").arg(qemu.id().to_string()).status();
    qemu.wait().expect("QEMU ends");
    console
}
