//! The transitions.

use dyad_api::control::ServiceState as State;
use dyad_spec::compiled::{GiveUp, Readiness, Restart, Service};
use dyad_sys::signals::Exit;

use super::{Action, Ended, Event, Id, NOTE_BYTES, Phases, Slot, Why};

/// A service that was up for so long has shown that it works: its back-off starts afresh.
pub(super) const STEADY_MS: u64 = 60_000;
/// After `cgroup.kill`, until the service counts as unkillable.
pub(super) const KILL_WAIT_MS: u32 = 10_000;
/// Least back-off from the second end on: a loop of instant deaths must not take the processor, whatever the table says.
pub(super) const BACKOFF_MIN_MS: u32 = 100;

/// All services.
pub(crate) struct Machine {
    specs: Vec<Service>,
    /// What each service asks of the early boot phases.
    phases: Vec<Asked>,
    pub(super) slots: Vec<Slot>,
    ended: Phases,
    shutdown: bool,
    /// Spreads restarts, so that services that failed together do not start together again; 0: exact pauses.
    jitter: u64,
    actions: Vec<Action>,
}

/// Bits of early boot phases.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Without these it is not started.
    needs: u32,
    /// These have ended before it is started.
    awaits: u32,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Stopped,
            wanted: false,
            dirty: false,
            pid: 0,
            since_ms: 0,
            started_ms: 0,
            ready_after_ms: 0,
            restarts: 0,
            backoff_ms: 0,
            last: Ended::Never,
            why: Why::Nothing,
            rung: 0,
            burst: 0,
            burst_since_ms: 0,
            deadline_ms: 0,
            bark_ms: 0,
            note: [0; NOTE_BYTES],
            note_len: 0,
        }
    }

    /// Has, or may have, processes.
    pub(crate) fn is_alive(&self) -> bool {
        self.pid != 0 || self.dirty
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Ready | State::Done)
    }
}

impl Machine {
    /// All services stopped. `jitter` seeds the spreading of restarts. `phases` are the names that `Service::phases` may use, in the order of their bits.
    pub(crate) fn new(specs: Vec<Service>, phases: &[&str], jitter: u64) -> Self {
        let bits = |wanted: &[String]| {
            let named = phases.iter().enumerate().filter(|(_, name)| wanted.iter().any(|one| one == *name));
            named.fold(0, |bits, (at, _)| bits | 1 << at)
        };
        let asked = |spec: &Service| {
            let needs = bits(&spec.phases);
            let all = (1 << phases.len()) - 1;
            Asked { needs, awaits: needs | spec.begins_after.as_deref().map_or(all, bits) }
        };
        let asked = specs.iter().map(asked).collect();
        let slots = vec![Slot::new(); specs.len()];
        let actions = Vec::with_capacity(specs.len() * 4 + 16);
        Self { specs, phases: asked, slots, ended: Phases::default(), shutdown: false, jitter, actions }
    }

    /// The table.
    pub(crate) fn specs(&self) -> &[Service] {
        &self.specs
    }

    /// The state of one service.
    pub(crate) fn slot(&self, id: Id) -> &Slot {
        &self.slots[usize::from(id)]
    }

    /// All indices.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..self.specs.len() as Id
    }

    /// The service with this name.
    pub(crate) fn find(&self, name: &str) -> Option<Id> {
        self.specs.iter().position(|spec| spec.name == name).map(|at| at as Id)
    }

    /// Whether a shutdown was asked for.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutdown
    }

    /// Whether nothing runs any more, or only what cannot be killed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| !slot.is_alive() || slot.why == Why::Unkillable)
    }

    /// Takes an earlier image's state of a service up again. Signs of life are not written down, so the watchdog waits its
    /// whole time once more.
    pub(crate) fn restore(&mut self, now: u64, id: Id, slot: Slot) {
        self.slots[usize::from(id)] = slot;
        if slot.bark_ms != 0 {
            self.wind_watchdog(now, id);
        }
    }

    /// Takes the rest of an earlier image's state up again.
    pub(crate) fn restore_phases(&mut self, ended: Phases, shutdown: bool) {
        self.ended = ended;
        self.shutdown = shutdown;
    }

    /// The phases that have ended.
    pub(crate) fn ended_phases(&self) -> Phases {
        self.ended
    }

    /// Keeps the beginning of a `STATUS=` text.
    pub(crate) fn set_note(&mut self, id: Id, text: &str) {
        let slot = &mut self.slots[usize::from(id)];
        let cut = (0..=text.len().min(NOTE_BYTES)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        slot.note[..cut].copy_from_slice(&text.as_bytes()[..cut]);
        slot.note_len = cut as u8;
    }

    /// The earliest time at which [`Event::Tick`] has something to do.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.slots.iter().flat_map(|slot| [slot.deadline_ms, slot.bark_ms]).filter(|at| *at != 0).min()
    }

    /// One event; the actions are to be carried out in order, and what comes of them comes back as events.
    pub(crate) fn step(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        self.apply(now, event, &mut actions);
        self.settle(now, &mut actions);
        actions
    }

    /// Gives the buffer of [`Machine::step`] back, so that the next step allocates nothing.
    pub(crate) fn recycle(&mut self, actions: Vec<Action>) {
        self.actions = actions;
    }

    fn apply(&mut self, now: u64, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start(id) => self.start(now, id, out),
            Event::Stop(id) => self.stop(now, id, false, out),
            Event::Restart(id) => self.stop(now, id, true, out),
            Event::Spawned(id, pid) => self.spawned(now, id, pid, out),
            Event::SpawnFailed(id, errno) => {
                self.slots[usize::from(id)].last = Ended::NotStarted(errno);
                self.ended(now, id, true, out);
            }
            Event::Exited(pid, exit) => self.exited(now, pid, exit, out),
            Event::Empty(id) => self.emptied(now, id, out),
            Event::Ready(id) => self.ready(now, id, out),
            Event::Stopping(id) => {
                self.slots[usize::from(id)].bark_ms = 0;
                out.push(Action::Changed(id));
            }
            Event::MainPid(id, pid) => {
                if self.slots[usize::from(id)].is_alive() {
                    self.slots[usize::from(id)].pid = pid;
                    out.push(Action::Changed(id));
                }
            }
            Event::Alive(id) => self.wind_watchdog(now, id),
            Event::Hung(id) => self.silent(now, id, out),
            Event::Tick => (0..self.slots.len() as Id).for_each(|id| self.tick(now, id, out)),
            Event::Phases(ended) => self.ended = ended,
            Event::Shutdown => {
                self.shutdown = true;
                for slot in &mut self.slots {
                    slot.wanted = false;
                }
            }
        }
    }

    fn enter(&mut self, now: u64, id: Id, state: State, out: &mut Vec<Action>) {
        let slot = &mut self.slots[usize::from(id)];
        if slot.state != state {
            slot.state = state;
            slot.since_ms = now;
        }
        slot.deadline_ms = 0;
        if !matches!(state, State::Ready | State::Starting) {
            slot.bark_ms = 0;
        }
        out.push(Action::Changed(id));
    }

    fn start(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        if self.shutdown || self.slots[usize::from(id)].wanted && self.is_pending(id) {
            return;
        }
        let slot = &mut self.slots[usize::from(id)];
        slot.wanted = true;
        match slot.state {
            State::Stopped | State::Failed | State::Done | State::BackOff => {
                slot.backoff_ms = 0;
                slot.burst = 0;
                slot.why = Why::Nothing;
                self.enter(now, id, State::Waiting, out);
            }
            // A stop that is under way ends first; `emptied` sees that it is wanted again.
            State::Stopping | State::Waiting | State::Starting | State::Ready => {}
        }
        // The table is ordered, so this ends: a dependency has a smaller index.
        for at in 0..self.specs[usize::from(id)].after.len() {
            let needed = self.specs[usize::from(id)].after[at];
            if needed < id && !self.slots[usize::from(needed)].is_up() {
                self.start(now, needed, out);
            }
        }
    }

    fn is_pending(&self, id: Id) -> bool {
        matches!(self.slots[usize::from(id)].state, State::Waiting | State::Starting | State::Ready)
    }

    fn stop(&mut self, now: u64, id: Id, again: bool, out: &mut Vec<Action>) {
        let slot = &mut self.slots[usize::from(id)];
        slot.wanted = again && !self.shutdown;
        slot.backoff_ms = 0;
        match slot.state {
            State::Starting | State::Ready => self.begin_ladder(now, id, out),
            State::Stopping => {}
            State::Waiting | State::BackOff | State::Stopped | State::Failed | State::Done => {
                let next = if slot.wanted { State::Waiting } else { State::Stopped };
                if slot.state != next {
                    slot.why = Why::Nothing;
                    self.enter(now, id, next, out);
                }
            }
        }
    }

    fn begin_ladder(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        self.enter(now, id, State::Stopping, out);
        self.slots[usize::from(id)].rung = 0;
        self.rung(now, id, out);
    }

    /// Does what the current rung of the stop ladder says.
    fn rung(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        let ladder = &self.specs[usize::from(id)].stop;
        let slot = &mut self.slots[usize::from(id)];
        // A ladder speaks to the main process; what is left without it is killed.
        if slot.pid == 0 && usize::from(slot.rung) < ladder.len() {
            slot.rung = ladder.len() as u8;
        }
        match ladder.get(usize::from(slot.rung)) {
            Some(step) => {
                out.push(Action::Signal(id, slot.pid, step.signal));
                slot.deadline_ms = now + u64::from(step.wait_ms.max(1));
            }
            None if usize::from(slot.rung) == ladder.len() => {
                out.push(Action::KillGroup(id));
                slot.deadline_ms = now + u64::from(KILL_WAIT_MS);
            }
            None => {
                slot.why = Why::Unkillable;
                slot.deadline_ms = 0;
                out.push(Action::Changed(id));
            }
        }
    }

    fn spawned(&mut self, now: u64, id: Id, pid: u32, out: &mut Vec<Action>) {
        let spec = &self.specs[usize::from(id)];
        let slot = &mut self.slots[usize::from(id)];
        slot.pid = pid;
        slot.dirty = true;
        slot.why = Why::Nothing;
        slot.note_len = 0;
        if spec.readiness == Readiness::Started {
            self.ready(now, id, out);
        } else {
            if spec.start_timeout_ms != 0 {
                slot.deadline_ms = now + u64::from(spec.start_timeout_ms);
            }
            out.push(Action::Changed(id));
        }
    }

    fn ready(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        if self.slots[usize::from(id)].state != State::Starting {
            return;
        }
        self.enter(now, id, State::Ready, out);
        let slot = &mut self.slots[usize::from(id)];
        slot.ready_after_ms = now.saturating_sub(slot.started_ms).max(1) as u32;
        self.wind_watchdog(now, id);
    }

    fn wind_watchdog(&mut self, now: u64, id: Id) {
        let limit = self.specs[usize::from(id)].watchdog_ms;
        let slot = &mut self.slots[usize::from(id)];
        if limit != 0 && slot.state == State::Ready {
            slot.bark_ms = now + u64::from(limit);
        }
    }

    fn exited(&mut self, now: u64, pid: u32, exit: Exit, out: &mut Vec<Action>) {
        let Some(at) = self.slots.iter().position(|slot| slot.pid == pid && pid != 0) else { return };
        let id = at as Id;
        let slot = &mut self.slots[at];
        slot.pid = 0;
        let timed_out = matches!(slot.why, Why::StartTimeout | Why::Silent);
        slot.last = match exit {
            _ if timed_out => Ended::Deadline,
            Exit::Status(status) => Ended::Status(status),
            Exit::Signal(signal) => Ended::Signal(signal),
        };
        match slot.state {
            State::Stopping => {
                // The rung's wait goes on only for a main process; the rest is killed now.
                let length = self.specs[at].stop.len() as u8;
                if slot.rung < length {
                    slot.rung = length;
                    self.rung(now, id, out);
                }
                out.push(Action::Changed(id));
            }
            State::Starting if self.specs[at].readiness == Readiness::Exit && exit == Exit::Status(0) => {
                slot.ready_after_ms = now.saturating_sub(slot.started_ms).max(1) as u32;
                out.push(Action::KillGroup(id));
                self.enter(now, id, State::Done, out);
            }
            State::Starting | State::Ready => {
                let failed = exit != Exit::Status(0) || slot.state == State::Starting;
                out.push(Action::KillGroup(id));
                self.ended(now, id, failed, out);
            }
            State::Stopped | State::Waiting | State::Done | State::BackOff | State::Failed => {}
        }
    }

    /// A service ended without having been asked to.
    fn ended(&mut self, now: u64, id: Id, failed: bool, out: &mut Vec<Action>) {
        let spec = &self.specs[usize::from(id)];
        let again = match spec.restart {
            Restart::Always => true,
            Restart::OnFailure => failed,
            Restart::Never => false,
        };
        let slot = &mut self.slots[usize::from(id)];
        if !(again && slot.wanted) {
            slot.wanted = false;
            self.enter(now, id, if failed { State::Failed } else { State::Stopped }, out);
            return;
        }
        if slot.burst == 0 || now.saturating_sub(slot.burst_since_ms) > u64::from(spec.restart_window_ms) {
            slot.burst = 0;
            slot.burst_since_ms = now;
        }
        slot.burst = slot.burst.saturating_add(1);
        if spec.restart_burst != 0 && slot.burst > spec.restart_burst {
            slot.wanted = false;
            slot.why = Why::GaveUp;
            if spec.give_up == GiveUp::Reboot {
                out.push(Action::Reboot(id));
            }
            self.enter(now, id, State::Failed, out);
            return;
        }
        let steady = slot.state == State::Ready && now.saturating_sub(slot.since_ms) >= STEADY_MS;
        // One end is no loop yet: the service is missed for no longer than its table says.
        let first = steady || slot.backoff_ms == 0;
        let (wait, least) = if first { (spec.restart_min_ms, 1) } else { (slot.backoff_ms, BACKOFF_MIN_MS) };
        slot.backoff_ms =
            wait.saturating_mul(2).clamp(BACKOFF_MIN_MS, spec.restart_max_ms.max(BACKOFF_MIN_MS));
        slot.restarts = slot.restarts.saturating_add(1);
        self.enter(now, id, State::BackOff, out);
        let wait = wait - self.spread(wait / 4);
        self.slots[usize::from(id)].deadline_ms = now + u64::from(wait.max(least));
    }

    /// A number up to `most`, another one each time (xorshift64).
    fn spread(&mut self, most: u32) -> u32 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        (self.jitter % (u64::from(most) + 1)) as u32
    }

    fn emptied(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        let slot = &mut self.slots[usize::from(id)];
        // With a main process on the books its end is still to come.
        if slot.pid != 0 {
            return;
        }
        slot.dirty = false;
        if slot.state != State::Stopping {
            return;
        }
        let timed_out = matches!(slot.why, Why::StartTimeout | Why::Silent);
        if slot.wanted && timed_out {
            self.ended(now, id, true, out);
        } else if slot.wanted {
            slot.why = Why::Nothing;
            self.enter(now, id, State::Waiting, out);
        } else {
            slot.why = Why::Nothing;
            self.enter(now, id, State::Stopped, out);
        }
    }

    fn silent(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        if self.slots[usize::from(id)].state == State::Ready {
            self.slots[usize::from(id)].why = Why::Silent;
            self.kill(now, id, out);
        }
    }

    /// Straight to `cgroup.kill`: who is hung does not hear signals.
    fn kill(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        self.enter(now, id, State::Stopping, out);
        self.slots[usize::from(id)].rung = self.specs[usize::from(id)].stop.len() as u8;
        self.rung(now, id, out);
    }

    fn tick(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        let slot = &mut self.slots[usize::from(id)];
        if slot.bark_ms != 0 && now >= slot.bark_ms {
            slot.bark_ms = 0;
            self.silent(now, id, out);
            return;
        }
        if slot.deadline_ms == 0 || now < slot.deadline_ms {
            return;
        }
        slot.deadline_ms = 0;
        match slot.state {
            State::Starting => {
                slot.why = Why::StartTimeout;
                self.kill(now, id, out);
            }
            State::Stopping => {
                slot.rung = slot.rung.saturating_add(1);
                self.rung(now, id, out);
            }
            State::BackOff => self.enter(now, id, State::Waiting, out),
            State::Stopped | State::Waiting | State::Ready | State::Done | State::Failed => {}
        }
    }

    /// Starts what can start; in a shutdown stops what nothing needs any more.
    fn settle(&mut self, now: u64, out: &mut Vec<Action>) {
        for id in 0..self.slots.len() as Id {
            if self.shutdown {
                self.settle_stop(now, id, out);
            } else if self.slots[usize::from(id)].state == State::Waiting {
                self.settle_start(now, id, out);
            }
        }
    }

    fn settle_start(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        let at = usize::from(id);
        let (asked, ended) = (self.phases[at], self.ended);
        let why = match (asked.needs & ended.all & !ended.well, asked.awaits & !ended.all) {
            (0, 0) => {
                let missing = self.specs[at].after.iter().find(|on| !self.is_usable(**on));
                missing.map_or(Why::Nothing, |on| Why::WaitsFor(*on))
            }
            (0, _) => Why::WaitsForPhases,
            (failed, _) => Why::PhaseFailed(failed.trailing_zeros() as u8),
        };
        // What a former start left behind must be gone first; `Event::Empty` brings us back here.
        if why == Why::Nothing && !self.slots[at].dirty {
            self.enter(now, id, State::Starting, out);
            let slot = &mut self.slots[at];
            slot.started_ms = now;
            slot.why = Why::Nothing;
            out.push(Action::Spawn(id));
        } else if self.slots[at].why != why {
            self.slots[at].why = why;
            out.push(Action::Changed(id));
        }
    }

    /// Whether those that come after it can start: its sockets are there from the beginning, and what is written to them stays
    /// there until it is up.
    fn is_usable(&self, id: Id) -> bool {
        let at = usize::from(id);
        self.slots[at].is_up() || !self.specs[at].sockets.is_empty()
    }

    /// Reverse order: a service stops when all that came after it are gone.
    fn settle_stop(&mut self, now: u64, id: Id, out: &mut Vec<Action>) {
        let needed =
            self.specs.iter().zip(&self.slots).any(|(spec, slot)| {
                spec.after.contains(&id) && slot.is_alive() && slot.why != Why::Unkillable
            });
        if !needed && self.slots[usize::from(id)].state != State::Stopped {
            self.stop(now, id, false, out);
        }
    }
}
