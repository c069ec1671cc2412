//! A node as a virtual machine.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dyad_api::client::{CallError, Client};
use dyad_api::operator::Call;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::console::Console;
use crate::control::{Cable, Power};
use crate::error::{Doing, LabError, Result, refuse};
use crate::machine::{OPERATOR_PORT, Setup, Sockets, prepare};
use crate::member::{Attach, Body, Ended, Kind, signal};
use crate::network::Network;
use crate::process::Launch;
use crate::qmp::Qmp;
use crate::switch::fabric::PortId;
use crate::switch::relay::Relay;
use crate::topology::{Node, Role};

/// How long a supervisor may take to answer; on top of its own deadline where the call has one.
const CALL_WAIT: Duration = Duration::from_secs(15);
/// The journal is read from a disk, by a program that a machine just booted may have to load first.
const LOGS_WAIT: Duration = Duration::from_secs(60);

/// A node of the vm backend.
pub(crate) struct Vm {
    pub(crate) node: Node,
    pub(crate) dir: PathBuf,
    pub(crate) setup: Setup,
    pub(crate) network: Arc<Network>,
}

impl Kind for Vm {
    fn name(&self) -> String {
        self.node.name()
    }

    fn prepare(&self) -> Result<(Launch, Attach)> {
        let (launch, sockets) = prepare(&self.setup, self.node, &self.dir)?;
        let relay = self.network.switch()?.clone();
        let (node, dir) = (self.node, self.dir.clone());
        Ok((launch, Box::new(move |pid| Ok(Arc::new(attach(pid, node, dir, relay, sockets)?)))))
    }
}

fn attach(pid: Pid, node: Node, dir: PathBuf, relay: Arc<Relay>, sockets: Sockets) -> Result<Machine> {
    let Sockets { nics, serial, operator, qmp } = sockets;
    let mut ports = Vec::new();
    for (role, nic) in Role::ALL.iter().zip(nics) {
        ports.push(relay.plug_nic(&node.name(), node.link(*role), nic)?);
    }
    let agent_open = Arc::new(Mutex::new(false));
    let open = agent_open.clone();
    let qmp = Qmp::start(qmp, move |event, data| {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            "VSERPORT_CHANGE" => *open = data["open"].as_bool().unwrap_or(false),
            "RESET" => *open = false,
            _ => {}
        }
    })?;
    let socket = operator.try_clone().doing("duplicate the operator's port")?;
    operator.set_write_timeout(Some(CALL_WAIT)).doing("set a deadline on the operator's port")?;
    let typed = serial.try_clone().doing("duplicate the console socket")?;
    Ok(Machine {
        name: node.name(),
        pid,
        ports,
        relay,
        qmp,
        console: Console::start(serial, Some(typed.into()), &dir.join("serial.log"))?,
        dir,
        agent_open,
        // A fresh pair of sockets for every machine: no reply to an earlier client can be on it.
        operator: Mutex::new(Operator { client: Client::new(operator, 1), socket }),
    })
}

struct Machine {
    name: String,
    pid: Pid,
    dir: PathBuf,
    ports: Vec<PortId>,
    relay: Arc<Relay>,
    qmp: Qmp,
    console: Arc<Console>,
    agent_open: Arc<Mutex<bool>>,
    operator: Mutex<Operator>,
}

/// The operator's port: one call at a time.
struct Operator {
    client: Client<UnixStream>,
    /// The client's socket again: where its deadlines are set.
    socket: UnixStream,
}

impl Body for Machine {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn kill(&self) -> Result<()> {
        signal(self.pid, Signal::SIGKILL)
    }

    fn press_power(&self) -> Result<()> {
        self.qmp.execute("system_powerdown", json!({})).map(drop)
    }

    fn pause(&self, stop_clock: bool) -> Result<()> {
        match stop_clock {
            true => self.qmp.execute("stop", json!({})).map(drop),
            false => signal(self.pid, Signal::SIGSTOP),
        }
    }

    fn resume(&self, power: Power) -> Result<()> {
        match power {
            Power::ClockStopped => self.qmp.execute("cont", json!({})).map(drop),
            Power::Paused | Power::On | Power::Off => signal(self.pid, Signal::SIGCONT),
        }
    }

    fn cable(&self, role: Role, cable: Cable) -> Result<()> {
        let nics = Role::ALL.iter().zip(&self.ports);
        for (_, port) in nics.filter(|(of, _)| **of == role) {
            self.relay.with_fabric(|fabric| fabric.mute(*port, cable == Cable::Silent));
        }
        let up = cable != Cable::Unplugged;
        self.qmp.execute("set_link", json!({"name": role.name(), "up": up})).map(drop)
    }

    /// QEMU answers once its arguments were accepted and its devices exist.
    fn confirm(&self) -> Result<()> {
        match self.qmp.execute("query-status", json!({})) {
            Ok(_) => Ok(()),
            Err(e) => {
                let said = std::fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
                refuse(format!("{e}. QEMU says: {}", said.trim()))
            }
        }
    }

    fn agent(&self) -> bool {
        *self.agent_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, call: Call) -> Result<Value> {
        if !self.agent() {
            return refuse(format!("{}'s supervisor has not opened the port {OPERATOR_PORT} yet", self.name));
        }
        let mut operator = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        let Operator { client, socket } = &mut *operator;
        ask(&self.name, client, socket, call)
    }

    fn console(&self) -> Option<&Arc<Console>> {
        Some(&self.console)
    }

    fn detach(&self) {
        self.ports.iter().for_each(|p| self.relay.unplug(*p));
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        // What a guest that powers itself off looks like.
        if status.success() {
            return Ended::PoweredOff;
        }
        Ended::Failed(format!("QEMU ended with {status}; see {}", self.dir.join("qemu.log").display()))
    }
}

/// Asks a supervisor over a connection, with deadlines.
pub(crate) fn ask(
    name: &str,
    client: &mut Client<UnixStream>,
    socket: &UnixStream,
    call: Call,
) -> Result<Value> {
    let limit = match &call {
        Call::Exec(exec) => CALL_WAIT + Duration::from_millis(exec.deadline_ms.into()),
        Call::Logs(_) => LOGS_WAIT,
        _ => CALL_WAIT,
    };
    socket.set_read_timeout(Some(limit)).doing("set a deadline on a supervisor's socket")?;
    match client.call(call) {
        Ok(answer) => Ok(answer),
        Err(CallError::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => Err(LabError::Deadline {
            what: format!("{name}'s supervisor did not answer"),
            seconds: limit.as_secs(),
            next: format!("`dyad lab logs {name}` shows its console"),
        }),
        Err(e) => refuse(format!("{name}: {e}")),
    }
}
