//! Tests of other crates that need root, devices or modules, run as root in a machine of their own.

use dyad_vm_tests::guest::Guest;

/// Disks behind loop devices, the file systems of the appliance, and LVM's volumes.
const DISK: &[&str] = &[
    "loop",
    "dm-mod",
    "crc32c_generic",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
    "fat",
    "vfat",
    "nls_cp437",
    "nls_ascii",
];
const CUTS: [&str; 2] = ["a_cut_at_any_call_of_a_first_boot_converges", "data_cut_at_any_call_converges"];

fn disk(select: &[&str], seconds: u32, soak: bool) {
    let env: &[_] = if soak { &[("DYAD_SOAK", "1")] } else { &[] };
    let guest = Guest {
        package: "dyad-storage",
        test: "disk",
        select,
        modules: DISK,
        ext4: false,
        env,
        memory_mib: 3072,
        seconds,
    };
    guest.run();
}

#[test]
fn first_boot_on_a_real_disk() {
    disk(&["--skip", "one_boot", "--skip", CUTS[0], "--skip", CUTS[1]], 300, false);
}

#[test]
fn first_boot_cut_off_anywhere() {
    // Every cut there is takes hours; `cargo xtask soak storage` sets this.
    let soak = std::env::var_os("DYAD_SOAK").is_some();
    disk(&CUTS, if soak { 6 * 3600 } else { 300 }, soak);
}

#[test]
fn bonds() {
    Guest {
        package: "dyad-net",
        test: "namespace",
        select: &["--skip", "inside_"],
        modules: &["tls", "bonding", "llc", "stp", "bridge", "veth"],
        ext4: false,
        env: &[],
        memory_mib: 1024,
        seconds: 120,
    }
    .run();
}

fn pid_1(select: &[&str], seconds: u32) {
    Guest {
        package: "init",
        test: "namespace",
        select,
        modules: &["nfnetlink", "crc32c_generic", "libcrc32c", "nf_tables"],
        ext4: false,
        env: &[],
        memory_mib: 2048,
        seconds,
    }
    .run();
}

#[test]
fn the_life_of_pid_1() {
    pid_1(&["--exact", "a_life"], 200);
}

#[test]
fn pid_1_under_load_and_faults() {
    pid_1(&["--skip", "inside_", "--skip", "a_life", "--nocapture"], 1500);
}

#[test]
fn archives_extracted_by_root() {
    for test in ["squashfs", "archives"] {
        Guest {
            package: "dyad-formats",
            test,
            select: &[],
            modules: &["loop", "crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"],
            ext4: true,
            env: &[],
            memory_mib: 1024,
            seconds: 120,
        }
        .run();
    }
}
