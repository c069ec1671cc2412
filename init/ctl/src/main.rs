//! `dyadctl`: asks the supervisor of this machine, or with a key that of another, tells the operator.
//!
//! Exit status: 0 done; 1 refused or failed, the reason on standard error; 2 usage.

mod remote;
mod show;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dyad_api::client::{CallError, Client};
use dyad_api::operator::{
    Call, Certificate, CheckRow, Code, Credentials, EventRow, Events, FirewallRules, Freeze, LogLine, Logs,
    NodeName, PolicyRow, ResourceName, RoundTrip, RoundTripRow, SOCKET, ServiceName, ServiceRow, Signed,
    Status, SwitchOver, TakeOver, Verdict,
};
use serde_json::Value;

/// Longest wait for a reply: `logs` reads the journal page by page.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);
/// The database, the one replicated thing of every pair.
const RESOURCE: &str = "pg/main";
/// Between two looks of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(name = "dyadctl", version, about = "Asks and directs this node")]
struct Cli {
    /// Socket of the supervisor
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Ask a node from another machine: its address, with a port unless it is the usual one
    #[arg(long, value_name = "ADDRESS", requires = "key", requires = "node_key")]
    node: Option<String>,
    /// File with the operator's key, whose public half is in the site file; made when it is not there
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The node's key, as `status` shows it there
    #[arg(long, value_name = "ed25519:HEX")]
    node_key: Option<String>,
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
    /// Everything that must be true of both nodes, and of the way between them; fails when something critical is not
    Check {
        /// As a JSON list
        #[arg(long)]
        json: bool,
        /// One line and the exit status of a monitoring plugin: 0 ok, 1 warning, 2 critical, 3 unknown
        #[arg(long, conflicts_with = "json")]
        plugin: bool,
    },
    /// Write a row on the primary, in a table made for it, read it on the standby, and drop the table
    RoundTrip,
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
        /// The certificate that clients believe, alone: for `sslmode=verify-full sslrootcert=FILE`
        #[arg(long, conflicts_with = "json")]
        authority: bool,
    },
    /// Have PostgreSQL of both nodes show a certificate that somebody else signed; without files, again the one that the cluster's
    /// own authority signs
    Certificate {
        /// In PEM: the server's, then those that lead to its issuer
        #[arg(requires = "private_key")]
        chain: Option<PathBuf>,
        /// In PEM, without a passphrase
        private_key: Option<PathBuf>,
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
    /// Where the site says `pairing = "code"`: make the code with which the two nodes know each other, or type it
    Pair {
        /// As the other node showed it
        code: Option<String>,
    },
    /// Bring both nodes to the witness with the code that `dyad-witness enroll` made there: after it was replaced, restored
    /// from an old copy, or passed over by a take-over by force
    Enroll {
        /// As the witness showed it
        code: String,
    },
    /// Why the database is not better protected, the nearest cause first
    Why {
        /// What is protected: the database, or an address that follows it
        #[arg(default_value = RESOURCE)]
        resource: String,
    },
    /// What the pair does by itself, and when, with the numbers in force
    Policy {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Hand the database to the other node
    Switchover {
        /// What moves
        #[arg(default_value = RESOURCE)]
        resource: String,
        /// Where to
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// A node hands over what it holds, and takes nothing until `undrain`
    Drain {
        /// Without it the node that is asked
        node: Option<String>,
    },
    /// The end of a drain; nothing moves back
    Undrain {
        /// Without it the node that is asked
        node: Option<String>,
    },
    /// No automatic moves for a while
    Freeze {
        /// How long; 0 ends it
        #[arg(value_parser = clap::value_parser!(u32).range(0..=86_400))]
        seconds: u32,
    },
    /// Let this node go on by force, with what the other node holds or, once the witness is gone too, with what it held itself;
    /// without the flag, say what that may cost
    Takeover {
        /// What is taken
        #[arg(default_value = RESOURCE)]
        resource: String,
        /// You have looked: the other machine is switched off
        #[arg(long)]
        i_verified_peer_is_off: bool,
    },
    /// What a node did for the database
    Events {
        /// Without it the node that is asked; of the other one it has a copy
        #[arg(long)]
        node: Option<String>,
        /// How many
        #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        lines: u32,
    },
    /// The public half of the operator's key (`--key FILE`), as the site file takes it
    Key,
    /// The rules of the packet filter, made from the site file
    Firewall,
    /// Stop everything in order and switch the machine off
    Poweroff,
    /// Stop everything in order and start the machine again
    Reboot,
}

fn main() -> ExitCode {
    // clap itself ends with 2 on wrong usage and with 0 after --help.
    let cli = Cli::parse();
    let plugin = matches!(cli.command, Command::Check { plugin: true, .. });
    let done = match (&cli.command, &cli.node) {
        (Command::Key, _) => {
            remote::public_key(cli.key.as_deref()).and_then(|key| print(&format!("{key}\n"))).map(done)
        }
        (_, Some(node)) => remote::connect(node, cli.key.as_deref(), cli.node_key.as_deref())
            .and_then(|stream| run(&mut Client::new(stream, 1), cli.command)),
        (_, None) => UnixStream::connect(&cli.socket)
            .map_err(|error| {
                format!("{}: {error}; is the supervisor up, and are you root?", cli.socket.display())
            })
            .and_then(|stream| {
                stream.set_read_timeout(Some(REPLY_DEADLINE)).map_err(|error| error.to_string())?;
                run(&mut Client::new(stream, 1), cli.command)
            }),
    };
    match done {
        Ok(code) => code,
        Err(message) if plugin => {
            println!("DYAD UNKNOWN - {}", message.lines().next().unwrap_or_default());
            ExitCode::from(show::PLUGIN_UNKNOWN)
        }
        Err(message) => {
            eprintln!("dyadctl: {message}");
            ExitCode::FAILURE
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

fn run(client: &mut Client<impl Read + Write>, command: Command) -> Result<ExitCode, String> {
    match command {
        Command::Check { json, plugin } => check(client, json, plugin),
        other => tell(client, other).map(done),
    }
}

/// Asks for both nodes; fails when something critical is found.
fn check(client: &mut Client<impl Read + Write>, json: bool, plugin: bool) -> Result<ExitCode, String> {
    let answer: Value = client.call(Call::Check).map_err(|error| error.to_string())?;
    let rows: Vec<CheckRow> = decoded(answer.clone())?;
    let worst = rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::Critical);
    if plugin {
        print(&show::plugin(&rows, worst))?;
        return Ok(ExitCode::from(worst as u8));
    }
    print(&if json { format!("{answer}\n") } else { show::check(&rows) })?;
    Ok(if worst == Verdict::Critical { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(client: &mut Client<impl Read + Write>, command: Command) -> Result<(), String> {
    let text = |error: CallError| error.to_string();
    let named = |name| ServiceName { name };
    match command {
        Command::Status { json, watch: true } => watch(client, json),
        Command::Status { json, watch: false } => print(&status(client, json)?),
        Command::Services { json } => {
            let rows: Value = client.call(Call::Services).map_err(text)?;
            print(&in_form::<Vec<ServiceRow>>(rows, json, |rows| show::services(rows))?)
        }
        Command::Credentials { json, authority } => {
            let credentials: Value = client.call(Call::Credentials).map_err(text)?;
            let form = if authority { show::authority } else { show::credentials };
            print(&in_form::<Credentials>(credentials, json, form)?)
        }
        Command::Certificate { chain, private_key } => certificate(client, chain.zip(private_key)),
        Command::Logs { lines, service } => {
            let lines: Vec<LogLine> = client.call(Call::Logs(Logs { lines, service })).map_err(text)?;
            print(&show::logs(&lines))
        }
        Command::Pair { code } => {
            let Code { code } = client.call(Call::Pair(Code { code })).map_err(text)?;
            let code = code.unwrap_or_default();
            print(&format!("This node goes by the code {code}\nOn the other node: dyadctl pair {code}\n"))
        }
        Command::RoundTrip => {
            let row: RoundTripRow = client.call(Call::RoundTrip(RoundTrip::default())).map_err(text)?;
            print(&show::round_trip(&row))
        }
        Command::Enroll { code } => order(client, Call::Enroll(Code { code: Some(code) })),
        Command::Why { resource } => {
            let resource = Some(resource);
            let lines: Vec<String> = client.call(Call::Why(ResourceName { resource })).map_err(text)?;
            print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        }
        Command::Policy { json } => {
            let policy: Value = client.call(Call::Policy).map_err(text)?;
            print(&in_form::<Vec<PolicyRow>>(policy, json, |rows| show::policy(rows))?)
        }
        Command::Events { node, lines } => {
            let rows: Vec<EventRow> = client.call(Call::Events(Events { lines, node })).map_err(text)?;
            print(&show::events(&rows))
        }
        // Answered without a node, or by others.
        Command::Key | Command::Check { .. } => Ok(()),
        Command::Firewall => {
            let FirewallRules { state, rules } = client.call(Call::Firewall).map_err(text)?;
            print(&format!("# {state}\n{rules}"))
        }
        Command::Switchover { resource, to } => {
            order(client, Call::SwitchOver(SwitchOver { resource: Some(resource), to }))
        }
        Command::Drain { node } => order(client, Call::Drain(NodeName { node })),
        Command::Undrain { node } => order(client, Call::Undrain(NodeName { node })),
        Command::Freeze { seconds } => order(client, Call::Freeze(Freeze { seconds })),
        Command::Takeover { resource, i_verified_peer_is_off: peer_is_off } => {
            order(client, Call::TakeOver(TakeOver { resource: Some(resource), peer_is_off }))
        }
        Command::Start { service } => order(client, Call::Start(named(service))),
        Command::Stop { service } => order(client, Call::Stop(named(service))),
        Command::Restart { service } => order(client, Call::Restart(named(service))),
        Command::Poweroff => order(client, Call::PowerOff),
        Command::Reboot => order(client, Call::Reboot),
    }
}

fn certificate(
    client: &mut Client<impl Read + Write>,
    files: Option<(PathBuf, PathBuf)>,
) -> Result<(), String> {
    let read = |file: &PathBuf| {
        std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
    };
    let own = match &files {
        Some((chain, key)) => Some(Signed { certificate: read(chain)?, key: read(key)? }),
        None => None,
    };
    let call = Call::Certificate(Certificate { own });
    let missing: Vec<String> = client.call(call).map_err(|error| error.to_string())?;
    if missing.is_empty() {
        return Ok(());
    }
    print(&format!(
        "The certificate is not for {}: clients that connect by these and check names will refuse it\n",
        missing.join(", ")
    ))
}

fn order(client: &mut Client<impl Read + Write>, call: Call) -> Result<(), String> {
    client.call::<Value>(call).map(drop).map_err(|error| error.to_string())
}

fn status(client: &mut Client<impl Read + Write>, json: bool) -> Result<String, String> {
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
    decoded(answer).map(|answer| words(&answer))
}

fn decoded<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, String> {
    serde_json::from_value(answer).map_err(|error| {
        format!("the supervisor's answer does not decode ({error}); it may run another version")
    })
}

fn watch(client: &mut Client<impl Read + Write>, json: bool) -> Result<(), String> {
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
