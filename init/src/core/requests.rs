//! Answers to the control socket's requests.

use dyad_api::control::{Answer, BootInfo, Call, Refusal, Request, Shutdown, SignalTarget, Slot};

use super::{Core, shutdown};
use crate::log::info;
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
                Ok(Answer::Hello { boot_id: self.boot_id, reexecs: self.reexecs })
            }
            Call::ListServices => Ok(self.all_services()),
            Call::Status { name } => {
                self.known(&name).map(|service| Answer::Services(vec![self.status(service)]))
            }
            Call::Start { name } => self.order(&name, Event::Start),
            Call::Stop { name } => self.order(&name, Event::Stop),
            Call::Restart { name } => self.order(&name, Event::Restart),
            Call::Signal { name, target } => self.signal(&name, target),
            Call::Phases => Ok(Answer::Phases(self.phases.clone())),
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
                self.save();
                Ok(Answer::Accepted)
            }
            Call::Subscribe => {
                self.subscribe(client);
                Ok(self.all_services())
            }
        };
        self.reply(client, id, result);
    }

    fn all_services(&self) -> Answer {
        Answer::Services(self.machine.ids().map(|id| self.status(id)).collect())
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

    fn boot_info(&self) -> BootInfo {
        let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let hash = crate::initrd::RootHash::from_cmdline(&cmdline).ok().filter(|_| !self.container);
        let slot = match self.origin.as_str() {
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
            marks: self.marks.clone(),
        }
    }
}
