//! What is going to happen in one history: drawn from a seed, read from a scenario, or cut down from a longer one.

use std::fmt;

use dyad_cluster::Voting;

use super::faults::Fault;
use super::random::Random;

/// Faults begin between these.
pub(crate) const CALM_MS: u64 = 20_000;
const STORM_MS: u64 = 90_000;
/// And all is well again by this.
const HEAL_MS: u64 = 110_000;
/// Shortest fault.
const FAULT_MS_MIN: u64 = 100;
/// Longest fault.
const FAULT_MS_MAX: u64 = 18_000;
/// The witness is away for so long that the pair goes on without it, and for some time more.
const WITHOUT_MS: u64 = 120_000;
/// Nobody exchanges a disk faster, or damages both slots of a mirror and is up again.
const NEW_DISK_MS: u64 = 5_000;
/// Faults of one history.
const FAULTS: u64 = 12;

/// A fault lasts at least this long.
pub(crate) fn least_ms(fault: Fault) -> u64 {
    if fault.takes_a_copy() { NEW_DISK_MS } else { FAULT_MS_MIN }
}

/// Which faults a history may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// All.
    Any,
    /// Only such as must not move, close or restart anything.
    Harmless,
}

/// Kinds of episodes in which nothing may move.
pub const HARMLESS: &[&str] = &[
    "stop-witness",
    "restart-witness",
    "cut-nodes",
    "bond-member",
    "wall-clock",
    "full-cpu",
    "latency",
    "bursts",
];

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Begins, on the true clock.
    pub at_ms: u64,
    /// Ends.
    pub until_ms: u64,
    /// What.
    pub fault: Fault,
}

/// One history before it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// All other chance.
    pub seed: u64,
    /// What the oracle of stillness expects.
    pub class: Class,
    /// Who has the third vote.
    pub voting: Voting,
    /// T.
    pub lease_ms: u64,
    /// Volumes with a machine each, beside the database.
    pub volumes: u16,
    /// Messages take at most this long.
    pub latency_ms: u64,
    /// Clients write in bursts.
    pub bursts: bool,
    /// Nobody holds anything yet: operators found, in some histories on both nodes at once.
    pub blank: bool,
    /// Faults.
    pub events: Vec<Planned>,
    /// From here on all is well.
    pub peace_ms: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = if self.blank { ", blank" } else { "" };
        writeln!(f, "seed {}, third vote: {:?}{blank}", self.seed, self.voting)?;
        self.events.iter().try_for_each(|e| writeln!(f, "{:>8}..{:<8} {}", e.at_ms, e.until_ms, e.fault))
    }
}

impl Plan {
    /// A pair with a witness and nothing planned.
    pub fn quiet(seed: u64) -> Plan {
        Plan {
            seed,
            class: Class::Any,
            voting: Voting::Arbiter,
            lease_ms: 3_000,
            volumes: 1,
            latency_ms: 5,
            bursts: false,
            blank: false,
            events: Vec::new(),
            peace_ms: CALM_MS,
        }
    }

    /// What the seed says. One in five has no third vote.
    pub fn drawn(seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x5EED_0F91_A200_0001);
        let voting = match random.between(0, 14) {
            0 => Voting::Strict,
            1 => Voting::PrimaryBiased,
            2 => Voting::FenceDevice,
            _ => Voting::Arbiter,
        };
        let mut plan = Plan { voting, peace_ms: HEAL_MS, ..Plan::quiet(seed) };
        for _ in 0..FAULTS {
            let at_ms = random.between(CALM_MS, STORM_MS);
            let until_ms = (at_ms + random.between(FAULT_MS_MIN, FAULT_MS_MAX)).min(HEAL_MS);
            plan.events.push(Planned { at_ms, until_ms, fault: Fault::draw(&mut random) });
        }
        // Rare ones that end what others need: at most one, and no arbiter may lose its memory beside it.
        let (at_ms, node) =
            (random.between(CALM_MS, STORM_MS), dyad_cluster::types::Node::BOTH[(seed % 2) as usize]);
        let rare = match random.between(0, 19) {
            0 => Some(Fault::MirrorLost(node)),
            1 => Some(Fault::NewDisk(node)),
            _ => None,
        };
        if let Some(fault) = rare {
            plan.events.retain(|e| fault.bears(e.fault));
            plan.events.push(Planned { at_ms, until_ms: at_ms + NEW_DISK_MS, fault });
        }
        plan
    }

    /// The seed's history with this fault three times more; in some the witness is away until the pair goes on without.
    pub fn rich_in(name: &str, seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x0C0F_FEE0_0000_0001);
        let mut plan = Plan::drawn(seed);
        let bears = |plan: &Plan, fault: Fault| plan.events.iter().all(|e| fault.bears(e.fault));
        let alone = random.permille(300);
        let fault = Fault::Witness;
        if alone && plan.voting == Voting::Arbiter && bears(&plan, fault) {
            plan.events.push(Planned { at_ms: CALM_MS, until_ms: CALM_MS + WITHOUT_MS, fault });
            plan.peace_ms = CALM_MS + WITHOUT_MS;
        }
        let end_ms = plan.peace_ms.saturating_sub(FAULT_MS_MAX);
        for _ in 0..3 {
            let fault = Fault::somewhere(name, &mut random).filter(|fault| bears(&plan, *fault));
            let Some(fault) = fault else { continue };
            let at_ms = random.between(CALM_MS, end_ms);
            let until_ms = at_ms + random.between(least_ms(fault), FAULT_MS_MAX);
            plan.events.push(Planned { at_ms, until_ms, fault });
        }
        plan
    }

    /// Each of these faults once, at moments of the seed's choice: they overlap in every way.
    pub fn of(faults: &[Fault], seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x0F_FA17_0000_0001);
        let mut plan = Plan { peace_ms: CALM_MS + 2 * FAULT_MS_MAX, ..Plan::quiet(seed) };
        for fault in faults {
            let at_ms = random.between(CALM_MS, CALM_MS + FAULT_MS_MAX / 2);
            let until_ms = at_ms + random.between(FAULT_MS_MIN, FAULT_MS_MAX);
            plan.events.push(Planned { at_ms, until_ms, fault: *fault });
        }
        plan
    }

    /// One episode of a kind that must move nothing.
    pub fn harmless(kind: &str, seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x5711_1000_0000_0001);
        let node = dyad_cluster::types::Node::BOTH[random.between(0, 1) as usize];
        let mut plan = Plan { class: Class::Harmless, ..Plan::quiet(seed) };
        let at_ms = CALM_MS + random.between(0, 2_000);
        let lasts_ms = random.between(50, if kind == "restart-witness" { 100 } else { 15_000 });
        let until_ms = at_ms + lasts_ms;
        let fault = match kind {
            "stop-witness" | "restart-witness" => Some(Fault::Witness),
            "bond-member" => Some(Fault::BondMember(node)),
            "wall-clock" => Some(Fault::WallClock(node)),
            "full-cpu" => Some(Fault::Busy(node)),
            "cut-nodes" => Some(Fault::Between),
            _ => None,
        };
        plan.events.extend(fault.map(|fault| Planned { at_ms, until_ms, fault }));
        plan.bursts = kind == "bursts";
        if kind == "latency" {
            // There and back within T/4.
            plan.latency_ms = plan.lease_ms / 4 / 2;
        }
        plan.peace_ms = until_ms;
        plan
    }

    /// The same without the faults that a violation does not need. `breaks` says whether a plan still violates.
    pub fn shrunk(mut self, breaks: impl Fn(&Plan) -> bool) -> Plan {
        let mut at = 0;
        while at < self.events.len() {
            let mut shorter = self.clone();
            shorter.events.remove(at);
            if breaks(&shorter) {
                self = shorter;
            } else {
                at += 1;
            }
        }
        self
    }
}
