//! Another binary in the place of this one, while everything runs: the way of crash recovery, gone on purpose.

use std::path::Path;

use dyad_api::control::{Answer, ExitStatus, Refusal};
use dyad_spec::compiled;
use dyad_sys::fault;

use super::{Core, book, jobs, resume};
use crate::log::{error, info};

/// How long the new binary may take to say what it reads.
const ASK_MS: u32 = 10_000;

/// What a binary says when it is asked whose state it can go on from.
pub(crate) fn state_format() -> String {
    format!("dyad-init state {}, table {}", book::FORMAT, compiled::FORMAT)
}

impl Core {
    /// Asks a binary whether it can take over. `None`: the answer comes later.
    pub(super) fn begin_upgrade(&mut self, client: u16, id: u32, path: &str) -> Option<Refusal> {
        if !path.starts_with('/') || path.contains('\0') {
            return Some(Refusal::Invalid(format!("path {path:?}: an absolute path is accepted")));
        }
        if self.machine.is_shutting_down() {
            return Some(Refusal::ShuttingDown);
        }
        if self.jobs.is_busy(UPGRADE) {
            return Some(Refusal::Busy(UPGRADE.to_owned()));
        }
        let exec = [path.to_owned(), "--state-format".to_owned()];
        self.upgrade = Some(path.to_owned());
        let started = self.start_question(UPGRADE, &exec, jobs::Kind::Upgrade(client, id), ASK_MS);
        started.err().map(|error| Refusal::Failed(format!("cannot start {path}: {error}")))
    }

    /// The binary answered: goes on as it, or says why not.
    pub(super) fn end_upgrade(&mut self, client: u16, id: u32, status: &ExitStatus, said: &[u8]) {
        let said = String::from_utf8_lossy(said);
        let path = self.upgrade.take().unwrap_or_default();
        let refusal = match status {
            ExitStatus::Exited(0) if said.trim() == state_format() => match self.take_over(client, id, &path)
            {
                Ok(()) => return,
                Err(error) => format!("cannot go on as {path}: {error}"),
            },
            ExitStatus::Exited(0) => {
                format!("{path} says {:?}, and {:?} is accepted", said.trim(), state_format())
            }
            other => format!("{path} does not say what state it reads: {other:?}"),
        };
        error!("upgrade: {refusal}");
        self.reply(client, id, Err(Refusal::Failed(refusal)));
    }

    /// Comes back only when nothing was changed.
    fn take_over(&mut self, client: u16, id: u32, path: &str) -> std::io::Result<()> {
        resume::arm_with(&self.memory, crate::binary::copy(Path::new(path))?)?;
        info!("upgrade: going on as {path}");
        self.reply(client, id, Ok(Answer::Accepted));
        self.save();
        let failed = fault::reexec(fault::CAUSE_UPGRADE);
        error!("upgrade: cannot execute {path}: {failed}");
        resume::arm(&self.memory, 0)
    }
}

const UPGRADE: &str = "upgrade";
