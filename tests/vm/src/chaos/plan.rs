//! What a seed does to the cluster: a list of faults, each with the time it lasts.

use std::time::Duration;

/// A node by its place in the pair, so that a plan names `node-a` whatever it is at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The node that takes writes when the fault begins.
    Holder,
    /// The other one.
    Standby,
}

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Postmaster,
    Checkpointer,
    WalSender,
    WalReceiver,
    Supervisor,
}

/// What is done at its beginning and undone at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power lost; back at the end.
    Kill(Who),
    /// The node stands still while time passes.
    Pause(Who),
    /// Both lose power; they return in this order, the second after a while.
    BothDown { first_back: Who },
    /// The node stands still for a minute.
    Stall(Who),
    /// Somebody promotes the standby by hand, behind everybody's back.
    HandPromote,
    /// The data volume has no more room than this.
    DiskFull(Who, Room),
    /// The data volume stands still for most of the time.
    DiskSlow(Who),
    /// Nothing is written to the data volume any more, and nobody is told.
    DiskHangs(Who),
    /// Of what is sent to and by this node, every fifth frame is lost.
    Lossy(Who),
    /// Whatever is sent to this node waits in a queue before a thin line.
    Late(Who),
    /// Nothing passes between the nodes.
    CutNodes,
    /// Nothing that this node sends reaches the other.
    CutOneWay(Who),
    /// Nothing passes between this node and the witness.
    CutWitness(Who),
    /// Nothing reaches this node from anybody.
    Deaf(Who),
    /// Nothing passes between this node and anybody.
    Isolated(Who),
    /// The nodes are cut and healed again and again.
    Flapping,
    /// The cables to the clients are pulled.
    ClientLan(Who),
    /// One cable of a bond is pulled.
    Member(Who, Cable),
    /// Nothing comes over the wires to the other node any more, LACP neither, and their carrier stays.
    Partner(Who),
    /// The kernel stands still; the watchdog resets the machine.
    KernelHangs(Who),
    /// SIGKILL.
    Ends(Who, Process),
    /// SIGSTOP; SIGCONT at the end.
    Stops(Who, Process),
    /// The witness loses power.
    WitnessKill,
    /// The witness stands still.
    WitnessPause,
    /// The witness comes back with what it knew when the seed began.
    WitnessOldCopy,
    /// Every session of the clients is cancelled, again and again, while the nodes are cut from each other.
    CancelStorm,
    /// Both lose power and so does the witness; they return in this order.
    AllDown(Order),
}

/// Which bond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cable {
    /// To the clients: one carries, the other waits.
    Lan,
    /// To the other node: both carry, by LACP.
    Wire,
}

/// How full a volume is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// 96 %: beyond where a primary stops to write.
    Little,
    /// 98 %: beyond where it hands over.
    Less,
    /// Not a block is free.
    None,
}

impl Room {
    /// How much of the volume is used, in percent.
    pub(crate) fn percent(self) -> u64 {
        match self {
            Room::Little => 96,
            Room::Less => 98,
            Room::None => 100,
        }
    }
}

/// Who returns when after all were down: holder, standby, witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    HolderStandbyWitness,
    HolderWitnessStandby,
    StandbyHolderWitness,
    StandbyWitnessHolder,
    WitnessHolderStandby,
    WitnessStandbyHolder,
}

impl Order {
    const ALL: [Order; 6] = [
        Order::HolderStandbyWitness,
        Order::HolderWitnessStandby,
        Order::StandbyHolderWitness,
        Order::StandbyWitnessHolder,
        Order::WitnessHolderStandby,
        Order::WitnessStandbyHolder,
    ];

    /// The same of these three.
    pub(crate) fn of<T: Copy>(self, holder: T, standby: T, witness: T) -> [T; 3] {
        match self {
            Order::HolderStandbyWitness => [holder, standby, witness],
            Order::HolderWitnessStandby => [holder, witness, standby],
            Order::StandbyHolderWitness => [standby, holder, witness],
            Order::StandbyWitnessHolder => [standby, witness, holder],
            Order::WitnessHolderStandby => [witness, holder, standby],
            Order::WitnessStandbyHolder => [witness, standby, holder],
        }
    }
}

impl Fault {
    /// Its class, as it is counted.
    pub(crate) fn class(self) -> String {
        let text = format!("{self:?}");
        let more = match self {
            Fault::Ends(_, process) | Fault::Stops(_, process) => format!(" {process:?}"),
            Fault::BothDown { first_back } => format!(" {first_back:?} first"),
            Fault::AllDown(order) => format!(" {order:?}"),
            Fault::Member(_, cable) => format!(" {cable:?}"),
            Fault::DiskFull(who, _) | Fault::DiskSlow(who) | Fault::DiskHangs(who) => format!(" {who:?}"),
            _ => String::new(),
        };
        text.split(['(', ' ']).next().unwrap_or_default().to_owned() + &more
    }
}

/// One line of a plan: the fault begins after `gap`, and ends after `hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) gap: Duration,
    pub(crate) fault: Fault,
    pub(crate) hold: Duration,
    /// The next one begins before this one ends.
    pub(crate) overlaps: bool,
}

/// Three crashes of PostgreSQL within five minutes wait for an operator, rightly: only every so many seeds have one.
const CRASH_EVERY: u64 = 6;
/// A node that stands still for a minute takes long: only every so many seeds have one, the others of [`STALL_AT`].
const STALL_EVERY: u64 = 50;
const STALL_AT: u64 = 7;
const STALL: Duration = Duration::from_secs(60);

/// SplitMix64: one seed, one plan.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.next() % (high - low + 1))
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }
}

/// The plan of a seed. `processes`: the lab's processes can be signalled one by one.
pub(crate) fn plan(seed: u64, processes: bool) -> Vec<Step> {
    let mut random = Random(seed);
    if !processes {
        return of_machines(seed, &mut random);
    }
    let crash = seed % CRASH_EVERY == 0;
    let count = 1 + random.next() % 3;
    let mut steps: Vec<Step> = (0..count)
        .map(|at| Step {
            gap: random.ms(100, 1_500),
            fault: if crash && at == 0 { crashing(&mut random) } else { lasting(&mut random, processes) },
            hold: if random.next() % 8 == 0 { random.ms(6_000, 12_000) } else { random.ms(500, 6_000) },
            overlaps: false,
        })
        .collect();
    for at in 1..steps.len() {
        // What is done to the same thing by two faults at once would be undone by the first of them.
        let apart = background(steps[at - 1].fault) != background(steps[at].fault);
        steps[at - 1].overlaps = apart && random.next() % 2 == 0;
    }
    if seed % STALL_EVERY == STALL_AT {
        let fault = Fault::Stall(random.of(&[Who::Holder, Who::Standby]));
        return vec![Step { gap: random.ms(100, 1_500), fault, hold: STALL, overlaps: false }];
    }
    steps
}

/// One after the other: first what only machines have, each kind in every fourth seed, then sometimes something else.
fn of_machines(seed: u64, random: &mut Random) -> Vec<Step> {
    let who = random.of(&[Who::Holder, Who::Standby]);
    let own = match seed % 4 {
        // Whatever a machine has not flushed is lost with its power.
        0 => Fault::Kill(who),
        1 => Fault::KernelHangs(who),
        2 => Fault::Member(who, random.of(&[Cable::Lan, Cable::Wire])),
        _ => Fault::Partner(who),
    };
    let more = random.next() % 2 == 0;
    let faults = [Some(own), more.then(|| lasting(random, false))];
    let step =
        |fault| Step { gap: random.ms(100, 1_500), fault, hold: random.ms(500, 6_000), overlaps: false };
    faults.into_iter().flatten().map(step).collect()
}

/// Network and witness on the one hand, nodes and processes on the other.
fn background(fault: Fault) -> bool {
    match fault {
        Fault::CutNodes
        | Fault::CutOneWay(_)
        | Fault::CutWitness(_)
        | Fault::Deaf(_)
        | Fault::Isolated(_)
        | Fault::Flapping
        | Fault::CancelStorm
        | Fault::WitnessKill
        | Fault::WitnessPause
        | Fault::WitnessOldCopy
        | Fault::Lossy(_)
        | Fault::Late(_) => true,
        Fault::Kill(_)
        | Fault::Pause(_)
        | Fault::BothDown { .. }
        | Fault::AllDown(_)
        | Fault::Stall(_)
        | Fault::HandPromote
        | Fault::DiskFull(..)
        | Fault::DiskSlow(_)
        | Fault::DiskHangs(_)
        | Fault::ClientLan(_)
        | Fault::Member(..)
        | Fault::Partner(_)
        | Fault::KernelHangs(_)
        | Fault::Ends(..)
        | Fault::Stops(..) => false,
    }
}

fn crashing(random: &mut Random) -> Fault {
    let process = random.of(&[Process::Postmaster, Process::Checkpointer, Process::WalSender]);
    if random.next() % 2 == 0 || process == Process::WalSender {
        return Fault::Ends(Who::Holder, process);
    }
    Fault::Stops(Who::Holder, process)
}

fn lasting(random: &mut Random, processes: bool) -> Fault {
    let who = random.of(&[Who::Holder, Who::Standby]);
    let signals = [
        Fault::Ends(Who::Standby, Process::WalReceiver),
        Fault::Stops(Who::Standby, Process::WalReceiver),
        Fault::Stops(Who::Holder, Process::WalSender),
        Fault::Ends(who, Process::Supervisor),
        Fault::Stops(who, Process::Supervisor),
        Fault::Ends(Who::Standby, Process::Postmaster),
        Fault::ClientLan(who),
    ];
    let room = random.of(&[Room::Little, Room::Less, Room::None]);
    let outside = [
        Fault::DiskFull(who, room),
        Fault::DiskFull(who, room),
        Fault::DiskSlow(who),
        Fault::DiskHangs(who),
        Fault::Lossy(who),
        Fault::Late(who),
        Fault::HandPromote,
    ];
    let plain = [
        Fault::Kill(Who::Holder),
        Fault::Kill(Who::Standby),
        Fault::Kill(Who::Holder),
        Fault::Pause(Who::Holder),
        Fault::Pause(Who::Standby),
        Fault::BothDown { first_back: Who::Holder },
        Fault::BothDown { first_back: Who::Standby },
        Fault::AllDown(random.of(&Order::ALL)),
        Fault::AllDown(random.of(&Order::ALL)),
        Fault::CutNodes,
        Fault::CutOneWay(who),
        Fault::CutWitness(who),
        Fault::Deaf(who),
        Fault::Isolated(who),
        Fault::Flapping,
        Fault::WitnessKill,
        Fault::WitnessPause,
        Fault::WitnessOldCopy,
        Fault::CancelStorm,
    ];
    match (processes, random.next() % 10) {
        (true, 0..3) => random.of(&signals),
        (true, 3..6) => random.of(&outside),
        _ => random.of(&plain),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_one_plan_and_the_seeds_reach_every_class() {
        let classes = |processes| -> BTreeSet<String> {
            (0..300).flat_map(|seed| plan(seed, processes)).map(|step| step.fault.class()).collect()
        };
        assert_eq!(plan(7, true), plan(7, true));
        assert_eq!(classes(true).len(), 41, "{:?}", classes(true));
        assert_eq!(classes(false).len(), 24, "{:?}", classes(false));
        for seed in 0..4 {
            let own = plan(seed, false)[0].fault.class();
            let kinds = ["Kill", "KernelHangs", "Member", "Partner"];
            assert!(own.starts_with(kinds[seed as usize]), "{own}");
        }
        assert!(plan(6, true)[0].fault.class().contains(' '), "every sixth seed crashes PostgreSQL");
    }

    #[test]
    fn what_overlaps_is_not_undone_by_the_other() {
        for steps in (0..300).map(|seed| plan(seed, true)) {
            assert!(!steps.last().unwrap().overlaps, "nothing follows the last one");
            for pair in steps.windows(2).filter(|pair| pair[0].overlaps) {
                assert_ne!(background(pair[0].fault), background(pair[1].fault), "{pair:?}");
            }
        }
    }
}
