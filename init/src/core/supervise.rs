//! Carrying out what the services' state machine decides.

use std::fmt::{self, Display, Formatter, Write as _};

use dyad_api::control::{ExitStatus, ServiceState, ServiceStatus};
use dyad_spec::compiled::Service;
use rustix::fd::{AsFd, BorrowedFd};

use super::{Core, REAP_MAX};
use crate::exec::{self, Output, Program, View};
use crate::log::{error, info, warning};
use crate::services::{Action, Ended, Event, Id, Why};
use crate::{clock, exec::JOURNAL_STREAM};

impl Core {
    /// One event into the machine, and all that follows from it.
    pub(super) fn step(&mut self, event: Event) {
        let mut next = Some(event);
        let mut gave_up = None;
        // What an action brings about at once is the next event: a spawn either worked or not.
        while let Some(event) = next.take().or_else(|| self.queue.pop_front()) {
            self.meter.passage();
            let actions = self.machine.step(clock::boot_ms(), event);
            // Before any state is written: where one says that a service is about to start, its group is new, and so a child
            // in it is of this start and no other.
            for action in &actions {
                if let Action::Spawn(id) = *action {
                    self.renew_group(id);
                }
            }
            for action in &actions {
                match *action {
                    Action::Spawn(id) => {
                        let event = self.spawn_service(id);
                        self.queue.push_back(event);
                    }
                    Action::Signal(id, pid, signal) => self.signal_main(id, pid, signal),
                    Action::KillGroup(id) => self.kill_group(id),
                    Action::Changed(id) => self.changed(id),
                    Action::Reboot(id) => gave_up = Some(id),
                }
            }
            self.machine.recycle(actions);
        }
        if let Some(id) = gave_up {
            let name = &self.machine.specs()[usize::from(id)].name;
            let reason = format!("service {name} ended too often");
            self.begin_shutdown(super::shutdown::REBOOT, &reason);
        }
    }

    fn renew_group(&mut self, id: Id) {
        match self.slice.fresh_group(&self.group_names[usize::from(id)]) {
            Ok(group) => self.groups[usize::from(id)] = group,
            // Then the old one is gone, and nothing can be started in it.
            Err(errno) => {
                error!(
                    "service {}: cannot make its cgroup: {errno}",
                    self.machine.specs()[usize::from(id)].name
                );
            }
        }
    }

    /// Starts a service in its group, which nothing was ever in.
    pub(super) fn spawn_service(&mut self, id: Id) -> Event {
        let spec = &self.machine.specs()[usize::from(id)];
        let program = Program {
            exec: &spec.exec,
            env: &spec.env,
            cwd: &spec.cwd,
            uid: spec.uid,
            gid: spec.gid,
            groups: &spec.groups,
            capabilities: spec.capabilities.as_deref(),
            nofile: spec.nofile,
            oom_score_adj: spec.oom_score_adj,
            no_new_privs: spec.no_new_privs,
            view: View { private_tmp: spec.private_tmp, read_only: &spec.read_only, hidden: &spec.hidden },
            syscalls: spec.syscalls.as_deref(),
            output: if owns_journal(spec) {
                Output::Kernel
            } else {
                Output::Journal(&spec.name, spec.console)
            },
            listen: &[],
            notify: true,
            watchdog_ms: spec.watchdog_ms,
        };
        let group = self.groups[usize::from(id)].fd();
        // The list is made in the child, where allocating costs this process nothing.
        let child = || {
            let listen = self.listen_fds(id);
            exec::become_program(&Program { listen: &listen, ..program })
        };
        match dyad_sys::spawn::spawn(Some(group), child) {
            Ok(pid) => Event::Spawned(id, pid),
            Err(error) => {
                error!("service {}: cannot start a process: {error}", spec.name);
                Event::SpawnFailed(id, error.raw_os_error().unwrap_or(0))
            }
        }
    }

    /// Sockets and stored descriptors of a service.
    fn listen_fds(&self, id: Id) -> Vec<(BorrowedFd<'_>, &str)> {
        let sockets = self.bound.sockets.iter().filter(|(owner, ..)| *owner == id);
        let stored = self.bound.stored.iter().flatten().filter(|stored| stored.service == id);
        let sockets = sockets.map(|(_, name, fd)| (fd.as_fd(), name.as_str()));
        sockets.chain(stored.map(|stored| (stored.fd.as_fd(), stored.name()))).collect()
    }

    /// Writes a service's state down.
    pub(super) fn save_slot(&mut self, id: Id) {
        self.meter.passage();
        if let Err(error) = self.memory.save_slot(id, self.machine.slot(id)) {
            error!("PID 1: cannot write its state: {error}");
        }
    }

    fn signal_main(&self, id: Id, pid: u32, signal: i32) {
        if let Err(error) = dyad_sys::signals::kill(pid, signal) {
            warning!(
                "service {}: cannot send signal {signal}: {error}",
                self.machine.specs()[usize::from(id)].name
            );
        }
    }

    /// Whoever writes to the journal waits for journald in the end: where a signal has stopped it, it goes on at once. Other
    /// services stay as somebody wanted them.
    pub(super) fn continue_stopped(&self) {
        for _ in 0..REAP_MAX {
            let Ok(Some(pid)) = dyad_sys::signals::take_stopped() else { return };
            let specs = self.machine.specs().iter().zip(self.machine.ids());
            let journal = specs.filter(|(spec, _)| owns_journal(spec)).map(|(_, id)| id);
            for id in journal.filter(|id| self.machine.slot(*id).pid == pid) {
                warning!(
                    "service {}: stopped by a signal; it goes on",
                    self.machine.specs()[usize::from(id)].name
                );
                self.signal_main(id, pid, nix::libc::SIGCONT);
            }
        }
    }

    pub(super) fn kill_group(&self, id: Id) {
        if let Err(errno) = self.groups[usize::from(id)].kill() {
            warning!(
                "service {}: cannot kill its cgroup: {errno}",
                self.machine.specs()[usize::from(id)].name
            );
        }
    }

    /// After a re-exec: whether a service was about to be started.
    pub(super) fn is_starting(&self, id: Id) -> bool {
        let slot = self.machine.slot(id);
        slot.state == ServiceState::Starting && slot.pid == 0
    }

    fn changed(&mut self, id: Id) {
        self.save_slot(id);
        let before = self.statuses[usize::from(id)].state;
        self.refresh_status(id);
        let status = &self.statuses[usize::from(id)];
        if before != status.state {
            log_state(status);
        }
        self.tell_service(id);
    }

    /// Tells the machine which cgroups have become empty.
    pub(super) fn check_empty(&mut self) {
        for id in self.machine.ids() {
            let slot = self.machine.slot(id);
            if slot.dirty && slot.pid == 0 && self.groups[usize::from(id)].is_empty() {
                self.step(Event::Empty(id));
            }
        }
    }

    /// Whether some cgroup should become empty soon. One that cannot be killed is looked at when something else
    /// happens.
    pub(super) fn awaits_empty(&self) -> bool {
        self.jobs.awaits_empty()
            || self.machine.ids().any(|id| {
                let slot = self.machine.slot(id);
                slot.dirty && slot.pid == 0 && slot.why != Why::Unkillable
            })
    }

    /// Brings the state of a service as the control protocol tells it up to date.
    pub(super) fn refresh_status(&mut self, id: Id) {
        let mut note = std::mem::take(&mut self.statuses[usize::from(id)].note);
        note.clear();
        let slot = self.machine.slot(id);
        // Writing to a string cannot fail.
        let _ = match slot.why {
            Why::Nothing => note.write_str(slot.note()),
            Why::WaitsFor(on) => write!(note, "waits for {}", self.machine.specs()[usize::from(on)].name),
            Why::WaitsForPhases => note.write_str("waits for the early boot phases"),
            Why::PhaseFailed(at) => write!(note, "phase {} failed", self.phase_name(at)),
            Why::StartTimeout => note.write_str("was not ready within its start timeout"),
            Why::Silent => note.write_str("sent no WATCHDOG=1 in time"),
            Why::Unkillable => note.write_str("has processes that SIGKILL does not end"),
            Why::GaveUp => note.write_str("ended too often; it stays down until somebody starts it"),
        };
        let last_exit = match slot.last {
            Ended::Never => None,
            Ended::Status(status) if (exec::NOT_STARTED_MIN..=exec::NOT_STARTED_MAX).contains(&status) => {
                Some(ExitStatus::NotStarted(format!("status {status}; its log says why")))
            }
            Ended::Status(status) => Some(ExitStatus::Exited(status)),
            Ended::Signal(signal) => Some(ExitStatus::Signaled(signal)),
            Ended::Deadline => Some(ExitStatus::DeadlinePassed),
            Ended::NotStarted(errno) => {
                Some(ExitStatus::NotStarted(std::io::Error::from_raw_os_error(errno).to_string()))
            }
        };
        let status = &mut self.statuses[usize::from(id)];
        status.state = slot.state;
        status.pid = slot.pid;
        status.since_ms = slot.since_ms;
        status.ready_after_ms = slot.ready_after_ms;
        status.restarts = slot.restarts;
        status.last_exit = last_exit;
        status.note = note;
    }

    fn phase_name(&self, at: u8) -> &str {
        self.book.phases.get(usize::from(at)).map_or("", |phase| phase.name.as_str())
    }
}

/// Whether this is journald: its own output would come back to it.
fn owns_journal(spec: &Service) -> bool {
    spec.sockets.iter().any(|socket| socket.path == JOURNAL_STREAM)
}

/// One line for a state that somebody reading the log wants to know of.
fn log_state(status: &ServiceStatus) {
    let name = &status.name;
    let ended = Ending(status.last_exit.as_ref());
    match status.state {
        ServiceState::Ready => info!("service {name}: ready after {} ms", status.ready_after_ms),
        ServiceState::Done => info!("service {name}: done after {} ms", status.ready_after_ms),
        ServiceState::BackOff => warning!("service {name}: {ended}; it starts again"),
        ServiceState::Failed => error!("service {name}: failed: {ended}"),
        ServiceState::Stopped => info!("service {name}: stopped"),
        ServiceState::Waiting | ServiceState::Starting | ServiceState::Stopping => {}
    }
}

/// How a process ended, in words.
struct Ending<'a>(Option<&'a ExitStatus>);

impl Display for Ending<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("not started"),
            Some(ExitStatus::Exited(status)) => write!(f, "ended with status {status}"),
            Some(ExitStatus::Signaled(signal)) => write!(f, "ended by signal {signal}"),
            Some(ExitStatus::DeadlinePassed) => f.write_str("killed, its time was up"),
            Some(ExitStatus::NotStarted(reason)) => write!(f, "not started: {reason}"),
        }
    }
}
