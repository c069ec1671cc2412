//! The lab without the builder: `lab lab up --image FILE` boots a raw disk image that exists.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dyad_lab::{LabArgs, LabEnv};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The lab.
    Lab(LabArgs),
}

fn main() -> ExitCode {
    let Command::Lab(args) = Cli::parse().command;
    let env = LabEnv {
        definition: "images/lab.toml".into(),
        build: Box::new(|definition, _| {
            Err(format!("cannot build {}: give a disk image with --image", definition.display()).into())
        }),
    };
    ExitCode::from(dyad_lab::run(args, &env))
}
