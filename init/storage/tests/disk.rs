//! The phases on a real disk: a loop device, the kernel's partition table, real file systems.
//!
//! These tests need root, loop devices, device-mapper and Debian's tools: tests/vm runs them in a guest. Each run of a
//! phase is a process in a mount and PID namespace of its own, so that its end, by itself or by a kill, takes mounts and
//! tools with it as a power cut would.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dyad_storage::{Host, Log};
use dyad_sys::block;
use support::{Disk, MIB, command, ok};

/// Everything but most of the data partition.
const DISK_BYTES_COMPARED: u64 = 700 * MIB;
/// System calls that change something: the process is killed on entering the n-th of each.
const CUTS: [&str; 12] = [
    "pwrite64",
    "write",
    "fsync",
    "ioctl",
    "mount",
    "rename",
    "mkdir",
    "chown",
    "chmod",
    "fchmod",
    "execve",
    "getrandom",
];
/// The same for the phase that makes volumes.
const DATA_CUTS: [&str; 8] = ["io_submit", "ioctl", "fsync", "pwrite64", "execve", "mount", "chown", "mkdir"];
/// More than any phase makes of one of them; a run that is not killed ends the series earlier.
const CALLS_MAX: u32 = 400;
/// Cuts in a first boot that are always tried: before, inside and after what must stay in order. A cut takes seconds.
const CUTS_ALWAYS: [(&str, u32); 9] = [
    ("pwrite64", 1),
    ("pwrite64", 2),
    ("pwrite64", 3),
    ("fsync", 1),
    ("fsync", 2),
    ("ioctl", 4),
    ("mount", 1),
    ("rename", 1),
    ("chown", 1),
];
/// The same for `data`.
const DATA_CUTS_ALWAYS: [(&str, u32); 5] =
    [("io_submit", 2), ("ioctl", 4), ("fsync", 1), ("pwrite64", 8), ("mount", 1)];

/// Whether to try every cut there is, which takes hours.
fn soak() -> bool {
    std::env::var_os("DYAD_SOAK").is_some()
}

/// Not a test of its own: one boot, in the namespaces that [`Disk::boot`] made.
#[test]
#[ignore = "run by a_first_boot_makes_everything_and_a_second_one_nothing"]
fn one_boot() {
    let Ok(phases) = std::env::var("DYAD_TEST_PHASES") else { return };
    let directory = PathBuf::from(std::env::var("DYAD_TEST_DIRECTORY").unwrap());
    let root = directory.join("root");
    for path in ["state", "data", "efi", "etc", "run"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "postgres:x:1234:1235::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "systemd-journal:x:4321:\n").unwrap();
    let log = directory.join("log");
    File::options().create(true).append(true).open(&log).unwrap();
    let host = Host {
        cmdline: std::env::var("DYAD_TEST_CMDLINE").unwrap(),
        sys: "/sys".into(),
        dev: "/dev".into(),
        root,
        container: false,
        log: Log::to(&log),
    };
    let mut snapshot = Vec::new();
    let mut held = Vec::new();
    for phase in phases.split(',') {
        if let "read" | "write" = phase {
            let file = host.root.join("state/held");
            held.push(File::options().create(true).append(true).open(&file).unwrap());
            if phase == "read" {
                held = vec![File::open(&file).unwrap()];
            }
            continue;
        }
        if let "snapshot" | "compare" = phase {
            rustix::fs::sync();
            let mut bytes = Vec::new();
            File::open(directory.join("disk"))
                .unwrap()
                .take(DISK_BYTES_COMPARED)
                .read_to_end(&mut bytes)
                .unwrap();
            assert!(phase == "snapshot" || snapshot == bytes, "a phase wrote to a finished disk");
            snapshot = bytes;
            continue;
        }
        match host.run(phase) {
            Ok(report) => println!("\nREPORT {phase}: {report}"),
            Err(error) => panic!("{phase}: {error}"),
        }
    }
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_first_boot_makes_everything_and_a_second_one_nothing() {
    let mut disk = Disk::new(2048 * MIB);
    let slot_a = disk.bytes_of(2);
    let first = disk.good_boot("grow,state,state,grow");
    assert!(first[0].contains("new partitions [4, 5, 6, 7]"), "{first:?}");
    assert!(first[1].contains("made state") && first[1].contains("machine-id"), "{first:?}");
    assert_eq!(first[2..], ["state: nothing to do", "grow: nothing to do"]);
    disk.check("PND#data");
    assert_eq!(disk.bytes_of(2), slot_a);

    let (table, identity) = (disk.table_bytes(), disk.identity());
    disk.reboot();
    assert_eq!(disk.good_boot("grow,state"), ["grow: nothing to do", "state: nothing to do"]);
    assert!(disk.table_bytes() == table);
    assert_eq!(disk.identity(), identity);
    // While the file system stays mounted, running the phases again writes not a single byte.
    disk.reboot();
    disk.good_boot("grow,state,snapshot,grow,state,compare");
    disk.check("PND#data");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_cut_at_any_call_of_a_first_boot_converges() {
    if !soak() {
        for (call, count) in CUTS_ALWAYS {
            assert!(cut_first_boot(call, count), "nothing is killed at {call} {count}");
        }
        return;
    }
    let kills: u32 = CUTS.iter().map(|call| series(|count| cut_first_boot(call, count), |n| n + 1)).sum();
    assert!(kills > 40, "only {kills} runs were cut");
}

/// Tries cut after cut until a run comes to its end; how many were cut.
fn series(cut: impl Fn(u32) -> bool, next: impl Fn(u32) -> u32) -> u32 {
    let counts = std::iter::successors(Some(1), |count| Some(next(*count)));
    counts.take_while(|count| *count <= CALLS_MAX).take_while(|count| cut(*count)).count() as u32
}

/// A first boot killed at this call, and the next one; false when it was over before the call.
fn cut_first_boot(call: &str, count: u32) -> bool {
    let mut disk = Disk::new(1700 * MIB);
    let (success, text) = disk.boot("grow,state", Some((call, count)));
    if success {
        return false;
    }
    assert!(!text.contains("REPORT state"), "{call} {count}: {text}");
    disk.reboot();
    let (success, text) = disk.boot("grow,state,grow,state", None);
    assert!(success, "killed at {call} {count}, then: {text}");
    let again = "REPORT grow: nothing to do\n\nREPORT state: nothing to do";
    assert!(text.contains(again), "killed at {call} {count}, then: {text}");
    disk.check("PND#data");
    println!("{call} {count} converged");
    true
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn too_small_a_disk_is_told_and_left_alone() {
    let disk = Disk::new(1024 * MIB);
    let before = fs::read(disk.file()).unwrap();
    let (success, text) = disk.boot("grow", None);
    assert!(!success);
    assert!(text.contains("has 1073741824 bytes") && text.contains("nothing was written"), "{text}");
    assert!(before == fs::read(disk.file()).unwrap(), "the disk was changed");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn somebody_elses_file_system_is_refused() {
    let disk = Disk::new(1700 * MIB);
    disk.good_boot("grow");
    let state = format!("{}p6", disk.device.display());
    ok(command("/usr/sbin/mkfs.ext4").args(["-q", "-F", &state]).output().unwrap());
    let before = disk.bytes_of(6);
    let (success, text) = disk.boot("state", None);
    assert!(!success);
    assert!(text.contains("should be blank but holds an ext2, ext3 or ext4 file system"), "{text}");
    assert!(before == disk.bytes_of(6), "the partition was changed");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_finished_state_is_never_made_anew() {
    let disk = Disk::new(1700 * MIB);
    disk.good_boot("grow,state");
    let state = File::options().write(true).open(format!("{}p6", disk.device.display())).unwrap();
    block::zero_out(&state, 0, 512 * MIB).unwrap();
    state.sync_all().unwrap();
    let (success, text) = disk.boot("state", None);
    assert!(!success);
    assert!(text.contains("was set up as state before but holds nothing"), "{text}");
    assert!(disk.bytes_of(6).iter().all(|&byte| byte == 0));
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_torn_table_is_repaired_from_its_backup() {
    let mut disk = Disk::new(1700 * MIB);
    disk.good_boot("grow,state");
    let before = disk.table_bytes();
    let file = File::options().write(true).open(disk.file()).unwrap();
    file.write_all_at(&[0x5a; 700], 1024 + 100).unwrap();
    disk.reboot();
    let report = disk.good_boot("grow,state");
    assert!(report[0].contains("partition table of"), "{report:?}");
    assert!(before == disk.table_bytes());
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_shutdown_lets_go_of_what_it_can() {
    let disk = Disk::new(1700 * MIB);
    let report = disk.good_boot("grow,state,teardown");
    assert!(report[2].contains("root/state") && !report[2].contains("read-only"), "{report:?}");
    // Somebody still reads: read-only is as good. Somebody still writes: told by name.
    let report = disk.good_boot("state,read,teardown");
    assert!(report[1].contains("root/state is in use; made read-only"), "{report:?}");
    let (success, text) = disk.boot("state,write,teardown", None);
    assert!(!success && text.contains("still being written to at the end"), "{text}");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn the_boot_partition_is_mounted_read_only() {
    let disk = Disk::new(1700 * MIB);
    disk.good_boot("grow");
    let esp = format!("{}p1", disk.device.display());
    ok(command("/usr/sbin/mkfs.fat").arg(&esp).output().unwrap());
    let before = disk.bytes_of(1);
    assert_eq!(disk.good_boot("esp,esp")[..2], ["esp: nothing to do", "esp: nothing to do"]);
    assert!(disk.good_boot("esp,teardown")[1].contains("root/efi"));
    assert!(before == disk.bytes_of(1), "a read-only mount wrote");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_machine_without_its_root_on_a_disk_is_live() {
    let disk = Disk::new(64 * MIB);
    let other = "f".repeat(64);
    let out = command("/usr/bin/unshare")
        .args(["--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "one_boot", "--ignored", "--nocapture", "--test-threads", "1"])
        .env("DYAD_TEST_PHASES", "grow,state,data,esp,teardown")
        .env("DYAD_TEST_CMDLINE", format!("dyad.root={other}"))
        .env("DYAD_TEST_DIRECTORY", disk.directory.path())
        .output()
        .unwrap();
    let text = ok(out);
    assert!(
        text.contains("REPORT grow: live, no disk") && text.contains("REPORT data: live, no disk"),
        "{text}"
    );
    assert!(Path::new(&disk.directory.path().join("root/run/dyad/etc/machine-id")).exists());
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_torn_superblock_gives_way_to_its_copy() {
    let mut disk = Disk::new(1700 * MIB);
    disk.good_boot("grow,state");
    let before = disk.identity();
    disk.reboot();
    let (offset, _) = disk.found().table.byte_range(6).unwrap();
    let device = File::options().write(true).open(&disk.device).unwrap();
    // The second of its two sectors.
    device.write_all_at(&[0x5a; 512], offset + 1024 + 512).unwrap();
    device.sync_all().unwrap();
    drop(device);
    disk.reboot();
    assert_eq!(disk.good_boot("grow,state")[1], "state: nothing to do");
    disk.reboot();
    assert_eq!(disk.identity(), before);
    disk.check("PND#data");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_file_system_marked_as_damaged_is_checked_and_only_that() {
    let mut disk = Disk::new(1700 * MIB);
    disk.good_boot("grow,state");
    let identity = disk.identity();
    disk.programs();
    let state = format!("{}p6", disk.device.display());
    let mark = |request: &str| {
        ok(command("/usr/sbin/debugfs").args(["-w", "-R", request, &state]).output().unwrap());
    };
    // (what was marked, whether it is checked): nothing; errors; not whole.
    for (request, checked) in [("stats -h", false), ("ssv state 3", true), ("ssv state 0", true)] {
        disk.reboot();
        mark(request);
        assert_eq!(disk.good_boot("grow,state")[1], "state: nothing to do", "{request}");
        let programs = disk.programs();
        assert_eq!(programs.iter().any(|program| program.starts_with("e2fsck")), checked, "{programs:?}");
    }
    disk.reboot();
    disk.good_boot("grow,state");
    assert_eq!(disk.programs(), [""; 0], "what was checked is as good as new");
    assert_eq!(disk.identity(), identity);
    disk.check("PND#data");
}

/// `lvs` of the disk, as (name, bytes).
fn volumes(disk: &Disk) -> Vec<(String, u64)> {
    let text = ok(command("/usr/sbin/lvs")
        .args(["--noheadings", "--nosuffix", "--units", "b", "-o", "lv_name,lv_size", "--devices"])
        .arg(format!("{}p7", disk.device.display()))
        .arg("dyad")
        .output()
        .unwrap());
    let line = |line: &str| {
        let (name, bytes) = line.trim().split_once(' ').unwrap();
        (name.to_owned(), bytes.trim().parse().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn data_is_made_once_and_grows_with_its_disk() {
    let mut disk = Disk::new(2048 * MIB);
    let first = disk.good_boot("grow,state,data,data");
    assert!(first[2].contains("made data"), "{first:?}");
    assert!(first[2].contains("1234:1235"), "{first:?}");
    assert_eq!(first[3], "data: nothing to do");
    disk.check("data");
    // LVM's own metadata takes the first MiB.
    let group = (disk.found().table.byte_range(7).unwrap().1 - MIB) / (4 * MIB);
    assert_eq!(volumes(&disk), [("pg".to_owned(), group * 60 / 100 * 4 * MIB)]);

    disk.reboot();
    disk.programs();
    let again = disk.good_boot("grow,state,data,teardown");
    assert_eq!(disk.programs(), ["lvm vgchange", "lvm vgchange"], "on, and off again");
    assert_eq!(again[..3], ["grow: nothing to do", "state: nothing to do", "data: nothing to do"]);
    assert!(again[3].contains("unmounted") && again[3].contains("volume group deactivated"), "{again:?}");
    assert!(!Path::new("/dev/mapper/dyad-pg").exists());

    File::options().write(true).open(disk.file()).unwrap().set_len(3072 * MIB).unwrap();
    disk.reboot();
    let grown = disk.good_boot("grow,state,data");
    assert!(grown[0].contains("partition table of") && grown[2] == "data: volume group grown", "{grown:?}");
    disk.reboot();
    assert_eq!(disk.good_boot("grow,state,data")[2], "data: nothing to do");
    disk.check("data");

    // What a power cut can leave of a change of the group: a header that leads to metadata that never came.
    let (made, state) = (volumes(&disk), disk.directory.path().join("state"));
    let part = format!("{}p7", disk.device.display());
    let backup = disk.directory.path().join("lvm-before");
    ok(command("/usr/sbin/vgcfgbackup")
        .args(["--devices", &part, "-f"])
        .arg(&backup)
        .arg("dyad")
        .output()
        .unwrap());
    disk.reboot();
    fs::create_dir_all(&state).unwrap();
    let p6 = format!("{}p6", disk.device.display());
    ok(command("/usr/bin/mount").arg(&p6).arg(&state).output().unwrap());
    fs::copy(&backup, state.join("lvm-before")).unwrap();
    ok(command("/usr/bin/umount").arg(&state).output().unwrap());
    let (offset, _) = disk.found().table.byte_range(7).unwrap();
    let device = File::options().write(true).open(&disk.device).unwrap();
    // Behind the label and the header of the metadata's area.
    device.write_all_at(&vec![0; (MIB - 4608) as usize], offset + 4608).unwrap();
    device.sync_all().unwrap();
    drop(device);
    disk.reboot();
    let back = disk.good_boot("grow,state,data,data");
    assert_eq!(back[2..], ["data: volume group put back as it was", "data: nothing to do"], "{back:?}");
    disk.check("data");
    assert_eq!(volumes(&disk), made);
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn data_cut_at_any_call_converges() {
    if !soak() {
        for (call, count) in DATA_CUTS_ALWAYS {
            assert!(cut_data(call, count), "nothing is killed at {call} {count}");
        }
        return;
    }
    // Ever fewer: a run with every system call traced takes seconds, and the late calls are those of one mkfs.
    let kills: u32 = DATA_CUTS.iter().map(|call| series(|count| cut_data(call, count), |n| n * 2)).sum();
    assert!(kills > 15, "only {kills} runs were cut");
}

/// As [`cut_first_boot`], for the phase that makes volumes.
fn cut_data(call: &str, count: u32) -> bool {
    let mut disk = Disk::new(1700 * MIB);
    disk.good_boot("grow,state");
    let (success, text) = disk.boot("data", Some((call, count)));
    if success {
        return false;
    }
    assert!(!text.contains("REPORT data"), "{call} {count}: {text}");
    disk.reboot();
    let (success, text) = disk.boot("grow,state,data,data", None);
    assert!(success, "killed at {call} {count}, then: {text}");
    assert!(text.contains("REPORT data: nothing to do"), "killed at {call} {count}, then: {text}");
    disk.check("data");
    assert_eq!(volumes(&disk).len(), 1);
    println!("{call} {count} converged");
    true
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn data_of_somebody_else_is_refused() {
    let disk = Disk::new(1700 * MIB);
    disk.good_boot("grow");
    ok(command("/usr/sbin/pvcreate").args(["-y", &format!("{}p7", disk.device.display())]).output().unwrap());
    let (success, text) = disk.boot("data", None);
    assert!(!success);
    assert!(text.contains("should be blank but holds an LVM physical volume"), "{text}");
}
