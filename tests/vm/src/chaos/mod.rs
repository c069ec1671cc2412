//! Faults by seed on a real cluster under real clients: one cluster for many rounds, each healed and judged before the next.

mod blank;
pub(crate) mod clock;
mod cluster;
mod disks;
mod events;
pub(crate) mod inject;
pub(crate) mod judge;
pub(crate) mod ledger;
pub(crate) mod plan;
mod report;
mod rounds;
mod volumes;
pub(crate) mod watch;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use cluster::{Cluster, Image, millis};
pub(crate) use cluster::{holder, status, wait_protected};
use report::{Report, Told};

/// How nodes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Containers: processes can be signalled one by one; T = 3 s.
    Container,
    /// Emulated machines; T = 15 s.
    Vm,
}

impl Backend {
    fn options(self) -> &'static [&'static str] {
        match self {
            Backend::Container => &["--backend", "container"],
            Backend::Vm => &["--accel", "tcg"],
        }
    }

    /// Everything lasts so much longer than a plan says.
    fn pace(self) -> u32 {
        match self {
            Backend::Container => 1,
            Backend::Vm => 4,
        }
    }
}

/// What is declared before a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rounds {
    /// The plan of each of these seeds.
    Seeds(Range<u64>),
    /// So often the primary loses power and comes back.
    Failovers(u64),
    /// So often it does so with a history of its own.
    Rejoins(u64),
    /// So often two blank nodes pair while processes are killed.
    Pairings(u64),
}

impl Rounds {
    fn range(&self) -> Range<u64> {
        match self {
            Rounds::Seeds(seeds) => seeds.clone(),
            Rounds::Failovers(count) | Rounds::Rejoins(count) | Rounds::Pairings(count) => 0..*count,
        }
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rounds::Seeds(seeds) => write!(out, "seeds {}..{}", seeds.start, seeds.end),
            Rounds::Failovers(count) => write!(out, "{count} failovers"),
            Rounds::Rejoins(count) => write!(out, "{count} rejoins"),
            Rounds::Pairings(count) => write!(out, "{count} pairings"),
        }
    }
}

/// No password or key in what the nodes tell: looked at after so many rounds, and at the end.
const SECRETS_EVERY: usize = 25;
/// A lab that does not come up is tried again so often.
const UPS_MAX: u32 = 3;

/// How a run is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What is declared.
    pub rounds: Rounds,
    /// How nodes are made.
    pub backend: Backend,
    /// The file that gets a line a round, and may have some.
    pub report: Option<PathBuf>,
    /// No round is begun after so long.
    pub limit: Option<Duration>,
    /// Logs of every round are kept, not only of those in which something was found.
    pub keep: bool,
}

/// Runs what a report does not have yet, and prints each round and the figures of all; true when all of them were run and
/// nothing was found. An error: the report cannot be used, or no lab comes up.
pub fn run(order: &Order) -> Result<bool, String> {
    let (Order { rounds, backend, .. }, begun) = (order, clock::now());
    let backend = *backend;
    let declared = format!("{rounds}, {backend:?}");
    let mut report = Report::open(order.report.as_deref(), &declared)?;
    let done = report.done();
    println!("{declared} declared, {} of them run before", done.len());
    let image = Image::build(backend);
    let in_time = |_: &u64| order.limit.is_none_or(|limit| clock::now() - begun < limit);
    let mut rest = rounds.range().filter(|round| !done.contains(round)).take_while(in_time).peekable();
    let mut failed = 0;
    while let (Some(&next), Rounds::Pairings(_)) = (rest.peek(), rounds) {
        add(&mut report, one(next, || blank::pairing(&image, next)))?;
        rest.next();
    }
    while rest.peek().is_some() {
        let mut cluster = match caught(|| Cluster::up(&image, backend)) {
            Ok(cluster) => cluster,
            Err(why) if failed == UPS_MAX => return Err(format!("no lab comes up: {why}")),
            Err(why) => {
                println!("a lab did not come up: {why}");
                failed += 1;
                continue;
            }
        };
        failed = 0;
        let mut lived = 0;
        while let Some(round) = rest.next() {
            lived += 1;
            let told = one(round, || {
                let mut told = cluster.round(rounds, round, backend);
                if lived % SECRETS_EVERY == 0 || rest.peek().is_none() {
                    judge::secrets(&cluster.lab, &mut told.found);
                }
                told
            });
            let bad = !told.found.is_empty();
            add(&mut report, told)?;
            if bad || order.keep {
                keep(&cluster, rounds, round, backend);
            }
            if bad {
                break;
            }
        }
        // Whatever is left of a lab that failed: the next one is another.
        let _ = caught(|| drop(cluster));
    }
    Ok(report.end(&rounds.to_string(), rounds.range().end - rounds.range().start))
}

fn add(report: &mut Report, told: Told) -> Result<(), String> {
    report.add(told).map_err(|error| format!("the report cannot be written: {error}"))
}

/// Asks within the lab's network who has the virtual address, until it is killed.
pub fn watch() -> std::io::Result<()> {
    watch::ask()
}

/// A round, whatever becomes of it.
fn one(round: u64, work: impl FnOnce() -> Told) -> Told {
    let begun = clock::now();
    let broken = |why| Told { found: vec![format!("the run itself: {why}")], ..Told::default() };
    let told = caught(work).unwrap_or_else(broken);
    Told { round, ms: millis(clock::now() - begun), ..told }
}

/// What is needed to understand a round in which something was found.
fn keep(cluster: &Cluster, rounds: &Rounds, round: u64, backend: Backend) {
    let name = match rounds {
        Rounds::Seeds(_) => {
            println!("  plan: {:?}", plan::plan(round, backend == Backend::Container));
            let on = if backend == Backend::Vm { " --backend vm" } else { "" };
            println!("  again: cargo xtask chaos --seeds {round}..{}{on}", round + 1);
            format!("seed-{round}")
        }
        Rounds::Failovers(_) => format!("failover-{round}"),
        Rounds::Rejoins(_) => format!("rejoin-{round}"),
        Rounds::Pairings(_) => blank::name(round),
    };
    match caught(|| cluster.keep(&name)) {
        Ok(kept) => println!("  kept in {}", kept.display()),
        Err(why) => println!("  not kept: {why}"),
    }
}

/// What came of it, or what it said when it panicked.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let words = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| text.to_string()),
    };
    catch_unwind(AssertUnwindSafe(work)).map_err(words)
}
