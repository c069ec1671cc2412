//! Ordered shutdown as data: steps with deadlines. A step that does not end in time is told and left behind; nothing that
//! can hang in the kernel runs in this process.

use dyad_api::control::Event as Told;
use dyad_sys::signals::{self, Children};
use rustix::system::RebootCommand;
use serde::{Deserialize, Serialize};

use super::{Core, jobs};
use crate::log::{critical, error, info, warning};
use crate::record::Record;
use crate::services::Event;
use crate::{clock, power};

/// What comes after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    Reboot,
    PowerOff,
}
pub(super) use How::{PowerOff as POWER_OFF, Reboot as REBOOT};

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Walk the stop ladders, dependents first.
    StopServices,
    /// This signal for every process that is left, until there is none.
    SignalAll(i32),
    /// A helper process (`init --phase NAME`).
    Helper,
    /// The same, for the record of how the boot ended: everything is stopped in order.
    Record,
    /// Reboot or power off.
    Reset,
    /// The same without asking any driver.
    Force,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    deadline_ms: u32,
    work: Work,
}

/// The order of a shutdown.
const STEPS: [Step; 9] = [
    Step { name: "services", deadline_ms: 90_000, work: Work::StopServices },
    Step { name: "terminate", deadline_ms: 3_000, work: Work::SignalAll(nix::libc::SIGTERM) },
    Step { name: "kill", deadline_ms: 3_000, work: Work::SignalAll(nix::libc::SIGKILL) },
    Step { name: "record", deadline_ms: 5_000, work: Work::Record },
    Step { name: "teardown", deadline_ms: 30_000, work: Work::Helper },
    Step { name: "unmount", deadline_ms: 15_000, work: Work::Helper },
    Step { name: "sync", deadline_ms: 30_000, work: Work::Helper },
    Step { name: "reset", deadline_ms: 10_000, work: Work::Reset },
    Step { name: "force", deadline_ms: 1_000, work: Work::Force },
];

/// Presses of Ctrl-Alt-Del within this time that mean: now.
const IMPATIENT_MS: u64 = 2_000;
const IMPATIENT_PRESSES: u8 = 7;

/// How far a shutdown is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    how: How,
    step: usize,
    reason: String,
    began_ms: u64,
    pub(super) deadline_ms: u64,
    presses: (u8, u64),
}

impl Core {
    /// Begins an ordered shutdown; a second call changes nothing.
    pub(super) fn begin_shutdown(&mut self, how: How, reason: &str) {
        if self.book.shutdown.is_some() {
            return;
        }
        let what = if how == How::Reboot { "reboot" } else { "power off" };
        warning!("shutdown: {what}: {reason}");
        let now = clock::boot_ms();
        let reason = format!("{what}: {reason}");
        self.record(&Record::Begun(reason.clone()));
        let presses = (0, now);
        self.book.shutdown =
            Some(Progress { how, step: 0, reason, began_ms: now, deadline_ms: now, presses });
        self.tell(Told::ShuttingDown);
        // A deadline of the supervisor's means nothing any more: writers stop now, in order.
        self.fence.arm(None);
        self.begin_step(now);
    }

    /// Ctrl-Alt-Del: an ordered reboot; pressed again and again, a reset.
    pub(super) fn ctrl_alt_del(&mut self) {
        self.begin_shutdown(How::Reboot, "Ctrl-Alt-Del");
        let now = clock::boot_ms();
        let Some(progress) = &mut self.book.shutdown else { return };
        let (presses, since) = progress.presses;
        progress.presses = if now - since > IMPATIENT_MS { (1, now) } else { (presses + 1, since) };
        if progress.presses.0 >= IMPATIENT_PRESSES {
            critical!("shutdown: Ctrl-Alt-Del {IMPATIENT_PRESSES} times: reset");
            power::reset_now();
        }
    }

    fn begin_step(&mut self, now: u64) {
        let Some(progress) = &mut self.book.shutdown else { return };
        let step = &STEPS[progress.step];
        progress.deadline_ms = now + u64::from(step.deadline_ms);
        self.save();
        match step.work {
            Work::StopServices => {
                self.kill_jobs();
                self.step(Event::Shutdown);
                self.save();
            }
            Work::SignalAll(signal) => {
                if let Err(error) = signals::kill_all(signal) {
                    warning!("shutdown: cannot signal all processes: {error}");
                }
            }
            Work::Helper => {
                if let Err(error) = self.start_helper(&[step.name], jobs::Kind::Step, step.deadline_ms) {
                    error!("shutdown: {}: cannot start its helper: {error}", step.name);
                }
            }
            Work::Record => {
                let reason = self.book.shutdown.as_ref().map_or(String::new(), |p| p.reason.clone());
                self.record(&Record::Done(reason));
            }
            Work::Reset => self.reset(),
            Work::Force => power::reset_now(),
        }
    }

    fn step_done(&self, work: Work) -> bool {
        match work {
            Work::StopServices => self.machine.is_quiet() && !self.jobs.runs(jobs::Kind::Record),
            Work::SignalAll(_) => matches!(signals::peek(), Ok(Children::None)),
            Work::Helper => !self.jobs.runs(jobs::Kind::Step),
            Work::Record => self.book.record.is_none() && !self.jobs.runs(jobs::Kind::Record),
            Work::Reset | Work::Force => false,
        }
    }

    /// Goes on to the next step when this one is done, or late.
    pub(super) fn settle_shutdown(&mut self, now: u64) {
        while let Some(progress) = &self.book.shutdown {
            let step = &STEPS[progress.step];
            let late = now >= progress.deadline_ms;
            if !late && !self.step_done(step.work) {
                return;
            }
            if late {
                error!("shutdown: {}: not done within {} ms, going on", step.name, step.deadline_ms);
            }
            let mut next = progress.step + 1;
            // A container's file systems and disks belong to its host.
            while self.book.container && next < STEPS.len() && STEPS[next].work == Work::Helper {
                next += 1;
            }
            // A reset that came back is forced, again and again.
            let next = next.min(STEPS.len() - 1);
            if let Some(progress) = &mut self.book.shutdown {
                progress.step = next;
            }
            self.begin_step(now);
        }
    }

    /// A process of its own makes the call: a driver that hangs in it does not keep PID 1 from what comes next.
    fn reset(&mut self) {
        let Some(progress) = &self.book.shutdown else { return };
        let took = clock::boot_ms().saturating_sub(progress.began_ms);
        info!("shutdown: complete {}.{:03}s", took / 1000, took % 1000);
        let command = match progress.how {
            How::Reboot => RebootCommand::Restart,
            How::PowerOff => RebootCommand::PowerOff,
        };
        let call = || match rustix::system::reboot(command) {
            Ok(()) => 0,
            Err(errno) => {
                error!("shutdown: the kernel refuses: {errno}");
                1
            }
        };
        if let Err(error) = dyad_sys::spawn::spawn(None, call) {
            error!("shutdown: no process for the reset: {error}");
            call();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_safe() {
        let at = |name: &str| STEPS.iter().position(|step| step.name == name).expect("a step");
        assert!(at("services") < at("terminate") && at("terminate") < at("kill"));
        assert!(
            at("kill") < at("record")
                && at("record") < at("teardown")
                && at("teardown") < at("unmount")
                && at("unmount") < at("sync")
        );
        assert!(at("sync") < at("reset"));
        assert_eq!(at("force"), STEPS.len() - 1);
        assert!(STEPS.iter().all(|step| step.deadline_ms > 0));
        // The sum is what an operator waits at most.
        assert!(STEPS.iter().map(|step| step.deadline_ms).sum::<u32>() <= 200_000);
    }
}
