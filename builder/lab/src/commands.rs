//! The commands other than `up`: each asks the daemon for one thing and shows the answer.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_api::operator::{Call, Credentials};
use serde_json::Value;

use crate::cli::{LabArgs, LabCommand, UpArgs};
use crate::clock::{self, Deadline};
use crate::control::{Cable, Power, Request, Row, ask, ask_for, daemon_pid};
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::process::Program;
use crate::state::StateDir;
use crate::{ctl, daemon, inside, namespace, process, status, terminal, tools, up, watch};

/// How long `down` waits for the daemon to go.
const DOWN_WAIT: Duration = Duration::from_secs(30);
const DOWN_POLL: Duration = Duration::from_millis(20);

/// An image that can be booted.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// The raw disk image.
    pub raw: PathBuf,
    /// What tells this image from any other, for a message: name, version and root hash.
    pub id: String,
}

/// Builds the definition at the first path into the directory at the second.
pub type BuildImage =
    dyn Fn(&Path, &Path) -> std::result::Result<BuiltImage, Box<dyn std::error::Error + Send + Sync>>;

/// What the lab needs from the program that it is part of.
pub struct LabEnv {
    /// The definition that is built when none is named.
    pub definition: PathBuf,
    /// The builder.
    pub build: Box<BuildImage>,
}

/// Runs a command. Returns the exit code: 0 done, 1 refused or failed with the reason on standard error.
/// `exec`, `psql` and `launch` become another program, so call this before any other thread exists.
pub fn run(args: LabArgs, env: &LabEnv) -> u8 {
    match dispatch(args, env) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("dyad lab: {e}");
            1
        }
    }
}

fn dispatch(args: LabArgs, env: &LabEnv) -> Result<u8> {
    let command = args.command.unwrap_or_else(|| LabCommand::Up(UpArgs::default()));
    match command {
        // Between two programs, without a lab's directory and even a user's environment.
        LabCommand::Keep { spec } => return inside::keep(&spec),
        LabCommand::Inside { spec } => return Err(inside::inside(&spec)),
        LabCommand::Station { spec } => return Err(inside::station(&spec)),
        LabCommand::Launch { parent, argv } => return Err(process::launch(parent, &argv)),
        _ => {}
    }
    let state = StateDir::locate(args.state.as_deref())?;
    command_of(&state, command, env).map(|()| 0)
}

fn command_of(state: &StateDir, command: LabCommand, env: &LabEnv) -> Result<()> {
    let plain = |request: Request| ask(state, &request).map(drop);
    match command {
        LabCommand::Up(args) => up::up(state, &args, env),
        LabCommand::Status { json } => status::show(state, json),
        LabCommand::Watch => watch::run(state),
        LabCommand::Exec { command } => exec(state, &command),
        LabCommand::Psql { node, args } => psql(state, node.as_deref(), &args),
        LabCommand::Console { node } => terminal::attach(ask(state, &Request::Console { node })?.stream),
        LabCommand::Logs { node } => logs(state, &node),
        LabCommand::Kill { node } => plain(Request::Kill { node }),
        LabCommand::Start { node } => plain(Request::Start { node }),
        LabCommand::Pause { node, stop_clock } => plain(Request::Pause { node, stop_clock }),
        LabCommand::Resume { node } => plain(Request::Resume { node }),
        LabCommand::Stop { node } => plain(Request::Stop { node }),
        LabCommand::Cut { a, b, one_way } => plain(Request::Cut { from: a, to: b, one_way }),
        LabCommand::Heal { a, b } => plain(Request::Heal { pair: a.zip(b) }),
        LabCommand::Unplug { node, nic, silent } => {
            let cable = if silent { Cable::Silent } else { Cable::Unplugged };
            plain(Request::Cable { node, nic, cable })
        }
        LabCommand::Plug { node, nic } => plain(Request::Cable { node, nic, cable: Cable::Plugged }),
        LabCommand::Ctl { node, args } => ctl::run(state, &node, &args),
        LabCommand::Down { keep } => down(state, keep),
        LabCommand::Daemon => daemon::run(state),
        LabCommand::Keep { .. }
        | LabCommand::Inside { .. }
        | LabCommand::Station { .. }
        | LabCommand::Launch { .. } => Ok(()),
    }
}

/// The machines of a running lab.
pub(crate) fn machines(state: &StateDir) -> Result<Vec<Row>> {
    ask_for(state, &Request::Machines)
}

fn exec(state: &StateDir, command: &[OsString]) -> Result<()> {
    let Some((name, args)) = command.split_first() else { return refuse("no command given") };
    let file = if Path::new(name).components().count() > 1 {
        PathBuf::from(name)
    } else {
        match name.to_str().and_then(process::on_host) {
            Some(file) => file,
            None => return refuse(format!("{}: no such program in PATH", name.to_string_lossy())),
        }
    };
    namespace::enter(daemon_pid(state)?)?;
    Err(Program::host(file).become_it(args, &[]))
}

/// How to reach PostgreSQL on a node.
pub(crate) fn credentials(state: &StateDir, node: &str) -> Result<Credentials> {
    ask_for(state, &Request::Operator { node: node.into(), call: Call::Credentials })
}

fn psql(state: &StateDir, node: Option<&str>, args: &[OsString]) -> Result<()> {
    let node = match node {
        Some(node) => node.to_owned(),
        None => serving(state)?,
    };
    let found = credentials(state, &node)?;
    let (Some(address), Some(role)) = (found.addresses.first(), found.roles.first()) else {
        return refuse(format!(
            "{node} names no address or no role that may log in; its site file declares them under [postgresql]"
        ));
    };
    let database = role.databases.first().cloned().unwrap_or_else(|| "postgres".into());
    let env = [
        ("PGHOST", address.clone()),
        ("PGPORT", found.port.to_string()),
        ("PGUSER", role.role.clone()),
        ("PGPASSWORD", role.password.clone()),
        ("PGDATABASE", database),
        ("PGCONNECT_TIMEOUT", "10".into()),
    ];
    let psql = tools::psql(&|text| eprintln!("{text}"))?;
    if psql.fresh {
        // Unpacking left threads behind, and only a process with one thread can enter a user namespace.
        let own: Vec<_> = std::env::args_os().skip(1).collect();
        return Err(Program::itself().become_it(&own, &[]));
    }
    namespace::enter(daemon_pid(state)?)?;
    Err(psql.program.become_it(args, &env))
}

fn serving(state: &StateDir) -> Result<String> {
    match status::writer(state)? {
        Some(name) => Ok(name),
        None => refuse("no node takes writes now; `dyad lab status` shows how far they are"),
    }
}

fn logs(state: &StateDir, node: &str) -> Result<()> {
    let Some(lab) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    let known = lab.members();
    if !known.iter().any(|name| name == node) {
        return refuse(format!("there is no node {node:?} in this lab; there is {}", known.join(", ")));
    }
    let path = state.member(node).join("serial.log");
    let mut file = File::open(&path).at("open", &path)?;
    match io::copy(&mut file, &mut io::stdout()) {
        // `lab logs N | head` closes early.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).at("print", &path),
        _ => Ok(()),
    }
}

fn down(state: &StateDir, keep: bool) -> Result<()> {
    match machines(state) {
        Ok(rows) => {
            if keep {
                stop_all(state, &rows)?;
            }
            ask(state, &Request::Down)?;
            let deadline = Deadline::after(DOWN_WAIT);
            while state.connect().is_ok() && deadline.left().is_some() {
                clock::pause(DOWN_POLL);
            }
        }
        // A killed daemon leaves its disks; removing them is what is asked for.
        Err(LabError::NotUp(_)) if state.exists() => {}
        Err(e) => return Err(e),
    }
    let lock = state.lock()?;
    if !keep {
        state.remove_all()?;
    }
    drop(lock);
    Ok(())
}

fn stop_all(state: &StateDir, rows: &[Row]) -> Result<()> {
    for row in rows {
        match row.power {
            Power::Off => {}
            Power::On => ask(state, &Request::Stop { node: row.name.clone() }).map(drop)?,
            Power::Paused | Power::ClockStopped => {
                ask(state, &Request::Resume { node: row.name.clone() })?;
                ask(state, &Request::Stop { node: row.name.clone() }).map(drop)?;
            }
        }
    }
    Ok(())
}

/// Prints to standard output. Whoever reads it may close it early, as `head` does: that is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).doing("write to standard output"),
        _ => Ok(()),
    }
}

/// A value for people: indented JSON.
pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
