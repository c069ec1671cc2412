//! What a member of the lab is to the daemon, whatever it is made of: a virtual machine, a container, the witness.

use std::process::ExitStatus;
use std::sync::Arc;

use dyad_api::operator::Call;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::console::Console;
use crate::control::{Cable, Power};
use crate::error::{Doing, Result};
use crate::process::Launch;
use crate::topology::Role;

/// A member that can be started again and again.
pub(crate) trait Kind: Send + Sync {
    /// Its name.
    fn name(&self) -> String;
    /// Makes everything ready for a start: what to execute, and what to do with the process.
    fn prepare(&self) -> Result<(Launch, Attach)>;
}

/// Makes the body of a started process. Nothing of it outlives an error.
pub(crate) type Attach = Box<dyn FnOnce(Pid) -> Result<Arc<dyn Body>> + Send>;

/// A running member.
pub(crate) trait Body: Send + Sync {
    /// The process whose life is the member's, for people.
    fn pid(&self) -> Pid;
    /// Ends it as a power cut does.
    fn kill(&self) -> Result<()>;
    /// Asks it to shut down in order.
    fn press_power(&self) -> Result<()>;
    /// Stalls it; with `stop_clock` so that it cannot notice.
    fn pause(&self, stop_clock: bool) -> Result<()>;
    /// Lets it run on. `power` is how it stands still.
    fn resume(&self, power: Power) -> Result<()>;
    /// Plugs a cable in, pulls it, or lets it carry nothing.
    fn cable(&self, role: Role, cable: Cable) -> Result<()>;
    /// Waits until it can be said whether the start went well.
    fn confirm(&self) -> Result<()>;
    /// Whether its supervisor can be asked.
    fn agent(&self) -> bool;
    /// Asks its supervisor.
    fn call(&self, call: Call) -> Result<Value>;
    /// Its console, if it has one.
    fn console(&self) -> Option<&Arc<Console>>;
    /// The process is gone: takes away what belonged to it.
    fn detach(&self);
    /// What its end means.
    fn ended(&self, status: ExitStatus) -> Ended;
}

/// How a member ended that nobody asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By its own will.
    PoweredOff,
    /// It wants to boot again.
    Reboots,
    /// Otherwise.
    Failed(String),
}

/// Sends a signal to a child that is not reaped yet: the caller holds the member's lock.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).doing("send a signal to a member of the lab")
}
