//! The dead-man's switch and the hardware watchdog.
//!
//! The supervisor hands over a deadline (CLOCK_BOOTTIME). When it passes, PID 1 itself kills the cgroups of all writers,
//! and resets the machine if one does not become empty. The hardware watchdog is fed while this loop runs and no killed
//! writer is still alive.

use dyad_sys::watchdog::{CARD_RESET, Watchdog};
use rustix::fd::OwnedFd;
use rustix::system::RebootCommand;

use super::Core;
use crate::clock;
use crate::log::{critical, error, info, warning};
use crate::record::Record;
use crate::services::Event;

/// After `cgroup.kill`, until the machine is reset.
const EMPTY_WITHIN_NS: u64 = 2_000_000_000;
/// Timeout asked of the watchdog, seconds.
const WATCHDOG_S: i32 = 30;
const WATCHDOG: &str = "/dev/watchdog0";

/// State of the switch.
#[derive(Debug, Default)]
pub(super) struct Fence {
    deadline_ns: Option<u64>,
    /// Writers were killed and must be gone by then.
    gone_by_ns: Option<u64>,
    pub(super) watchdog: Option<Watchdog>,
}

impl Fence {
    /// Sets or clears the deadline.
    pub(super) fn arm(&mut self, deadline_ns: Option<u64>) {
        self.deadline_ns = deadline_ns;
    }

    /// Takes a former image's state over.
    pub(super) fn restore(&mut self, deadline_ns: u64, gone_by_ns: u64, watchdog: Option<OwnedFd>) {
        self.deadline_ns = Some(deadline_ns).filter(|at| *at != 0);
        self.gone_by_ns = Some(gone_by_ns).filter(|at| *at != 0);
        self.watchdog = watchdog.map(Watchdog::from_fd);
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        // Rounded down: a millisecond early is a turn of the loop, late is a broken promise.
        [self.deadline_ns, self.gone_by_ns].into_iter().flatten().min().map(|ns| ns / 1_000_000)
    }
}

impl Core {
    /// Arms the hardware watchdog, once it is there.
    pub(super) fn open_watchdog(&mut self) {
        if self.fence.watchdog.is_some() || self.book.container {
            return;
        }
        let Ok(watchdog) = Watchdog::open(WATCHDOG) else { return };
        match watchdog.set_timeout(WATCHDOG_S) {
            Ok(seconds) => info!("watchdog: armed, {seconds} s"),
            Err(error) => warning!("watchdog: cannot set its timeout to {WATCHDOG_S} s: {error}"),
        }
        if watchdog.boot_status().is_ok_and(|status| status & CARD_RESET != 0) {
            warning!("watchdog: it was the watchdog that reset this machine");
            self.book.watchdog_reset = true;
        }
        // Kept through a re-exec: nobody feeds it otherwise.
        match dyad_sys::spawn::keep(watchdog.into_fd()) {
            Ok(fd) => self.fence.watchdog = Some(Watchdog::from_fd(fd)),
            Err(error) => warning!("watchdog: {error}"),
        }
        self.save();
    }

    /// Kills the writers past the deadline; feeds the watchdog.
    pub(super) fn settle_fence(&mut self) {
        let now = clock::boot_ns();
        if self.fence.deadline_ns.is_some_and(|deadline| now >= deadline) {
            self.fence.deadline_ns = None;
            self.fence.gone_by_ns = Some(now + EMPTY_WITHIN_NS);
            self.kill_writers();
            self.save_fence();
            self.record(&Record::Fenced);
        }
        let Some(gone_by) = self.fence.gone_by_ns else {
            self.feed();
            return;
        };
        let alive = self.machine.ids().any(|id| {
            self.machine.specs()[usize::from(id)].fence && !self.groups[usize::from(id)].is_empty()
        });
        if !alive {
            info!("dead-man's switch: all writers are gone");
            self.fence.gone_by_ns = None;
            self.save_fence();
            if self.book.shutdown.is_none() {
                self.record(&Record::Running);
            }
            self.feed();
        } else if now >= gone_by {
            critical!("dead-man's switch: a writer survives SIGKILL: the machine resets");
            let _ = rustix::system::reboot(RebootCommand::Restart);
        }
    }

    /// Writes the switch's times down.
    pub(super) fn save_fence(&mut self) {
        self.meter.passage();
        let (deadline, gone_by) = (self.fence.deadline_ns, self.fence.gone_by_ns);
        if let Err(error) = self.memory.save_fence(deadline.unwrap_or(0), gone_by.unwrap_or(0)) {
            error!("PID 1: cannot write its state: {error}");
        }
    }

    fn kill_writers(&mut self) {
        // First all kills, then everything else: the books can wait, the writers cannot.
        for id in self.machine.ids() {
            if self.machine.specs()[usize::from(id)].fence {
                self.kill_group(id);
            }
        }
        critical!("dead-man's switch: the deadline passed: writers are killed");
        for id in self.machine.ids() {
            if self.machine.specs()[usize::from(id)].fence {
                self.step(Event::Stop(id));
            }
        }
    }

    fn feed(&self) {
        if let Some(Err(error)) = self.fence.watchdog.as_ref().map(Watchdog::feed) {
            warning!("watchdog: cannot feed it: {error}");
        }
    }
}
