//! `cargo xtask bench boot`: the lab's image beside Debian with systemd and the same packages, on the same emulated machine,
//! until PostgreSQL is ready: from the start of the kernel, and from the moment at which it hands over to the first program.
//! Needs root, for mmdebstrap; nothing is installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Bench, text};
use crate::sh;

/// Boots of each that count; the one before them, which makes things, does not.
const BOOTS: usize = 3;
/// Budgets, from the kernel's hand-over on: ours by theirs, and ours, seconds. What the kernel takes before is the same for both.
const RATIO_MAX: f64 = 1.0 / 3.0;
const SECONDS_MAX: f64 = 12.0;
/// One boot on a busy host, seconds.
const BOOT_SECONDS: u32 = 900;
const MACHINE: &str = "qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -nic none -serial stdio \
    -machine q35,accel=tcg -cpu max -smp 2 -m 2048 -device virtio-rng-pci";
/// What Debian needs to boot these packages.
const DEBIAN: &str = "initramfs-tools,linux-image-amd64,postgresql,systemd-sysv,udev";
/// Says when the kernel counts how many seconds, and what it counted when it handed over.
const UNIT: &str = "[Unit]\nAfter=postgresql.service postgresql@15-main.service\nRequires=postgresql@15-main.service\n\
    [Service]\nType=oneshot\nExecStart=/bin/sh /usr/local/bin/bench-ready\n";
const READY: &str = "read up rest < /proc/uptime\n\
    kernel=$(dmesg | sed -n 's/^\\[ *\\([0-9.]*\\)\\] Run \\/init as init process$/\\1/p')\n\
    echo \"bench: handed over at $kernel ready at $up\" > /dev/ttyS0\n";

/// One boot, seconds of the kernel's clock.
#[derive(Clone, Copy)]
struct Boot {
    handed_over: f64,
    ready: f64,
}

/// Boots a machine until its console shows the sign; all that it showed.
fn boot(dir: &Path, machine: &str, sign: &str) -> Result<String> {
    // At the sign the machine is ended: a power cut.
    let script = format!(
        "rm -f console; mkfifo console; timeout {BOOT_SECONDS} {MACHINE} {machine} > console 2>&1 & \
         sed -u '/{sign}/q' < console; kill $!; wait"
    );
    let console = sh::output(dir, "sh", &["-c", &script])?;
    Ok(console)
}

/// The boots that count, the fastest first.
fn boots(dir: &Path, machine: &str, sign: &str, read: fn(&str) -> Option<Boot>) -> Result<Vec<Boot>> {
    let mut all = Vec::new();
    for _ in 0..=BOOTS {
        let console = boot(dir, machine, sign)?;
        all.push(
            read(&console)
                .with_context(|| format!("{sign:?} and its times are not on the console:\n{console}"))?,
        );
    }
    let mut counted = all.split_off(1);
    counted.sort_by(|a, b| a.ready.total_cmp(&b.ready));
    Ok(counted)
}

/// The kernel's own stamps in front of two lines: the first of the first program, and PostgreSQL's.
fn stamps(console: &str) -> Option<Boot> {
    let stamp = |part: &str| -> Option<f64> {
        let line = console.lines().find(|line| line.contains(part))?;
        line.split_once('[')?.1.split_once(']')?.0.trim().parse().ok()
    };
    Some(Boot { handed_over: stamp("dyad: initrd: kernel ")?, ready: stamp("service postgresql: ready")? })
}

/// What the unit said.
fn said(console: &str) -> Option<Boot> {
    let (_, times) = console.split_once("bench: handed over at ")?;
    let (handed_over, ready) = times.lines().next()?.split_once(" ready at ")?;
    Some(Boot { handed_over: handed_over.parse().ok()?, ready: ready.trim().parse().ok()? })
}

fn ours(bench: &Bench) -> Result<Vec<Boot>> {
    sh::output(
        &bench.work,
        &bench.dyad,
        &["build", "images/lab.toml", "--format", "raw", "--out", "out-lab"],
    )?;
    let image = bench.output("lab")?;
    sh::output(&bench.work, "cp", &["--sparse=always", &image, "ours.raw"])?;
    sh::output(&bench.work, "truncate", &["-s", "5G", "ours.raw"])?;
    let machine = "-bios /usr/share/ovmf/OVMF.fd -drive if=none,id=disk,format=raw,file=ours.raw \
                   -device virtio-blk-pci,drive=disk,bootindex=0";
    boots(&bench.work, machine, "service postgresql: ready", stamps)
}

fn debian(bench: &Bench) -> Result<Vec<Boot>> {
    let include = format!("{},{DEBIAN}", bench.packages("lab")?.join(","));
    fs::write(bench.work.join("bench.service"), UNIT)?;
    fs::write(bench.work.join("bench-ready"), READY)?;
    let script = format!(
        "set -e; mmdebstrap --quiet --variant=minbase --include={include} \
         --customize-hook='copy-in bench.service /etc/systemd/system' \
         --customize-hook='copy-in bench-ready /usr/local/bin' \
         --customize-hook='mkdir -p \"$1/etc/systemd/system/multi-user.target.wants\"' \
         --customize-hook='ln -s ../bench.service \"$1/etc/systemd/system/multi-user.target.wants/\"' \
         --customize-hook='echo /dev/vda / ext4 defaults 0 1 > \"$1/etc/fstab\"' bookworm debian; \
         cp -L debian/vmlinuz debian/initrd.img .; mke2fs -q -t ext4 -d debian debian.raw 4G; rm -rf debian"
    );
    sh::output(&bench.work, "sh", &["-c", &script])?;
    let machine = "-kernel vmlinuz -initrd initrd.img -append 'root=/dev/vda rw quiet console=ttyS0' \
                   -drive if=none,id=disk,format=raw,file=debian.raw -device virtio-blk-pci,drive=disk";
    boots(&bench.work, machine, "bench: handed over", said)
}

/// Boots both and prints the table.
pub(super) fn run(root: &Path) -> Result<bool> {
    let bench = Bench::new(root)?;
    let (ours, debian) = (ours(&bench)?[BOOTS / 2], debian(&bench)?[BOOTS / 2]);
    let user = |boot: Boot| boot.ready - boot.handed_over;
    let ratio = user(ours) / user(debian);
    println!("PostgreSQL is ready, half of {BOOTS} boots, s\n");
    println!(
        "| system | from the start of the kernel | from its hand-over | ratio of these |\n|---|---|---|---|"
    );
    println!("| lab image | {:.1} | {:.1} | {ratio:.2} |", ours.ready, user(ours));
    println!("| Debian, systemd | {:.1} | {:.1} | |", debian.ready, user(debian));
    println!("| budget | | {SECONDS_MAX:.1} | {RATIO_MAX:.2} |");
    let work = text(&bench.work)?.to_owned();
    sh::output(root, "rm", &["-rf", &work])?;
    Ok(ratio <= RATIO_MAX && user(ours) <= SECONDS_MAX)
}
