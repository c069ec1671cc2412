//! `cargo xtask bench failover` and `cargo xtask bench steady`: a pair of containers beside what others would do.

use std::path::Path;
use std::process::ExitCode;

use dyad_vm_tests::failover::{self, Rounds};
use dyad_vm_tests::steady::{self, Amount};

const USAGE: &str = "usage: measure failover [--rounds N] [--peer-rounds M]
       measure steady [--pairs N] [--seconds S] [--clients C]
as root, with DYAD_PEERS";

/// The value of an option that may be given once; what is left of `words` must be empty in the end.
fn option(words: &mut Vec<&str>, name: &str, usual: u32) -> Option<u32> {
    let Some(at) = words.iter().position(|word| *word == name) else { return Some(usual) };
    let value = words.get(at + 1)?.parse().ok()?;
    words.drain(at..at + 2);
    Some(value)
}

/// Measures what is asked; `None`: it is not understood.
fn measure(kind: &str, mut words: Vec<&str>, peers: &Path) -> Option<()> {
    match kind {
        "failover" => {
            let ours = option(&mut words, "--rounds", 200)? as usize;
            let peers_rounds = option(&mut words, "--peer-rounds", 10)? as usize;
            words.is_empty().then(|| failover::run(Rounds { ours, peers: peers_rounds }, peers))
        }
        "steady" => {
            let pairs = option(&mut words, "--pairs", 10)? as usize;
            let seconds = option(&mut words, "--seconds", 20)?;
            let clients = option(&mut words, "--clients", 8)?;
            words.is_empty().then(|| steady::run(Amount { pairs, seconds, clients }, peers))
        }
        _ => None,
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        // Started by ourselves among the clients.
        ["client", user, database, ref hosts @ ..] => {
            let done = failover::client(user, database, hosts);
            return done.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        ["ask", address, path] => {
            failover::ask(address, path);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let peers = std::env::var_os("DYAD_PEERS").filter(|_| rustix::process::geteuid().is_root());
    let asked = words.split_first().zip(peers);
    let done = asked.and_then(|((kind, rest), peers)| measure(kind, rest.to_vec(), Path::new(&peers)));
    if done.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
