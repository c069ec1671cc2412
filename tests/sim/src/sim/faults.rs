//! What goes wrong, and what operators do: each has a name by which scenarios and replays call it.

use std::fmt;
use std::str::FromStr;

use dyad_cluster::types::Node;

use super::random::Random;

/// One direction of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    /// From this node to its peer.
    ToPeer(Node),
    /// From this node to the witness.
    ToWitness(Node),
    /// And back.
    FromWitness(Node),
}

impl Wire {
    /// All of them.
    pub const ALL: [Wire; 6] = [
        Wire::ToPeer(Node::A),
        Wire::ToPeer(Node::B),
        Wire::ToWitness(Node::A),
        Wire::ToWitness(Node::B),
        Wire::FromWitness(Node::A),
        Wire::FromWitness(Node::B),
    ];

    pub(crate) fn index(self) -> usize {
        match self {
            Wire::ToPeer(n) => n.index(),
            Wire::ToWitness(n) => 2 + n.index(),
            Wire::FromWitness(n) => 4 + n.index(),
        }
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident $(($node:ident))? = $text:literal $(/ $chance:literal)?;)*) => {
        /// One fault or operator's deed; it begins at a moment and is over after a while.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[$doc])* $name $(($node))?,)* /// Nothing goes this way.
            OneWay(Wire), }

        /// Names of all, for the coverage matrix.
        pub const NAMES: &[&str] = &[$($text,)* "one-way"];

        impl Fault {
            /// Its name without the node.
            pub fn name(self) -> &'static str {
                match self { $(Fault::$name $( { 0: faults!(@ignore $node) } )? => $text,)* Fault::OneWay(_) => "one-way" }
            }

            fn of(name: &str, node: Option<Node>) -> Option<Fault> {
                match (name, node) { $(faults!(@pattern $text, n $(, $node)?) => Some(Fault::$name $((faults!(@value n, $node)))?),)* _ => None }
            }

            fn weights() -> Vec<(u64, &'static str)> {
                let mut all = vec![(1, "one-way")];
                $($(all.push(($chance, $text));)?)*
                all
            }

            fn node(self) -> Option<Node> {
                match self { $(faults!(@of $name, n $(, $node)?) => faults!(@some n $(, $node)?),)* Fault::OneWay(_) => None }
            }
        }
    };
    (@ignore $node:ident) => { _ };
    (@pattern $text:literal, $n:ident) => { ($text, None) };
    (@pattern $text:literal, $n:ident, $node:ident) => { ($text, Some($n)) };
    (@value $n:ident, $node:ident) => { $n };
    (@of $name:ident, $n:ident) => { Fault::$name };
    (@of $name:ident, $n:ident, $node:ident) => { Fault::$name($n) };
    (@some $n:ident) => { None };
    (@some $n:ident, $node:ident) => { Some($n) };
}

faults! {
    /// Power cut; the machine comes back afterwards.
    Crash(Node) = "crash" / 2;
    /// Power cut of both.
    CrashBoth = "crash-both" / 1;
    /// The machine stands still while time passes.
    Stall(Node) = "stall" / 1;
    /// The supervisor is killed and started again.
    Supervisor(Node) = "kill-supervisor" / 1;
    /// The supervisor is stopped; everything else goes on.
    HangSupervisor(Node) = "hang-supervisor" / 1;
    /// The services end: SIGKILL of a postmaster, OOM, a crash.
    Service(Node) = "kill-services" / 1;
    /// SIGKILL of walsender or walreceiver: the stream breaks and comes again.
    Stream = "break-stream" / 1;
    /// SIGSTOP of the postmaster.
    HangPostmaster(Node) = "hang-postmaster" / 1;
    /// SIGSTOP of the checkpointer.
    HangCheckpointer(Node) = "hang-checkpointer" / 1;
    /// Every waiting client cancels, again and again.
    Cancels = "cancel-storm" / 1;
    /// Nothing between the nodes.
    Between = "cut-nodes" / 1;
    /// Nothing between a node and anybody.
    Isolated(Node) = "isolate" / 1;
    /// Nothing between a node and the witness.
    NoWitness(Node) = "cut-witness" / 1;
    /// Messages are lost, late, doubled and overtake each other.
    Bad = "bad-network" / 1;
    /// The link between the nodes goes down and up all the time.
    Flaps = "flapping" / 1;
    /// The witness is down, and starts again as another incarnation.
    Witness = "stop-witness" / 2;
    /// The witness is started again from a copy of its disk that is some time old.
    Rollback = "restore-witness" / 1;
    /// Writes to the state partition fail.
    StateDisk(Node) = "state-disk-fails" / 1;
    /// Writes and syncs of every volume hang, and whoever is in them cannot be killed.
    HungDisk(Node) = "disk-hangs" / 1;
    /// One write fails: PostgreSQL stops itself.
    Eio(Node) = "eio" / 1;
    /// Writes to the state partition take a second.
    SlowDisk(Node) = "disk-slow" / 1;
    /// The volumes are nearly full: writers are limited.
    NearlyFull(Node) = "disk-95" / 1;
    /// They are as good as full.
    Full(Node) = "disk-98" / 1;
    /// Both slots of the mirror are damaged, and the node restarts.
    MirrorLost(Node) = "mirror-damaged";
    /// The node's client ports are down.
    ClientLan(Node) = "client-lan" / 1;
    /// A member of a bond fails: the other carries on.
    BondMember(Node) = "bond-member" / 1;
    /// The wall clock jumps by an hour.
    WallClock(Node) = "wall-clock" / 1;
    /// Every processor is busy: everything local takes longer.
    Busy(Node) = "full-cpu" / 1;
    /// Somebody promotes the standby by hand.
    HandPromote(Node) = "hand-promote" / 1;
    /// The data disk is exchanged for an empty one while the node restarts.
    NewDisk(Node) = "new-disk";
    /// Operator: every resource to the other node.
    SwitchOver = "switchover" / 2;
    /// Operator: this node hands over, until the end.
    Drain(Node) = "drain" / 1;
    /// Operator: no automatic moves, until the end.
    Freeze = "freeze" / 1;
    /// Operator: this node takes everything by force.
    Force(Node) = "force";
    /// Operator: this node looks again at what it refused.
    Retry(Node) = "retry";
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match (self, self.node()) {
            (Fault::OneWay(wire), _) => write!(f, " {}", wire.index()),
            (_, Some(node)) => write!(f, " {}", if node == Node::A { "a" } else { "b" }),
            (_, None) => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        let node = match rest {
            "a" => Some(Node::A),
            "b" => Some(Node::B),
            _ => None,
        };
        let wire = rest.parse().ok().and_then(|at: usize| Wire::ALL.get(at));
        let fault = match wire {
            Some(wire) if name == "one-way" => Some(Fault::OneWay(*wire)),
            _ if rest.is_empty() == node.is_none() => Fault::of(name, node),
            _ => None,
        };
        fault.ok_or_else(|| {
            format!(
                "{text:?} is no fault; one of {}, with \"a\", \"b\" or a wire 0..5 where it needs one",
                NAMES.join(", ")
            )
        })
    }
}

impl Fault {
    /// One of those that a history of every kind of fault may have.
    pub(crate) fn draw(random: &mut Random) -> Fault {
        let weights = Fault::weights();
        let mut at = random.between(1, weights.iter().map(|(weight, _)| weight).sum());
        let node = Node::BOTH[random.between(0, 1) as usize];
        let wire = Wire::ALL[random.between(0, 5) as usize];
        let (_, name) = weights
            .iter()
            .find(|(weight, _)| {
                at = at.saturating_sub(*weight);
                at == 0
            })
            .expect("the weights add up to the bound of the draw");
        Fault::of(name, None).or_else(|| Fault::of(name, Some(node))).unwrap_or(Fault::OneWay(wire))
    }

    /// The fault of this name, on either node or any wire.
    pub(crate) fn somewhere(name: &str, random: &mut Random) -> Option<Fault> {
        let node = Node::BOTH[random.between(0, 1) as usize];
        let wire = Wire::ALL[random.between(0, 5) as usize];
        let one_way = (name == "one-way").then_some(Fault::OneWay(wire));
        Fault::of(name, None).or_else(|| Fault::of(name, Some(node))).or(one_way)
    }

    /// Of data, or of what was promised.
    pub(crate) fn takes_a_copy(self) -> bool {
        matches!(self, Fault::MirrorLost(_) | Fault::NewDisk(_))
    }

    /// Both may come in one history. What takes one copy away stands beside nothing
    /// that takes another: nobody promised to survive that. An operator's force gives up what it says; beside an
    /// arbiter that forgets, it cannot know what it gives up.
    pub(crate) fn bears(self, other: Fault) -> bool {
        let forces = |fault| matches!(fault, Fault::Force(_));
        let alone = |one: Fault, other: Fault| match other {
            Fault::Witness | Fault::Crash(_) | Fault::CrashBoth => one.takes_a_copy(),
            Fault::Rollback | Fault::Force(_) => one.takes_a_copy() || forces(one),
            // Where no arbiter is, this says that what the peer knows is all there is.
            Fault::Retry(_) => one.takes_a_copy(),
            _ => one.takes_a_copy() && other.takes_a_copy(),
        };
        !alone(self, other) && !alone(other, self)
    }
}
