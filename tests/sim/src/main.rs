//! `dyad-sim`: explorer, simulator and mutations from the command line; `cargo xtask sim` and `cargo xtask mutate` run it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dyad_cluster::mutation::Mutation;
use dyad_cluster::{Voting, phase::EDGES};
use dyad_sim::explore::{Bounds, Exploration, NOTHING, STORM, explore, walk};
use dyad_sim::matrix::Matrix;
use dyad_sim::mutate::Ground;
use dyad_sim::report::{many, times};
use dyad_sim::scenario::Scenario;
use dyad_sim::sim::{HARMLESS, Plan};
use dyad_sim::{mutate, sim};

const USAGE: &str = "usage: dyad-sim COMMAND
  sim --seeds A..B [--json | --threads N]   histories of whole clusters
  sim --seed N                one of them, told in full; a broken one without the faults that it does not need
  sim scenario NAME           one of tests/scenarios, told in full
  sim coverage --seeds A..B --tries N
                              which edges are never taken under which fault, each with its reason; N more histories are
                              looked through for each that the seeds do not show
  sim harmless N              N episodes of each kind in which nothing may move
  sim times N                 simulated times of take-over, degrade and protection, over N runs each
  explore STATES              every order of everything, breadth first, at most so many states
  walk --seeds A..B           deep random histories of the explorer
  mutate --seeds N [NAME]     each named mutation, or this one, at most so many seeds";

/// See [`coverage`].
const HUNTS: usize = 3;
/// Moves of one random history.
const STEPS_MAX: usize = 400;

fn range(text: &str) -> Result<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..").context("seeds are given as A..B")?;
    Ok(from.parse().context("A of A..B is not a number")?..to.parse().context("B of A..B is not a number")?)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text:?} is not a number"))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn simulate(seeds: std::ops::Range<u64>, threads: usize, json: bool) -> bool {
    let sum = many(seeds, threads, Plan::drawn);
    for (seed, violation) in &sum.violations {
        println!("seed {seed}: {violation}\nreplay: cargo xtask sim --seed {seed}");
    }
    println!("{}", if json { sum.json() } else { sum.line() });
    sum.violations.is_empty()
}

/// Tells a seed's history; a broken one without the faults that it does not need.
fn replay(seed: u64) -> bool {
    let drawn = Plan::drawn(seed);
    let breaks = |plan: &Plan| sim::play(plan, &[], false).violation.is_some();
    let plan = if breaks(&drawn) { drawn.shrunk(breaks) } else { drawn };
    print!("{plan}");
    let run = sim::play(&plan, &[], true);
    run.log.iter().for_each(|line| println!("{line}"));
    println!("{}", run.violation.as_deref().unwrap_or("no violation"));
    run.violation.is_none()
}

/// Tells a scenario in full.
fn story(name: &str) -> Result<bool> {
    let (_, run) = Scenario::named(name)?.tell();
    run.log.iter().for_each(|line| println!("{line}"));
    println!("{}", run.violation.as_deref().unwrap_or("no violation"));
    Ok(run.violation.is_none())
}

fn coverage(seeds: std::ops::Range<u64>, tries: u64) -> Result<bool> {
    let mut matrix = Matrix::surveyed(seeds, threads())?;
    // What one hunt finds is where the next one begins.
    (0..HUNTS).try_for_each(|_| matrix.hunt(tries, threads()))?;
    let (text, complete) = matrix.told()?;
    print!("{text}");
    Ok(complete)
}

/// Kinds of episodes in which nothing may move.
fn harmless(count: u64) -> bool {
    println!(
        "| nothing moves under | episodes | closures, promotions, restarts | violations |\n|---|---|---|---|"
    );
    HARMLESS.iter().all(|kind| {
        let sum = many(0..count, threads(), |seed| Plan::harmless(kind, seed));
        println!("| {kind} | {} | {} | {} |", sum.histories, sum.moved, sum.violations.len());
        sum.violations.iter().for_each(|(seed, violation)| println!("{kind}, seed {seed}: {violation}"));
        sum.violations.is_empty()
    })
}

fn figures(runs: u64) {
    for lease_ms in [3_000, 5_000, 15_000] {
        for (name, mut times) in times(lease_ms, runs) {
            println!("| T = {} s | {name} | {} |", lease_ms / 1000, times.line());
        }
    }
}

fn show(found: &Exploration) -> bool {
    let Some((violation, path)) = &found.violation else { return true };
    println!("{}", violation.what);
    for (number, line) in path.iter().enumerate() {
        println!("{:3} {line}", number + 1);
    }
    false
}

#[allow(clippy::disallowed_methods, reason = "the stopwatch of a run; no decision looks at it")]
fn explore_all(states_max: usize) -> bool {
    // Small worlds of different kinds: each is seen whole, or to the same depth in all directions.
    let small = Bounds { writes: 3, epochs: 6, ..NOTHING };
    let worlds = [
        ("peace", small, Voting::Arbiter),
        ("cut", Bounds { cuts: 1, suspicions: 1, ..small }, Voting::Arbiter),
        ("crash", Bounds { crashes: 1, suspicions: 1, ..small }, Voting::Arbiter),
        ("crash and reclone", Bounds { crashes: 1, reclones: 1, suspicions: 1, ..small }, Voting::Arbiter),
        ("switchover", Bounds { switchovers: 1, ..small }, Voting::Arbiter),
        ("restarted arbiter", Bounds { restarts: 1, suspicions: 1, ..small }, Voting::Arbiter),
        ("restored arbiter", Bounds { rollbacks: 1, suspicions: 1, ..small }, Voting::Arbiter),
        ("arbiter gone", Bounds { gone: true, suspicions: 1, ..small }, Voting::Arbiter),
        ("strict", Bounds { cuts: 1, crashes: 1, suspicions: 1, ..small }, Voting::Strict),
        ("primary-biased", Bounds { cuts: 1, crashes: 1, suspicions: 1, ..small }, Voting::PrimaryBiased),
        ("fence device", Bounds { cuts: 1, crashes: 1, suspicions: 1, ..small }, Voting::FenceDevice),
    ];
    println!("| world | states | depth | whole | time |\n|---|---|---|---|---|");
    worlds.iter().all(|(name, bounds, voting)| {
        let begun = Instant::now();
        let found = explore(*bounds, &[], *voting, states_max);
        let whole = if found.complete { "yes" } else { "no" };
        let time = begun.elapsed().as_secs_f64();
        println!("| {name} | {} | {} | {whole} | {time:.1} s |", found.states, found.depth);
        show(&found)
    })
}

fn walk_all(seeds: std::ops::Range<u64>) -> bool {
    let (mut edges, mut moves) = (HashSet::new(), 0);
    for seed in seeds {
        let found = walk(STORM, &[], Voting::Arbiter, seed, STEPS_MAX);
        moves += found.states;
        if !show(&found) {
            println!("seed {seed}");
            return false;
        }
        edges.extend(found.edges);
    }
    let never = EDGES.iter().filter(|(from, to, _)| !edges.contains(&(*from, *to)));
    let never: Vec<String> = never.map(|(from, to, _)| format!("{from:?} -> {to:?}")).collect();
    println!("{moves} moves, {} of {} edges, 0 violations", edges.len(), EDGES.len());
    println!("never: {}", never.join(", "));
    true
}

/// `name`: only rows with this mutation; all when empty.
fn mutations(seeds: u64, name: &str) -> bool {
    println!("| broken | noticed by | seeds |\n|---|---|---|");
    let mut all = true;
    let mut row = |broken: &[Mutation], ground: Ground, wanted: bool, argument: &str| {
        if !format!("{broken:?}").contains(name) {
            return;
        }
        let verdict = mutate::judge(broken, ground, seeds);
        let what = verdict.killed.clone().unwrap_or_else(|| "nothing".into());
        println!("| {broken:?} | {what}{argument} | {} |", verdict.seeds);
        all &= verdict.killed.is_some() == wanted;
    };
    for case in mutate::CASES {
        row(case.broken, case.ground, true, "");
    }
    for case in mutate::COVERED {
        // An argument that an oracle contradicts is wrong.
        row(&[case.alone], case.ground, false, &format!(": {}", case.argument));
        row(&[&[case.alone], case.with].concat(), case.ground, true, "");
    }
    all
}

fn run(args: &[&str]) -> Result<bool> {
    Ok(match args {
        ["sim", "--seeds", seeds] => simulate(range(seeds)?, threads(), false),
        ["sim", "--seeds", seeds, "--json"] => simulate(range(seeds)?, threads(), true),
        ["sim", "--seeds", seeds, "--threads", count] => {
            simulate(range(seeds)?, number(count)? as usize, false)
        }
        ["sim", "--seed", seed] => replay(number(seed)?),
        ["sim", "scenario", name] => story(name)?,
        ["sim", "coverage", "--seeds", seeds, "--tries", tries] => coverage(range(seeds)?, number(tries)?)?,
        ["sim", "harmless", count] => harmless(number(count)?),
        ["sim", "times", runs] => {
            figures(number(runs)?);
            true
        }
        ["explore", states] => explore_all(states.parse().context("STATES is not a number")?),
        ["walk", "--seeds", seeds] => walk_all(range(seeds)?),
        ["mutate", "--seeds", seeds] => mutations(number(seeds)?, ""),
        ["mutate", "--seeds", seeds, name] => mutations(number(seeds)?, name),
        _ => bail!("{USAGE}"),
    })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dyad-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
