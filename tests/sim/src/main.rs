//! `dyad-sim`: explorer and simulator from the command line; `cargo xtask sim` and `cargo xtask mutate` run it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dyad_cluster::Voting;
use dyad_sim::explore::{Bounds, explore};

fn run(args: &[String]) -> Result<bool> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["walk", seeds, ref rest @ ..] => {
            let (mut edges, mut states) = (std::collections::HashSet::new(), 0);
            let bounds = Bounds {
                writes: 4,
                epochs: 12,
                crashes: 3,
                reclones: 2,
                cuts: 3,
                suspicions: 4,
                restarts: 2,
                rollbacks: 1,
                gone: true,
                switchovers: 1,
                lease_ends: 1,
            };
            for seed in 0..seeds.parse()? {
                let mut found = dyad_sim::explore::walk(bounds, &[], Voting::Arbiter, seed, 400);
                edges.extend(found.edges.drain());
                states += found.states;
                if let Some((violation, path)) = &found.violation {
                    println!("seed {seed}: {}", violation.what);
                    for (number, line) in path.iter().enumerate() {
                        println!("{:3} {line}", number + 1);
                    }
                    return Ok(false);
                }
            }
            println!("{states} moves, {} edges; missing:", edges.len());
            for (a, b, why) in dyad_cluster::phase::EDGES {
                if !edges.contains(&(*a, *b)) {
                    println!("  {a:?} -> {b:?} {why}");
                }
            }
            let _ = rest;
            Ok(true)
        }
        ["sim", "--seeds", seeds] => sim(seeds),
        ["sim", "--seed", seed] => replay(seed.parse().context("a seed is a number")?),
        ["mutate", seeds] => mutate(seeds.parse().context("the number of seeds")?),
        ["explore", states_max, ref rest @ ..] => {
            let mut b = [3, 6, 1, 1, 1, 1, 0, 0, 0, 0, 0];
            for (slot, text) in b.iter_mut().zip(rest) {
                *slot = text.parse().with_context(|| format!("bound {text} is not a number"))?;
            }
            let bounds = Bounds {
                writes: b[0],
                epochs: b[1],
                crashes: b[2],
                reclones: b[3],
                cuts: b[4],
                suspicions: b[5],
                restarts: b[6],
                rollbacks: b[7],
                gone: b[8] > 0,
                switchovers: b[9],
                lease_ends: b[10],
            };
            let found = explore(bounds, &[], Voting::Arbiter, states_max.parse().context("states")?);
            println!(
                "{} states, depth {}, complete {}, {} edges",
                found.states,
                found.depth,
                found.complete,
                found.edges.len()
            );
            if let Some((violation, path)) = &found.violation {
                println!("{}", violation.what);
                for (number, line) in path.iter().enumerate() {
                    println!("{:3} {line}", number + 1);
                }
            }
            Ok(found.violation.is_none())
        }
        _ => bail!("usage: dyad-sim explore STATES_MAX [BOUND...]"),
    }
}

/// `A..B`: every seed from A up to, not including, B.
fn sim(range: &str) -> Result<bool> {
    let (from, to) = range.split_once("..").context("seeds are given as A..B")?;
    let (from, to): (u64, u64) = (from.parse().context("A of A..B")?, to.parse().context("B of A..B")?);
    let (mut writes, mut changes, mut faults, mut take_overs) = (0, 0, 0, 0);
    for seed in from..to {
        let run = dyad_sim::sim::run(seed, &[]);
        (writes, changes) = (writes + run.acknowledged, changes + run.changes);
        (faults, take_overs) = (faults + run.faults, take_overs + run.take_overs);
        if let Some(violation) = run.violation {
            println!("seed {seed}: {violation}\nreplay: cargo run -p dyad-sim -- sim --seed {seed}");
            return Ok(false);
        }
    }
    println!(
        "{} histories: {writes} acknowledged writes, {changes} changes of authority, {take_overs} take-overs, {faults} faults, 0 violations",
        to - from
    );
    Ok(true)
}

fn replay(seed: u64) -> Result<bool> {
    let run = dyad_sim::sim::run(seed, &[]);
    for line in &run.log {
        println!("{line}");
    }
    println!("{}", run.violation.as_deref().unwrap_or("no violation"));
    Ok(run.violation.is_none())
}

fn mutate(seeds: u64) -> Result<bool> {
    println!("| broken | noticed | seeds | moves |\n|---|---|---|---|");
    let mut all = true;
    for case in dyad_sim::mutate::CASES {
        let verdict = dyad_sim::mutate::judge(case, seeds);
        all &= verdict.killed.is_some();
        let (what, moves) = verdict.killed.unwrap_or(("SURVIVES".into(), 0));
        println!("| {:?} | {what} | {} | {moves} |", case.broken, verdict.seeds);
    }
    Ok(all)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dyad-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
