//! `cargo xtask`: the project's own checks and measurements.
//!
//! `verify` is what CI runs and what the README calls the test command; it writes nothing into the tree. Commands that
//! do write (`fix`, `update-golden`, `tidy --ratchet`) are separate, so that a check can never paper over what it found.

mod bench;
mod fuzz;
mod provision;
mod sh;
mod sim;
mod tidy;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "usage: cargo xtask COMMAND
  verify [--no-vm]      everything CI checks: format, tidy, clippy, tests, whole images, machines; --no-vm: no image, no machine
  packages              the Debian packages that verify needs beside Rust and a C compiler, one line
  fix                   rustfmt and clippy --fix
  tidy [--ratchet]      file and function lengths, crate purity, lints; --ratchet records shorter lengths
  update-golden         rewrite the expected outputs of golden tests, to be read in review
  sim --seeds A..B [--json]   simulated clusters; sim --seed N tells one history
  mutate --seeds N      break each clause of the protocol and see which oracle notices
  chaos --seeds A..B [--backend container|vm] [--report FILE] [--seconds N] [--keep all]   faults by seed on a real cluster under real clients;
                        container: as root; a run that was cut short goes on with the same FILE
  chaos failovers N, chaos rejoins N   the same options; the primary lost N times, N times with a history of its own
  chaos pairings N      blank nodes that pair N times while processes are killed at each step
  fuzz [TARGET] [--seconds N]   every parser of foreign bytes under libFuzzer, 60 seconds each
  soak builds [N]       N builds (30) of one definition in different places: one digest an output
  soak shutdown N       N shutdowns of a machine on which everything hangs: each resets within its deadline
  soak faults N         N faults in PID 1 of a guest under 500 services: nothing restarted, no end lost
  soak journald N       N times 30 kills and a stop of journald under 10,000 lines a second, in namespaces: as root
  soak first-boot N     N boots of states that a power cut could leave in a first boot
  soak drbd             all scripts of tests/sim/calibration/drbd.txt on two machines
  configured-root IMAGE   every path of lab or appliance that is not as apt and dpkg would make it, with the reason
  bench NAME            boot, build, image-size, init, witness: measured side by side in one run, printed as a table
  bench failover [--rounds N] [--peer-rounds M]   how soon clients write again, beside Patroni and keepalived: as root
  bench steady [--pairs N] [--seconds S] [--clients C]   pgbench beside plain synchronous replication: as root";

/// The package whose tests boot machines.
const GUESTS: &str = "dyad-vm-tests";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/xtask is two below the root")
        .into()
}

fn run(args: &[&str]) -> Result<bool> {
    let root = root();
    Ok(match args {
        ["verify"] => verify::run(&root, true)?,
        ["verify", "--no-vm"] => verify::run(&root, false)?,
        ["packages"] => {
            println!("{}", verify::DEBIAN_PACKAGES.join(" "));
            true
        }
        ["fix"] => {
            sh::cargo(&root, &["fmt", "--all"])?;
            sh::cargo(
                &root,
                &["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"],
            )?;
            true
        }
        ["tidy"] => tidy::run(&root, false)?,
        ["tidy", "--ratchet"] => tidy::run(&root, true)?,
        ["update-golden"] => {
            sh::cargo_env(
                &root,
                &["test", "--workspace", "--exclude", "dyad-vm-tests", "--exclude", "dyad-image-tests"],
                &[("UPDATE_GOLDEN", "1")],
            )?;
            true
        }
        ["sim", ..] | ["mutate", ..] => {
            sim::run(&root, args)?;
            true
        }
        ["chaos", ..] => {
            verify::chaos(&root, &args[1..])?;
            true
        }
        ["fuzz"] => fuzz::run(&root, None, "60")?,
        ["fuzz", "--seconds", seconds] => fuzz::run(&root, None, seconds)?,
        ["fuzz", target] => fuzz::run(&root, Some(target), "60")?,
        ["fuzz", target, "--seconds", seconds] => fuzz::run(&root, Some(target), seconds)?,
        ["soak", "builds"] => verify::soak_builds(&root, "30")?,
        ["soak", "builds", count] => verify::soak_builds(&root, count)?,
        ["soak", "shutdown", count] => {
            verify::soak_init(&root, GUESTS, "guest", "a_shutdown_that_nothing_obeys_ends_in_time", count)?
        }
        ["soak", "faults", count] => {
            verify::soak_init(&root, GUESTS, "guest", "pid_1_of_a_machine_survives_faults", count)?
        }
        ["soak", "drbd"] => verify::soak_init(
            &root,
            GUESTS,
            "appliance",
            "the_appliance_does_on_two_machines_what_it_is_for",
            "1",
        )?,
        ["soak", "journald", count] => verify::soak_journald(&root, count)?,
        ["soak", "first-boot", count] => verify::soak_init(
            &root,
            "dyad-nbd-tests",
            "first_boot",
            "no_power_cut_in_a_first_boot_is_lasting",
            count,
        )?,
        ["configured-root", image] => verify::configured_root(&root, image)?,
        ["bench", name, options @ ..] => bench::run(&root, name, options)?,
        _ => {
            eprintln!("{USAGE}");
            return Err(anyhow::anyhow!("unknown command: {}", args.join(" ")));
        }
    })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
