//! The services' state machine: events and the time in, actions out. No I/O, no clock, nothing allocated after
//! [`Machine::new`].

mod machine;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use machine::Machine;
pub(crate) use record::{NOTE_BYTES, RECORD_BYTES};

use dyad_api::control::ServiceState;
use dyad_sys::signals::Exit;
use serde::{Deserialize, Serialize};

/// Index of a service in the image table.
pub(crate) type Id = u16;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody wants it to run.
    Start(Id),
    /// Somebody wants it stopped.
    Stop(Id),
    /// Stop, then start.
    Restart(Id),
    /// The driver carried [`Action::Spawn`] out.
    Spawned(Id, u32),
    /// The driver could not; the errno.
    SpawnFailed(Id, i32),
    /// A process ended: the main process of a service, or none of ours.
    Exited(u32, Exit),
    /// The cgroup of a service is empty.
    Empty(Id),
    /// `READY=1`.
    Ready(Id),
    /// `STOPPING=1`.
    Stopping(Id),
    /// `MAINPID=`; the driver has checked that the process is in the service's cgroup.
    MainPid(Id, u32),
    /// `WATCHDOG=1`.
    Alive(Id),
    /// `WATCHDOG=trigger`.
    Hung(Id),
    /// Time went by.
    Tick,
    /// Another early boot phase ended.
    Phases(Phases),
    /// The machine is shutting down: stop all, start none.
    Shutdown,
}

/// The early boot phases that have ended; bit n is the n-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Phases {
    /// All of them.
    pub(crate) all: u32,
    /// Those that went well.
    pub(crate) well: u32,
}

/// What the driver is to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the program in its (empty) cgroup.
    Spawn(Id),
    /// Signal the main process.
    Signal(Id, u32, i32),
    /// `cgroup.kill`.
    KillGroup(Id),
    /// The state is another: record it, tell subscribers.
    Changed(Id),
    /// Reboot in order: without this service the machine is of no use.
    Reboot(Id),
}

/// How a service's main process ended last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Not yet.
    Never,
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Killed because it was not ready, or silent, for too long.
    Deadline,
    /// It could not be started; the errno.
    NotStarted(i32),
}

/// Why a service that is wanted does not run, or what happened to it last: shown in its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Nothing to say.
    Nothing,
    /// Waits until this one is ready.
    WaitsFor(Id),
    /// Waits for the early boot phases.
    WaitsForPhases,
    /// This early boot phase failed.
    PhaseFailed(u8),
    /// Not ready within its start timeout.
    StartTimeout,
    /// Silent for longer than its watchdog allows.
    Silent,
    /// SIGKILL did not empty its cgroup: something hangs in the kernel.
    Unkillable,
    /// It ended too often within its window.
    GaveUp,
}

/// What is known of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) state: ServiceState,
    /// Somebody wants it to run.
    pub(crate) wanted: bool,
    /// Its cgroup may hold processes.
    pub(crate) dirty: bool,
    /// Main process, 0 without one.
    pub(crate) pid: u32,
    pub(crate) since_ms: u64,
    pub(crate) started_ms: u64,
    pub(crate) ready_after_ms: u32,
    pub(crate) restarts: u32,
    /// Back-off that the next unasked end costs.
    pub(crate) backoff_ms: u32,
    pub(crate) last: Ended,
    pub(crate) why: Why,
    /// Rung of the stop ladder; its length: `cgroup.kill`; above: nothing helped.
    pub(crate) rung: u8,
    /// Unasked ends since `burst_since_ms`.
    pub(crate) burst: u16,
    /// Beginning of the window in which they are counted.
    pub(crate) burst_since_ms: u64,
    /// When the current state is to be left by time; 0 never.
    pub(crate) deadline_ms: u64,
    /// When the watchdog barks; 0 never.
    pub(crate) bark_ms: u64,
    /// Last `STATUS=` text.
    pub(crate) note: [u8; NOTE_BYTES],
    /// Bytes of it.
    pub(crate) note_len: u8,
}
