//! A real machine's first boot on the disk that forgets: every state that a power cut could leave is looked at, some are
//! booted.
//!
//! Needs QEMU, OVMF, e2fsprogs and the finished `dyad`. `DYAD_TEST_IMAGE` names a raw image of images/lab.toml that is
//! there already; else one is built.
#![allow(
    clippy::disallowed_methods,
    reason = "tests drive outside programs and watch a machine from outside"
)]

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use dyad_gpt::{Found, Partition};
use dyad_nbd_tests::crash::{Replay, Selection, View};
use dyad_nbd_tests::log::Record;
use dyad_nbd_tests::medium::Recorder;
use dyad_nbd_tests::server;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 5 << 30;
const SECTOR: u32 = 512;
/// What a disk writes at once, at least.
const BLOCK: u64 = 4096;
/// Parts into which one request is taken apart, at most.
const PIECES_MAX: u64 = 64;
/// States looked at, at least.
const STATES: usize = 10_000;
/// Looks with e2fsck, which takes a copy and a process each.
const FSCKS_MAX: usize = 60;
/// States really booted; `cargo xtask soak first-boot N` boots more of them.
const BOOTS: usize = 5;
/// Machines that boot at once: firmware and kernel keep one processor busy for much of the time.
const AT_ONCE: usize = 2;
const BOOT: Duration = Duration::from_secs(600);
/// What a machine shows once all its services run, or when it gives up.
const UP: &str = "dyad: services ";
const BAD: [&str; 4] = ["no root:", "PID 1 cannot", "Kernel panic", " failed after "];
/// Names that the partitions of a first boot have, by their number from 1 on.
const NAMES: [&[&str]; 7] = [
    &["esp"],
    &["lab_0.1.0"],
    &["lab_0.1.0_verity"],
    &["_empty"],
    &["_empty"],
    &["PND#state", "PRT#state", "state"],
    &["PND#data", "PRT#data", "data"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two below the root").into()
}

fn run(program: &str, args: &[&str]) -> std::process::Output {
    let command = Command::new(program).args(args).current_dir(root()).stdin(Stdio::null()).output();
    command.unwrap_or_else(|e| panic!("{program} (needed by this test) cannot be started: {e}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A raw image of images/lab.toml.
fn image(dir: &Path) -> PathBuf {
    if let Some(made) = std::env::var_os("DYAD_TEST_IMAGE") {
        return made.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let dyad = std::env::var_os("DYAD_BIN").map_or_else(|| target.join("release/dyad"), PathBuf::from);
    let built = run(text(&dyad), &["build", "images/lab.toml", "--format", "raw", "--out", text(dir)]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut made = fs::read_dir(dir).expect("the output directory").flatten().map(|entry| entry.path());
    made.find(|path| path.extension().is_some_and(|e| e == "raw")).expect("a raw image")
}

/// A sparse copy, with the size of the machine's disk.
fn copy(from: &Path, to: &Path) -> File {
    let copied = run("cp", &["--sparse=always", text(from), text(to)]);
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let disk = File::options().read(true).write(true).open(to).expect("the copy");
    disk.set_len(DISK_BYTES).expect("a sparse file grows");
    disk
}

/// A running machine, ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a disk until all services run; panics with the console when it does not come up.
fn boot(drive: &str, dir: &Path, what: &str) {
    let console = dir.join("console");
    let _ = fs::remove_file(&console);
    let drive = format!("if=none,id=disk,format=raw,cache=writeback,discard=unmap,{drive}");
    let serial = format!("file:{}", text(&console));
    let args = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"];
    let began = Instant::now();
    let machine = Command::new("qemu-system-x86_64")
        .args(args)
        .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2048"])
        .args(["-bios", "/usr/share/ovmf/OVMF.fd", "-serial", &serial])
        .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk,bootindex=0"])
        .args(["-device", "virtio-rng-pci"])
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64 is installed");
    let mut machine = Machine(machine);
    loop {
        let shown = fs::read(&console).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let ended = machine.0.try_wait().expect("our child").is_some();
        let bad = BAD.iter().find(|bad| shown.contains(**bad));
        assert!(
            bad.is_none() && !ended && began.elapsed() < BOOT,
            "{what}: {bad:?}, ended {ended}:\n{shown}"
        );
        if shown.contains(UP) {
            println!("{what}: up after {:.1} s", began.elapsed().as_secs_f64());
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Boots once on the disk that forgets; what was written.
fn record(image: &Path, dir: &Path) -> Vec<Record> {
    let disk = copy(image, &dir.join("recorded"));
    let recorder = Recorder::new(disk);
    let log = recorder.log();
    let socket = dir.join("nbd");
    server::start(recorder, &socket).expect("a socket");
    boot(
        &format!("file.driver=nbd,file.server.type=unix,file.server.path={}", text(&socket)),
        dir,
        "recorded",
    );
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.iter().flat_map(|record| record.pieces(BLOCK, PIECES_MAX)).collect()
}

/// What one state of the disk says.
fn table(mut disk: impl Read + Seek) -> io::Result<Found> {
    dyad_gpt::read(&mut disk, SECTOR, DISK_BYTES).map_err(io::Error::other)
}

/// The partitions of the image are as they were; the others have only names that somebody goes on from, and those two
/// that are made by steps do not count as finished before they are.
fn judge(found: &Found, image: &[(u32, Partition)], what: &str) {
    let partitions = found.table.partitions();
    for (number, partition) in image {
        assert_eq!(partitions.get(number), Some(partition), "{what}: partition {number}");
    }
    for (number, partition) in partitions {
        let known = NAMES.get(*number as usize - 1).unwrap_or_else(|| panic!("{what}: partition {number}"));
        assert!(known.contains(&partition.name.as_str()), "{what}: partition {number} {:?}", partition.name);
    }
}

/// Whether a partition has this name, and its bytes: offset and length.
fn named(found: &Found, name: &str) -> Option<(u64, u64)> {
    let (number, _) = found.table.partitions().iter().find(|(_, partition)| partition.name == name)?;
    found.table.byte_range(*number)
}

/// What is called finished has a superblock of ext4 that fits its partition.
fn superblock(disk: &View<'_>, (at, length): (u64, u64), what: &str) {
    let mut block = [0u8; 1024];
    disk.read_exact_at(&mut block, at + 1024).expect("the disk is as long as its partitions");
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    assert_eq!(block[56..58], [0x53, 0xef], "{what}: a finished state partition without a file system");
    let bytes = u64::from(word(4)) << (10 + word(24));
    assert!(bytes > 0 && bytes <= length, "{what}: a file system of {bytes} bytes on {length}");
}

/// A finished ext4 has a superblock, and no damage once its journal is replayed.
fn fsck(disk: &File, (at, length): (u64, u64), dir: &Path, what: &str) {
    let path = dir.join("state");
    let part = File::create(&path).expect("a file");
    part.set_len(length).expect("a sparse file");
    let mut block = vec![0; MIB as usize];
    for offset in (0..length).step_by(MIB as usize) {
        disk.read_exact_at(&mut block, at + offset).expect("the disk is as long as its partitions");
        if block.iter().any(|byte| *byte != 0) {
            part.write_all_at(&block, offset).expect("a file can be written");
        }
    }
    drop(part);
    // As the kernel does it at mount time; then nothing may be left to mend.
    run("/sbin/e2fsck", &["-f", "-y", "-E", "journal_only", text(&path)]);
    let checked = run("/sbin/e2fsck", &["-f", "-n", text(&path)]);
    assert!(checked.status.success(), "{what}: {}", String::from_utf8_lossy(&checked.stdout));
}

/// Looks at every state; gives those spread over the boot that are to be booted: epoch and selection.
fn look_at_all(disk: &File, records: &[Record], boots: usize, dir: &Path) -> Vec<(usize, Selection)> {
    let image: Vec<_> =
        table(disk).expect("the image's table").table.partitions().clone().into_iter().collect();
    let flushes = records.iter().filter(|record| **record == Record::Flush).count();
    let mut replay = Replay::new(disk, records);
    let (mut states, mut tables, mut fscks, mut epoch) = (0, 0, 0, 0);
    let mut chosen = Vec::new();
    while let Some(writes) = replay.epoch() {
        let all = replay.selections();
        let settled = table(disk).expect("what was flushed can be read");
        let state = named(&settled, "state");
        let state_touched =
            state.is_some_and(|(at, length)| writes.iter().any(|w| w.touches(at, at + length)));
        for (n, selection) in all.iter().enumerate() {
            let what = format!("epoch {epoch}, state {n}");
            let mut disk = replay.view(selection);
            let found = table(&mut disk).unwrap_or_else(|e| panic!("{what}: no table: {e}"));
            judge(&found, &image, &what);
            if let Some(at) = named(&found, "state") {
                superblock(&disk, at, &what);
            }
            tables += usize::from(found != settled);
            if state_touched && fscks < FSCKS_MAX && n % 7 == epoch % 7 {
                let at = state.expect("it was touched");
                replay.with(selection, |disk| fsck(disk, at, dir, &what)).expect("the disk can be written");
                fscks += 1;
            }
            states += 1;
        }
        // One after an epoch in which nothing was written makes up for it.
        let before = chosen.len();
        while chosen.len() < boots && epoch * boots >= chosen.len() * flushes && !all.is_empty() {
            let other = (all.len() / 2 + (chosen.len() - before) * 7) % all.len();
            chosen.push((epoch, all[other].clone()));
        }
        replay.advance().expect("the disk can be written");
        epoch += 1;
    }
    judge(&table(disk).expect("a table"), &image, "the end");
    println!(
        "{} writes, {flushes} flushes: {states} states, {tables} of them with another table, {fscks} with e2fsck",
        records.len() - flushes
    );
    assert!(states >= STATES && tables > 0 && fscks > 0, "too few states for a proof");
    chosen
}

#[test]
fn no_power_cut_in_a_first_boot_is_lasting() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    let image = image(dir);
    let records = record(&image, dir);
    let boots = std::env::var("DYAD_SOAK").map_or(BOOTS, |n| n.parse().expect("DYAD_SOAK is a number"));
    let scene = dir.join("scene");
    let chosen = look_at_all(&copy(&image, &scene), &records, boots, dir);
    let disk = copy(&image, &scene);
    let mut replay = Replay::new(&disk, &records);
    let mut at = 0;
    for some in chosen.chunks(AT_ONCE) {
        let mut cuts = Vec::new();
        for (epoch, selection) in some {
            while at < *epoch {
                replay.advance().expect("the disk can be written");
                at += 1;
            }
            let own = dir.join(format!("epoch-{epoch}-{}", cuts.len()));
            fs::create_dir(&own).expect("a directory");
            replay
                .with(selection, |_| drop(copy(&scene, &own.join("cut"))))
                .expect("the disk can be written");
            cuts.push((own, *epoch));
        }
        std::thread::scope(|threads| {
            for (own, epoch) in &cuts {
                threads.spawn(|| boot_cut(own, *epoch));
            }
        });
    }
}

/// Boots a disk as a power cut left it.
fn boot_cut(dir: &Path, epoch: usize) {
    let cut = dir.join("cut");
    boot(&format!("file.driver=file,file.filename={}", text(&cut)), dir, &format!("cut in epoch {epoch}"));
    judge(&table(&File::open(&cut).expect("the disk")).expect("a table"), &[], "after the boot");
    fs::remove_dir_all(dir).expect("a disk can be removed");
}
