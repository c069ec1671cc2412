//! Crash recovery: PID 1 that executed itself again takes everything up where its former image left it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use dyad_sys::fault;
use dyad_sys::spawn::{KEPT_FD_MIN, adopt};
use rustix::fs::{Mode, OFlags};

use super::book::{BookError, Header, Memory, Saved};
use super::bound::{Bound, STORED_MAX, Stored};
use super::{Core, StartError, shutdown};
use crate::log::{critical, error, warning};
use crate::services::Event;
use crate::{binary, boot, cgroup, clock, log};

/// Re-execs in a row after which the datagram that is being read is no longer read again.
const STREAK_POISON: u32 = 3;
/// Re-execs in a row after which the image's own binary goes on.
const STREAK_FALL_BACK: u32 = 3;
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
pub(super) fn arm(memory: &Memory, streak: u32) -> std::io::Result<()> {
    // A new binary that does not get on its feet makes way for the image's own, if that can be read.
    let images = Path::new(super::jobs::SELF);
    let copy = if streak < STREAK_FALL_BACK { None } else { binary::copy(images).ok() };
    let own = || rustix::fs::open(binary::SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    arm_with(memory, copy.map_or_else(own, Ok)?)
}

/// [`arm`], with the binary that is to go on.
pub(super) fn arm_with(memory: &Memory, binary: OwnedFd) -> std::io::Result<()> {
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

/// Descriptors of the former image, in the order of the book.
struct Taken {
    watchdog: Option<OwnedFd>,
    gate: Option<OwnedFd>,
    clients: Vec<Option<OwnedFd>>,
    outputs: Vec<[super::jobs::Output; 2]>,
}

/// Takes over every descriptor that is written down, and closes what the former image had open beside: its peers see an
/// end. Before anything else is opened, because from then on a number may mean something new.
fn take(saved: &Saved, memory: RawFd) -> Result<(Bound, Taken), ResumeError> {
    let own = |fd: RawFd| adopt(fd).ok_or(ResumeError::Descriptor(fd));
    let mut known = vec![saved.notify, saved.control, saved.watchdog, saved.gate, memory];
    let mut sockets = Vec::with_capacity(saved.sockets.len());
    for (service, name, fd) in &saved.sockets {
        known.push(*fd);
        sockets.push((*service, name.clone(), own(*fd)?));
    }
    let mut stored = Vec::with_capacity(STORED_MAX);
    for (service, name, fd) in &saved.stored {
        known.push(*fd);
        stored.push(adopt(*fd).map(|fd| Stored::new(*service, name, fd)));
    }
    known.extend(saved.clients.iter().map(|(_, fd, ..)| *fd));
    known.extend(saved.jobs.iter().flat_map(|job| [job.out.0, job.out.1, job.err.0, job.err.1]));
    let bound = Bound { notify: own(saved.notify)?, control: own(saved.control)?, sockets, stored };
    let taken = Taken {
        watchdog: adopt(saved.watchdog),
        gate: adopt(saved.gate),
        clients: saved.clients.iter().map(|(_, fd, ..)| adopt(*fd)).collect(),
        outputs: saved
            .jobs
            .iter()
            .map(|job| [job.out, job.err].map(|(pipe, file)| (adopt(pipe), adopt(file))))
            .collect(),
    };
    let numbers: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        })
        .unwrap_or_default();
    for number in numbers {
        if number >= KEPT_FD_MIN && !known.contains(&number) {
            drop(adopt(number));
        }
    }
    Ok((bound, taken))
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
        let (bound, taken) = take(&saved, number)?;
        arm(&memory, header.streak)
            .map_err(|e| StartError::Bind { path: "the fault handlers".to_owned(), source: e })?;
        let mut core = Self::assemble(table, saved.container, header.boot_id, memory, bound)?;
        core.take_up(saved, &header, taken)?;
        core.save();
        let cause = match header.cause {
            fault::CAUSE_PANIC => "a panic".to_owned(),
            fault::CAUSE_UPGRADE => "an upgrade".to_owned(),
            signal => format!("signal {signal}"),
        };
        error!("PID 1: executed itself again after {cause}; {} times since boot", core.book.reexecs);
        if header.streak >= STREAK_SHUTDOWN {
            core.begin_shutdown(shutdown::REBOOT, "PID 1 cannot make progress");
        }
        Ok(core)
    }

    fn take_up(&mut self, saved: Saved, header: &Header, taken: Taken) -> Result<(), ResumeError> {
        let (clients, jobs) = (saved.clients.clone(), saved.jobs.clone());
        self.machine.restore_phases(saved.ended_phases, saved.shutting_down);
        let (deadline, gone_by) = self.memory.load_fence().map_err(BookError::Read)?;
        self.fence.restore(deadline, gone_by, taken.watchdog, taken.gate);
        self.watch_gate();
        self.book = saved;
        self.book.reexecs = self.book.reexecs.saturating_add(1);
        self.meter.fault_ns = Some(header.fault_ns);
        self.watch_stored();
        for ((at, _, subscribed, missed), fd) in clients.into_iter().zip(taken.clients) {
            if let Some(fd) = fd {
                self.take_client(at, fd, subscribed, missed);
            }
        }
        for (job, outputs) in jobs.into_iter().zip(taken.outputs) {
            self.take_job(job, outputs);
        }
        for id in self.machine.ids() {
            let slot = self.memory.load_slot(id)?;
            self.machine.restore(clock::boot_ms(), id, slot);
            self.refresh_status(id);
        }
        // A request that was cut off has no answer: its client sees the connection end and asks again.
        if let Some(client) = header.client {
            warning!("control socket: the request of a client was cut off");
            self.drop_client(client);
        }
        if header.streak > STREAK_POISON {
            warning!("notify socket: a datagram was dropped that PID 1 may not survive");
            self.drop_notice();
        }
        self.repeat_spawns();
        // The signal that told of it was read by the former image.
        self.continue_stopped();
        self.begin();
        Ok(())
    }

    /// What was about to be started either is a child of this process, alive or not yet reaped, or is started now. Only the
    /// list of children tells: it keeps who has ended, while a look at a cgroup misses who ends just then.
    fn repeat_spawns(&mut self) {
        if self.machine.ids().any(|id| self.is_starting(id)) || self.jobs.is_starting() {
            self.find_children();
        }
        self.jobs.end_unstarted();
        for id in self.machine.ids() {
            if self.is_starting(id) {
                let event = self.spawn_service(id);
                self.step(event);
            }
        }
    }

    /// In a group the oldest child comes first: the one that was cloned into it, before those that it left behind.
    fn find_children(&mut self) {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for pid in children.split_ascii_whitespace().filter_map(|word| word.parse().ok()) {
            let mut name = [0; 128];
            let Some(group) = cgroup::group_of(pid, &mut name) else { continue };
            if self.jobs.adopt(group, pid) {
                continue;
            }
            let service = group.strip_suffix(".service").and_then(|name| self.machine.find(name));
            if let Some(id) = service.filter(|id| self.is_starting(*id)) {
                self.step(Event::Spawned(id, pid));
            }
        }
    }

    /// Writes the book. Memory that cannot be written is told; nothing else depends on it until the next crash.
    pub(super) fn save(&mut self) {
        self.meter.passage();
        self.refresh_book();
        if let Err(error) = self.memory.save_book(&self.book) {
            error!("PID 1: cannot write its state: {error}");
        }
        self.meter.passage();
    }

    /// Brings the book up to date, in the memory that it has already.
    fn refresh_book(&mut self) {
        let raw = |fd: &OwnedFd| fd.as_raw_fd();
        // Out of the way, because what follows is read from all of PID 1.
        let mut book = std::mem::take(&mut self.book);
        book.ended_phases = self.machine.ended_phases();
        book.shutting_down = self.machine.is_shutting_down();
        book.watchdog = self.fence.watchdog.as_ref().map_or(-1, |watchdog| watchdog.as_fd().as_raw_fd());
        book.gate = self.fence.gate.as_ref().map_or(-1, raw);
        book.notify = raw(&self.bound.notify);
        book.control = raw(&self.bound.control);
        if book.sockets.is_empty() {
            // Bound once.
            book.sockets.extend(self.bound.sockets.iter().map(|(id, name, fd)| (*id, name.clone(), raw(fd))));
        }
        book.stored.clear();
        book.stored.extend(self.bound.stored.iter().flatten().map(Stored::saved));
        book.clients.clear();
        book.clients.extend(self.saved_clients());
        book.jobs.clear();
        book.jobs.extend(self.saved_jobs());
        self.book = book;
    }
}
