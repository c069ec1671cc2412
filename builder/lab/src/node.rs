//! A node in the daemon: its machine while there is one, and what can be done to it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dyad_api::client::{CallError, Client};
use dyad_api::operator::Call;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::clock::Deadline;
use crate::console::Console;
use crate::control::{Power, Row};
use crate::error::{Doing, LabError, Result, refuse};
use crate::machine::{Launch, OPERATOR_PORT, Setup, Sockets, prepare};
use crate::qmp::Qmp;
use crate::switch::fabric::{Link, PortId};
use crate::switch::relay::Relay;
use crate::topology::{Node, Role};

/// How long an orderly stop may take: PID 1's own shutdown deadline and the slowness of TCG.
const STOP_WAIT: Duration = Duration::from_secs(120);
/// How long a killed process may take to go.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// How long the supervisor may take to answer; on top of its own deadline where the call has one.
const CALL_WAIT: Duration = Duration::from_secs(15);

/// A node, whether its machine runs or not.
pub(crate) struct NodeSlot {
    node: Node,
    dir: PathBuf,
    setup: Setup,
    relay: Arc<Relay>,
    inner: Mutex<Inner>,
    ended: Condvar,
}

#[derive(Default)]
struct Inner {
    machine: Option<Machine>,
    /// Why the last machine ended, unless it was asked to.
    end: Option<String>,
}

struct Machine {
    pid: Pid,
    power: Power,
    /// Somebody asked for its end, so an end is no news.
    ending: bool,
    ports: Vec<PortId>,
    qmp: Arc<Qmp>,
    console: Arc<Console>,
    agent_open: Arc<Mutex<bool>>,
    operator: Arc<Mutex<Operator>>,
}

/// The operator's port: one call at a time.
struct Operator {
    client: Client<UnixStream>,
    /// The client's socket again: where its deadlines are set.
    socket: UnixStream,
}

impl NodeSlot {
    /// A node that is off.
    pub(crate) fn new(node: Node, dir: PathBuf, setup: Setup, relay: Arc<Relay>) -> Self {
        NodeSlot { node, dir, setup, relay, inner: Mutex::default(), ended: Condvar::new() }
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        self.node.name()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Powers the node on. `starter` starts QEMU from a thread that lives as long as the daemon.
    pub(crate) fn start(self: &Arc<Self>, starter: &dyn Fn(Launch) -> Result<Child>) -> Result<()> {
        let mut inner = self.lock();
        if inner.machine.is_some() {
            return refuse(format!("{} is running already", self.name()));
        }
        let (launch, sockets) = prepare(&self.setup, self.node, &self.dir)?;
        let child = starter(launch)?;
        let pid = Pid::from_raw(child.id() as i32);
        inner.end = None;
        match self.attach(pid, sockets) {
            Ok(machine) => inner.machine = Some(machine),
            Err(e) => {
                let mut child = child;
                crate::process::end(&mut child);
                return Err(e);
            }
        }
        let qmp = inner.machine.as_ref().map(|m| m.qmp.clone());
        drop(inner);
        let slot = self.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || slot.reap(pid, child))
            .doing("start a thread")?;
        // QEMU answers once its arguments were accepted and its devices exist.
        match qmp.map(|q| q.execute("query-status", json!({}))) {
            Some(Err(e)) => {
                let said = std::fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
                refuse(format!("{} did not start: {e}. QEMU says: {}", self.name(), said.trim()))
            }
            Some(Ok(_)) | None => Ok(()),
        }
    }

    fn attach(&self, pid: Pid, sockets: Sockets) -> Result<Machine> {
        let Sockets { nics, serial, operator, qmp } = sockets;
        let mut ports = Vec::new();
        for (role, nic) in Role::ALL.iter().zip(nics) {
            let link = self.node.wire(*role).map_or(Link::Lan, Link::Wire);
            ports.push(self.relay.plug_nic(&self.name(), link, nic)?);
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
        Ok(Machine {
            pid,
            power: Power::On,
            ending: false,
            ports,
            qmp: Arc::new(qmp),
            console: Console::start(serial, &self.dir.join("serial.log"))?,
            agent_open,
            // A fresh pair of sockets for every machine: no reply to an earlier client can be on it.
            operator: Arc::new(Mutex::new(Operator { client: Client::new(operator, 1), socket })),
        })
    }

    /// Waits for the end of the process; forgets the machine before the process id can be used again.
    fn reap(&self, pid: Pid, mut child: Child) {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let mut inner = self.lock();
        let status = child.wait();
        if let Some(machine) = inner.machine.take() {
            machine.ports.iter().for_each(|p| self.relay.unplug(*p));
            inner.end = match status {
                _ if machine.ending => None,
                // What a guest that powers itself off looks like.
                Ok(status) if status.success() => Some("the guest powered off".into()),
                Ok(status) => {
                    Some(format!("QEMU ended with {status}; see {}", self.dir.join("qemu.log").display()))
                }
                Err(e) => Some(format!("QEMU is gone: {e}")),
            };
        }
        self.ended.notify_all();
    }

    /// Waits until the machine is gone; false when the time is up first.
    fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        let mut inner = self.lock();
        while inner.machine.is_some() {
            let Some(left) = deadline.left() else { return false };
            inner = self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Runs `act` on the machine, which must be there.
    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> Result<T>) -> Result<T> {
        match &mut self.lock().machine {
            Some(machine) => act(machine),
            None => refuse(format!("{0} is off; `dyad lab start {0}` powers it on", self.name())),
        }
    }

    /// Pulls the plug: what the guest did not flush may be lost.
    pub(crate) fn kill(&self) -> Result<()> {
        self.with(|m| {
            m.ending = true;
            signal(m.pid, Signal::SIGKILL)
        })?;
        if self.wait_end(KILL_WAIT) {
            return Ok(());
        }
        Err(LabError::Deadline {
            what: format!("{}'s killed QEMU did not go", self.name()),
            seconds: KILL_WAIT.as_secs(),
            next: "the host may be waiting for its disk; try again".into(),
        })
    }

    /// Presses the power button and waits for the guest to power off.
    pub(crate) fn stop(&self) -> Result<()> {
        let qmp = self.with(|m| match m.power {
            Power::On => {
                m.ending = true;
                Ok(m.qmp.clone())
            }
            Power::Paused | Power::ClockStopped | Power::Off => {
                refuse(format!("{0} is paused; `dyad lab resume {0}` first", self.name()))
            }
        })?;
        qmp.execute("system_powerdown", json!({}))?;
        if self.wait_end(STOP_WAIT) {
            return Ok(());
        }
        Err(LabError::Deadline {
            what: format!("{} did not power off", self.name()),
            seconds: STOP_WAIT.as_secs(),
            next: format!(
                "`dyad lab console {0}` shows why, `dyad lab kill {0}` pulls the plug",
                self.name()
            ),
        })
    }

    /// Stalls the machine.
    pub(crate) fn pause(&self, stop_clock: bool) -> Result<()> {
        self.with(|m| {
            match m.power {
                Power::On => {}
                Power::Paused | Power::ClockStopped | Power::Off => {
                    return refuse(format!("{} is paused already", self.name()));
                }
            }
            if stop_clock {
                m.qmp.execute("stop", json!({}))?;
                m.power = Power::ClockStopped;
            } else {
                signal(m.pid, Signal::SIGSTOP)?;
                m.power = Power::Paused;
            }
            Ok(())
        })
    }

    /// Lets a stalled machine run on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.with(|m| {
            match m.power {
                Power::Paused => signal(m.pid, Signal::SIGCONT)?,
                Power::ClockStopped => m.qmp.execute("cont", json!({})).map(drop)?,
                Power::On | Power::Off => return refuse(format!("{} is not paused", self.name())),
            }
            m.power = Power::On;
            Ok(())
        })
    }

    /// The console of the running machine.
    pub(crate) fn console(&self) -> Result<Arc<Console>> {
        self.with(|m| Ok(m.console.clone()))
    }

    /// Asks the node's supervisor.
    pub(crate) fn call(&self, call: Call) -> Result<Value> {
        let operator = self.with(|m| {
            match m.power {
                Power::On => {}
                Power::Paused | Power::ClockStopped | Power::Off => {
                    return refuse(format!("{} is paused", self.name()));
                }
            }
            if !*m.agent_open.lock().unwrap_or_else(PoisonError::into_inner) {
                return refuse(format!(
                    "{}'s supervisor has not opened the port {OPERATOR_PORT} yet",
                    self.name()
                ));
            }
            Ok(m.operator.clone())
        })?;
        let mut operator = operator.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = match &call {
            Call::Exec(exec) => CALL_WAIT + Duration::from_millis(exec.deadline_ms.into()),
            _ => CALL_WAIT,
        };
        operator.socket.set_read_timeout(Some(limit)).doing("set a deadline on the operator's port")?;
        match operator.client.call(call) {
            Ok(answer) => Ok(answer),
            Err(CallError::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => Err(LabError::Deadline {
                what: format!("{}'s supervisor did not answer", self.name()),
                seconds: limit.as_secs(),
                next: format!("`dyad lab logs {}` shows its console", self.name()),
            }),
            Err(e) => refuse(format!("{}: {e}", self.name())),
        }
    }

    /// How the node is.
    pub(crate) fn row(&self) -> Row {
        let name = self.name();
        let cut_to = self.relay.with_fabric(|f| {
            f.cuts().filter(|(from, _)| *from == name).map(|(_, to)| to.to_owned()).collect()
        });
        let inner = self.lock();
        let machine = inner.machine.as_ref();
        Row {
            name,
            power: machine.map_or(Power::Off, |m| m.power),
            pid: machine.map(|m| m.pid.as_raw()),
            agent: machine.is_some_and(|m| *m.agent_open.lock().unwrap_or_else(PoisonError::into_inner)),
            phases: machine.map(|m| m.console.phases()).unwrap_or_default(),
            cut_to,
            end: inner.end.clone(),
        }
    }
}

/// Sends a signal to a child that is not reaped yet: the caller holds the node's lock.
fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).doing("signal QEMU")
}
