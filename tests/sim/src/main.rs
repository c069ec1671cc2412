//! `dyad-sim`: explorer, simulator and mutations from the command line; `cargo xtask sim` and `cargo xtask mutate` run it.

use std::collections::HashSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dyad_cluster::{Voting, phase::EDGES};
use dyad_sim::explore::{Bounds, Exploration, NOTHING, STORM, explore, walk};
use dyad_sim::{mutate, sim};

const USAGE: &str = "usage: dyad-sim COMMAND
  sim --seeds A..B [--json]   histories of whole clusters
  sim --seed N                one of them, told in full
  explore STATES              every order of everything, breadth first, at most so many states
  walk --seeds A..B           deep random histories of the explorer
  mutate --seeds N            each named mutation, at most so many seeds";

/// Moves of one random history.
const STEPS_MAX: usize = 400;

fn range(text: &str) -> Result<std::ops::Range<u64>> {
    let (from, to) = text.split_once("..").context("seeds are given as A..B")?;
    Ok(from.parse().context("A of A..B is not a number")?..to.parse().context("B of A..B is not a number")?)
}

fn simulate(seeds: std::ops::Range<u64>, json: bool) -> bool {
    let count = seeds.end.saturating_sub(seeds.start);
    let (mut writes, mut changes, mut faults, mut take_overs) = (0, 0, 0, 0);
    for seed in seeds {
        let run = sim::run(seed, &[]);
        (writes, changes) = (writes + run.acknowledged, changes + run.changes);
        (faults, take_overs) = (faults + run.faults, take_overs + run.take_overs);
        if let Some(violation) = run.violation {
            println!("seed {seed}: {violation}\nreplay: cargo run -p dyad-sim -- sim --seed {seed}");
            return false;
        }
    }
    if json {
        println!(
            "{{\"histories\":{count},\"acknowledged\":{writes},\"changes\":{changes},\"take_overs\":{take_overs},\"faults\":{faults},\"violations\":0}}"
        );
    } else {
        println!(
            "{count} histories: {writes} acknowledged writes, {changes} changes of authority, {take_overs} take-overs, {faults} faults, 0 violations"
        );
    }
    true
}

fn replay(seed: u64) -> bool {
    let run = sim::run(seed, &[]);
    for line in &run.log {
        println!("{line}");
    }
    println!("{}", run.violation.as_deref().unwrap_or("no violation"));
    run.violation.is_none()
}

fn show(found: &Exploration) -> bool {
    let Some((violation, path)) = &found.violation else { return true };
    println!("{}", violation.what);
    for (number, line) in path.iter().enumerate() {
        println!("{:3} {line}", number + 1);
    }
    false
}

fn explore_all(states_max: usize) -> bool {
    // Small worlds of different kinds: each is seen whole, or to the same depth in all directions.
    let small = Bounds { writes: 3, epochs: 6, ..NOTHING };
    let worlds = [
        ("peace", small),
        ("cut", Bounds { cuts: 1, suspicions: 1, ..small }),
        ("crash", Bounds { crashes: 1, suspicions: 1, ..small }),
        ("restored arbiter", Bounds { rollbacks: 1, suspicions: 1, ..small }),
        ("no arbiter", Bounds { gone: true, ..small }),
    ];
    println!("| world | states | depth | whole |\n|---|---|---|---|");
    worlds.iter().all(|(name, bounds)| {
        let found = explore(*bounds, &[], Voting::Arbiter, states_max);
        println!("| {name} | {} | {} | {} |", found.states, found.depth, found.complete);
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
    println!("{moves} moves, {} of {} edges, 0 violations", edges.len(), EDGES.len());
    true
}

fn mutations(seeds: u64) -> bool {
    println!("| broken | noticed by | seeds | moves or lines |\n|---|---|---|---|");
    let mut all = true;
    for case in mutate::CASES {
        let verdict = mutate::judge(case, seeds);
        all &= verdict.killed.is_some();
        let (what, moves) = verdict.killed.unwrap_or(("nothing: survives".into(), 0));
        println!("| {:?} | {what} | {} | {moves} |", case.broken, verdict.seeds);
    }
    // An argument that an oracle contradicts is wrong: these are tried with every fault, and must survive.
    for (mutation, argument) in mutate::COVERED {
        match mutate::try_everywhere(*mutation, seeds) {
            None => println!("| [{mutation:?}] | covered: {argument} | {seeds} | |"),
            Some(what) => {
                println!("| [{mutation:?}] | {what}, though: {argument} | | |");
                all = false;
            }
        }
    }
    for mutation in mutate::OPEN {
        let found = mutate::try_everywhere(*mutation, seeds).unwrap_or_else(|| "nothing yet".into());
        println!("| [{mutation:?}] | {found} | {seeds} | |");
    }
    all
}

fn run(args: &[&str]) -> Result<bool> {
    Ok(match args {
        ["sim", "--seeds", seeds] => simulate(range(seeds)?, false),
        ["sim", "--seeds", seeds, "--json"] => simulate(range(seeds)?, true),
        ["sim", "--seed", seed] => replay(seed.parse().context("the seed is not a number")?),
        ["explore", states] => explore_all(states.parse().context("STATES is not a number")?),
        ["walk", "--seeds", seeds] => walk_all(range(seeds)?),
        ["mutate", "--seeds", seeds] => {
            mutations(seeds.parse().context("the number of seeds is not a number")?)
        }
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
