//! Crash recovery: PID 1 that executed itself again takes everything up where its former image left it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use dyad_sys::fault;
use dyad_sys::spawn::{KEPT_FD_MIN, adopt};
use rustix::fs::{Mode, OFlags};

use super::book::{BookError, Memory, Saved};
use super::bound::{Bound, Stored};
use super::{Core, StartError, shutdown};
use crate::log::{critical, error, warning};
use crate::services::Event;
use crate::{boot, log};

/// Re-execs in a row after which the machine is shut down in order.
const STREAK_SHUTDOWN: u32 = 16;
/// And after which it is reset at once.
const STREAK_RESET: u32 = 24;

/// Why PID 1 cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error("no descriptor {0} to resume from")]
    NoState(RawFd),
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("descriptor {0} of the former image is gone")]
    Descriptor(RawFd),
    #[error("{0} re-execs without a whole turn of the loop")]
    Loop(u32),
}

/// Installs panic hook and fault handlers: from here on a bug in PID 1 costs milliseconds.
pub(super) fn arm(memory: &Memory) -> std::io::Result<()> {
    let binary = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let argv =
        ["init", "--resume", &memory.number().to_string()].map(|word| CString::new(word).unwrap_or_default());
    fault::install(binary, argv.to_vec(), memory.number(), super::book::CAUSE_AT)?;
    std::panic::set_hook(Box::new(|info| {
        critical!("PID 1: {info}");
        // In a child this does nothing, and the child aborts.
        let _ = fault::reexec(fault::CAUSE_PANIC);
    }));
    Ok(())
}

impl Core {
    /// Goes on from the state in descriptor `number`.
    pub(crate) fn resume(number: RawFd) -> Result<Self, ResumeError> {
        let table = boot::table().map_err(StartError::from)?;
        let file = adopt(number).ok_or(ResumeError::NoState(number))?;
        let (memory, header) = Memory::take(file, table.services.len())?;
        if header.streak >= STREAK_RESET {
            return Err(ResumeError::Loop(header.streak));
        }
        let saved = memory.load_book()?;
        if !saved.container {
            log::open();
        }
        let own = |fd: RawFd| adopt(fd).ok_or(ResumeError::Descriptor(fd));
        let mut sockets = Vec::with_capacity(saved.sockets.len());
        for (service, name, fd) in &saved.sockets {
            sockets.push((*service, name.clone(), own(*fd)?));
        }
        let mut stored = Vec::with_capacity(saved.stored.len());
        for (service, name, fd) in &saved.stored {
            stored.push(adopt(*fd).map(|fd| Stored { service: *service, name: name.clone(), fd }));
        }
        let bound = Bound { notify: own(saved.notify)?, control: own(saved.control)?, sockets, stored };
        arm(&memory).map_err(|e| StartError::Bind { path: "the fault handlers".to_owned(), source: e })?;
        let mut core = Self::assemble(table, saved.container, header.boot_id, memory, bound)?;
        core.take_up(saved, header.client)?;
        core.save();
        let cause = match header.cause {
            fault::CAUSE_PANIC => "a panic".to_owned(),
            fault::CAUSE_UPGRADE => "an upgrade".to_owned(),
            signal => format!("signal {signal}"),
        };
        error!("PID 1: executed itself again after {cause}; {} times since boot", core.reexecs);
        if header.streak >= STREAK_SHUTDOWN {
            core.begin_shutdown(shutdown::REBOOT, "PID 1 cannot make progress");
        }
        Ok(core)
    }

    fn take_up(&mut self, saved: Saved, answering: Option<u16>) -> Result<(), ResumeError> {
        self.origin = saved.origin;
        self.reexecs = saved.reexecs.saturating_add(1);
        self.phases = saved.phases;
        self.marks = saved.marks;
        self.shutdown = saved.shutdown;
        self.machine.restore_phases(saved.phases_done, saved.shutting_down);
        self.fence.restore(saved.fence_deadline_ns, saved.fence_gone_by_ns, adopt(saved.watchdog));
        self.watch_stored();
        for (at, fd, subscribed, missed) in saved.clients {
            if let Some(fd) = adopt(fd) {
                self.take_client(at, fd, subscribed, missed);
            }
        }
        for job in saved.jobs {
            self.take_job(job);
        }
        self.close_strays();
        for id in self.machine.ids() {
            let slot = self.memory.load_slot(id)?;
            self.logged[usize::from(id)] = slot.state;
            self.machine.restore(id, slot);
        }
        // A request that was cut off has no answer: its client sees the connection end and asks again.
        if let Some(client) = answering {
            warning!("control socket: the request of a client was cut off");
            self.drop_client(client);
        }
        self.repeat_spawns();
        Ok(())
    }

    /// A service that was about to be started either has a process in its cgroup now, or is started.
    fn repeat_spawns(&mut self) {
        for id in self.machine.ids() {
            let slot = self.machine.slot(id);
            if slot.state != dyad_api::control::ServiceState::Starting || slot.pid != 0 {
                continue;
            }
            let mut found = None;
            // The first one is the oldest: the one that was cloned into it.
            let _ = self.groups[usize::from(id)].for_each(|pid| found = found.or(Some(pid)));
            let event = match found {
                Some(pid) => Event::Spawned(id, pid),
                None => self.spawn_service(id),
            };
            self.step(event);
        }
    }

    /// Closes what the former image had open and not yet written down: its peers see an end.
    fn close_strays(&self) {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
        let numbers: Vec<RawFd> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let known = self.numbers();
        for number in numbers {
            if number >= KEPT_FD_MIN && !known.contains(&number) {
                drop(adopt(number));
            }
        }
    }

    /// Descriptors that are written down.
    fn numbers(&self) -> Vec<RawFd> {
        let book = self.saved();
        let mut numbers = vec![book.notify, book.control, book.watchdog, self.memory.number()];
        numbers.extend(book.sockets.iter().map(|(.., fd)| *fd));
        numbers.extend(book.stored.iter().map(|(.., fd)| *fd));
        numbers.extend(book.clients.iter().map(|(_, fd, ..)| *fd));
        numbers.extend(book.jobs.iter().flat_map(|job| [job.out.0, job.err.0]));
        numbers
    }

    /// Writes the book. Memory that cannot be written is told; nothing else depends on it until the next crash.
    pub(super) fn save(&mut self) {
        let book = self.saved();
        if let Err(error) = self.memory.save_book(&book) {
            error!("PID 1: cannot write its state: {error}");
        }
    }

    fn saved(&self) -> Saved {
        let raw = |fd: &OwnedFd| fd.as_raw_fd();
        let (fence_deadline_ns, fence_gone_by_ns) = self.fence.deadlines();
        Saved {
            container: self.container,
            origin: self.origin.clone(),
            reexecs: self.reexecs,
            phases_done: self.machine.phases_done(),
            shutting_down: self.machine.is_shutting_down(),
            shutdown: self.shutdown.clone(),
            phases: self.phases.clone(),
            marks: self.marks.clone(),
            fence_deadline_ns,
            fence_gone_by_ns,
            watchdog: self.fence.watchdog.as_ref().map_or(-1, |watchdog| watchdog.as_fd().as_raw_fd()),
            notify: raw(&self.bound.notify),
            control: raw(&self.bound.control),
            sockets: self.bound.sockets.iter().map(|(id, name, fd)| (*id, name.clone(), raw(fd))).collect(),
            stored: self
                .bound
                .stored
                .iter()
                .flatten()
                .map(|stored| (stored.service, stored.name.clone(), raw(&stored.fd)))
                .collect(),
            clients: self.saved_clients(),
            jobs: self.saved_jobs(),
        }
    }
}
