//! Edge by fault: which edges of the phase table are taken while which fault lasts, a hunt for those that chance does
//! not find, and a written reason for each that stays empty.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use dyad_cluster::phase::{EDGES, Phase};
use serde::Deserialize;

use crate::scenario;
use crate::sim::{self, CALM_MS, Fault, NAMES, Plan, Planned, Run};

/// Why cells are empty.
const REASONS: &str = include_str!("../coverage.toml");
/// Histories kept for each edge.
const WAYS_MAX: usize = 32;
/// A fault that is laid over an edge begins at most this long before it, and ends at most this long after it.
const AROUND_MS: u64 = 8_000;
/// Half of them begin this shortly before it: much later, and a crash has ended what it should meet.
const JUST_BEFORE_MS: u64 = 60;

/// A phase lasts about this long, if it is not one that waits.
const STAYS_MS: u64 = 30;

/// Seeds of stories, one each: ways are told apart by their seeds.
const STORIES_FROM: u64 = 1 << 40;

type Edge = (Phase, Phase);
type Cell = (Edge, &'static str);

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    filled: BTreeSet<Cell>,
    /// Histories in which an edge is taken, and when.
    ways: BTreeMap<Edge, Vec<(Plan, u64)>>,
    histories: u64,
    /// Plan and complaint.
    violations: Vec<(Plan, String)>,
}

/// Cells that stay empty.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reasons {
    empty: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    /// `From -> To`; all when empty.
    #[serde(default)]
    edges: Vec<String>,
    /// Names of faults; all when empty.
    #[serde(default)]
    faults: Vec<String>,
    why: String,
}

impl Reason {
    fn covers(&self, (edge, fault): Cell) -> bool {
        (self.edges.is_empty() || self.edges.contains(&name(edge)))
            && (self.faults.is_empty() || self.faults.iter().any(|name| name == fault))
    }
}

fn name((from, to): Edge) -> String {
    format!("{from:?} -> {to:?}")
}

fn columns() -> impl Iterator<Item = &'static str> {
    NAMES.iter().copied().chain(["none"])
}

fn reasons() -> Result<Vec<Reason>> {
    let Reasons { empty } = toml::from_str(REASONS).context("tests/sim/coverage.toml")?;
    for reason in &empty {
        for edge in &reason.edges {
            let known = EDGES.iter().any(|(from, to, _)| name((*from, *to)) == *edge);
            ensure!(known, "tests/sim/coverage.toml: {edge:?} is no edge of the phase table");
        }
        for fault in &reason.faults {
            ensure!(columns().any(|name| name == fault), "tests/sim/coverage.toml: {fault:?} is no fault");
        }
        ensure!(!reason.why.is_empty(), "tests/sim/coverage.toml: {:?}: no reason", reason.edges);
    }
    Ok(empty)
}

impl Matrix {
    /// Every story of tests/scenarios, and every seed's history as drawn, from blank disks, and rich in each fault.
    ///
    /// # Errors
    /// When a story cannot be read.
    pub fn surveyed(seeds: Range<u64>, threads: usize) -> Result<Matrix> {
        // Stories come first: nothing stands beside what they tell, so what is laid over them has room.
        let stories = scenario::all()?.into_iter().zip(STORIES_FROM..);
        let mut plans: Vec<Plan> = stories.map(|((_, story), seed)| Plan { seed, ..story.plan }).collect();
        for seed in seeds {
            let drawn = Plan::drawn(seed);
            plans.push(Plan { blank: true, ..drawn.clone() });
            plans.push(drawn);
            plans.extend(NAMES.iter().map(|name| Plan::rich_in(name, seed)));
        }
        let mut matrix = Matrix::default();
        let found = in_parallel(&plans, threads, |plan: &Plan, own: &mut Matrix| {
            own.play(plan.clone());
        });
        found.into_iter().for_each(|part| matrix.join(part));
        Ok(matrix)
    }

    /// Lays each missing fault over histories in which its edge is taken, so many times for each cell that has no reason to
    /// be empty.
    ///
    /// # Errors
    /// When the table of reasons names what is not there.
    pub fn hunt(&mut self, tries: u64, threads: usize) -> Result<()> {
        let reasons = reasons()?;
        let open = |cell: &Cell| !reasons.iter().any(|reason| reason.covers(*cell));
        let cells: Vec<Cell> = self.empty().filter(open).collect();
        let this: &Matrix = self;
        let found = in_parallel(&cells, threads, |cell: &Cell, own: &mut Matrix| {
            let (ways, near) =
                (this.ways.get(&cell.0).map_or(&[][..], Vec::as_slice), this.ways_near(cell.0));
            let taken = ways.iter().map(|way| (way, false)).collect::<Vec<_>>();
            let entered = near.iter().map(|way| (way, true)).collect::<Vec<_>>();
            // In turns: what is laid over a history moves its later moments, and a rare meeting may have to be made anew.
            let turns = (0..tries).map(|number| {
                let known = !taken.is_empty() && (number % 2 == 0 || cell.1 == "none");
                let list = if known { &taken } else { &entered };
                list.get((number / 2) as usize % list.len().max(1)).map(|way| (number, *way))
            });
            for (number, (way, pushed)) in turns.flatten() {
                if own.filled.contains(cell) {
                    break;
                }
                let plan = laid_over(way, cell.1, number);
                own.play(if pushed { self::pushed(plan, way.1, number) } else { plan });
            }
        });
        found.into_iter().for_each(|part| self.join(part));
        Ok(())
    }

    /// Histories that come to where the edge begins.
    fn ways_near(&self, edge: Edge) -> Vec<(Plan, u64)> {
        let entered = self.ways.iter().filter(|((_, to), _)| *to == edge.0);
        entered.flat_map(|(_, ways)| ways).cloned().collect()
    }

    fn play(&mut self, plan: Plan) {
        let Run { edges, matrix, violation, .. } = sim::play(&plan, &[], false);
        self.histories += 1;
        self.filled.extend(matrix);
        for (edge, at_ms) in edges {
            self.learn(edge, &plan, at_ms);
        }
        self.violations.extend(violation.map(|violation| (plan, violation)));
    }

    /// One way for each seed: what differs only in what was laid over it fails alike. What is taken in peace is an
    /// operator's work, and no fault can be laid over that.
    fn learn(&mut self, edge: Edge, plan: &Plan, at_ms: u64) {
        let ways = self.ways.entry(edge).or_default();
        let more = ways.len() < WAYS_MAX;
        match ways.iter_mut().find(|(known, _)| known.seed == plan.seed) {
            Some(way) if way.0.peace_ms <= way.1 => *way = (plan.clone(), at_ms),
            Some(_) => {}
            None if more => ways.push((plan.clone(), at_ms)),
            None => {}
        }
    }

    fn join(&mut self, other: Matrix) {
        self.filled.extend(other.filled);
        self.histories += other.histories;
        self.violations.extend(other.violations);
        for (edge, found) in other.ways {
            found.iter().for_each(|(plan, at_ms)| self.learn(edge, plan, *at_ms));
        }
    }

    fn empty(&self) -> impl Iterator<Item = Cell> {
        let all = EDGES.iter().flat_map(|(from, to, _)| columns().map(|fault| ((*from, *to), fault)));
        all.filter(|cell| !self.filled.contains(cell))
    }

    /// The table of empty cells with their reasons; true: each has one, and nothing was violated.
    ///
    /// # Errors
    /// When the table of reasons names what is not there.
    pub fn told(&self) -> Result<(String, bool)> {
        let reasons = reasons()?;
        let mut text = String::new();
        for (plan, violation) in &self.violations {
            text.push_str(&format!("{violation}\n{plan}\n"));
        }
        text.push_str("| edge | never under | because |\n|---|---|---|\n");
        let mut rows: BTreeMap<(Edge, Option<usize>), Vec<&str>> = BTreeMap::new();
        for cell in self.empty() {
            let reason = reasons.iter().position(|reason| reason.covers(cell));
            rows.entry((cell.0, reason)).or_default().push(cell.1);
        }
        for ((edge, reason), faults) in &rows {
            let why = reason.and_then(|at| reasons.get(at)).map_or("NO REASON", |reason| &reason.why);
            let all = faults.len() == columns().count();
            let faults = if all { "anything".into() } else { faults.join(", ") };
            text.push_str(&format!("| {} | {faults} | {why} |\n", name(*edge)));
        }
        let (cells, open) =
            (EDGES.len() * columns().count(), rows.keys().filter(|(_, r)| r.is_none()).count());
        text.push_str(&format!(
            "\n{} of {cells} cells ({} edges, {} faults) in {} histories; {open} rows without a reason, {} violations\n",
            self.filled.len(),
            EDGES.len(),
            columns().count(),
            self.histories,
            self.violations.len()
        ));
        Ok((text, open == 0 && self.violations.is_empty()))
    }
}

/// A way with this fault laid over the moment at which the edge is taken.
fn laid_over((plan, at_ms): &(Plan, u64), fault: &str, number: u64) -> Plan {
    let (mut plan, mut random) = (plan.clone(), sim::Random(plan.seed ^ number << 32 ^ 0x1A1D_0BE4));
    if fault == "none" {
        // Whatever lasts at that moment and is not what leads there is not needed.
        plan.events.retain(|e| e.until_ms < *at_ms || random.permille(300));
        return plan;
    }
    let Some(fault) = Fault::somewhere(fault, &mut random) else { return plan };
    if fault.takes_a_copy() && *at_ms < CALM_MS {
        return plan; // An arbiter that has just begun has not heard both nodes: it is no second copy yet.
    }
    plan.events.retain(|e| fault.bears(e.fault));
    let before = if number % 2 == 0 { JUST_BEFORE_MS } else { AROUND_MS };
    let earliest_ms = if fault.takes_a_copy() { CALM_MS } else { 0 };
    let from_ms = at_ms.saturating_sub(random.between(0, before)).max(earliest_ms);
    let until_ms = at_ms + random.between(sim::least_ms(fault), AROUND_MS);
    plan.events.push(Planned { at_ms: from_ms, until_ms, fault });
    plan.peace_ms = plan.peace_ms.max(until_ms);
    plan
}

/// A history that comes to where an edge begins at this time, with another fault right after it: perhaps that leads along.
fn pushed(mut plan: Plan, at_ms: u64, number: u64) -> Plan {
    let mut random = sim::Random(plan.seed ^ number << 32 ^ 0x9E37_79B9);
    let at_ms = at_ms + random.between(0, STAYS_MS);
    let fault = Fault::draw(&mut random);
    let fits = !fault.takes_a_copy() && plan.events.iter().all(|e| e.fault.bears(fault));
    if fits && random.permille(700) {
        let until_ms = at_ms + sim::least_ms(fault).max(STAYS_MS);
        plan.events.push(Planned { at_ms, until_ms, fault });
        plan.peace_ms = plan.peace_ms.max(until_ms);
    }
    plan
}

/// Each thread's own matrix of what it did with items.
fn in_parallel<T: Sync>(items: &[T], threads: usize, each: impl Fn(&T, &mut Matrix) + Sync) -> Vec<Matrix> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = Matrix::default();
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(item, &mut own);
                }
                found.lock().expect("no thread panics while it holds the list").push(own);
            });
        }
    });
    found.into_inner().expect("all threads are done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_names_edges_and_faults_that_are() {
        assert!(!reasons().unwrap().is_empty());
    }

    #[test]
    fn a_fault_is_laid_over_the_edge() {
        let way = (Plan::quiet(1), 30_000);
        for (number, name) in (0..).zip(NAMES) {
            let plan = laid_over(&way, name, number);
            let [event] = plan.events.as_slice() else { panic!("{name}: {plan}") };
            assert!(
                event.fault.name() == *name && event.at_ms <= 30_000 && event.until_ms > 30_000,
                "{plan}"
            );
        }
    }
}
