//! The beginnings of led histories: where a mutation can only show after many moves in one order, these come first, and
//! the rest is left to chance.

use std::collections::HashSet;

use dyad_cluster::action::Kind;
use dyad_cluster::message::{ToArbiter, ToPeer};
use dyad_cluster::phase::Phase;
use dyad_cluster::types::{Incarnation, Node};

use super::shared::Shared;
use super::world::{Letter, Service, World};
use super::{Move, apply, fingerprint, moves};

/// Rounds of ordinary moves until a phase is reached.
const ROUNDS_MAX: usize = 40;

/// One step of a led beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// Everything ordinary happens, on both nodes and at the arbiter, until this node is in this phase.
    Until(Node, Phase),
    /// The same, but the arbiter is not heard, and the holder does not see its standby.
    Unheard(Node, Phase),
    /// The same, but only this node and what it asks go on; it does not see its standby.
    Only(Node, Phase),
    /// The same, but what this node asks for stays under way.
    Unasked(Node, Phase),
    /// Everything ordinary happens until nothing is left to do.
    Settle,
    /// The same, but only this node and what it asks go on.
    SettleOnly(Node),
    /// This one pending action ends.
    Finish(Node, Kind),
    /// A client writes.
    Write(Node),
    /// The write reaches the standby's disk.
    Stream(Node),
    /// The last write is acknowledged.
    Acknowledge(Node),
    /// The holder sees its standby go.
    Cut(Node),
    /// The standby suspects its holder.
    Suspect(Node),
    /// The node goes down.
    Crash(Node),
    /// Its disk is swapped for an empty one.
    SwapDisk(Node),
    /// It comes back.
    Boot(Node),
    /// Its supervisor restarts.
    Supervisor(Node),
    /// Its copy of the data turns out to be unusable.
    Unusable(Node),
    /// An order to mark from before arrives.
    LateMark(Node),
    /// A hello from before the arbiter's last start arrives.
    StaleHello(Node),
    /// The arbiter hears it.
    Renew(Node),
    /// The arbiter's disk is copied.
    Copy,
    /// The arbiter is started from the copy.
    Restore,
    /// The arbiter restarts.
    Restart,
    /// The arbiter is taken for gone.
    Gone,
}

/// False: it could not be done. A mutated pair may never get there.
pub(crate) fn lead(world: &mut World, step: Lead) -> bool {
    let moved = match step {
        Lead::Until(node, phase) => return until(world, node, phase, |_| true),
        Lead::Unheard(node, phase) => {
            return until(world, node, phase, |m| match m {
                Move::Renew(_) | Move::SeeHead(_) => false,
                Move::Deliver(letter) => !matches!(**letter, Letter::Tell(..)),
                _ => true,
            });
        }
        Lead::Only(node, phase) => return until(world, node, phase, |m| m.of(node)),
        Lead::Unasked(node, phase) => {
            let asks = |m: &Move| matches!(m, Move::Deliver(l) if matches!(**l, Letter::Ask(_, _, ToArbiter::Batch { .. })));
            return until(world, node, phase, |m| m.of(node) && !asks(m));
        }
        Lead::Settle => return settle(world, &|_: &World, _: &Move| true),
        Lead::SettleOnly(node) => return settle(world, &|_: &World, m: &Move| m.of(node)),
        Lead::Finish(node, kind) => {
            let ids: Vec<_> = world.machines[node.index()].pending.keys().copied().collect();
            let Some(id) = ids.into_iter().find(|id| id.kind == kind) else { return false };
            Move::Finish(node, id)
        }
        Lead::Unusable(node) => {
            let ids: Vec<_> = world.machines[node.index()].pending.keys().copied().collect();
            let Some(id) = ids.into_iter().find(|id| id.kind == Kind::Inspect) else { return false };
            Move::Unusable(node, id)
        }
        Lead::LateMark(node) => {
            let mark = |letter: &&Shared<Letter>| matches!(&***letter, Letter::Peer(to, ToPeer::Mark { .. }) if *to == node);
            let Some(letter) = world.letters.iter().find(mark).cloned() else { return false };
            Move::Deliver(letter)
        }
        Lead::StaleHello(node) => {
            let now = Incarnation(world.incarnation);
            let stale = |letter: &&Shared<Letter>| {
                matches!(&***letter, Letter::Ask(from, _, ToArbiter::Hello { incarnation: Some(meant), .. })
                    if *from == node && *meant != now)
            };
            let Some(letter) = world.letters.iter().find(stale).cloned() else { return false };
            Move::Deliver(letter)
        }
        Lead::Write(node) => Move::Write(node),
        Lead::Stream(node) => Move::Stream(node),
        Lead::Acknowledge(node) => Move::Acknowledge(node, world.written),
        Lead::Cut(node) => Move::SeeDown(node),
        Lead::Suspect(node) => Move::Suspect(node),
        Lead::Crash(node) => Move::Crash(node),
        Lead::SwapDisk(node) => Move::SwapDisk(node),
        Lead::Boot(node) => Move::Boot(node),
        Lead::Supervisor(node) => Move::Supervisor(node),
        Lead::Renew(node) => Move::Renew(node),
        Lead::Copy => Move::ArbiterCopied,
        Lead::Restore => Move::ArbiterRollsBack,
        Lead::Restart => Move::ArbiterRestarts,
        Lead::Gone => Move::ArbiterGone,
    };
    moves(world).contains(&moved) && apply(world, &moved)
}

/// Ordinary moves that pass the filter, until they change nothing.
fn settle(world: &mut World, passes: &dyn Fn(&World, &Move) -> bool) -> bool {
    let mut delivered = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let before = fingerprint(&*world);
        round(world, passes, &mut delivered);
        if fingerprint(&*world) == before {
            break;
        }
    }
    true
}

/// Ordinary moves that pass the filter, until the node is in the phase.
fn until(world: &mut World, node: Node, phase: Phase, passes: impl Fn(&Move) -> bool) -> bool {
    let there = |world: &World| {
        world.machines[node.index()].state.as_ref().and_then(|s| s.phase(super::world::R)) == Some(phase)
    };
    let mut delivered = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        if there(world) {
            return true;
        }
        round(world, &|world: &World, moved: &Move| passes(moved) && !there(world), &mut delivered);
    }
    there(world)
}

/// Every ordinary move that is possible now, one after another, as long as each passes; each letter only once.
pub(crate) fn round(
    world: &mut World,
    passes: &dyn Fn(&World, &Move) -> bool,
    delivered: &mut HashSet<u128>,
) {
    for moved in moves(world) {
        let possible = match &moved {
            Move::Finish(node, id) => world.machines[node.index()].pending.contains_key(id),
            Move::Renew(node) => world.machines[node.index()].state.is_some(),
            Move::SeeHead(node) => {
                let serves = matches!(world.machines[node.index()].service, Service::Serving { .. });
                serves && world.at_head(*node)
            }
            Move::Deliver(letter) => !delivered.contains(&letter.fingerprint()),
            _ => false,
        };
        if possible && passes(world, &moved) {
            if let Move::Deliver(letter) = &moved {
                delivered.insert(letter.fingerprint());
            }
            apply(world, &moved);
        }
    }
}
