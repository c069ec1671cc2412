//! Answers to the control socket's requests.

use dyad_api::control::{Answer, BootInfo, Call, Fault, Refusal, Request, Shutdown, SignalTarget, Slot};

use super::{Core, shutdown};
use crate::log::{self, info, warning};
use crate::services::{Event, Id};

/// Highest signal number.
const SIGNAL_MAX: i32 = 64;

impl Core {
    pub(super) fn answer(&mut self, client: u16, request: Request) {
        let id = request.id;
        let result = match request.call {
            // Its answer comes when it ended.
            Call::RunOneshot(wanted) => match self.start_oneshot(client, id, &wanted) {
                None => return,
                Some(refusal) => Err(refusal),
            },
            Call::Hello { client } => {
                info!("control socket: {client} is connected");
                Ok(Answer::Hello { boot_id: self.boot_id, reexecs: self.book.reexecs })
            }
            Call::ListServices => return self.reply_services(client, id),
            Call::Stats => Ok(Answer::Stats(self.stats())),
            Call::Log => Ok(Answer::Log(log::recent())),
            Call::Inject { fault, after } => self.inject(fault, after),
            Call::Upgrade { path } => match self.begin_upgrade(client, id, &path) {
                None => return,
                Some(refusal) => Err(refusal),
            },
            Call::Status { name } => {
                let status = |service| self.statuses[usize::from(service)].clone();
                self.known(&name).map(|service| Answer::Services(vec![status(service)]))
            }
            Call::Start { name } => self.order(&name, Event::Start),
            Call::Stop { name } => self.order(&name, Event::Stop),
            Call::Restart { name } => self.order(&name, Event::Restart),
            Call::Signal { name, target } => self.signal(&name, target),
            Call::Phases => Ok(Answer::Phases(self.book.phases.clone())),
            Call::BootInfo => Ok(Answer::BootInfo(self.boot_info())),
            Call::Shutdown { how, reason } => {
                let how = match how {
                    Shutdown::Reboot => shutdown::REBOOT,
                    Shutdown::PowerOff => shutdown::POWER_OFF,
                };
                self.begin_shutdown(how, &reason);
                Ok(Answer::Accepted)
            }
            Call::Arm { deadline_ns } => {
                self.fence.arm(deadline_ns);
                self.save_fence();
                self.open_gate_keeper();
                Ok(Answer::Accepted)
            }
            Call::Subscribe => {
                self.subscribe(client);
                return self.reply_services(client, id);
            }
        };
        self.reply(client, id, result);
    }

    /// Only where somebody who rules the machine's command line, or the container's host, wants it.
    fn inject(&mut self, fault: Fault, after: u32) -> Result<Answer, Refusal> {
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        if !self.book.container && !cmdline.split_ascii_whitespace().any(|word| word == "dyad.inject") {
            return Err(Refusal::Invalid("the kernel command line has no word `dyad.inject`".to_owned()));
        }
        warning!("PID 1: {fault:?} after {after} passages, as asked");
        self.meter.injection = Some((fault, after));
        Ok(Answer::Accepted)
    }

    fn known(&self, name: &str) -> Result<Id, Refusal> {
        self.machine.find(name).ok_or_else(|| Refusal::UnknownService(name.to_owned()))
    }

    fn order(&mut self, name: &str, event: fn(Id) -> Event) -> Result<Answer, Refusal> {
        let id = self.known(name)?;
        if self.machine.is_shutting_down() {
            return Err(Refusal::ShuttingDown);
        }
        self.step(event(id));
        Ok(Answer::Accepted)
    }

    fn signal(&mut self, name: &str, target: SignalTarget) -> Result<Answer, Refusal> {
        let id = self.known(name)?;
        let slot = self.machine.slot(id);
        if !slot.is_alive() {
            return Err(Refusal::NotRunning(name.to_owned()));
        }
        let failed = |error: std::io::Error| Refusal::Failed(format!("cannot signal {name:?}: {error}"));
        match target {
            SignalTarget::Main(signal) | SignalTarget::Group(signal)
                if !(1..=SIGNAL_MAX).contains(&signal) =>
            {
                return Err(Refusal::Invalid(format!("signal {signal}: accepted are 1 to {SIGNAL_MAX}")));
            }
            SignalTarget::Main(_) if slot.pid == 0 => return Err(Refusal::NotRunning(name.to_owned())),
            SignalTarget::Main(signal) => dyad_sys::signals::kill(slot.pid, signal).map_err(failed)?,
            SignalTarget::Group(signal) => {
                let each = |pid| {
                    // A process that ended meanwhile needs no signal.
                    let _ = dyad_sys::signals::kill(pid, signal);
                };
                self.groups[usize::from(id)].for_each(each).map_err(|errno| failed(errno.into()))?;
            }
            SignalTarget::KillGroup => {
                self.groups[usize::from(id)].kill().map_err(|errno| failed(errno.into()))?;
            }
        }
        Ok(Answer::Accepted)
    }

    fn previous(&self) -> String {
        match (self.book.watchdog_reset, self.book.previous.as_str()) {
            (false, told) => told.to_owned(),
            (true, "") => "the hardware watchdog reset the machine".to_owned(),
            (true, told) => format!("{told} (the hardware watchdog reset the machine)"),
        }
    }

    fn boot_info(&self) -> BootInfo {
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let hash = crate::initrd::RootHash::from_cmdline(&cmdline).ok().filter(|_| !self.book.container);
        let slot = match self.book.origin.as_str() {
            "a" => Slot::A,
            "b" => Slot::B,
            "network" => Slot::Network,
            _ => Slot::Other,
        };
        BootInfo {
            name: self.image.0.clone(),
            version: self.image.1.clone(),
            boot_id: self.boot_id,
            root_hash: hash.map(|hash| hash.bytes()),
            slot,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            marks: self.book.marks.clone(),
            previous: self.previous(),
            stats: self.stats(),
        }
    }
}
