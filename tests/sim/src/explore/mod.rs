//! The exhaustive explorer: every order of everything, breadth first, within bounds.

mod lead;
mod shared;
mod world;

use std::collections::HashSet;

use dyad_cluster::Voting;
use dyad_cluster::action::{ActionId, Kind, Outcome, Relation, Report};
use dyad_cluster::event::{Command, Event, Link, Timer};
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase;
use dyad_cluster::types::{Epoch, Node};

pub use lead::Lead;
use shared::{Shared, fingerprint};
pub use world::{Bounds, Violation};
use world::{Letter, R, Service, World};

/// Bounds in which nothing ever goes wrong and nobody writes.
pub const NOTHING: Bounds = Bounds {
    writes: 0,
    epochs: 6,
    crashes: 0,
    reclones: 0,
    cuts: 0,
    suspicions: 0,
    restarts: 0,
    rollbacks: 0,
    gone: false,
    switchovers: 0,
    supervisors: 0,
    lease_ends: 0,
};

/// Every fault at once.
pub const STORM: Bounds = Bounds {
    writes: 4,
    epochs: 12,
    crashes: 3,
    reclones: 2,
    cuts: 3,
    suspicions: 4,
    restarts: 2,
    rollbacks: 1,
    gone: true,
    switchovers: 1,
    supervisors: 2,
    lease_ends: 1,
};

/// Everything that can happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Move {
    Boot(Node),
    Crash(Node),
    Supervisor(Node),
    SwapDisk(Node),
    Finish(Node, ActionId),
    Unusable(Node, ActionId),
    Deliver(Shared<Letter>),
    Renew(Node),
    Write(Node),
    Acknowledge(Node, u8),
    Stream(Node),
    SeeHead(Node),
    SeeDown(Node),
    Suspect(Node),
    LeaseEnd(Node),
    SwitchOver(Node),
    HandOverExpires(Node),
    ArbiterGone,
    ArbiterRestarts,
    ArbiterRollsBack,
    /// Somebody copies the arbiter's disk.
    ArbiterCopied,
}

/// In random histories, one move in this many is a fault.
const FAULT_ONE_IN: usize = 14;

impl Move {
    /// Something that this node does, or that it and the arbiter say to each other.
    fn of(&self, node: Node) -> bool {
        match self {
            Move::Finish(n, _) | Move::Renew(n) => *n == node,
            Move::Deliver(letter) => match &**letter {
                Letter::Ask(n, ..) | Letter::Tell(n, ..) => *n == node,
                Letter::Peer(..) => false,
            },
            _ => false,
        }
    }

    fn is_fault(&self) -> bool {
        match self {
            Move::Crash(_)
            | Move::Supervisor(_)
            | Move::SwapDisk(_)
            | Move::Unusable(..)
            | Move::SeeDown(_)
            | Move::Suspect(_)
            | Move::LeaseEnd(_)
            | Move::SwitchOver(_)
            | Move::HandOverExpires(_)
            | Move::ArbiterGone
            | Move::ArbiterRestarts
            | Move::ArbiterRollsBack
            | Move::ArbiterCopied => true,
            Move::Boot(_)
            | Move::Finish(..)
            | Move::Deliver(_)
            | Move::Renew(_)
            | Move::Write(_)
            | Move::Acknowledge(..)
            | Move::Stream(_)
            | Move::SeeHead(_) => false,
        }
    }
}

/// What a run found.
#[derive(Debug)]
pub struct Exploration {
    /// Distinct worlds.
    pub states: usize,
    /// Longest shortest path.
    pub depth: usize,
    /// True: everything within the bounds was seen; false: the limit on states ended it.
    pub complete: bool,
    /// Edges of the phase table that were taken.
    pub edges: HashSet<(Phase, Phase)>,
    /// The broken promise and the moves that lead to it.
    pub violation: Option<(Violation, Vec<String>)>,
}

struct Visited {
    parent: u32,
    moved: Move,
}

/// Walks every world within the bounds, at most `states_max` of them.
pub fn explore(bounds: Bounds, broken: &[Mutation], voting: Voting, states_max: usize) -> Exploration {
    let mut first = World::new(bounds, broken, voting);
    prologue(&mut first);
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut trail: Vec<Visited> = Vec::new();
    let mut level = vec![(first, u32::MAX)];
    let mut result =
        Exploration { states: 1, depth: 0, complete: true, edges: HashSet::new(), violation: None };
    while !level.is_empty() {
        let mut next = Vec::new();
        for (world, index) in level {
            for moved in moves(&world) {
                let mut after = world.clone();
                let happened = apply(&mut after, &moved);
                result.edges.extend(after.edges.drain(..));
                if !happened || beyond(&after) {
                    continue;
                }
                if !seen.insert(fingerprint(&after)) {
                    continue;
                }
                trail.push(Visited { parent: index, moved });
                let here = u32::try_from(trail.len() - 1).unwrap_or(u32::MAX - 1);
                if let Err(violation) = after.check() {
                    result.states = seen.len();
                    result.violation = Some((violation, path(&trail, here)));
                    return result;
                }
                if seen.len() >= states_max {
                    result.states = seen.len();
                    result.complete = false;
                    return result;
                }
                next.push((after, here));
            }
        }
        result.depth += usize::from(!next.is_empty());
        level = next;
    }
    result.states = seen.len();
    result
}

/// Follows one random history within the bounds, to depths that breadth cannot reach. Half of them begin in Sync.
pub fn walk(bounds: Bounds, broken: &[Mutation], voting: Voting, seed: u64, steps: usize) -> Exploration {
    let protected = [Lead::Until(Node::A, Phase::Sync)];
    walk_from(if seed % 2 == 1 { &protected } else { &[] }, bounds, broken, voting, seed, steps)
}

/// The first step of a beginning that cannot be led.
pub fn stuck(beginning: &[Lead], bounds: Bounds, broken: &[Mutation], voting: Voting) -> Option<Lead> {
    let mut world = World::new(bounds, broken, voting);
    prologue(&mut world);
    beginning.iter().copied().find(|step| !lead::lead(&mut world, *step))
}

/// The same after a beginning that is led; one that cannot be led is walked from wherever it got.
pub fn walk_from(
    beginning: &[Lead],
    bounds: Bounds,
    broken: &[Mutation],
    voting: Voting,
    seed: u64,
    steps: usize,
) -> Exploration {
    let mut world = World::new(bounds, broken, voting);
    prologue(&mut world);
    _ = beginning.iter().all(|step| lead::lead(&mut world, *step));
    world.edges.clear();
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut path = Vec::new();
    let mut result =
        Exploration { states: 0, depth: 0, complete: false, edges: HashSet::new(), violation: None };
    while path.len() < steps {
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) as usize
        };
        // Faults are rare, so that there is something left for them to break.
        let (faults, mut choices): (Vec<Move>, Vec<Move>) =
            moves(&world).into_iter().partition(Move::is_fault);
        let mut later = faults;
        if draw() % FAULT_ONE_IN == 0 {
            std::mem::swap(&mut later, &mut choices);
        }
        let before = fingerprint(&world);
        let next = loop {
            if choices.is_empty() {
                std::mem::swap(&mut later, &mut choices);
            }
            if choices.is_empty() {
                break None;
            }
            let moved = choices.swap_remove(draw() % choices.len());
            let mut after = world.clone();
            let happened = apply(&mut after, &moved);
            result.edges.extend(after.edges.drain(..));
            if happened && !beyond(&after) && fingerprint(&after) != before {
                break Some((moved, after));
            }
        };
        let Some((moved, after)) = next else { break };
        path.push(format!("{moved:?}"));
        world = after;
        if let Err(violation) = world.check() {
            result.violation = Some((violation, path.clone()));
            break;
        }
    }
    result.states = path.len();
    result.depth = path.len();
    result
}

/// Both nodes have learned the register, A serves alone and B follows: where every history of interest begins.
fn prologue(world: &mut World) {
    let mut delivered = HashSet::new();
    while world.machines.iter().any(|m| m.service == Service::Stopped) {
        let before = fingerprint(&*world);
        let comes_up = |_: &World, m: &Move| matches!(m, Move::Finish(..) | Move::Deliver(_));
        lead::round(world, &comes_up, &mut delivered);
        assert!(before != fingerprint(&*world), "the pair does not come up: {world:?}");
    }
    world.edges.clear();
    *world.letters.change() = std::collections::BTreeSet::new();
}

fn path(trail: &[Visited], mut at: u32) -> Vec<String> {
    let mut moves = Vec::new();
    while let Some(visited) = trail.get(at as usize) {
        moves.push(format!("{:?}", visited.moved));
        at = visited.parent;
    }
    moves.reverse();
    moves
}

fn beyond(world: &World) -> bool {
    let epoch = |e: Option<Epoch>| e.map_or(0, |e| e.0);
    let highest = world.arbiter.durable().registers.get(&R).map(|r| r.epoch);
    let of_nodes = world.machines.iter().map(|m| epoch(m.mirror.registers.get(&R).map(|r| r.epoch))).max();
    let attempts = world.machines.iter().filter_map(|m| m.marker.last).map(|p| p.attempt).max();
    epoch(highest).max(of_nodes.unwrap_or(0)) > u64::from(world.left.epochs) || attempts.unwrap_or(0) > 2
}

fn moves(world: &World) -> Vec<Move> {
    let mut all = Vec::new();
    let left = &world.left;
    for node in Node::BOTH {
        let machine = &world.machines[node.index()];
        let Some(state) = &machine.state else {
            all.push(Move::Boot(node));
            if left.reclones > 0 {
                all.push(Move::SwapDisk(node));
            }
            continue;
        };
        for id in machine.pending.keys() {
            all.push(Move::Finish(node, *id));
            if id.kind == Kind::Inspect && left.reclones > 0 {
                all.push(Move::Unusable(node, *id));
            }
        }
        if left.crashes > 0 {
            all.push(Move::Crash(node));
        }
        if left.supervisors > 0 {
            all.push(Move::Supervisor(node));
        }
        if world.voting == Voting::Arbiter {
            all.push(Move::Renew(node));
        }
        all.push(Move::Stream(node));
        if let Service::Serving { .. } = machine.service {
            if left.writes > 0 {
                all.push(Move::Write(node));
            }
            for write in &machine.log {
                if !world.acknowledged.contains(write) && world.can_acknowledge(node, *write) {
                    all.push(Move::Acknowledge(node, *write));
                }
            }
            if machine.link != Some(Link::AtHead) && world.at_head(node) {
                all.push(Move::SeeHead(node));
            }
            if machine.link == Some(Link::AtHead) && left.cuts > 0 {
                all.push(Move::SeeDown(node));
            }
        }
        if left.suspicions > 0 && state.register(R).is_some_and(|r| r.holder != node) {
            all.push(Move::Suspect(node));
        }
        if left.lease_ends > 0 && state.timers().contains_key(&Timer::LeaseEnd) {
            all.push(Move::LeaseEnd(node));
        }
        if left.switchovers > 0 && state.phase(R) == Some(Phase::Sync) {
            all.push(Move::SwitchOver(node));
        }
        if state.timers().contains_key(&Timer::HandOver(R)) {
            all.push(Move::HandOverExpires(node));
        }
    }
    all.extend(world.letters.iter().cloned().map(Move::Deliver));
    if left.gone {
        all.push(Move::ArbiterGone);
    }
    if left.restarts > 0 {
        all.push(Move::ArbiterRestarts);
    }
    if left.rollbacks > 0 {
        all.push(Move::ArbiterRollsBack);
        all.push(Move::ArbiterCopied);
    }
    all
}

/// False: it turned out that nothing happens.
fn apply(world: &mut World, moved: &Move) -> bool {
    match moved {
        Move::Boot(node) => world.boot(*node),
        Move::Crash(node) => {
            world.left.crashes -= 1;
            world.crash(*node);
        }
        Move::Supervisor(node) => {
            world.left.supervisors -= 1;
            world.start(*node);
        }
        Move::SwapDisk(node) => {
            world.left.reclones -= 1;
            world.generations += 1;
            let fresh = world.generations;
            let machine = world.machines[node.index()].change();
            machine.generation = fresh;
            machine.log.clear();
        }
        Move::Finish(node, id) => {
            let Some(outcome) = world.finish(*node, *id) else { return false };
            complete(world, *node, *id, outcome);
        }
        Move::Unusable(node, id) => {
            world.left.reclones -= 1;
            complete(world, *node, *id, Outcome::Done(Report::Relation(Relation::Unusable)));
        }
        Move::Deliver(letter) => return deliver(world, letter),
        Move::Renew(node) => {
            world.renew(*node);
        }
        Move::Write(node) => {
            world.left.writes -= 1;
            world.written += 1;
            let write = world.written;
            world.machines[node.index()].change().log.push(write);
        }
        Move::Acknowledge(_, write) => {
            world.acknowledged.insert(*write);
        }
        Move::Stream(node) => return world.stream(*node),
        Move::SeeHead(node) => see(world, *node, Link::AtHead),
        Move::SeeDown(node) => {
            world.left.cuts -= 1;
            see(world, *node, Link::Down);
        }
        Move::Suspect(node) => {
            world.left.suspicions -= 1;
            world.tell(*node, Event::Link(R, Link::Down));
            world.tell(*node, Event::Fired(Timer::Promise));
            world.tell(*node, Event::Fired(Timer::PeerSilent));
        }
        Move::LeaseEnd(node) => {
            world.left.lease_ends -= 1;
            world.tell(*node, Event::Fired(Timer::LeaseEnd));
        }
        Move::SwitchOver(node) => {
            world.left.switchovers -= 1;
            world.tell(*node, Event::Command(Command::SwitchOver(R)));
        }
        Move::HandOverExpires(node) => world.tell(*node, Event::Fired(Timer::HandOver(R))),
        Move::ArbiterGone => {
            world.left.gone = false;
            for node in Node::BOTH {
                world.tell(node, Event::Fired(Timer::ArbiterSilent));
                world.tell(node, Event::Fired(Timer::ArbiterGone));
            }
        }
        Move::ArbiterRestarts => {
            world.left.restarts -= 1;
            world.restart_arbiter(false);
        }
        Move::ArbiterCopied => world.old_disk = Shared::new(world.arbiter.durable().clone()),
        Move::ArbiterRollsBack => {
            world.left.rollbacks -= 1;
            world.restart_arbiter(true);
        }
    }
    true
}

fn see(world: &mut World, node: Node, link: Link) {
    world.machines[node.index()].change().link = Some(link);
    world.tell(node, Event::Link(R, link));
}

fn complete(world: &mut World, node: Node, id: ActionId, outcome: Outcome) {
    let machine = world.machines[node.index()].change();
    machine.pending.remove(&id);
    if !matches!(machine.service, Service::Serving { .. }) {
        machine.link = None;
    }
    world.tell(node, Event::Completed(id, outcome));
}

fn deliver(world: &mut World, letter: &Letter) -> bool {
    match letter {
        Letter::Ask(from, greeting, message) => world.ask(*from, *greeting, message.clone()),
        Letter::Tell(to, greeting, message) => {
            world.tell(*to, Event::FromArbiter(*greeting, message.clone()));
        }
        Letter::Peer(to, message) => {
            if world.machines[to.index()].state.is_none() {
                return false;
            }
            world.tell(*to, Event::FromPeer(message.clone()));
        }
    }
    true
}
