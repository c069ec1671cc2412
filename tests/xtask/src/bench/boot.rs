//! `cargo xtask bench boot`: the lab's image beside Debian with systemd and the same packages, on the same emulated machine,
//! from the start of the kernel until PostgreSQL is ready. Needs root, for mmdebstrap; nothing is installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Bench, text};
use crate::sh;

/// Boots of each that count; the one before them, which makes things, does not.
const BOOTS: usize = 3;
/// Budget: ours by theirs.
const RATIO_MAX: f64 = 1.0 / 3.0;
/// One boot on a busy host, seconds.
const BOOT_SECONDS: u32 = 900;
const MACHINE: &str = "qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -nic none -serial stdio \
    -machine q35,accel=tcg -cpu max -smp 2 -m 2048 -device virtio-rng-pci";
/// What Debian needs to boot these packages.
const DEBIAN: &str = "initramfs-tools,linux-image-amd64,postgresql,systemd-sysv,udev";
/// Says when the kernel counts how many seconds.
const UNIT: &str = "[Unit]\nAfter=postgresql.service postgresql@15-main.service\nRequires=postgresql@15-main.service\n\
    [Service]\nType=oneshot\nExecStart=/bin/sh -c \"read up rest < /proc/uptime; echo bench: ready at $up > /dev/ttyS0\"\n";

/// Boots a machine until its console shows the sign; the line with it.
fn boot(dir: &Path, machine: &str, sign: &str) -> Result<String> {
    // At the sign the machine is ended: a power cut.
    let script = format!(
        "rm -f console; mkfifo console; timeout {BOOT_SECONDS} {MACHINE} {machine} > console 2>&1 & \
         sed -u '/{sign}/q' < console; kill $!; wait"
    );
    let console = sh::output(dir, "sh", &["-c", &script])?;
    let line = console.lines().find(|line| line.contains(sign)).map(str::to_owned);
    line.with_context(|| format!("{sign:?} was not on the console:\n{console}"))
}

/// Seconds of the kernel's clock at the sign, each boot.
fn boots(dir: &Path, machine: &str, sign: &str, read: fn(&str) -> Option<f64>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for _ in 0..=BOOTS {
        let line = boot(dir, machine, sign)?;
        all.push(read(&line).with_context(|| format!("no time in {line:?}"))?);
    }
    let mut counted = all.split_off(1);
    counted.sort_by(f64::total_cmp);
    Ok(counted)
}

/// The kernel's own stamp in front of a line.
fn stamp(line: &str) -> Option<f64> {
    line.split_once('[')?.1.split_once(']')?.0.trim().parse().ok()
}

fn last_word(line: &str) -> Option<f64> {
    line.trim().rsplit(' ').next()?.parse().ok()
}

fn ours(bench: &Bench) -> Result<Vec<f64>> {
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
    boots(&bench.work, machine, "service postgresql: ready", stamp)
}

fn debian(bench: &Bench) -> Result<Vec<f64>> {
    let include = format!("{},{DEBIAN}", bench.packages("lab")?.join(","));
    fs::write(bench.work.join("bench.service"), UNIT)?;
    let script = format!(
        "set -e; mmdebstrap --quiet --variant=minbase --include={include} \
         --customize-hook='copy-in bench.service /etc/systemd/system' \
         --customize-hook='mkdir -p \"$1/etc/systemd/system/multi-user.target.wants\"' \
         --customize-hook='ln -s ../bench.service \"$1/etc/systemd/system/multi-user.target.wants/\"' \
         --customize-hook='echo /dev/vda / ext4 defaults 0 1 > \"$1/etc/fstab\"' bookworm debian; \
         cp -L debian/vmlinuz debian/initrd.img .; mke2fs -q -t ext4 -d debian debian.raw 4G; rm -rf debian"
    );
    sh::output(&bench.work, "sh", &["-c", &script])?;
    let machine = "-kernel vmlinuz -initrd initrd.img -append 'root=/dev/vda rw quiet console=ttyS0' \
                   -drive if=none,id=disk,format=raw,file=debian.raw -device virtio-blk-pci,drive=disk";
    boots(&bench.work, machine, "bench: ready at", last_word)
}

/// Boots both and prints the table.
pub(super) fn run(root: &Path) -> Result<bool> {
    let bench = Bench::new(root)?;
    println!("| system | kernel to PostgreSQL ready, s (half of {BOOTS}, all) | ratio |\n|---|---|---|");
    let (ours, debian) = (ours(&bench)?, debian(&bench)?);
    let ratio = ours[BOOTS / 2] / debian[BOOTS / 2];
    println!("| lab image | {:.1}, {:.1} | {ratio:.2} |", ours[BOOTS / 2], ours[BOOTS - 1]);
    println!("| Debian, systemd | {:.1}, {:.1} | |", debian[BOOTS / 2], debian[BOOTS - 1]);
    println!("| budget | | {RATIO_MAX:.2} |");
    let work = text(&bench.work)?.to_owned();
    sh::output(root, "rm", &["-rf", &work])?;
    Ok(ratio <= RATIO_MAX)
}
