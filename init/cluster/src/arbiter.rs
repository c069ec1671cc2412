//! The arbiter's rules (6 to 9), pure: the witness program and the simulator both run this.
//!
//! What must survive a crash is [`Durable`]; a changed one must be on disk before the answer that came with it is sent.
//! Sessions, releases and what was heard die with the process, on purpose: an arbiter that has just started knows
//! nothing about who is silent.

mod memory;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::message::{
    Answer, Authenticated, Cas, FromArbiter, RESOURCES_MAX, Refusal, Registers, ToArbiter, Verdict,
};
use crate::mutation::{Mutation, Mutations};
use crate::register::{self, Change, Conflict, Reason, Register};
use crate::types::{BootId, Epoch, Incarnation, Node, RequestId, ResourceId, Tick};

pub use memory::{Memory, TwoHistories};

/// What is on the arbiter's disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Durable {
    /// The registers.
    pub registers: BTreeMap<ResourceId, Register>,
    /// The boot of the holder that made the register's last change. A holder that comes with another boot has not
    /// resumed (rule 5): it serves nothing, and the standby need not wait for its silence.
    pub holder_boots: BTreeMap<ResourceId, BootId>,
    /// Last answered batch of each node, so that a repeated request gets the first answer.
    pub answered: [Option<(RequestId, Vec<Verdict>)>; 2],
    /// Newest boot known of each node.
    pub boots: [Option<BootId>; 2],
}

/// A node's session in this incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    boot: BootId,
    /// Last renewal, or the arbiter's start if that is later than what is known.
    renewed: Tick,
}

/// The whole arbiter for one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arbiter {
    durable: Durable,
    incarnation: Incarnation,
    started: Tick,
    lease_ms: u64,
    /// Configured: this disk is never restored from a snapshot, so one mirror is enough (rule 9).
    storage_is_durable: bool,
    heard: [bool; 2],
    amnesia: bool,
    sessions: [Option<Session>; 2],
    /// (resource, epoch) pairs that their holder gave up.
    released: BTreeSet<(ResourceId, Epoch)>,
    mutations: Mutations,
}

/// What an arbiter that lost its memory starts with: the newest register of both nodes' mirrors, and nobody's boot or
/// request, so that nothing asked before is answered from here. `Err`: the mirrors hold two histories of one epoch, which
/// only an operator can tell apart.
pub fn enrol_again(mirrors: [&Registers; 2]) -> Result<Durable, ResourceId> {
    let mut registers: BTreeMap<ResourceId, Register> = BTreeMap::new();
    for (id, register) in mirrors.into_iter().flatten() {
        match registers.get(id) {
            Some(known) if known.epoch == register.epoch && known != register => return Err(*id),
            Some(known) if known.epoch >= register.epoch => {}
            Some(_) | None => {
                registers.insert(*id, *register);
            }
        }
    }
    Ok(Durable { registers, ..Durable::default() })
}

impl Arbiter {
    /// A process that has just started with what was on its disk.
    pub fn start(
        durable: Durable,
        incarnation: Incarnation,
        now: Tick,
        lease_ms: u64,
        storage_is_durable: bool,
    ) -> Self {
        Arbiter {
            durable,
            incarnation,
            started: now,
            lease_ms,
            storage_is_durable,
            heard: [false; 2],
            amnesia: false,
            sessions: [None, None],
            released: BTreeSet::new(),
            mutations: Mutations::default(),
        }
    }

    /// The same with broken clauses, for tests of the tests.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn with(mut self, mutations: Mutations) -> Self {
        self.mutations = mutations;
        self
    }

    /// What must be on disk before the last answer goes out.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// How long a node has been silent at `now`, in milliseconds, counted from this process's start at the earliest.
    pub fn silent_ms(&self, node: Node, now: Tick) -> u64 {
        let renewed =
            self.sessions[node.index()].as_ref().map_or(self.started, |s| s.renewed.max(self.started));
        now.since(renewed)
    }

    /// Which nodes' mirrors were heard in this incarnation.
    pub fn heard(&self) -> [bool; 2] {
        self.heard
    }

    /// A mirror was ahead of this disk: nothing is granted until it is enrolled again ([`enrol_again`]).
    pub fn has_amnesia(&self) -> bool {
        self.amnesia
    }

    /// One message; the answer may be sent only after [`Arbiter::durable`] is on disk, if it changed.
    pub fn handle(&mut self, now: Tick, envelope: &Authenticated) -> FromArbiter {
        let from = envelope.from;
        let answer = match &envelope.message {
            ToArbiter::Hello { boot, incarnation, mirror } => {
                let meant = *incarnation == Some(self.incarnation)
                    || (incarnation.is_some() && self.mutations.broken(Mutation::IncarnationIgnored));
                if meant {
                    self.hello(now, from, *boot, mirror.as_ref())
                } else {
                    Answer::Refused(Refusal::Incarnation)
                }
            }
            ToArbiter::Renew { boot, incarnation, sequence } => {
                match self.session(now, from, *boot, *incarnation) {
                    Ok(_) => Answer::Renewed { sequence: *sequence },
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
            ToArbiter::Batch { boot, incarnation, request, items } => {
                match self.session(now, from, *boot, *incarnation) {
                    Ok(()) => self.batch(now, from, *request, items),
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
            ToArbiter::Release { boot, incarnation, resource, epoch } => {
                match self.session(now, from, *boot, *incarnation) {
                    Ok(()) => self.release(from, *resource, *epoch),
                    Err(refusal) => Answer::Refused(refusal),
                }
            }
        };
        let boot = match &envelope.message {
            ToArbiter::Hello { boot, .. }
            | ToArbiter::Renew { boot, .. }
            | ToArbiter::Batch { boot, .. }
            | ToArbiter::Release { boot, .. } => *boot,
        };
        FromArbiter {
            incarnation: self.incarnation,
            boot,
            answered: self.durable.answered[from.index()].as_ref().map_or(RequestId(0), |(last, _)| *last),
            registers: self.durable.registers.iter().map(|(id, r)| (*id, *r)).collect(),
            heard_both: self.may_grant(),
            answer,
        }
    }

    fn may_grant(&self) -> bool {
        let one = self.storage_is_durable || self.mutations.broken(Mutation::OneMirrorHeard);
        let enough = if one { self.heard.iter().any(|h| *h) } else { self.heard == [true; 2] };
        enough && !self.amnesia
    }

    fn hello(&mut self, now: Tick, from: Node, boot: BootId, mirror: Option<&Registers>) -> Answer {
        if self.durable.boots[from.index()].is_some_and(|newest| boot < newest) {
            return Answer::Refused(Refusal::Boot);
        }
        if mirror.is_some_and(|m| m.len() > RESOURCES_MAX) {
            return Answer::Refused(Refusal::TooLarge);
        }
        self.durable.boots[from.index()] = Some(boot);
        self.sessions[from.index()] = Some(Session { boot, renewed: now });
        // A mirror that cannot be read says nothing about what this node was told: it was not heard.
        if let Some(mirror) = mirror {
            let behind = |id: &ResourceId, r: &Register| {
                // Equal epochs with different content are two histories, and this one is not the nodes'.
                self.durable
                    .registers
                    .get(id)
                    .is_none_or(|o| o.epoch < r.epoch || (o.epoch == r.epoch && o != r))
            };
            // A register that a node knows and this disk does not: the disk went back in time.
            let ahead = mirror.iter().any(|(id, r)| behind(id, r));
            self.amnesia |= ahead && !self.mutations.broken(Mutation::AmnesiaIgnored);
            self.heard[from.index()] = true;
        }
        if self.amnesia { Answer::Refused(Refusal::Amnesia) } else { Answer::Welcome }
    }

    fn session(
        &mut self,
        now: Tick,
        from: Node,
        boot: BootId,
        incarnation: Incarnation,
    ) -> Result<(), Refusal> {
        if incarnation != self.incarnation && !self.mutations.broken(Mutation::IncarnationIgnored) {
            return Err(Refusal::Incarnation);
        }
        if self.durable.boots[from.index()].is_some_and(|newest| boot < newest) {
            return Err(Refusal::Boot);
        }
        match &mut self.sessions[from.index()] {
            Some(session) if session.boot == boot => {
                session.renewed = session.renewed.max(now);
                Ok(())
            }
            Some(_) | None => Err(Refusal::Session),
        }
    }

    fn batch(&mut self, now: Tick, from: Node, request: RequestId, items: &[Cas]) -> Answer {
        if items.len() > RESOURCES_MAX {
            return Answer::Refused(Refusal::TooLarge);
        }
        let again = self.mutations.broken(Mutation::RepeatedRequestJudgedAgain);
        match &self.durable.answered[from.index()] {
            Some((last, _)) if request < *last && !again => return Answer::Refused(Refusal::Request),
            Some((last, verdicts)) if request == *last && !again => {
                return Answer::Verdicts { request, verdicts: verdicts.clone() };
            }
            Some(_) | None => {}
        }
        let verdicts: Vec<Verdict> = items.iter().map(|item| self.judge(now, from, item)).collect();
        self.durable.answered[from.index()] = Some((request, verdicts.clone()));
        Answer::Verdicts { request, verdicts }
    }

    fn judge(&mut self, now: Tick, from: Node, item: &Cas) -> Verdict {
        if !self.may_grant() {
            return Verdict::NotHeard;
        }
        let current = self.durable.registers.get(&item.resource);
        if current.is_none() && self.durable.registers.len() >= RESOURCES_MAX {
            return Verdict::Lost(Conflict::Full);
        }
        let expect = current
            .filter(|_| self.mutations.broken(Mutation::EpochNotCompared))
            .map_or(item.expect, |register| register.epoch);
        let careless = self.mutations.broken(Mutation::TakeOverFromSolo);
        let next = match register::apply(current, expect, from, item.change) {
            Ok(next) => next,
            Err(Conflict::Mode) if careless && matches!(item.change, Change::TakeOver(_)) => {
                match register::apply(current, expect, from, Change::Force) {
                    Ok(next) => Register { reason: Reason::TookOver, ..next },
                    Err(conflict) => return Verdict::Lost(conflict),
                }
            }
            Err(conflict) => return Verdict::Lost(conflict),
        };
        if matches!(item.change, Change::TakeOver(_)) && !self.holder_is_gone(now, from.peer(), item) {
            return Verdict::HolderAlive;
        }
        self.durable.registers.insert(item.resource, next);
        self.released.retain(|(resource, _)| *resource != item.resource);
        // Whoever wins a change is the holder after it, whichever change it was.
        if let Some(session) = &self.sessions[from.index()] {
            self.durable.holder_boots.insert(item.resource, session.boot);
        }
        Verdict::Won
    }

    /// Rule 7: silent for T on our clock (from our own start at the earliest), released, or rebooted and not resumed.
    fn holder_is_gone(&self, now: Tick, holder: Node, item: &Cas) -> bool {
        let any = self.mutations.broken(Mutation::ReleaseAtAnyEpoch);
        if self.released.iter().any(|(r, epoch)| *r == item.resource && (any || *epoch == item.expect)) {
            return true;
        }
        if self.mutations.broken(Mutation::SilenceNotAwaited) {
            return true;
        }
        match &self.sessions[holder.index()] {
            None => {
                now.since(self.started) >= self.lease_ms
                    || self.mutations.broken(Mutation::SilenceBeforeStart)
            }
            Some(session) => {
                let silent = now.since(session.renewed.max(self.started)) >= self.lease_ms;
                silent || self.durable.holder_boots.get(&item.resource) != Some(&session.boot)
            }
        }
    }

    fn release(&mut self, from: Node, resource: ResourceId, epoch: Epoch) -> Answer {
        let any = self.mutations.broken(Mutation::ReleaseAtAnyEpoch);
        let holds = self
            .durable
            .registers
            .get(&resource)
            .is_some_and(|r| r.holder == from && (r.epoch == epoch || any));
        if holds {
            self.released.insert((resource, epoch));
        }
        Answer::Released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Mode;

    const R: ResourceId = ResourceId(0);

    fn register(epoch: u64, holder: Node) -> Register {
        Register { epoch: Epoch(epoch), mode: Mode::Solo, holder, reason: Reason::Founded }
    }

    #[test]
    fn enrolment_takes_the_newest_and_refuses_two_truths() {
        let (old, new) = (vec![(R, register(3, Node::A))], vec![(R, register(5, Node::B))]);
        assert_eq!(enrol_again([&old, &new]).unwrap().registers[&R], register(5, Node::B));
        assert_eq!(enrol_again([&new, &old]).unwrap().registers[&R], register(5, Node::B));
        let other = vec![(R, register(5, Node::A))];
        assert_eq!(enrol_again([&new, &other]), Err(R));
    }

    #[test]
    fn resources_are_bounded() {
        let all = (0..RESOURCES_MAX as u16).map(|r| (ResourceId(r), register(1, Node::A))).collect();
        let durable = Durable { registers: all, ..Durable::default() };
        let mut arbiter = Arbiter::start(durable, Incarnation(1), Tick(0), 3_000, false);
        let boot = BootId { count: 1, nonce: 1 };
        for from in Node::BOTH {
            let hello = ToArbiter::Hello { boot, incarnation: Some(Incarnation(1)), mirror: Some(vec![]) };
            arbiter.handle(Tick(0), &Authenticated { from, message: hello });
        }
        let found = Cas { resource: ResourceId(9_999), expect: Epoch(0), change: Change::Found };
        let batch =
            ToArbiter::Batch { boot, incarnation: Incarnation(1), request: RequestId(1), items: vec![found] };
        let answer = arbiter.handle(Tick(1), &Authenticated { from: Node::A, message: batch }).answer;
        let verdicts = vec![Verdict::Lost(Conflict::Full)];
        assert_eq!(answer, Answer::Verdicts { request: RequestId(1), verdicts });
    }
}
