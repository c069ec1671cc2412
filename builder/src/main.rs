//! `dyad`: builds images, shows what is in them, and runs them in a lab.

mod blocks;
mod build;
mod canonical;
mod cli;
mod diff;
mod emit;
mod image;
mod inspect;
mod key;
mod load;
mod manifest;
mod packages;
mod payload;
mod record;
mod sbom;
mod stage;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use cli::{Cli, Command, KeyCommand};

fn schema(kind: Option<&str>) -> Result<()> {
    let all = dyad_spec::schema::json_schemas();
    let known: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    if let Some(kind) = kind {
        let (_, one) = all
            .iter()
            .find(|(name, _)| *name == kind)
            .with_context(|| format!("there is no schema {kind:?}; there are: {}", known.join(", ")))?;
        println!("{}", serde_json::to_string_pretty(one)?);
    } else {
        let object: serde_json::Map<String, serde_json::Value> =
            all.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        println!("{}", serde_json::to_string_pretty(&object)?);
    }
    Ok(())
}

fn man(dir: &Path) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("writing into {}", dir.display()))
}

/// The definition that `dyad lab` builds when none is named: the checkout's, or that of the working directory.
fn lab_definition() -> PathBuf {
    let here = PathBuf::from("images/lab.toml");
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("images/lab.toml");
    if !here.is_file() && checkout.is_file() { checkout } else { here }
}

fn lab(args: dyad_lab::LabArgs) -> u8 {
    let build = |definition: &Path, out: &Path| {
        let wanted = build::Wanted {
            definition: definition.to_owned(),
            out: out.to_owned(),
            formats: vec![dyad_spec::OutputFormat::Raw],
            ..build::Wanted::default()
        };
        let record = build::build(&wanted).map_err(|e| format!("{e:#}"))?;
        let raw = record.outputs.first().map(|o| o.path.clone()).ok_or("the build made no raw image")?;
        let id = format!("{} {} {}", record.name, record.version, record.root.verity_root_hash);
        Ok(dyad_lab::BuiltImage { raw, id })
    };
    dyad_lab::run(args, &dyad_lab::LabEnv { definition: lab_definition(), build: Box::new(build) })
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Build(args) => {
            let json = args.json;
            let record = build::build(&args.into())?;
            if json {
                println!("{}", serde_json::to_string_pretty(&record)?);
            } else {
                record.print();
            }
        }
        Command::Lock(args) => packages::lock(&args.definition, args.update)?,
        Command::Inspect(args) => inspect::run(&args)?,
        Command::Verify { file, key } => verify::run(&file, key.as_deref())?,
        Command::Diff { old, new, json } => diff::run(&old, &new, json)?,
        Command::Key { command: KeyCommand::New { name } } => key::new(&name)?,
        Command::Lab(args) => return Ok(lab(args)),
        Command::Schema { kind } => schema(kind.as_deref())?,
        Command::Tools { packages } => {
            let root = dyad_lab::unpack_tools(&packages, &|text| eprintln!("dyad: {text}"))?;
            println!("{}", root.display());
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dyad", &mut std::io::stdout());
        }
        Command::Man { dir } => man(&dir)?,
    }
    Ok(0)
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A diagnostic brings its own layout; a chain of causes is one line.
            let text = format!("{error:#}");
            if text.starts_with("error") {
                eprintln!("{text}")
            } else {
                eprintln!("dyad: {text}")
            }
            ExitCode::FAILURE
        }
    }
}
