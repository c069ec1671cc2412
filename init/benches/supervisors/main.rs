//! PID 1 beside other supervisors that Debian has, in one run, each as PID 1 of fresh namespaces: memory, start, readiness,
//! restart, orphans. `cargo xtask bench init`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use dyad_spec::compiled::Readiness;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

mod peers;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/namespace/support.rs"]
mod support;

use peers::{PEERS, Peer};
use support::{Container, inside, pause, service, within};

const FEW: usize = 50;
const MANY: usize = 500;
const CHAIN: usize = 20;
const RESTARTS: usize = 9;
const ORPHANS: usize = 1000;
/// Rounds of everything that takes no memory; the median counts.
const ROUNDS: usize = 5;
/// Longest wait for anything.
const PATIENCE_US: u64 = 120_000_000;
/// DESIGN's budgets: resident memory at 50 services, KiB, and their start, milliseconds.
const RESIDENT_KIB_MAX: u64 = 1229;
const START_MS_MAX: u64 = 60;

/// What a supervisor is to run.
#[derive(Debug)]
pub(crate) enum Work {
    /// So many services that have nothing to do with each other.
    Beside(usize),
    /// So many, each of which starts when the one before it says that it is ready.
    Chain(usize),
}

impl Work {
    pub(crate) fn all(&self) -> std::ops::Range<usize> {
        let (Work::Beside(count) | Work::Chain(count)) = self;
        0..*count
    }

    pub(crate) fn is_chain(&self) -> bool {
        matches!(self, Work::Chain(_))
    }

    /// The service that this one waits for.
    pub(crate) fn before(&self, n: usize) -> Option<usize> {
        if self.is_chain() { n.checked_sub(1) } else { None }
    }

    /// What a service does, in a shell: says that it began, and goes on for ever.
    pub(crate) fn script(&self, n: usize) -> String {
        if self.is_chain() {
            format!("export READY_PID=/run/s{n}.pid; exec /bench/work ready {n}")
        } else {
            format!("export BENCH={n}; : > /tmp/began.{n}; exec /bin/busybox sleep 100000")
        }
    }
}

/// As a service: says in every way that somebody asks for that it is ready.
fn ready(n: &str) {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.send_to(b"READY=1", path).expect("the supervisor listens");
    } else if let Ok(number) = std::env::var("READY_FD") {
        fs::write(format!("/proc/self/fd/{number}"), "\n").expect("the supervisor listens");
    } else if let Some(path) = std::env::var_os("READY_PID") {
        fs::write(path, format!("{}\n", std::process::id())).expect("a file");
    }
    fs::write(format!("/tmp/began.{n}"), "").expect("a file");
    pause(1_000_000_000);
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all[all.len() / 2]
}

/// Waits without taking the processor from those who are measured for longer than it must; the time then.
fn until(what: &str, mut done: impl FnMut() -> bool) -> u64 {
    let began = now_us();
    while !done() {
        assert!(now_us() - began < PATIENCE_US, "{what} did not come");
        pause(1);
    }
    now_us()
}

/// When a file of the container was made, by its file system, which is exact to a tick of the kernel.
fn made_us(path: &Path) -> u64 {
    let file = fs::metadata(path).expect("it was made");
    file.mtime() as u64 * 1_000_000 + file.mtime_nsec() as u64 / 1000
}

/// Processes below `top`.
fn below(top: u32) -> Vec<u32> {
    let (mut left, mut all) = (vec![top], Vec::new());
    while let Some(pid) = left.pop() {
        all.push(pid);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        left.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    all
}

/// Resident memory of all processes below `top` that have one of these names.
fn resident_kib(top: u32, names: &[&str]) -> u64 {
    let resident = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let counts = names.contains(&field("Name:"));
        field("VmRSS:").trim_end_matches(" kB").parse().ok().filter(|_: &u64| counts)
    };
    below(top).iter().filter_map(resident).sum()
}

/// Who is measured.
enum Subject {
    Ours,
    Other(&'static Peer, String),
}

impl Subject {
    fn helpers(&self) -> &'static [&'static str] {
        match self {
            Subject::Ours => &["init"],
            Subject::Other(peer, _) => peer.helpers,
        }
    }

    /// Starts it, and gives the time until every service began, in microseconds.
    fn run(&self, work: &Work) -> (Container, u64) {
        let container = match self {
            Subject::Ours => ours(work),
            Subject::Other(peer, packages) => peer.start(packages, work),
        };
        let tmp = inside(&container, "/tmp");
        let began = |n: usize| tmp.join(format!("began.{n}"));
        until("a service", || work.all().all(|n| began(n).exists()));
        let last = work.all().map(|n| made_us(&began(n))).max().expect("there is a service");
        let took = last.saturating_sub(made_us(&inside(&container, "/began")));
        (container, took)
    }

    fn started_us(&self, work: &Work) -> u64 {
        median((0..ROUNDS).map(|_| self.run(work).1).collect())
    }

    fn row(&self) -> Row {
        let (few, many) = (Work::Beside(FEW), Work::Beside(MANY));
        let (container, _) = self.run(&few);
        // Some supervisors hold a service back that ran for less than a second.
        pause(1500);
        let few_kib = resident_kib(container.pid, self.helpers());
        let restart_us = restarts(&container);
        let orphans_us = median((0..ROUNDS).map(|_| orphans(&container)).collect());
        drop(container);
        let (container, many_us) = self.run(&many);
        pause(1500);
        let many_kib = resident_kib(container.pid, self.helpers());
        drop(container);
        let chains = match self {
            Subject::Ours => true,
            Subject::Other(peer, _) => peer.chains,
        };
        Row {
            resident_kib: (few_kib, many_kib),
            start_us: (self.started_us(&few), many_us),
            chain_us: chains.then(|| self.started_us(&Work::Chain(CHAIN))),
            restart_us,
            orphans_us,
        }
    }
}

/// What was measured.
struct Row {
    resident_kib: (u64, u64),
    start_us: (u64, u64),
    chain_us: Option<u64>,
    restart_us: u64,
    orphans_us: u64,
}

impl Row {
    fn told(&self, name: &str) {
        let ms = |us: u64| us as f64 / 1000.0;
        println!(
            "| {name} | {} | {} | {:.0} | {:.0} | {} | {:.1} | {:.0} |",
            self.resident_kib.0,
            self.resident_kib.1,
            ms(self.start_us.0),
            ms(self.start_us.1),
            self.chain_us.map_or("none".to_owned(), |us| format!("{:.0}", ms(us))),
            ms(self.restart_us),
            ms(self.orphans_us),
        );
    }
}

fn ours(work: &Work) -> Container {
    let all = work.all().map(|n| {
        let mut service = service(&format!("s{n}"), &work.script(n).replace("/bench/", "/usr/lib/dyad/"));
        (service.restart_min_ms, service.restart_max_ms) = (1, 1);
        service.after.extend(work.before(n).map(|before| before as u16));
        if work.is_chain() {
            service.readiness = Readiness::Notify;
        }
        service
    });
    let program = std::env::current_exe().expect("this program");
    Container::start(all.collect(), &[("work", &program)])
}

/// The process of a service.
fn sleeper(top: u32, n: usize) -> u32 {
    let wanted = format!("BENCH={n}\0");
    let is_wanted = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "busybox\n" && environment.windows(wanted.len()).any(|w| w == wanted.as_bytes())
    };
    below(top).into_iter().find(is_wanted).expect("every service has a process")
}

/// From a service's end to its next start.
fn restarts(container: &Container) -> u64 {
    let times = (0..RESTARTS).map(|n| {
        let pid = sleeper(container.pid, n);
        let file = inside(container, &format!("/tmp/began.{n}"));
        fs::remove_file(&file).expect("it began");
        let began = now_us();
        kill_process(Pid::from_raw(pid as i32).expect("not 0"), Signal::KILL).expect("it runs");
        until("a restart", || file.exists()) - began
    });
    median(times.collect())
}

/// Orphans that all end at once: from then until PID 1 has reaped the last one.
fn orphans(container: &Container) -> u64 {
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", container.pid);
        fs::read_to_string(path).expect("PID 1 is there").split_whitespace().count()
    };
    let before = children();
    let make = format!(
        "[ -e /tmp/gate ] || /bin/busybox mkfifo /tmp/gate
         i=0; while [ $i -lt {ORPHANS} ]; do (read x < /tmp/gate &) >/dev/null 2>&1; i=$((i+1)); done"
    );
    within(container, &["--mount", "--root", "--pid"], &["/bin/busybox", "sh", "-c", &make]);
    until("orphans", || children() >= before + ORPHANS);
    let gate =
        File::options().write(true).open(inside(container, "/tmp/gate")).expect("the orphans wait at it");
    let began = now_us();
    drop(gate);
    until("the last orphan", || children() <= before) - began
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, mode, n] = &words[..]
        && mode == "ready"
    {
        return ready(n);
    }
    let packages =
        std::env::var("DYAD_PEERS").expect("`cargo xtask bench init` says where the others' packages are");
    println!(
        "| supervisor | resident KiB at {FEW} | at {MANY} | start of {FEW}, ms | of {MANY}, ms | \
         {CHAIN} one after the other, ms | end to restart, ms | {ORPHANS} orphans, ms |\n\
         |---|---|---|---|---|---|---|---|"
    );
    let own = Subject::Ours.row();
    own.told("dyad init");
    for peer in &PEERS {
        Subject::Other(peer, packages.clone()).row().told(peer.name);
    }
    println!("| budget | {RESIDENT_KIB_MAX} | | {START_MS_MAX} | | | | |");
    assert!(own.resident_kib.0 <= RESIDENT_KIB_MAX, "{} KiB resident", own.resident_kib.0);
}
