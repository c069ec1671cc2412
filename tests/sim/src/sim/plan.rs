//! What is going to happen in one history: drawn from a seed, read from a scenario, or cut down from a longer one.

use dyad_cluster::Voting;

use super::faults::Fault;
use super::random::Random;

/// Faults begin between these.
const CALM_MS: u64 = 20_000;
const STORM_MS: u64 = 90_000;
/// And all is well again by this.
const HEAL_MS: u64 = 110_000;
/// Longest fault.
const FAULT_MS_MAX: u64 = 18_000;
/// The witness is away for so long that the pair goes on without it, and for some time more.
const WITHOUT_MS: u64 = 120_000;
/// Faults of one history.
const FAULTS: u64 = 12;

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
    /// Faults.
    pub events: Vec<Planned>,
    /// From here on all is well.
    pub peace_ms: u64,
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
            let until_ms = (at_ms + random.between(100, FAULT_MS_MAX)).min(HEAL_MS);
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
            plan.events.retain(|e| {
                !matches!(e.fault, Fault::Rollback | Fault::Witness | Fault::Crash(_) | Fault::CrashBoth)
            });
            plan.events.push(Planned { at_ms, until_ms: at_ms + 5_000, fault });
        }
        plan
    }

    /// The seed's history with this fault three times more; in some the witness is away until the pair goes on without.
    pub fn rich_in(name: &str, seed: u64) -> Plan {
        let mut random = Random(seed ^ 0x0C0F_FEE0_0000_0001);
        let mut plan = Plan::drawn(seed);
        if plan.events.iter().any(|e| matches!(e.fault, Fault::MirrorLost(_) | Fault::NewDisk(_))) {
            return plan; // Whatever came beside these could take the last copy, and nobody promised to survive that.
        }
        let alone = random.permille(300);
        if alone && plan.voting == Voting::Arbiter {
            let fault = Fault::Witness;
            plan.events.push(Planned { at_ms: CALM_MS, until_ms: CALM_MS + WITHOUT_MS, fault });
            plan.peace_ms = CALM_MS + WITHOUT_MS;
        }
        let end_ms = plan.peace_ms.saturating_sub(FAULT_MS_MAX);
        for _ in 0..3 {
            let place = ["", " a", " b"].map(|place| format!("{name}{place}"));
            let wire = format!("{name} {}", random.between(0, 5));
            let possible: Vec<Fault> =
                place.iter().chain([&wire]).filter_map(|text| text.parse().ok()).collect();
            let at = random.between(0, possible.len().max(1) as u64 - 1) as usize;
            let Some(fault) = possible.get(at).copied().filter(|fault| !fault.is_rare()) else { continue };
            let at_ms = random.between(CALM_MS, end_ms);
            let until_ms = at_ms + random.between(100, FAULT_MS_MAX);
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
            let until_ms = at_ms + random.between(100, FAULT_MS_MAX);
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
