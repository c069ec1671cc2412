//! `cargo xtask chaos`: faults by seed on a real cluster.

use std::ops::Range;
use std::process::ExitCode;

use dyad_vm_tests::chaos::{self, Backend};

const USAGE: &str = "usage: chaos --seeds A..B [--backend container|vm]";

fn seeds(text: &str) -> Option<Range<u64>> {
    let (from, to) = text.split_once("..")?;
    let range = from.parse().ok()?..to.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let asked = match words[..] {
        // Started by ourselves within the lab's network.
        ["watch"] => return chaos::watch().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        ["--seeds", range] | ["--seeds", range, "--backend", "container"] => {
            seeds(range).zip(Some(Backend::Container))
        }
        ["--seeds", range, "--backend", "vm"] => seeds(range).zip(Some(Backend::Vm)),
        _ => None,
    };
    let Some((range, backend)) = asked else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if chaos::run(range, backend) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
