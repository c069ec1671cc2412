//! `cargo xtask chaos`: faults on a real cluster.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use dyad_vm_tests::chaos::{self, Backend, Order, Rounds};

const USAGE: &str = "usage: chaos (--seeds A..B | failovers N | rejoins N | pairings N) [--backend container|vm] [--report FILE] [--seconds N] [--keep all]
  --report FILE   one line a round, as it goes; a run with the same FILE does what is missing in it
  --seconds N     begin no round after so long
  --keep all      keep the logs of every round, not only of those in which something was found";

fn seeds(text: &str) -> Option<Rounds> {
    let (from, to) = text.split_once("..")?;
    let range = from.parse().ok()?..to.parse().ok()?;
    (!range.is_empty()).then_some(Rounds::Seeds(range))
}

fn asked(words: &[&str]) -> Option<Order> {
    let (mut rounds, mut backend, mut report, mut limit) = (None, Backend::Container, None, None);
    let mut keep = false;
    for pair in words.chunks(2) {
        match *pair {
            ["--seeds", range] => rounds = Some(seeds(range)?),
            ["failovers", count] => rounds = Some(Rounds::Failovers(count.parse().ok()?)),
            ["rejoins", count] => rounds = Some(Rounds::Rejoins(count.parse().ok()?)),
            ["pairings", count] => rounds = Some(Rounds::Pairings(count.parse().ok()?)),
            ["--backend", "container"] => backend = Backend::Container,
            ["--backend", "vm"] => backend = Backend::Vm,
            ["--report", file] => report = Some(PathBuf::from(file)),
            ["--seconds", count] => limit = Some(Duration::from_secs(count.parse().ok()?)),
            ["--keep", "all"] => keep = true,
            _ => return None,
        }
    }
    // A machine's processes cannot be stopped one by one from outside.
    let possible = |rounds: &Rounds| {
        backend == Backend::Container || matches!(rounds, Rounds::Seeds(_) | Rounds::Failovers(_))
    };
    rounds.filter(possible).map(|rounds| Order { rounds, backend, report, limit, keep })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if words == ["watch"] {
        // Started by ourselves within the lab's network.
        return chaos::watch().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Some(order) = asked(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match chaos::run(&order) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::from(2)
        }
    }
}
