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
        libraries: &[],
        memory_mib: 3072,
        seconds,
        scene: None,
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
        modules: &["tls", "bonding", "llc", "stp", "bridge", "garp", "mrp", "8021q", "veth"],
        ext4: false,
        env: &[],
        libraries: &[],
        memory_mib: 1024,
        seconds: 120,
        scene: None,
    }
    .run();
}

fn pid_1(select: &[&str], seconds: u32, rounds: Option<&str>) {
    Guest {
        package: "init",
        test: "namespace",
        select,
        modules: &["nfnetlink", "crc32c_generic", "libcrc32c", "nf_tables"],
        ext4: false,
        env: rounds.map(|rounds| ("DYAD_SOAK", rounds)).as_slice(),
        libraries: &[("dyad-journal", "DYAD_JOURNAL")],
        memory_mib: 2048,
        seconds,
        scene: None,
    }
    .run();
}

/// The storm of faults, a test by itself: PID 1 of a machine goes through the same.
const FAULTS: &str = "services_do_not_notice_faults";

#[test]
fn the_life_of_pid_1() {
    pid_1(&["--exact", "a_life"], 200, None);
}

#[test]
fn pid_1_under_load_and_faults() {
    let passed_over = ["inside_", "a_life", "journald", FAULTS];
    let others: Vec<&str> = passed_over.iter().flat_map(|name| ["--skip", name]).collect();
    pid_1(&[&others[..], &["--nocapture"]].concat(), 1200, None);
}

#[test]
fn pid_1_of_a_container_survives_faults() {
    let faults = std::env::var("DYAD_SOAK").ok();
    pid_1(&["--nocapture", FAULTS], faults_seconds(faults.as_deref()), faults.as_deref());
}

/// A guest's limit for so many faults; several times what they take on an idle host.
fn faults_seconds(faults: Option<&str>) -> u32 {
    400 + 6 * faults.map_or(0, |n| n.parse::<u32>().expect("DYAD_SOAK is a number"))
}

#[test]
fn journald_killed_and_stopped() {
    pid_1(&["--skip", "inside_", "--nocapture", "journald"], 400, None);
}

/// Longest shutdown: the sum of its steps' deadlines in `init/src/core/shutdown.rs`, seconds.
const SHUTDOWN_MAX: f64 = 187.0;

/// Machines that wait for their shutdowns side by side.
const MACHINES_MAX: usize = 6;

/// A machine whose PID 1 is `init` itself; `scene` is one of init/tests/namespace/machine.rs.
fn machine(scene: &str, seconds: u32) -> Guest<'_> {
    Guest {
        package: "init",
        test: "namespace",
        select: &[],
        modules: &[
            "watchdog",
            "i6300esb",
            "loop",
            "dm-mod",
            "crc32c_generic",
            "crc16",
            "mbcache",
            "jbd2",
            "ext4",
            "libcrc32c",
            "lru_cache",
            "drbd",
        ],
        ext4: false,
        env: &[],
        libraries: &[],
        memory_mib: 1536,
        seconds,
        scene: Some(scene),
    }
}

/// The numbers behind a word on the console, one a line.
fn numbers(console: &str, word: &str) -> Vec<u64> {
    let rest = console.lines().filter_map(|line| line.split_once(word).map(|(_, rest)| rest));
    rest.map(|rest| rest.trim().parse().expect("a number of milliseconds")).collect()
}

#[test]
fn pid_1_of_a_machine_survives_faults() {
    let faults = std::env::var("DYAD_SOAK").ok();
    let env = faults.as_deref().map(|faults| ("DYAD_SOAK", faults));
    Guest { env: env.as_slice(), ..machine("faults", faults_seconds(faults.as_deref())) }.run();
}

#[test]
fn a_frozen_pid_1_ends_by_the_watchdog() {
    let console = machine("frozen", 240).console(&mut |_| false);
    let (frozen, again) = (numbers(&console, "frozen at "), numbers(&console, "began again at "));
    assert!(frozen.len() == 1 && again.len() == 1, "one freeze, one boot after it, see above");
    assert!(!console.contains("reboot: Restarting"), "it was the watchdog, not the kernel");
    println!("frozen PID 1: the watchdog reset the machine {} ms later", again[0] - frozen[0]);
}

/// So many shutdowns of one machine that nothing obeys; seconds from the request to the reset of each.
fn shutdowns(wanted: usize) -> Vec<f64> {
    let mut seen = 0;
    let console = machine("stuck", 300 * wanted as u32).console(&mut |line| {
        seen += usize::from(line.contains("] reboot: Restarting system"));
        seen == wanted
    });
    let asked = numbers(&console, "shutdown asked at ");
    let resets: Vec<f64> = console
        .lines()
        .filter_map(|line| {
            line.split_once("] reboot: Restarting system")?.0.split_once('[')?.1.trim().parse().ok()
        })
        .collect();
    assert_eq!(resets.len(), wanted, "a machine did not reset, see above");
    asked.iter().zip(&resets).map(|(asked, reset)| reset - *asked as f64 / 1000.0).collect()
}

#[test]
fn a_shutdown_that_nothing_obeys_ends_in_time() {
    // A hundred take an hour, most of it waiting: `cargo xtask soak shutdown N`.
    let wanted: usize = std::env::var("DYAD_SOAK").map_or(1, |n| n.parse().expect("DYAD_SOAK is a number"));
    let machines = wanted.min(MACHINES_MAX);
    let mut took: Vec<f64> = std::thread::scope(|scope| {
        let share = |at| wanted / machines + usize::from(at < wanted % machines);
        let all: Vec<_> = (0..machines).map(|at| scope.spawn(move || shutdowns(share(at)))).collect();
        all.into_iter().flat_map(|one| one.join().expect("every machine reset")).collect()
    });
    took.sort_by(f64::total_cmp);
    let (half, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{wanted} shutdowns that nothing obeyed: reset after {half:.1} s (half), {longest:.1} s (all)");
    assert!(longest <= SHUTDOWN_MAX, "declared are {SHUTDOWN_MAX} s");
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
            libraries: &[],
            memory_mib: 1024,
            seconds: 120,
            scene: None,
        }
        .run();
    }
}
