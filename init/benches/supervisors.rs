//! PID 1 beside other supervisors that Debian has, in one run: memory, start, restart. `cargo xtask bench init`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/namespace/support.rs"]
mod support;

use support::{Client, Container, inside, pause, service, wait_for};

const FEW: usize = 50;
const MANY: usize = 500;
const RESTARTS: usize = 9;
/// DESIGN's budgets: resident memory at 50 services, KiB, and their start, milliseconds.
const RESIDENT_KIB_MAX: u64 = 1229;
const START_MS_MAX: u64 = 60;

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// What was measured with a number of services.
struct Measured {
    resident_kib: u64,
    start_us: u64,
    /// From a service's end to its next start, the median; `None` where nobody asked.
    restart_us: Option<u64>,
}

/// What each service does: says that it began, and goes on for ever.
fn script(directory: &str, n: usize) -> String {
    format!(": > {directory}/began.{n}; exec /bin/busybox sleep 100000")
}

fn all_began(directory: &Path, services: usize) -> bool {
    (0..services).all(|n| directory.join(format!("began.{n}")).exists())
}

/// Waits without taking the processor from those who are measured for longer than it must.
fn until(what: &str, mut done: impl FnMut() -> bool) -> u64 {
    let began = now_us();
    while !done() {
        assert!(now_us() - began < 120_000_000, "{what} did not come");
        pause(1);
    }
    now_us()
}

/// Resident memory of all processes below `top` that have one of these names.
fn resident_kib(top: u32, names: &[&str]) -> u64 {
    let mut left = vec![top];
    let mut sum = 0;
    while let Some(pid) = left.pop() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        left.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        if names.contains(&field("Name:")) {
            sum += field("VmRSS:").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    sum
}

fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all[all.len() / 2]
}

/// The process whose command line ends so, below `top`.
fn sleeper(top: u32, directory: &Path, n: usize) -> u32 {
    let mut left = vec![top];
    while let Some(pid) = left.pop() {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let wanted = format!("BENCH={n}\0");
        if name == "busybox\n" && environment.windows(wanted.len()).any(|w| w == wanted.as_bytes()) {
            return pid;
        }
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        left.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    panic!("service {n} of {} has no process", directory.display())
}

fn restarts(top: u32, directory: &Path) -> u64 {
    // Some supervisors hold a service back that ran for less than a second.
    pause(1500);
    let times = (0..RESTARTS).map(|n| {
        let pid = sleeper(top, directory, n);
        fs::remove_file(directory.join(format!("began.{n}"))).expect("it began");
        let began = now_us();
        kill_process(Pid::from_raw(pid as i32).expect("not 0"), Signal::KILL).expect("it runs");
        until("a restart", || directory.join(format!("began.{n}")).exists()) - began
    });
    median(times.collect())
}

fn ours(services: usize, restart: bool) -> Measured {
    let all = (0..services).map(|n| {
        let mut service = service(&format!("s{n}"), &script("/tmp", n));
        service.env = vec![("BENCH".into(), n.to_string())];
        (service.restart_min_ms, service.restart_max_ms) = (100, 100);
        service
    });
    let began = now_us();
    let container = Container::start(all.collect(), &[]);
    let directory = inside(&container, "/tmp");
    let started = until("services", || all_began(&directory, services));
    let mut client = Client::connect(&container);
    client.wait_all_ready();
    Measured {
        resident_kib: resident_kib(container.pid, &["init"]),
        start_us: started - began,
        restart_us: restart.then(|| restarts(container.pid, &directory)),
    }
}

/// Another supervisor, ended when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the other supervisors' packages are unpacked.
fn peers() -> String {
    std::env::var("DYAD_PEERS").expect("`cargo xtask bench init` says where the other supervisors are")
}

/// A supervisor that is given a directory of service directories.
fn peer(program: &str, helpers: &[&str], services: usize, restart: bool) -> Measured {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for n in 0..services {
        let run: PathBuf = path.join(format!("scan/s{n}/run"));
        fs::create_dir_all(run.parent().expect("a directory")).expect("a service");
        let script = script(path.to_str().expect("UTF-8"), n);
        fs::write(&run, format!("#!/bin/busybox sh\nexport BENCH={n}\n{script}\n")).expect("a service");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).expect("a service");
    }
    let scan = path.join("scan");
    let began = now_us();
    #[allow(clippy::disallowed_methods, reason = "a benchmark starts its subject")]
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", program])
        .env("PATH", format!("{0}/usr/bin:{0}/usr/sbin:/usr/sbin:/usr/bin:/bin", peers()))
        .env("LD_LIBRARY_PATH", format!("{}/usr/lib/x86_64-linux-gnu", peers()))
        .args((program == "s6-svscan").then_some("-c1000"))
        .arg(&scan)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare is installed");
    let peer = Peer(child);
    let started = until("services", || all_began(path, services));
    let top = wait_for("its process", || {
        let children = format!("/proc/{0}/task/{0}/children", peer.0.id());
        fs::read_to_string(children).ok()?.trim().parse().ok()
    });
    Measured {
        resident_kib: resident_kib(top, helpers),
        start_us: started - began,
        restart_us: restart.then(|| restarts(top, path)),
    }
}

fn main() {
    type Run = Box<dyn Fn(usize, bool) -> Measured>;
    let all: [(&str, Run); 3] = [
        ("dyad init", Box::new(ours)),
        ("runit", Box::new(|n, restart| peer("runsvdir", &["runsvdir", "runsv"], n, restart))),
        ("s6", Box::new(|n, restart| peer("s6-svscan", &["s6-svscan", "s6-supervise"], n, restart))),
    ];
    println!(
        "| supervisor | resident KiB at {FEW} | at {MANY} | start of {FEW}, ms | of {MANY}, ms | end to restart, ms |\n\
         |---|---|---|---|---|---|"
    );
    let mut own = None;
    for (name, run) in all {
        let (few, many) = (run(FEW, true), run(MANY, false));
        let ms = |us: u64| us as f64 / 1000.0;
        println!(
            "| {name} | {} | {} | {:.0} | {:.0} | {:.1} |",
            few.resident_kib,
            many.resident_kib,
            ms(few.start_us),
            ms(many.start_us),
            ms(few.restart_us.unwrap_or(0)),
        );
        own = own.or(Some(few));
    }
    println!("| budget | {RESIDENT_KIB_MAX} | | {START_MS_MAX} | | |");
    let own = own.expect("ours is the first");
    assert!(own.resident_kib <= RESIDENT_KIB_MAX, "{} KiB resident", own.resident_kib);
}
