//! A member in the daemon: its body while there is one, and what can be done to it.

use std::collections::BTreeMap;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dyad_api::operator::Call;
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::clock::Deadline;
use crate::console::Console;
use crate::control::{Cable, CableRow, Power, Row};
use crate::error::{Doing, LabError, Result, refuse};
use crate::member::{Body, Ended, Kind};
use crate::process::Launch;
use crate::topology::Role;

/// How long an orderly stop may take: PID 1's own shutdown deadline and the slowness of TCG.
const STOP_WAIT: Duration = Duration::from_secs(120);
/// How long a killed process may take to go.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Starts a process from a thread that lives as long as the daemon.
pub(crate) type Starter = dyn Fn(Launch) -> Result<Child> + Send + Sync;

/// A member, whether it runs or not.
pub(crate) struct Slot {
    kind: Box<dyn Kind>,
    starter: Arc<Starter>,
    inner: Mutex<Inner>,
    ended: Condvar,
}

#[derive(Default)]
struct Inner {
    running: Option<Running>,
    /// Why the last one ended, unless it was asked to.
    end: Option<String>,
}

struct Running {
    body: Arc<dyn Body>,
    power: Power,
    /// Somebody asked for its end, so an end is no news.
    ending: bool,
    /// Those that were pulled or made silent since it started.
    cables: BTreeMap<Role, Cable>,
}

impl Slot {
    /// A member that is off.
    pub(crate) fn new(kind: Box<dyn Kind>, starter: Arc<Starter>) -> Self {
        Slot { kind, starter, inner: Mutex::default(), ended: Condvar::new() }
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        self.kind.name()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Powers the member on.
    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        let mut inner = self.lock();
        if inner.running.is_some() {
            return refuse(format!("{} is running already", self.name()));
        }
        let (launch, attach) = self.kind.prepare()?;
        let mut child = (self.starter)(launch)?;
        let pid = Pid::from_raw(child.id() as i32);
        inner.end = None;
        let body = match attach(pid) {
            Ok(body) => body,
            Err(e) => {
                crate::process::end(&mut child);
                return refuse(format!("{} did not start: {e}", self.name()));
            }
        };
        inner.running =
            Some(Running { body: body.clone(), power: Power::On, ending: false, cables: BTreeMap::new() });
        drop(inner);
        let slot = self.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || slot.reap(pid, child))
            .doing("start a thread")?;
        match body.confirm() {
            Ok(()) => Ok(()),
            Err(e) => refuse(format!("{} did not start: {e}", self.name())),
        }
    }

    /// Waits for the end of the process; forgets it before the process id can be used again.
    fn reap(self: Arc<Self>, pid: Pid, mut child: Child) {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let mut again = false;
        let mut inner = self.lock();
        let status = child.wait();
        if let Some(running) = inner.running.take() {
            running.body.detach();
            let ended = match status {
                Ok(status) => running.body.ended(status),
                Err(e) => Ended::Failed(format!("its process is gone: {e}")),
            };
            inner.end = match ended {
                Ended::Reboots => {
                    again = true;
                    None
                }
                _ if running.ending => None,
                Ended::PoweredOff => Some("it powered itself off".into()),
                Ended::Failed(why) => Some(why),
            };
        }
        drop(inner);
        if again && let Err(e) = self.start() {
            self.lock().end = Some(format!("it did not boot again: {e}"));
        }
        self.ended.notify_all();
    }

    /// Waits until the body is gone; false when the time is up first.
    fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        let mut inner = self.lock();
        while inner.running.is_some() {
            let Some(left) = deadline.left() else { return false };
            inner = self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Runs `act` on the body, which must be there.
    fn with<T>(&self, act: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
        match &mut self.lock().running {
            Some(running) => act(running),
            None => refuse(format!("{0} is off; `dyad lab start {0}` powers it on", self.name())),
        }
    }

    /// The body, which must run and not stand still.
    fn awake(&self, advice: &str) -> Result<Arc<dyn Body>> {
        self.with(|r| match r.power {
            Power::On => Ok(r.body.clone()),
            Power::Paused | Power::ClockStopped | Power::Off => {
                refuse(format!("{} is paused{advice}", self.name()))
            }
        })
    }

    /// Pulls the plug: what was not flushed may be lost.
    pub(crate) fn kill(&self) -> Result<()> {
        self.with(|r| {
            r.ending = true;
            r.body.kill()
        })?;
        if self.wait_end(KILL_WAIT) {
            return Ok(());
        }
        Err(LabError::Deadline {
            what: format!("{} was killed and did not go", self.name()),
            seconds: KILL_WAIT.as_secs(),
            next: "the host may be waiting for its disk; try again".into(),
        })
    }

    /// Presses the power button and waits for the power-off.
    pub(crate) fn stop(&self) -> Result<()> {
        let body = self.awake(&format!("; `dyad lab resume {}` first", self.name()))?;
        self.with(|r| {
            r.ending = true;
            Ok(())
        })?;
        body.press_power()?;
        if self.wait_end(STOP_WAIT) {
            return Ok(());
        }
        Err(LabError::Deadline {
            what: format!("{} did not power off", self.name()),
            seconds: STOP_WAIT.as_secs(),
            next: format!("`dyad lab logs {0}` shows why, `dyad lab kill {0}` pulls the plug", self.name()),
        })
    }

    /// Stalls it.
    pub(crate) fn pause(&self, stop_clock: bool) -> Result<()> {
        self.awake(" already")?;
        self.with(|r| {
            r.body.pause(stop_clock)?;
            r.power = if stop_clock { Power::ClockStopped } else { Power::Paused };
            Ok(())
        })
    }

    /// Lets it run on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.with(|r| {
            match r.power {
                Power::Paused | Power::ClockStopped => r.body.resume(r.power)?,
                Power::On | Power::Off => return refuse(format!("{} is not paused", self.name())),
            }
            r.power = Power::On;
            Ok(())
        })
    }

    /// Plugs one of its cables in, pulls it, or lets it carry nothing.
    pub(crate) fn cable(&self, role: Role, cable: Cable) -> Result<()> {
        self.with(|r| {
            r.body.cable(role, cable)?;
            match cable {
                Cable::Plugged => r.cables.remove(&role),
                Cable::Unplugged | Cable::Silent => r.cables.insert(role, cable),
            };
            Ok(())
        })
    }

    /// The console of the running member.
    pub(crate) fn console(&self) -> Result<Arc<Console>> {
        self.with(|r| match r.body.console() {
            Some(console) => Ok(console.clone()),
            None => {
                refuse(format!("{0} has no console; `dyad lab logs {0}` shows what it said", self.name()))
            }
        })
    }

    /// Asks the member's supervisor.
    pub(crate) fn call(&self, call: Call) -> Result<Value> {
        self.awake("")?.call(call)
    }

    /// How it is.
    pub(crate) fn row(&self) -> Row {
        let name = self.name();
        let (body, power, cables, end) = {
            let inner = self.lock();
            let running = inner.running.as_ref();
            let cables = running.map(|r| r.cables.clone()).unwrap_or_default();
            let power = running.map_or(Power::Off, |r| r.power);
            (running.map(|r| r.body.clone()), power, cables, inner.end.clone())
        };
        let cables = cables.into_iter().map(|(role, cable)| CableRow { nic: role.name().into(), cable });
        Row {
            name,
            power,
            pid: body.as_ref().map(|b| b.pid().as_raw()),
            agent: power == Power::On && body.as_ref().is_some_and(|b| b.agent()),
            phases: body.and_then(|b| b.console().map(|c| c.phases())).unwrap_or_default(),
            cables: cables.collect(),
            end,
        }
    }
}
