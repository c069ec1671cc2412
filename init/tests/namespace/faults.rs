//! PID 1 fails in every way at many places under many services, and nobody notices.

use std::fs;

use dyad_api::control::{Answer, Call, ExitStatus, Fault, Finished, Oneshot, Refusal, ServiceState};
use dyad_spec::compiled::Service;

use crate::places::alive;
use crate::support::{Client, Container, inside, pause, service, wait_for, zombies};

/// Quiet services that say again and again that they live.
const ALIVE: usize = 5;
pub(crate) const FAULTS: [Fault; 6] = [
    Fault::Panic,
    Fault::Abort,
    Fault::StackOverflow,
    Fault::NullWrite,
    Fault::IllegalInstruction,
    Fault::Allocation,
];
/// Places where PID 1 writes something down that lie between two faults, at most.
const PASSAGES_MAX: u64 = 200;
/// Status of every end that PID 1 must hear of.
const STATUS: i32 = 7;

/// How much there is to be shaken, and how often.
struct Size {
    quiet: usize,
    /// Services that end by themselves again and again, with a status that must not be lost.
    busy: usize,
    faults: u32,
}

impl Size {
    /// `cargo xtask soak faults N` asks for all; without it there is as much as an emulated machine does in a minute.
    fn wanted() -> Self {
        match std::env::var("DYAD_SOAK") {
            Ok(n) => Self { quiet: 460, busy: 40, faults: n.parse().expect("DYAD_SOAK is a number") },
            Err(_) => Self { quiet: 52, busy: 8, faults: 24 },
        }
    }
}

pub(crate) fn services() -> Vec<Service> {
    let size = Size::wanted();
    let mut all: Vec<Service> =
        (ALIVE..size.quiet).map(|n| service(&format!("s{n}"), "exec /bin/busybox sleep 100000")).collect();
    all.extend((0..ALIVE).map(|n| alive(&format!("s{n}"))));
    for n in 0..size.busy {
        let script = format!(
            "echo >> /tmp/starts.{n}; [ -e /tmp/halt ] && exec /bin/busybox sleep 100000; \
             /bin/busybox sleep 0.{}; exit {STATUS}",
            3 + n % 7
        );
        let mut busy = service(&format!("busy{n}"), &script);
        busy.restart_min_ms = 100;
        busy.restart_max_ms = 100;
        all.push(busy);
    }
    all
}

/// xorshift64: the same places in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Injects one fault and waits until PID 1 is back; the time that took in microseconds.
fn one(client: &mut Client, container: &Container, fault: Fault, after: u32) -> u32 {
    let before = client.stats().reexecs;
    client.ask(Call::Inject { fault, after });
    wait_for("another life", || {
        // A connection whose request was being answered is cut, and made again.
        match client.call(Call::Stats) {
            Ok(Ok(Answer::Stats(stats))) => {
                Some(stats.recovery_us).filter(|us| stats.reexecs > before && *us > 0)
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                *client = Client::connect(container);
                None
            }
        }
    })
}

/// A program that runs across the faults; its end is told to whoever asked.
fn oneshots(container: &Container) -> (u32, u32) {
    let (mut told, mut cut) = (0, 0);
    let mut client = Client::connect(container);
    while !inside(container, "/tmp/halt").exists() {
        let wanted = Oneshot {
            name: "across".into(),
            exec: ["/bin/busybox", "sh", "-c", "echo begun; sleep 0.2; exit 5"].map(str::to_owned).to_vec(),
            env: vec![],
            uid: 0,
            gid: 0,
            cwd: "/".into(),
            deadline_ms: 60_000,
            capture_max: 100,
        };
        match client.call(Call::RunOneshot(wanted)) {
            Ok(Ok(Answer::Finished(Finished { status, stdout, .. }))) => {
                assert_eq!((status, stdout.as_slice()), (ExitStatus::Exited(5), &b"begun\n"[..]));
                told += 1;
            }
            // What the cut connection had started is being killed.
            Ok(Err(Refusal::Busy(_))) => pause(20),
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                cut += 1;
                client = Client::connect(container);
            }
        }
    }
    (told, cut)
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn services_do_not_notice_faults() {
    let program = std::env::current_exe().expect("this program");
    storm(&Container::start(services(), &[("alive", &program)]));
}

/// Faults at random places of PID 1 while services end, one-shots run and orphans come.
pub(crate) fn storm(container: &Container) {
    let Size { quiet: quiet_ones, busy, faults: rounds } = Size::wanted();
    let mut client = Client::connect(container);
    let quiet = |client: &mut Client| {
        let mut list = client.services();
        list.retain(|s| s.name.starts_with('s'));
        list
    };
    let before = wait_for("all services ready", || {
        Some(quiet(&mut client)).filter(|list| list.iter().all(|s| s.state == ServiceState::Ready))
    });
    let mut random = Random(0x5eed);
    let (mut times, (ended, cut)) = std::thread::scope(|scope| {
        let across = scope.spawn(|| oneshots(container));
        let times: Vec<u32> = (0..rounds)
            .map(|n| {
                let after = random.below(PASSAGES_MAX) as u32;
                one(&mut client, container, FAULTS[n as usize % FAULTS.len()], after)
            })
            .collect();
        fs::write(inside(container, "/tmp/halt"), "").expect("the container's /tmp");
        (times, across.join().expect("all one-shots were told"))
    });
    let mut told = String::new();
    let list = wait_for("rest", || {
        let list = client.services();
        let odd: Vec<_> = list
            .iter()
            .filter(starts_with_busy)
            .filter(|s| {
                s.state != ServiceState::Ready || starts(container, &s.name) != u64::from(s.restarts) + 1
            })
            .map(|s| {
                let began = starts(container, &s.name);
                format!("{} {:?}: began {began} times, {} restarts", s.name, s.state, s.restarts)
            })
            .collect();
        let text = odd.join(", ");
        if text != told {
            println!("still without rest: {text}");
            told = text;
        }
        odd.is_empty().then_some(list)
    });
    assert_eq!(client.stats().reexecs, rounds);
    assert_eq!(quiet(&mut client), before, "no service was restarted, none changed at all");
    let mut ends = 0;
    for status in list.iter().filter(starts_with_busy) {
        assert_eq!(status.last_exit, Some(ExitStatus::Exited(STATUS)), "{}", status.name);
        ends += status.restarts;
    }
    wait_for("all reaped", || (zombies(container) == 0).then_some(()));
    times.sort_unstable();
    println!(
        "{rounds} faults under {} services: recovered within {} us (half), {} us (all); {ends} ends of services and \
         {ended} of one-shots told, {cut} connections cut",
        quiet_ones + busy,
        times[times.len() / 2],
        times[times.len() - 1],
    );
}

fn starts_with_busy(status: &&dyad_api::control::ServiceStatus) -> bool {
    status.name.starts_with("busy")
}

/// How often a busy service really began.
fn starts(container: &Container, name: &str) -> u64 {
    let file = inside(container, &name.replace("busy", "/tmp/starts."));
    fs::read_to_string(file).map_or(0, |text| text.lines().count() as u64)
}
