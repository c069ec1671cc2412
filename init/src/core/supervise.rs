//! Carrying out what the services' state machine decides.

use dyad_api::control::{Event as Told, ExitStatus, ServiceState, ServiceStatus};
use rustix::fd::{AsFd, BorrowedFd};

use super::Core;
use crate::exec::{self, Output, Program};
use crate::log::{error, info, warning};
use crate::services::{Action, Ended, Event, Id, Why};
use crate::{clock, exec::JOURNAL_STREAM};

impl Core {
    /// One event into the machine, and all that follows from it.
    pub(super) fn step(&mut self, event: Event) {
        let mut next = Some(event);
        // What an action brings about at once is the next event: a spawn either worked or not.
        let mut queue: std::collections::VecDeque<Event> = std::collections::VecDeque::new();
        while let Some(event) = next.take().or_else(|| queue.pop_front()) {
            let actions = self.machine.step(clock::boot_ms(), event);
            for action in &actions {
                match *action {
                    Action::Spawn(id) => queue.push_back(self.spawn_service(id)),
                    Action::Signal(id, pid, signal) => self.signal_main(id, pid, signal),
                    Action::KillGroup(id) => self.kill_group(id),
                    Action::Changed(id) => self.changed(id),
                }
            }
            self.machine.recycle(actions);
        }
    }

    pub(super) fn spawn_service(&mut self, id: Id) -> Event {
        let spec = &self.machine.specs()[usize::from(id)];
        match self.slice.fresh_group(&format!("{}.service", spec.name)) {
            Ok(group) => self.groups[usize::from(id)] = group,
            Err(errno) => {
                error!("service {}: cannot make its cgroup: {errno}", spec.name);
                return Event::SpawnFailed(id, errno.raw_os_error());
            }
        }
        let owns_journal = spec.sockets.iter().any(|socket| socket.path == JOURNAL_STREAM);
        let mut listen: Vec<(BorrowedFd<'_>, &str)> = Vec::new();
        for (owner, name, fd) in &self.bound.sockets {
            if *owner == id {
                listen.push((fd.as_fd(), name));
            }
        }
        for stored in self.bound.stored.iter().flatten().filter(|stored| stored.service == id) {
            listen.push((stored.fd.as_fd(), &stored.name));
        }
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
            output: if owns_journal { Output::Kernel } else { Output::Journal(&spec.name, spec.console) },
            listen: &listen,
            notify: true,
            watchdog_ms: spec.watchdog_ms,
        };
        let group = self.groups[usize::from(id)].fd();
        match dyad_sys::spawn::spawn(Some(group), || exec::become_program(&program)) {
            Ok(pid) => Event::Spawned(id, pid),
            Err(error) => {
                error!("service {}: cannot start a process: {error}", spec.name);
                Event::SpawnFailed(id, error.raw_os_error().unwrap_or(0))
            }
        }
    }

    /// Writes a service's state down.
    pub(super) fn save_slot(&self, id: Id) {
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

    pub(super) fn kill_group(&self, id: Id) {
        if let Err(errno) = self.groups[usize::from(id)].kill() {
            warning!(
                "service {}: cannot kill its cgroup: {errno}",
                self.machine.specs()[usize::from(id)].name
            );
        }
    }

    fn changed(&mut self, id: Id) {
        self.save_slot(id);
        let status = self.status(id);
        if std::mem::replace(&mut self.logged[usize::from(id)], status.state) != status.state {
            log_state(&status);
        }
        self.tell(&Told::Service(status));
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

    /// The state of a service as the control protocol tells it.
    pub(super) fn status(&self, id: Id) -> ServiceStatus {
        let slot = self.machine.slot(id);
        let name = |id: Id| self.machine.specs()[usize::from(id)].name.as_str();
        let note = match slot.why {
            Why::Nothing => slot.note().to_owned(),
            Why::WaitsFor(on) => format!("waits for {}", name(on)),
            Why::WaitsForPhases => "waits for the early boot phases".to_owned(),
            Why::PhaseFailed(at) => format!("phase {} failed", self.phase_name(at)),
            Why::StartTimeout => "was not ready within its start timeout".to_owned(),
            Why::Silent => "sent no WATCHDOG=1 in time".to_owned(),
            Why::Unkillable => "has processes that SIGKILL does not end".to_owned(),
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
        ServiceStatus {
            name: name(id).to_owned(),
            state: slot.state,
            pid: slot.pid,
            since_ms: slot.since_ms,
            ready_after_ms: slot.ready_after_ms,
            restarts: slot.restarts,
            last_exit,
            note,
        }
    }

    fn phase_name(&self, at: u8) -> &str {
        self.phases.get(usize::from(at)).map_or("", |phase| phase.name.as_str())
    }
}

/// One line for a state that somebody reading the log wants to know of.
fn log_state(status: &ServiceStatus) {
    let name = &status.name;
    let ended = status.last_exit.as_ref().map_or_else(|| "not started".to_owned(), describe);
    match status.state {
        ServiceState::Ready => info!("service {name}: ready after {} ms", status.ready_after_ms),
        ServiceState::Done => info!("service {name}: done after {} ms", status.ready_after_ms),
        ServiceState::BackOff => warning!("service {name}: {ended}; it starts again"),
        ServiceState::Failed => error!("service {name}: failed: {ended}"),
        ServiceState::Stopped => info!("service {name}: stopped"),
        ServiceState::Waiting | ServiceState::Starting | ServiceState::Stopping => {}
    }
}

fn describe(exit: &ExitStatus) -> String {
    match exit {
        ExitStatus::Exited(status) => format!("ended with status {status}"),
        ExitStatus::Signaled(signal) => format!("ended by signal {signal}"),
        ExitStatus::DeadlinePassed => "killed, its time was up".to_owned(),
        ExitStatus::NotStarted(reason) => format!("not started: {reason}"),
    }
}
