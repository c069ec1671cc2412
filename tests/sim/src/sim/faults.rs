//! What goes wrong, drawn from the seed.

use dyad_cluster::types::Node;

use super::random::Random;

/// One fault, begun at a moment and over after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power cut; the machine comes back afterwards.
    Crash(Node),
    /// Power cut of both.
    CrashBoth,
    /// The machine stands still while time passes.
    Stall(Node),
    /// Only the supervisor is killed and started again.
    Supervisor(Node),
    /// The service of every resource ends.
    Service(Node),
    /// Nothing goes this way: an index of [`super::Wire::ALL`].
    OneWay(usize),
    /// Nothing between the nodes.
    Between,
    /// Nothing between a node and anybody.
    Isolated(Node),
    /// Messages are lost, late, doubled and overtake each other.
    Bad,
    /// The witness is down, and starts again as another incarnation.
    Witness,
    /// Writes to the state partition fail.
    Disk(Node),
    /// Operator's switchover.
    SwitchOver,
}

/// Which faults a history may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// All.
    Any,
    /// Only such as must not move anything: the witness alone, and a latency of up to T/4.
    Harmless,
}

impl Fault {
    pub(crate) fn draw(class: Class, random: &mut Random) -> Fault {
        let node = Node::BOTH[random.between(0, 1) as usize];
        if class == Class::Harmless {
            return Fault::Witness;
        }
        match random.between(0, 13) {
            0 | 1 => Fault::Crash(node),
            2 => Fault::CrashBoth,
            3 => Fault::Stall(node),
            4 => Fault::Supervisor(node),
            5 => Fault::Service(node),
            6 => Fault::OneWay(random.between(0, 5) as usize),
            7 => Fault::Between,
            8 => Fault::Isolated(node),
            9 => Fault::Bad,
            10 | 11 => Fault::Witness,
            12 => Fault::Disk(node),
            _ => Fault::SwitchOver,
        }
    }
}
