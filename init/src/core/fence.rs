//! The dead-man's switch and the hardware watchdog.
//!
//! The supervisor hands over a deadline (CLOCK_BOOTTIME). When it passes, PID 1 itself has the gate of the virtual addresses
//! closed, kills the cgroups of all writers, and resets the machine if one does not become empty. The hardware watchdog is fed while this loop runs and no killed
//! writer is still alive.

use dyad_api::control::FenceTimes;
use dyad_sys::watchdog::{CARD_RESET, Watchdog};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::Core;
use crate::log::{critical, error, info, warning};
use crate::record::Record;
use crate::services::Event;
use crate::{clock, gate, power};

/// After `cgroup.kill`, until the machine is reset.
const EMPTY_WITHIN_NS: u64 = 2_000_000_000;
/// For the gate, before the writers are killed all the same: its elements do not live long by themselves.
const GATE_WITHIN_NS: u64 = 100_000_000;
/// Timeout asked of the watchdog, seconds.
const WATCHDOG_S: i32 = 30;
const WATCHDOG: &str = "/dev/watchdog0";

/// State of the switch.
#[derive(Debug, Default)]
pub(super) struct Fence {
    deadline_ns: Option<u64>,
    /// Writers were killed and must be gone by then.
    gone_by_ns: Option<u64>,
    /// The gate was told to close and must have done so by then.
    gate_by_ns: Option<u64>,
    pub(super) watchdog: Option<Watchdog>,
    /// To the process that closes the gate.
    pub(super) gate: Option<OwnedFd>,
}

impl Fence {
    /// Sets or clears the deadline.
    pub(super) fn arm(&mut self, deadline_ns: Option<u64>) {
        self.deadline_ns = deadline_ns;
        self.gate_by_ns = None;
    }

    /// Takes a former image's state over.
    pub(super) fn restore(
        &mut self,
        deadline_ns: u64,
        gone_by_ns: u64,
        watchdog: Option<OwnedFd>,
        gate: Option<OwnedFd>,
    ) {
        self.gate = gate;
        self.deadline_ns = Some(deadline_ns).filter(|at| *at != 0);
        self.gone_by_ns = Some(gone_by_ns).filter(|at| *at != 0);
        self.watchdog = watchdog.map(Watchdog::from_fd);
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        // Rounded down: a millisecond early is a turn of the loop, late is a broken promise.
        let deadline_ns = self.gate_by_ns.or(self.deadline_ns);
        [deadline_ns, self.gone_by_ns].into_iter().flatten().min().map(|ns| ns / 1_000_000)
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
        if let Some(deadline) = self.fence.deadline_ns.filter(|deadline| now >= *deadline) {
            self.pass_deadline(now, deadline);
        }
        let Some(gone_by) = self.fence.gone_by_ns else {
            self.feed();
            return;
        };
        let alive = self.machine.ids().any(|id| {
            self.machine.specs()[usize::from(id)].fence && !self.groups[usize::from(id)].is_empty()
        });
        if !alive {
            // Not `now`: they may have been killed since.
            self.book.fence.empty_ns = clock::boot_ns();
            let after = |ns: u64| ns.saturating_sub(self.book.fence.deadline_ns) / 1000;
            let FenceTimes { gate_ns, killed_ns, empty_ns, .. } = self.book.fence;
            info!(
                "dead-man's switch: gate closed {} us, writers killed {} us, gone {} us after the deadline",
                after(gate_ns),
                after(killed_ns),
                after(empty_ns)
            );
            self.fence.gone_by_ns = None;
            self.save_fence();
            if self.book.shutdown.is_none() {
                self.record(&Record::Running);
            }
            self.feed();
        } else if now >= gone_by {
            critical!("dead-man's switch: a writer survives SIGKILL: the machine resets");
            power::reset_now();
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

    /// First the gate, then the writers. The deadline stays written down until they are killed: a new image of PID 1
    /// begins again.
    fn pass_deadline(&mut self, now: u64, deadline: u64) {
        let waited = match self.fence.gate_by_ns {
            None => {
                self.book.fence = FenceTimes { deadline_ns: deadline, ..FenceTimes::default() };
                let told = self
                    .fence
                    .gate
                    .as_ref()
                    .map(|fd| send(fd, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
                self.fence.gate_by_ns = Some(now + GATE_WITHIN_NS);
                // Nobody there to close it: the supervisor never armed the switch, or its keeper was just killed.
                !matches!(told, Some(Ok(1)))
            }
            Some(gate_by) => now >= gate_by,
        };
        if !waited && self.book.fence.gate_ns == 0 {
            return;
        }
        self.fence.gate_by_ns = None;
        self.fence.deadline_ns = None;
        self.fence.gone_by_ns = Some(now + EMPTY_WITHIN_NS);
        self.kill_writers();
        self.save_fence();
        self.record(&Record::Fenced);
    }

    /// Makes the process that closes the gate, once there is a deadline.
    pub(super) fn open_gate_keeper(&mut self) {
        if self.fence.gate.is_some() {
            return;
        }
        if let Err(error) = self.try_open_gate_keeper() {
            error!("dead-man's switch: nobody to close the gate: {error}");
        }
    }

    fn try_open_gate_keeper(&mut self) -> std::io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let (own, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let own = dyad_sys::spawn::keep(own)?;
        let group = self.slice.fresh_group("gate.keeper")?;
        dyad_sys::spawn::spawn(Some(group.fd()), || {
            dyad_sys::signals::reset_all();
            // It holds nothing of PID 1's open, or peers would not see an end.
            match dyad_sys::spawn::place_fds(&[theirs.as_fd()]) {
                Ok(()) => gate::serve(rustix::stdio::stdin()),
                Err(_) => 1,
            }
        })?;
        self.fence.gate = Some(own);
        self.watch_gate();
        self.save();
        Ok(())
    }

    pub(super) fn watch_gate(&self) {
        if let Some(fd) = &self.fence.gate {
            let _ = epoll::add(&self.epoll, fd, super::Token::Gate.data(), epoll::EventFlags::IN);
        }
    }

    /// The gate is closed, or its keeper is gone.
    pub(super) fn read_gate(&mut self) {
        let Some(fd) = &self.fence.gate else { return };
        let mut closed = [0u8; 1];
        match recv(fd, &mut closed[..], RecvFlags::DONTWAIT) {
            Ok((1, _)) => {
                self.book.fence.gate_ns = clock::boot_ns();
                info!(
                    "dead-man's switch: {} of {} sets of the gate are empty",
                    closed[0],
                    dyad_api::gate::SETS.len()
                );
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                self.fence.gate = None;
                self.save();
                if self.fence.deadline_ns.is_some() && self.fence.gate_by_ns.is_none() {
                    self.open_gate_keeper();
                }
            }
        }
    }

    fn kill_writers(&mut self) {
        // First all kills, then everything else: the books can wait, the writers cannot.
        for id in self.machine.ids() {
            if self.machine.specs()[usize::from(id)].fence {
                self.kill_group(id);
            }
        }
        self.book.fence.killed_ns = clock::boot_ns();
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
