//! The command line: `run`, `enroll`, `status`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use dyad_channel::secret::Code;
use dyad_channel::witness::PORT;

use crate::control::{self, Question, Told};
use crate::run;

const DEFAULT_STATE: &str = "/var/lib/dyad-witness";

#[derive(Debug, Parser)]
#[command(
    name = "dyad-witness",
    version,
    about = "The third vote of a Dyad cluster",
    long_about = "The third vote of a Dyad cluster: run it on any machine that fails by itself, away from both nodes.",
    after_help = "Examples:\n  \
        dyad-witness run --listen [::]:7400 --state /var/lib/dyad-witness\n  \
        dyad-witness enroll                      make a code, to be typed at the cluster\n  \
        dyad-witness enroll 7K3MQ-0RT5W-9XBDA-HJ2CP   accept the code that the cluster shows\n  \
        dyad-witness status                      what is arbitrated, and what a loss now would cost"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clusters until killed
    #[command(
        after_help = "Example:\n  dyad-witness run --listen 192.0.2.10:7400 --state /var/lib/dyad-witness"
    )]
    Run {
        /// Where nodes come
        #[arg(long, value_name = "ADDR:PORT", default_value_t = SocketAddr::from(([0u16; 8], PORT)))]
        listen: SocketAddr,
        /// Directory of identity and registers; made if it is not there
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Whether the state directory may ever go back in time
        #[arg(long, value_enum, default_value_t = Storage::Restorable)]
        storage: Storage,
    },
    /// Let a cluster in, once, by a one-time code
    #[command(after_help = "Examples:\n  dyad-witness enroll\n  dyad-witness enroll 7K3MQ-0RT5W-9XBDA-HJ2CP")]
    Enroll {
        /// The cluster's code; without one a new code is made and printed
        code: Option<String>,
        /// State directory of the running witness
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
    /// What is arbitrated, and what a loss now would cost
    #[command(after_help = "Example:\n  dyad-witness status --json")]
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// State directory of the running witness
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
}

/// What the owner of the machine asserts about its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Storage {
    /// It may be restored from a snapshot: after a restart both nodes are heard before anything is granted
    Restorable,
    /// It is never restored from a snapshot: one node is enough
    Durable,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // clap itself ends with 2 on wrong usage and with 0 after --help.
    let done = match Cli::parse().command {
        Command::Run { listen, state, storage } => {
            run::run(listen, &state, storage == Storage::Durable).map_err(|error| error.to_string())
        }
        Command::Enroll { code, state } => enroll(code, &state),
        Command::Status { json, state } => show_status(json, &state),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("dyad-witness: {message}");
            ExitCode::FAILURE
        }
    }
}

fn enroll(code: Option<String>, state: &std::path::Path) -> Result<(), String> {
    let made = code.is_none();
    let code = match code {
        Some(code) => Code::parse(&code).map_err(|error| error.to_string())?,
        None => Code::draw(),
    };
    match control::ask(state, &Question::Enroll { code: code.to_string() })? {
        Told::Opened if made => print(&format!("{code}\n")),
        Told::Opened => print("The code is open: the first cluster that brings it is let in.\n"),
        Told::Refused(why) => Err(why),
        Told::Status(_) => Err(other_version()),
    }
}

fn show_status(json: bool, state: &std::path::Path) -> Result<(), String> {
    match control::ask(state, &Question::Status)? {
        Told::Status(status) if json => {
            let text = serde_json::to_string(&status).map_err(|error| error.to_string())?;
            print(&format!("{text}\n"))
        }
        Told::Status(status) => print(&status.show()),
        Told::Refused(why) => Err(why),
        Told::Opened => Err(other_version()),
    }
}

fn other_version() -> String {
    "the running witness answered something else; it may be another version".to_owned()
}

fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}
