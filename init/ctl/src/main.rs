//! `dyadctl`: asks the supervisor of this machine, tells the operator.
//!
//! Exit status: 0 done; 1 refused or failed, the reason on standard error; 2 usage.

mod show;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dyad_api::client::{CallError, Client};
use dyad_api::operator::{
    Call, Credentials, EventRow, Events, FirewallRules, Freeze, LogLine, Logs, SOCKET, ServiceName, ServiceRow, Status,
    TakeOver,
};
use serde_json::Value;

/// Longest wait for a reply: `logs` reads the journal page by page.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(name = "dyadctl", version, about = "Asks and directs this node")]
struct Cli {
    /// Socket of the supervisor
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What losing this node now would cost, and how it is
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// Again whenever it changes, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// The services
    Services {
        /// As a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Addresses, roles and generated passwords of the database
    Credentials {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Start a service
    Start {
        /// As `services` names it
        service: String,
    },
    /// Stop a service, until it is started again or the machine is
    Stop {
        /// As `services` names it
        service: String,
    },
    /// Stop a service and start it again
    Restart {
        /// As `services` names it
        service: String,
    },
    /// The end of the journal
    Logs {
        /// How many lines
        #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        lines: u32,
        /// Of this service only
        service: Option<String>,
    },
    /// Why the database is not better protected, the nearest cause first
    Why,
    /// Hand the database to the other node
    Switchover,
    /// Hand over what this node holds, and take nothing until `undrain`
    Drain,
    /// The end of a drain; nothing moves back
    Undrain,
    /// No automatic moves for a while
    Freeze {
        /// How long; 0 ends it
        #[arg(value_parser = clap::value_parser!(u32).range(0..=86_400))]
        seconds: u32,
    },
    /// Take the database from the other node by force; without the flag, say what that may cost
    Takeover {
        /// You have looked: the other machine is switched off
        #[arg(long)]
        i_verified_peer_is_off: bool,
    },
    /// What this node did for the database
    Events {
        /// How many
        #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        lines: u32,
    },
    /// The rules of the packet filter, made from the site file
    Firewall,
    /// Stop everything in order and switch the machine off
    Poweroff,
    /// Stop everything in order and start the machine again
    Reboot,
}

fn main() -> ExitCode {
    // clap itself ends with 2 on wrong usage and with 0 after --help.
    let Cli { socket, command } = Cli::parse();
    let done = UnixStream::connect(&socket)
        .map_err(|error| format!("{}: {error}; is the supervisor up, and are you root?", socket.display()))
        .and_then(|stream| {
            stream.set_read_timeout(Some(REPLY_DEADLINE)).map_err(|error| error.to_string())?;
            run(&mut Client::new(stream, 1), command)
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("dyadctl: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(client: &mut Client<UnixStream>, command: Command) -> Result<(), String> {
    let text = |error: CallError| error.to_string();
    let named = |name| ServiceName { name };
    match command {
        Command::Status { json, watch: true } => watch(client, json),
        Command::Status { json, watch: false } => print(&status(client, json)?),
        Command::Services { json } => {
            let rows: Value = client.call(Call::Services).map_err(text)?;
            print(&in_form::<Vec<ServiceRow>>(rows, json, |rows| show::services(rows))?)
        }
        Command::Credentials { json } => {
            let credentials: Value = client.call(Call::Credentials).map_err(text)?;
            print(&in_form::<Credentials>(credentials, json, show::credentials)?)
        }
        Command::Logs { lines, service } => {
            let lines: Vec<LogLine> = client.call(Call::Logs(Logs { lines, service })).map_err(text)?;
            print(&show::logs(&lines))
        }
        Command::Why => {
            let lines: Vec<String> = client.call(Call::Why).map_err(text)?;
            print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        }
        Command::Events { lines } => {
            let rows: Vec<EventRow> = client.call(Call::Events(Events { lines })).map_err(text)?;
            print(&show::events(&rows))
        }
        Command::Firewall => {
            let FirewallRules { state, rules } = client.call(Call::Firewall).map_err(text)?;
            print(&format!("# {state}\n{rules}"))
        }
        Command::Switchover => order(client, Call::SwitchOver),
        Command::Drain => order(client, Call::Drain),
        Command::Undrain => order(client, Call::Undrain),
        Command::Freeze { seconds } => order(client, Call::Freeze(Freeze { seconds })),
        Command::Takeover { i_verified_peer_is_off: peer_is_off } => {
            order(client, Call::TakeOver(TakeOver { peer_is_off }))
        }
        Command::Start { service } => order(client, Call::Start(named(service))),
        Command::Stop { service } => order(client, Call::Stop(named(service))),
        Command::Restart { service } => order(client, Call::Restart(named(service))),
        Command::Poweroff => order(client, Call::PowerOff),
        Command::Reboot => order(client, Call::Reboot),
    }
}

fn order(client: &mut Client<UnixStream>, call: Call) -> Result<(), String> {
    client.call::<Value>(call).map(drop).map_err(|error| error.to_string())
}

fn status(client: &mut Client<UnixStream>, json: bool) -> Result<String, String> {
    let status: Value = client.call(Call::Status).map_err(|error| error.to_string())?;
    in_form::<Status>(status, json, show::status)
}

/// The answer as it came, in one line, or in words.
fn in_form<T: serde::de::DeserializeOwned>(
    answer: Value,
    json: bool,
    words: impl FnOnce(&T) -> String,
) -> Result<String, String> {
    if json {
        return Ok(format!("{answer}\n"));
    }
    let answer = serde_json::from_value(answer).map_err(|error| {
        format!("the supervisor's answer does not decode ({error}); it may run another version")
    })?;
    Ok(words(&answer))
}

fn watch(client: &mut Client<UnixStream>, json: bool) -> Result<(), String> {
    let mut last = String::new();
    loop {
        let text = status(client, json)?;
        if text != last {
            print(&text)?;
            last = text;
        }
        std::thread::park_timeout(WATCH_INTERVAL);
    }
}

/// Writes to standard output; a reader that has had enough is no failure.
fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| format!("standard output: {error}")),
    }
}
