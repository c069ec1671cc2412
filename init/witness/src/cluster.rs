//! One cluster at the witness: decides in memory, says what must be on disk first, and takes it back if that fails.

use std::io;

use dyad_channel::PublicKey;
use dyad_channel::secret::{Exporter, Side};
use dyad_channel::witness::{Enroll, Refused, Reply, member};
use dyad_cluster::arbiter::{Arbiter, Durable};
use dyad_cluster::disk;
use dyad_cluster::message::{Registers, ToArbiter};
use dyad_cluster::types::{Incarnation, Node, Tick};

use crate::record::{self, FIRST_SEQUENCE, Pending, Read, Record, Standing};

/// A cluster with its arbiter.
#[derive(Debug)]
pub(crate) struct Cluster {
    record: Record,
    /// Of the newest slot on disk.
    sequence: u64,
    arbiter: Option<Arbiter>,
    /// A write failed: what is on disk is either this or what was refused. Nothing is answered before it is this.
    uncertain: bool,
    /// The disk may have lost an answered write, so its owner's word that it does not is not taken (rule 9).
    suspect: bool,
    storage_is_durable: bool,
}

/// Something decided that counts once it is on disk.
#[derive(Debug)]
pub(crate) struct Change {
    record: Record,
    arbiter: Option<Arbiter>,
    pub(crate) reply: Reply,
}

/// What to do with a question.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Nothing on disk changes.
    Answer(Reply),
    /// Write first.
    Write(Box<Change>),
}

/// What to write where.
#[derive(Debug)]
pub(crate) enum Write {
    /// The older slot of the existing file.
    Slot {
        /// In the file.
        offset: u64,
        /// The slot.
        bytes: Vec<u8>,
    },
    /// The whole file.
    File(Vec<u8>),
}

/// When and with what an arbiter starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) now: Tick,
    pub(crate) incarnation: Incarnation,
}

impl Cluster {
    /// From what was on disk.
    pub(crate) fn load(read: Read<Record>, start: Start, storage_is_durable: bool) -> Self {
        let mut cluster = Cluster {
            record: read.value,
            sequence: read.sequence,
            arbiter: None,
            uncertain: false,
            suspect: !read.both_whole,
            storage_is_durable,
        };
        cluster.arbiter = cluster.record.standing.as_ref().map(|standing| cluster.start(standing, start));
        cluster
    }

    /// A new one, of which nothing is on disk yet.
    pub(crate) fn new(record: Record, storage_is_durable: bool) -> Self {
        Cluster {
            record,
            sequence: FIRST_SEQUENCE,
            arbiter: None,
            uncertain: true,
            suspect: false,
            storage_is_durable,
        }
    }

    fn start(&self, standing: &Standing, start: Start) -> Arbiter {
        let durable = self.storage_is_durable && !self.suspect;
        Arbiter::start(standing.durable.clone(), start.incarnation, start.now, standing.lease_ms, durable)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    pub(crate) fn arbiter(&self) -> Option<&Arbiter> {
        self.arbiter.as_ref()
    }

    pub(crate) fn suspect(&self) -> bool {
        self.suspect
    }

    pub(crate) fn uncertain(&self) -> bool {
        self.uncertain
    }

    /// Which member has this key, and whether both have enrolled.
    pub(crate) fn admits(&self, key: &PublicKey) -> Result<Node, Refused> {
        if let Some(standing) = &self.record.standing {
            return member(&standing.members, key).ok_or(Refused::NotEnrolled);
        }
        let waiting = self.record.pending.as_ref().is_some_and(|p| member(&p.members, key).is_some());
        Err(if waiting { Refused::Waiting } else { Refused::NotEnrolled })
    }

    /// One of the arbiter's own messages.
    pub(crate) fn decide(&mut self, now: Tick, from: Node, message: ToArbiter) -> Result<Decision, Refused> {
        let (Some(arbiter), Some(standing)) = (&mut self.arbiter, &self.record.standing) else {
            return Err(Refused::Waiting);
        };
        let writes = match &message {
            ToArbiter::Hello { .. } | ToArbiter::Batch { .. } => true,
            // These change only what dies with the process.
            ToArbiter::Renew { .. } | ToArbiter::Release { .. } => false,
        };
        let envelope = dyad_cluster::message::Authenticated { from, message };
        if !writes {
            return Ok(Decision::Answer(Reply::Arbiter(arbiter.handle(now, &envelope))));
        }
        let mut next = arbiter.clone();
        let reply = Reply::Arbiter(next.handle(now, &envelope));
        if *next.durable() == standing.durable {
            *arbiter = next;
            return Ok(Decision::Answer(reply));
        }
        let mut record = self.record.clone();
        record.standing = Some(Standing { durable: next.durable().clone(), ..standing.clone() });
        Ok(Decision::Write(Box::new(Change { record, arbiter: Some(next), reply })))
    }

    /// The registers, for a member.
    pub(crate) fn read(&self) -> Result<Reply, Refused> {
        let arbiter = self.arbiter.as_ref().ok_or(Refused::Waiting)?;
        let registers: Registers = arbiter.durable().registers.iter().map(|(id, r)| (*id, *r)).collect();
        Ok(Reply::Registers { incarnation: arbiter.incarnation(), registers, grants: arbiter.grants() })
    }

    /// A member enrols with the code of this cluster: for the first time, or again because the answer was lost.
    /// `None`: the proof is of another code.
    pub(crate) fn enroll(
        &self,
        from: Node,
        enroll: &Enroll,
        exporter: &Exporter,
        start: Start,
    ) -> Option<Result<Decision, Refused>> {
        let Enroll { statement, proof } = enroll;
        let knows = |code| statement.accepts(code, proof, Side::Asking, exporter);
        let agree = |members: &[PublicKey; 2], lease_ms| match () {
            () if *members != statement.members => Err(Refused::Members),
            () if lease_ms != statement.lease_ms => Err(Refused::Lease),
            () => Ok(()),
        };
        if let Some(pending) = self.record.pending.as_ref().filter(|p| knows(&p.code)) {
            let agreed = agree(&pending.members, pending.lease_ms);
            return Some(agreed.and_then(|()| self.bring(pending.clone(), from, enroll, exporter, start)));
        }
        let standing = self.record.standing.as_ref().filter(|s| knows(&s.code))?;
        let reply = Reply::Enrolled {
            proof: statement.prove(&standing.code, Side::Answering, exporter),
            complete: true,
        };
        Some(agree(&standing.members, standing.lease_ms).map(|()| Decision::Answer(reply)))
    }

    /// One member's part of an enrolment, and the end of it once both have come.
    pub(crate) fn bring(
        &self,
        mut pending: Pending,
        from: Node,
        enroll: &Enroll,
        exporter: &Exporter,
        start: Start,
    ) -> Result<Decision, Refused> {
        let statement = &enroll.statement;
        pending.brought[from.index()] = Some((statement.boot, statement.mirror.clone()));
        let proof = statement.prove(&pending.code, Side::Answering, exporter);
        let mut record = self.record.clone();
        let [Some((boot_a, mirror_a)), Some((boot_b, mirror_b))] = &pending.brought else {
            record.pending = Some(pending);
            let reply = Reply::Enrolled { proof, complete: false };
            return Ok(Decision::Write(Box::new(Change { record, arbiter: self.arbiter.clone(), reply })));
        };
        let known = record.standing.as_ref().map_or_else(Durable::default, |s| s.durable.clone());
        let standing = Standing {
            durable: known.rebuilt([mirror_a, mirror_b], [*boot_a, *boot_b])?,
            members: pending.members,
            lease_ms: pending.lease_ms,
            code: pending.code.clone(),
        };
        // Members speak to a new run: what was under way with the one before is dropped (rule 9).
        let arbiter = Some(self.start(&standing, start));
        record.standing = Some(standing);
        record.pending = None;
        let reply = Reply::Enrolled { proof, complete: true };
        Ok(Decision::Write(Box::new(Change { record, arbiter, reply })))
    }

    /// What must be written for a change.
    pub(crate) fn write(&self, change: &Change) -> Result<Write, Refused> {
        let too_large = |error: disk::DiskError| Refused::Storage(error.to_string());
        if self.uncertain {
            return record::whole_file(&change.record).map(Write::File).map_err(too_large);
        }
        let (offset, bytes) = disk::encode(self.sequence + 1, &change.record).map_err(too_large)?;
        Ok(Write::Slot { offset, bytes })
    }

    /// What must be written before anything else is answered, after a write that failed: all that is known, as a new
    /// file, so that what was refused cannot come back.
    pub(crate) fn repair(&self) -> Result<Option<Write>, Refused> {
        if !self.uncertain {
            return Ok(None);
        }
        let file = record::whole_file(&self.record).map_err(|e| Refused::Storage(e.to_string()))?;
        Ok(Some(Write::File(file)))
    }

    /// The repair's outcome.
    pub(crate) fn repaired(&mut self, outcome: io::Result<()>) -> Result<(), Refused> {
        outcome.map_err(storage)?;
        self.sequence = FIRST_SEQUENCE;
        self.uncertain = false;
        Ok(())
    }

    /// The write's outcome: the change counts, or it never was.
    pub(crate) fn settle(
        &mut self,
        change: Change,
        write: &Write,
        outcome: io::Result<()>,
    ) -> Result<Reply, Refused> {
        if let Err(error) = outcome {
            self.uncertain = true;
            return Err(storage(error));
        }
        self.sequence = match write {
            Write::Slot { .. } => self.sequence + 1,
            Write::File(_) => FIRST_SEQUENCE,
        };
        self.uncertain = false;
        self.record = change.record;
        self.arbiter = change.arbiter;
        Ok(change.reply)
    }

    /// The file may be gone from the directory, or not.
    pub(crate) fn doubt(&mut self) {
        self.uncertain = true;
    }
}

pub(crate) fn storage(error: io::Error) -> Refused {
    Refused::Storage(error.to_string())
}
