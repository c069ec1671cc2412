//! PID 1's loop: one thread, one epoll, everything else is an event.

mod book;
mod bound;
mod capture;
mod clients;
mod fence;
mod jobs;
mod meter;
mod notices;
mod previous;
mod requests;
mod resume;
mod shutdown;
mod supervise;
mod upgrade;

use std::collections::VecDeque;

use dyad_api::control::{Event as Told, Phase, PhaseState, ServiceState, ServiceStatus};
use dyad_spec::compiled::{ImageTable, Service};
use dyad_sys::signals::{self, Children};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;

use crate::cgroup::{Group, Slice};
use crate::log::{error, info, warning};
use crate::record::Record;
use crate::services::{Event, Machine, Phases, Slot, Why};
use crate::{boot, clock, uevent};

pub(crate) use book::is_sane as book_is_sane;
pub(crate) use jobs::STATUS_CHANGED;
pub(crate) use upgrade::state_format;

use bound::Bound;
use clients::Clients;
use jobs::Jobs;

/// Longest sleep of the loop: how late a lost event is noticed, and how often the watchdog is fed at least.
const SLEEP_MAX_MS: u64 = 5_000;
/// While a cgroup should become empty, how often that is looked at besides each child's end.
const EMPTY_POLL_MS: u64 = 20;
/// Events taken from epoll at once.
const EVENTS: usize = 64;
/// Children reaped before other events get their turn.
const REAP_MAX: usize = 256;

/// Room for the note of a service's status.
const STATUS_NOTE_BYTES: usize = 160;
/// Marks of a boot.
const MARKS: usize = 8;

/// An early boot phase.
pub(crate) struct EarlyPhase {
    name: &'static str,
    deadline_ms: u32,
    /// Which one has ended before it, well or not.
    after: Option<usize>,
}

/// The early boot phases.
pub(crate) const PHASES: [EarlyPhase; 5] = [
    EarlyPhase { name: "modules", deadline_ms: 60_000, after: None },
    EarlyPhase { name: "grow", deadline_ms: 60_000, after: None },
    EarlyPhase { name: "state", deadline_ms: 120_000, after: Some(1) },
    EarlyPhase { name: "data", deadline_ms: 300_000, after: Some(2) },
    EarlyPhase { name: "esp", deadline_ms: 30_000, after: Some(1) },
];

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Signals,
    Notify,
    Control,
    Devices,
    Power,
    Client(u16),
    JobOut(u16),
    JobErr(u16),
    Stored(u16),
    Gate,
}

impl Token {
    fn data(self) -> epoll::EventData {
        let (kind, index) = match self {
            Token::Signals => (0u64, 0),
            Token::Notify => (1, 0),
            Token::Control => (2, 0),
            Token::Devices => (3, 0),
            Token::Power => (4, 0),
            Token::Client(at) => (5, at),
            Token::JobOut(at) => (6, at),
            Token::JobErr(at) => (7, at),
            Token::Stored(at) => (8, at),
            Token::Gate => (9, 0),
        };
        epoll::EventData::new_u64(kind << 32 | u64::from(index))
    }

    fn from_data(data: u64) -> Option<Self> {
        let at = data as u16;
        Some(match data >> 32 {
            0 => Token::Signals,
            1 => Token::Notify,
            2 => Token::Control,
            3 => Token::Devices,
            4 => Token::Power,
            5 => Token::Client(at),
            6 => Token::JobOut(at),
            7 => Token::JobErr(at),
            8 => Token::Stored(at),
            9 => Token::Gate,
            _ => return None,
        })
    }
}

/// Everything PID 1 knows.
pub(crate) struct Core {
    image: (String, String),
    memory: book::Memory,
    /// What the memory holds beside the services' states.
    book: book::Saved,
    boot_id: [u8; 16],
    /// A whole turn of the loop went well since the last re-exec.
    steady: bool,
    /// More children have ended than one turn deals with.
    unreaped: bool,
    epoll: OwnedFd,
    signals: SignalFd,
    devices: Option<OwnedFd>,
    /// Devices came while a coldplug was running: run another.
    devices_changed: bool,
    power: Option<OwnedFd>,
    slice: Slice,
    group_names: Vec<String>,
    groups: Vec<Group>,
    machine: Machine,
    /// Events that follow from the one that the machine is at; empty between two of them.
    queue: VecDeque<Event>,
    /// The services as the control protocol tells them.
    statuses: Vec<ServiceStatus>,
    meter: meter::Meter,
    /// The binary that is asked whether it can take over.
    upgrade: Option<String>,
    bound: Bound,
    clients: Clients,
    jobs: Jobs,
    fence: fence::Fence,
}

/// Why PID 1 could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Boot(#[from] boot::Error),
    #[error("cannot {what}: {source}")]
    Call { what: &'static str, source: Errno },
    #[error("cannot bind {path}: {source}")]
    Bind { path: String, source: std::io::Error },
}

fn call(what: &'static str) -> impl FnOnce(Errno) -> StartError {
    move |source| StartError::Call { what, source }
}

impl Core {
    /// Boots the root and sets everything up.
    pub(crate) fn boot() -> Result<Self, StartError> {
        let began = clock::boot_ms();
        let container = boot::in_container();
        let table = boot::prepare(container)?;
        boot::device_permissions();
        let mut boot_id = [0; 16];
        rustix::rand::getrandom(&mut boot_id, rustix::rand::GetRandomFlags::NONBLOCK)
            .map_err(call("mint the boot id"))?;
        let bound = Bound::open(&table.services)?;
        let memory = book::Memory::create(table.services.len(), boot_id)
            .map_err(|source| StartError::Bind { path: "PID 1's state".to_owned(), source })?;
        let mut core = Self::assemble(table, container, boot_id, memory, bound)?;
        core.book.origin = std::env::var("DYAD_SLOT").unwrap_or_default();
        for id in core.machine.ids() {
            core.save_slot(id);
        }
        core.save();
        resume::arm(&core.memory, 0)
            .map_err(|source| StartError::Bind { path: "the fault handlers".to_owned(), source })?;
        let kernel = std::env::var("DYAD_KERNEL_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(began);
        core.book.marks.push(("kernel".to_owned(), kernel));
        core.book.marks.push(("initrd".to_owned(), began));
        core.book.marks.push(("early".to_owned(), clock::boot_ms()));
        core.meter.inject_into_boot(container);
        core.begin();
        Ok(core)
    }

    fn assemble(
        table: ImageTable,
        container: bool,
        boot_id: [u8; 16],
        memory: book::Memory,
        bound: Bound,
    ) -> Result<Self, StartError> {
        crate::exec::raise_own_limit();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(call("create an epoll"))?;
        let signals = signal_descriptor()?;
        let slice = Slice::prepare().map_err(call("prepare the cgroups"))?;
        let group_names: Vec<String> = table.services.iter().map(|s| format!("{}.service", s.name)).collect();
        let mut groups = Vec::with_capacity(group_names.len());
        for name in &group_names {
            groups.push(slice.group(name).map_err(call("make a service's cgroup"))?);
        }
        let named = |service: &Service| ServiceStatus {
            name: service.name.clone(),
            note: String::with_capacity(STATUS_NOTE_BYTES),
            ..ServiceStatus::default()
        };
        let devices = if container { None } else { uevent::open().ok() };
        let power = if container { None } else { crate::power::open() };
        let names = PHASES.map(|phase| phase.name);
        let jitter = boot_id[..8].iter().fold(1, |number, byte| number << 8 | u64::from(*byte));
        let book = book::Saved {
            container,
            phases: names.iter().map(|name| waiting_phase(name)).collect(),
            marks: Vec::with_capacity(MARKS),
            stored: Vec::with_capacity(bound::STORED_MAX),
            clients: Vec::with_capacity(clients::CLIENTS_MAX),
            ..book::Saved::default()
        };
        let statuses = table.services.iter().map(named).collect();
        let core = Self {
            image: (table.name, table.version),
            memory,
            book,
            boot_id,
            steady: false,
            unreaped: false,
            epoll,
            signals,
            devices,
            devices_changed: false,
            power,
            slice,
            group_names,
            groups,
            queue: VecDeque::with_capacity(table.services.len()),
            machine: Machine::new(table.services, &names, jitter),
            statuses,
            meter: meter::Meter::default(),
            upgrade: None,
            bound,
            clients: Clients::new(),
            jobs: Jobs::new(),
            fence: fence::Fence::default(),
        };
        core.watch(core.signals.as_fd(), Token::Signals)?;
        core.watch(core.bound.notify.as_fd(), Token::Notify)?;
        core.watch(core.bound.control.as_fd(), Token::Control)?;
        if let Some(fd) = &core.devices {
            core.watch(fd.as_fd(), Token::Devices)?;
        }
        if let Some(fd) = &core.power {
            core.watch(fd.as_fd(), Token::Power)?;
        }
        Ok(core)
    }

    fn watch(&self, fd: rustix::fd::BorrowedFd<'_>, token: Token) -> Result<(), StartError> {
        epoll::add(&self.epoll, fd, token.data(), epoll::EventFlags::IN).map_err(call("watch a descriptor"))
    }

    /// The loop.
    pub(crate) fn run(mut self) -> ! {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.turn(&mut events);
            if self.book.reexecs > 0 && !self.steady {
                self.steady = self.memory.steady().is_ok();
                self.recovered();
                crate::binary::let_go();
            }
        }
    }

    /// Sleeps until something happens, and deals with all of it.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) {
        let timeout = self.sleep_ms();
        let timeout = rustix::event::Timespec {
            tv_sec: (timeout / 1000) as i64,
            tv_nsec: (timeout % 1000) as i64 * 1_000_000,
        };
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => error!("epoll: {errno}"),
        }
        let woke_ns = clock::boot_ns();
        self.meter.events += events.len() as u64;
        // Notices before ends: a service that says READY=1 and exits has been ready.
        for event in events.iter() {
            if Token::from_data(event.data.u64()) == Some(Token::Notify) {
                self.read_notices();
            }
        }
        for event in events.iter() {
            match Token::from_data(event.data.u64()) {
                Some(Token::Signals) => self.read_signals(),
                Some(Token::Control) => self.accept_client(),
                Some(Token::Devices) => self.read_devices(),
                Some(Token::Power) => self.read_power(),
                Some(Token::Client(at)) => self.read_client(at),
                Some(Token::JobOut(at)) => self.read_job(at, true),
                Some(Token::JobErr(at)) => self.read_job(at, false),
                Some(Token::Stored(at)) => self.drop_stored(at),
                Some(Token::Gate) => self.read_gate(),
                Some(Token::Notify) | None => {}
            }
        }
        self.reap();
        self.settle();
        self.meter.turned(woke_ns);
    }

    fn sleep_ms(&self) -> u64 {
        // After a re-exec the first turn does not sleep, so that it is soon known to be whole.
        if self.unreaped || self.book.reexecs > 0 && !self.steady {
            return 0;
        }
        let now = clock::boot_ms();
        let deadlines = [
            self.machine.next_deadline_ms(),
            self.jobs.next_deadline_ms(),
            self.fence.next_deadline_ms(),
            self.book.shutdown.as_ref().map(|progress| progress.deadline_ms),
            self.awaits_empty().then_some(now + EMPTY_POLL_MS),
        ];
        let next = deadlines.into_iter().flatten().min().unwrap_or(u64::MAX);
        next.saturating_sub(now).min(SLEEP_MAX_MS)
    }

    /// What time and ends of processes bring about.
    fn settle(&mut self) {
        let now = clock::boot_ms();
        self.check_empty();
        if self.machine.next_deadline_ms().is_some_and(|at| at <= now) {
            self.step(Event::Tick);
        }
        self.settle_jobs(now);
        self.mark_services(now);
        self.settle_fence();
        self.settle_shutdown(now);
    }

    /// Once: when every service that starts by itself is up, or will not come up.
    fn mark_services(&mut self, now: u64) {
        let marked = self.book.marks.last().is_some_and(|(name, _)| name == "services");
        if marked || !self.book.phases.iter().all(has_ended) {
            return;
        }
        let begins = |slot: &Slot| match slot.state {
            ServiceState::Starting => true,
            ServiceState::Waiting => !matches!(slot.why, Why::PhaseFailed(_)),
            _ => false,
        };
        let mut specs = self.machine.ids().zip(self.machine.specs());
        if specs.any(|(id, spec)| spec.autostart && begins(self.machine.slot(id))) {
            return;
        }
        let since = self.book.marks.last().map_or(now, |(_, at)| *at);
        let took = now.saturating_sub(since);
        info!("services {}.{:03}s", took / 1000, took % 1000);
        self.book.marks.push(("services".to_owned(), now));
        self.save();
        // What only the boot needed.
        crate::binary::let_go();
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = info.ssi_signo as i32;
            match signal {
                nix::libc::SIGINT => self.ctrl_alt_del(),
                nix::libc::SIGTERM => self.begin_shutdown(shutdown::POWER_OFF, "SIGTERM"),
                nix::libc::SIGPWR => self.begin_shutdown(shutdown::POWER_OFF, "power failure (SIGPWR)"),
                nix::libc::SIGHUP => self.begin_shutdown(shutdown::REBOOT, "SIGHUP"),
                nix::libc::SIGCHLD => self.continue_stopped(),
                _ => {}
            }
        }
    }

    /// Until no ended child is left; what remains after many gets its turn in the next round.
    fn reap(&mut self) {
        self.unreaped = false;
        for _ in 0..REAP_MAX {
            match signals::peek() {
                Ok(Children::Ended(pid, exit)) => {
                    self.meter.events += 1;
                    if !self.job_exited(pid, exit) {
                        self.step(Event::Exited(pid, exit));
                    }
                    // Only now, with its end recorded: a crash in between finds the status again.
                    if let Err(error) = signals::reap(pid) {
                        warning!("cannot reap process {pid}: {error}");
                    }
                }
                Ok(Children::Alive | Children::None) => return,
                Err(error) => {
                    error!("cannot wait for children: {error}");
                    return;
                }
            }
        }
        // Their signals have been read: nothing else would wake the loop for them.
        self.unreaped = true;
    }

    /// Begins the early boot phases and every service that starts by itself; goes on where a former image was.
    fn begin(&mut self) {
        if self.machine.is_shutting_down() {
            return;
        }
        if self.book.container {
            // Modules and partitions are the host's; its file systems are filled as those of a disk would be.
            for phase in &mut self.book.phases[..2] {
                phase.state = PhaseState::Unchanged;
                phase.note = "container".to_owned();
            }
        }
        self.start_phases();
        if self.book.begun {
            return;
        }
        for id in self.machine.ids() {
            if self.machine.specs()[usize::from(id)].autostart {
                self.step(Event::Start(id));
            }
        }
        // In a container the host has read them long since.
        if !self.book.container {
            self.warm_up();
        }
        self.book.begun = true;
        self.save();
    }

    /// Starts every phase whose turn it is. A failed one does not keep those after it from trying.
    fn start_phases(&mut self) {
        for (at, phase) in PHASES.iter().enumerate() {
            let turn = phase.after.is_none_or(|before| has_ended(&self.book.phases[before]));
            if turn && !has_ended(&self.book.phases[at]) && !self.jobs.runs(jobs::Kind::Phase(at)) {
                self.start_phase(at);
            }
        }
        self.step(Event::Phases(self.ended_phases()));
    }

    fn ended_phases(&self) -> Phases {
        let bits = |is: fn(&Phase) -> bool| {
            let such = self.book.phases.iter().enumerate().filter(|(_, phase)| is(phase));
            such.fold(0, |bits, (at, _)| bits | 1 << at)
        };
        Phases { all: bits(has_ended), well: bits(|phase| phase.state.is_done()) }
    }

    fn start_phase(&mut self, at: usize) {
        let EarlyPhase { name, deadline_ms, .. } = PHASES[at];
        self.book.phases[at].state = PhaseState::Running;
        self.book.phases[at].started_ms = clock::boot_ms();
        self.save();
        self.tell(Told::Phase(self.book.phases[at].clone()));
        if let Err(error) = self.start_helper(&[name], jobs::Kind::Phase(at), deadline_ms) {
            self.end_phase(at, PhaseState::Failed, format!("cannot start its helper: {error}"));
        }
    }

    fn end_phase(&mut self, at: usize, state: PhaseState, note: String) {
        let phase = &mut self.book.phases[at];
        phase.state = state;
        phase.took_ms = clock::boot_ms().saturating_sub(phase.started_ms).max(1) as u32;
        phase.note = note;
        let (took, name) = (phase.took_ms, &phase.name);
        match state {
            PhaseState::Failed => error!("phase {name} failed after {took} ms: {}", phase.note),
            _ => info!("phase {name} {}.{:03}s: {}", took / 1000, took % 1000, phase.note),
        }
        self.tell(Told::Phase(self.book.phases[at].clone()));
        if self.book.phases.iter().all(has_ended) {
            self.book.marks.push(("phases".to_owned(), clock::boot_ms()));
            self.step(Event::Phases(self.ended_phases()));
            self.record(&Record::Running);
        } else if !self.machine.is_shutting_down() {
            self.start_phases();
        }
        self.save();
    }

    fn read_devices(&mut self) {
        let Some(fd) = &self.devices else { return };
        if !uevent::drain(fd) {
            return;
        }
        self.devices_changed = true;
        self.coldplug_if_changed();
    }

    /// One coldplug at a time; events that come meanwhile ask for one more.
    fn coldplug_if_changed(&mut self) {
        if !self.devices_changed || self.jobs.runs_coldplug() || self.machine.is_shutting_down() {
            return;
        }
        self.devices_changed = false;
        if let Err(error) = self.start_helper(&["modules"], jobs::Kind::Devices, PHASES[0].deadline_ms) {
            warning!("cannot look for drivers of new devices: {error}");
        }
    }

    fn read_power(&mut self) {
        if self.power.as_ref().is_some_and(crate::power::button_pressed) {
            self.begin_shutdown(shutdown::POWER_OFF, "power button");
        }
    }
}

fn has_ended(phase: &Phase) -> bool {
    !matches!(phase.state, PhaseState::Waiting | PhaseState::Running)
}

fn waiting_phase(name: &str) -> Phase {
    Phase {
        name: name.to_owned(),
        state: PhaseState::Waiting,
        started_ms: 0,
        took_ms: 0,
        note: String::new(),
    }
}

/// Every signal is blocked and read from a descriptor instead.
fn signal_descriptor() -> Result<SignalFd, StartError> {
    signals::set_mask(true);
    SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(|errno| {
        StartError::Call { what: "create a signalfd", source: Errno::from_raw_os_error(errno as i32) }
    })
}
