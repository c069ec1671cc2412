//! Many histories at once, and what they add up to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_cluster::Voting;
use dyad_cluster::register::Reason;
use dyad_cluster::types::Node;

use crate::sim::{self, Fault, Plan, Planned, Run};

/// Threads take this many seeds at a time.
const CHUNK: u64 = 16;
/// Violations that are told before the run ends.
const VIOLATIONS_MAX: usize = 20;

/// What many histories add up to.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    /// Histories.
    pub histories: u64,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Changes of registers.
    pub changes: u64,
    /// Take-overs.
    pub take_overs: u64,
    /// Faults.
    pub faults: usize,
    /// Closures, promotions, restarts.
    pub moved: u64,
    /// Acknowledged writes that forced take-overs gave up, as announced.
    pub given_up: usize,
    /// Seed and complaint.
    pub violations: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, run: Run) {
        self.histories += 1;
        self.acknowledged += run.acknowledged;
        self.changes += run.changes;
        self.take_overs += run.take_overs;
        self.faults += run.faults;
        self.moved += run.moved;
        self.given_up += run.given_up;
        self.violations.extend(run.violation.map(|violation| (seed, violation)));
    }

    /// Adds another sum.
    pub fn join(&mut self, other: Sum) {
        self.histories += other.histories;
        self.acknowledged += other.acknowledged;
        self.changes += other.changes;
        self.take_overs += other.take_overs;
        self.faults += other.faults;
        self.moved += other.moved;
        self.given_up += other.given_up;
        self.violations.extend(other.violations);
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        format!(
            "{{\"histories\":{},\"acknowledged\":{},\"changes\":{},\"take_overs\":{},\"faults\":{},\"moved\":{},\
             \"given_up\":{},\"violations\":{}}}",
            self.histories,
            self.acknowledged,
            self.changes,
            self.take_overs,
            self.faults,
            self.moved,
            self.given_up,
            self.violations.len()
        )
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let each = |count: f64| count / self.histories.max(1) as f64;
        format!(
            "{} histories: each {:.0} acknowledged writes, {:.1} changes of authority ({:.1} take-overs), {:.1} faults; {} violations",
            self.histories,
            each(self.acknowledged as f64),
            each(self.changes as f64),
            each(self.take_overs as f64),
            each(self.faults as f64),
            self.violations.len()
        )
    }
}

/// Plays every seed's plan on so many threads.
pub fn many(seeds: Range<u64>, threads: usize, plan: impl Fn(u64) -> Plan + Sync) -> Sum {
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut sum = Sum::default();
                while sum.violations.len() < VIOLATIONS_MAX {
                    let from = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if from >= seeds.end {
                        break;
                    }
                    for seed in from..seeds.end.min(from + CHUNK) {
                        sum.add(seed, sim::play(&plan(seed), &[], false));
                    }
                }
                total.lock().expect("no thread panics while it holds the sum").join(sum);
            });
        }
    });
    let mut total = total.into_inner().expect("all threads are done");
    total.violations.sort();
    total
}

/// Simulated milliseconds, sorted.
#[derive(Debug, Clone, Default)]
pub struct Times(pub Vec<u64>);

impl Times {
    /// p50, p99 and maximum.
    pub fn line(&mut self) -> String {
        self.0.sort_unstable();
        let at =
            |permille: usize| self.0.get((self.0.len().max(1) - 1) * permille / 1000).copied().unwrap_or(0);
        format!("p50 {} ms, p99 {} ms, max {} ms ({} runs)", at(500), at(990), at(1000), self.0.len())
    }
}

/// Simulated times for one T: from a node's loss to the grant, from a standby's loss to Solo, and from its return to Sync.
pub fn times(lease_ms: u64, runs: u64) -> BTreeMap<&'static str, Times> {
    let mut all: BTreeMap<&'static str, Times> = BTreeMap::new();
    for seed in 0..runs {
        // The database is protected well before this; the seed moves the loss within a renewal.
        let lost_ms = 40_000 + seed * 7 % lease_ms;
        for (node, name) in [(Node::A, "node loss to grant"), (Node::B, "standby loss to Solo")] {
            let back_ms = lost_ms + 60_000;
            let events = vec![Planned { at_ms: lost_ms, until_ms: back_ms, fault: Fault::Crash(node) }];
            let plan =
                Plan { lease_ms, events, peace_ms: back_ms, voting: Voting::Arbiter, ..Plan::quiet(seed) };
            let run = sim::play(&plan, &[], false);
            let wanted = if node == Node::A { Reason::TookOver } else { Reason::Degraded };
            let when = |reason, after: u64| {
                run.database_changes
                    .iter()
                    .find(|(why, at)| *why == reason && *at >= after)
                    .map(|(_, at)| at - after)
            };
            all.entry(name).or_default().0.extend(when(wanted, lost_ms));
            all.entry("return to Sync").or_default().0.extend(when(Reason::Protected, back_ms));
        }
    }
    all
}
