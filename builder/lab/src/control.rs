//! What the lab's commands and its daemon say to each other: one JSON object a line over the control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use dyad_api::operator::Call;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::console::Phase;
use crate::error::{Doing, LabError, Result, refuse};
use crate::state::StateDir;

/// A request. Every connection carries one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Answered by a list of [`Row`]: nodes, then the witness.
    Machines,
    /// Answered by a list of [`CutRow`].
    Cuts,
    /// Power a node on.
    Start { node: String },
    /// Press the power button and wait.
    Stop { node: String },
    /// Pull the plug.
    Kill { node: String },
    /// Stop the machine's processors; with `stop_clock` its clock too.
    Pause { node: String, stop_clock: bool },
    /// Let a paused machine run on.
    Resume { node: String },
    /// Drop what goes from `from` to `to`, and unless `one_way` the other direction too.
    Cut { from: String, to: String, one_way: bool },
    /// Undo the cuts between two, or all.
    Heal { pair: Option<(String, String)> },
    /// Plug a node's cable in, pull it, or let it carry nothing.
    Cable { node: String, nic: String, cable: Cable },
    /// Turns the connection into the node's serial console.
    Console { node: String },
    /// Forwards a call to the node's supervisor; answered by its answer.
    Operator { node: String, call: Call },
    /// End the lab.
    Down,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// It is done.
    Done(Value),
    /// It is not, and why.
    Failed(String),
}

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Power {
    /// No process.
    Off,
    /// Running.
    On,
    /// Its process is stopped; the guest's clock will jump.
    Paused,
    /// Stopped with its clock.
    ClockStopped,
}

/// How the cable of a NIC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cable {
    /// It carries frames.
    Plugged,
    /// No carrier.
    Unplugged,
    /// A carrier, and every frame is lost.
    Silent,
}

/// A cut: nothing that `from` sends reaches `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CutRow {
    /// Who is not heard.
    pub(crate) from: String,
    /// By whom.
    pub(crate) to: String,
}

/// A cable that does not carry frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CableRow {
    /// The NIC's name in the node.
    pub(crate) nic: String,
    pub(crate) cable: Cable,
}

/// One member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: String,
    /// Whether it runs.
    pub(crate) power: Power,
    /// QEMU's process, a container's PID 1, the witness.
    pub(crate) pid: Option<i32>,
    /// Whether its supervisor can be asked.
    pub(crate) agent: bool,
    /// Phases of the current boot that the console showed.
    pub(crate) phases: Vec<Phase>,
    /// Its cables that are not plugged in as they should be.
    pub(crate) cables: Vec<CableRow>,
    /// Why it ended, when it did so by itself.
    pub(crate) end: Option<String>,
}

/// Writes one message.
pub(crate) fn send(mut stream: &UnixStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).expect("control messages hold only types that JSON can write");
    line.push(b'\n');
    stream.write_all(&line).doing("write to the lab's control socket")
}

/// Reads one message byte by byte as far as its line goes: what follows may be console bytes.
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<T> {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).doing("read from the lab's control socket")?;
    if line.is_empty() {
        return refuse("the lab's daemon went away");
    }
    match serde_json::from_slice(&line) {
        Ok(message) => Ok(message),
        Err(e) => refuse(format!("the other end of the lab's control socket speaks another version: {e}")),
    }
}

/// A connection to the daemon after its answer.
pub(crate) struct Answer {
    /// The connection, for a console.
    pub(crate) stream: UnixStream,
    /// The answer.
    pub(crate) value: Value,
}

/// Asks the daemon of a state directory for something.
pub(crate) fn ask(state: &StateDir, request: &Request) -> Result<Answer> {
    let stream = state.connect()?;
    let reply = match send(&stream, request).and_then(|()| receive(&stream)) {
        Ok(reply) => reply,
        Err(error) => {
            // A daemon that was killed closes its sockets one after the other: then there is no lab any more.
            state.connect()?;
            return Err(error);
        }
    };
    match reply {
        Reply::Done(value) => Ok(Answer { stream, value }),
        Reply::Failed(reason) => Err(LabError::Refused(reason)),
    }
}

/// Asks and decodes the answer.
pub(crate) fn ask_for<T: DeserializeOwned>(state: &StateDir, request: &Request) -> Result<T> {
    let value = ask(state, request)?.value;
    match serde_json::from_value(value) {
        Ok(answer) => Ok(answer),
        Err(e) => refuse(format!("the lab's daemon speaks another version: {e}")),
    }
}

/// The daemon's process, as the kernel knows it.
pub(crate) fn daemon_pid(state: &StateDir) -> Result<i32> {
    let stream = state.connect()?;
    Ok(getsockopt(&stream, PeerCredentials).doing("ask who the daemon is")?.pid())
}
