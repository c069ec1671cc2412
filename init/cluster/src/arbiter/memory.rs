//! What an arbiter knows beside its disk, taken out and put back: for status, for a backend that keeps it elsewhere, and
//! for the registers of an arbiter that is enrolled again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Arbiter, Durable, Session};
use crate::message::Registers;
use crate::register::Register;
use crate::types::{BootId, Epoch, Incarnation, ResourceId, Tick};

/// The part of an arbiter that dies with its process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Whose mirror was heard in this incarnation.
    pub heard: [bool; 2],
    /// The disk was found to be older than a mirror.
    pub amnesia: bool,
    /// Boot and last renewal of each node that said hello.
    pub sessions: [Option<(BootId, Tick)>; 2],
    /// What its holder gave up, at which epoch.
    pub released: BTreeSet<(ResourceId, Epoch)>,
}

/// Two mirrors with the same epoch and different content: no one can say which of them is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("resource {} has epoch {} in both mirrors, with different content: two histories", resource.0, epoch.0)]
pub struct TwoHistories {
    /// Of which resource.
    pub resource: ResourceId,
    /// At which epoch.
    pub epoch: Epoch,
}

impl Arbiter {
    /// What would be lost with the process.
    pub fn memory(&self) -> Memory {
        Memory {
            heard: self.heard,
            amnesia: self.amnesia,
            sessions: self.sessions.each_ref().map(|s| s.as_ref().map(|s| (s.boot, s.renewed))),
            released: self.released.clone(),
        }
    }

    /// The same arbiter in the middle of its incarnation.
    #[must_use]
    pub fn remembering(mut self, memory: Memory) -> Self {
        self.heard = memory.heard;
        self.amnesia = memory.amnesia;
        self.sessions = memory.sessions.map(|s| s.map(|(boot, renewed)| Session { boot, renewed }));
        self.released = memory.released;
        self
    }

    /// This run.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether any change can be granted now (rule 9).
    pub fn grants(&self) -> bool {
        self.may_grant()
    }
}

impl Durable {
    /// What an arbiter that is enrolled again starts from (rule 9): the newest that either node was told, or that its own
    /// disk still knows. Where a mirror and the disk differ at one epoch the mirror counts: nodes acted on it.
    ///
    /// `boots` are those in which the nodes sent their mirrors. A holder counts as resumed in its boot, so that its silence
    /// is awaited.
    pub fn rebuilt(&self, mirrors: [&Registers; 2], boots: [BootId; 2]) -> Result<Durable, TwoHistories> {
        let mut told: BTreeMap<ResourceId, Register> = BTreeMap::new();
        for (resource, register) in mirrors.into_iter().flatten() {
            match told.get(resource) {
                Some(other) if other.epoch > register.epoch || other == register => {}
                Some(other) if other.epoch == register.epoch => {
                    return Err(TwoHistories { resource: *resource, epoch: register.epoch });
                }
                Some(_) | None => {
                    told.insert(*resource, *register);
                }
            }
        }
        let mut next = self.clone();
        for (resource, register) in told {
            let known = next.registers.get(&resource);
            if known.is_none_or(|known| known.epoch <= register.epoch && *known != register) {
                next.registers.insert(resource, register);
                next.holder_boots.insert(resource, boots[register.holder.index()]);
            }
        }
        next.boots = boots.map(Some);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{Mode, Reason};
    use crate::types::Node;

    fn solo(epoch: u64, holder: Node) -> Register {
        Register { epoch: Epoch(epoch), mode: Mode::Solo, holder, reason: Reason::TookOver }
    }

    const R: ResourceId = ResourceId(0);
    const BOOTS: [BootId; 2] = [BootId { count: 1, nonce: 1 }, BootId { count: 2, nonce: 2 }];

    #[test]
    fn the_newest_that_anybody_was_told_counts() {
        let disk = Durable { registers: BTreeMap::from([(R, solo(4, Node::A))]), ..Durable::default() };
        let (old, new) = (vec![(R, solo(3, Node::A))], vec![(R, solo(6, Node::B))]);
        let rebuilt = disk.rebuilt([&old, &new], BOOTS).unwrap();
        assert_eq!((rebuilt.registers[&R], rebuilt.holder_boots[&R]), (solo(6, Node::B), BOOTS[1]));
        assert_eq!(disk.rebuilt([&old, &vec![]], BOOTS).unwrap().registers[&R], solo(4, Node::A));
        let other = vec![(R, solo(4, Node::B))];
        assert_eq!(disk.rebuilt([&other, &old], BOOTS).unwrap().registers[&R], solo(4, Node::B));
    }

    #[test]
    fn two_histories_are_not_chosen_between() {
        let (a, b) = (vec![(R, solo(5, Node::A))], vec![(R, solo(5, Node::B))]);
        assert_eq!(
            Durable::default().rebuilt([&a, &b], BOOTS),
            Err(TwoHistories { resource: R, epoch: Epoch(5) })
        );
    }

    #[test]
    fn memory_goes_out_and_in() {
        let start = || Arbiter::start(Durable::default(), Incarnation(7), Tick(5), 3_000, false);
        let memory = Memory {
            heard: [true, false],
            amnesia: true,
            sessions: [Some((BootId { count: 1, nonce: 2 }, Tick(9))), None],
            released: BTreeSet::from([(R, Epoch(3))]),
        };
        assert_eq!(start().remembering(memory.clone()).memory(), memory);
        assert_eq!(start().memory(), Memory::default());
    }
}
