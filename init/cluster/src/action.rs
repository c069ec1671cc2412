//! What the core wants done. An adapter does it, checks the needs again first, and answers with exactly one completion
//! before the deadline or with "timed out" at the deadline.

use serde::{Deserialize, Serialize};

use crate::disk::{MarkerFile, Mirror};
use crate::message::{ToArbiter, ToPeer};
use crate::types::{Epoch, Generation, Greeting, Pact, RequestId, ResourceId, SystemId, Tick, Timeline};

/// A virtual machine, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId(pub u16);

/// A virtual address, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VipId(pub u16);

/// One thing to do. For a volume, PostgreSQL's words mean: arm = helper and fencing policy set, barrier = both sides
/// UpToDate, canary = a flushed write, drop = answer `fence-peer` with 4, serve = primary, follow = secondary.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Put this on the state partition, durably.
    WriteMirror(Mirror),
    /// Put this beside it, durably.
    WriteMarker(MarkerFile),
    /// Send; no completion.
    ToArbiter(Greeting, ToArbiter),
    /// Send; no completion.
    ToPeer(ToPeer),
    /// Hand PID 1 the tick past which it fences by itself; no completion.
    Deadman(Tick),
    /// Let the virtual address answer until this tick and no longer, whoever lives then; no completion, repeated with
    /// every renewal. It never outlasts a lease that is needed.
    OpenGate {
        /// Which address.
        vip: VipId,
        /// Its own end.
        until: Tick,
    },
    /// Stop answering for a virtual address, before anything else; no completion.
    CloseGate(VipId),
    /// Read what the stopped data says of itself. Reports [`Report::Control`].
    ReadControl,
    /// Start the stopped service as holder, promoting data that was a standby's. Synchronous ones admit nobody yet.
    Serve {
        /// Acknowledge only what the standby flushed.
        sync: bool,
    },
    /// Let clients in.
    Admit,
    /// Rule 4a: set the synchronous setting and reload.
    ArmSync,
    /// Rule 4b: a new connection shows the value, then two checkpoints.
    Barrier,
    /// Rule 4c: commit a canary and wait until the standby flushed its position. Reports [`Report::Canary`].
    Canary,
    /// Rule 2: acknowledge alone from here on.
    DropSync,
    /// Checkpoint, fast stop, and the standby holds the shutdown record; failed when it does not.
    StopClean,
    /// The demotion ladder down to an empty cgroup. Done means: nothing of it runs.
    Kill,
    /// Compare own data with the holder's. Reports [`Report::Relation`].
    Inspect,
    /// Start as standby of the peer.
    Follow,
    /// Stop receiving; the data stays as it is.
    StopFollowing,
    /// Quarantine the diverged tail and rewind. Reports [`Report::Control`].
    Rewind,
    /// Copy everything into a new place, keep the old one as quarantine. Reports [`Report::Control`].
    Clone,
    /// Stop being a standby, on a new timeline, serving alone.
    Promote,
    /// Power the other machine off and read back that it is off. Whoever carries it out completes it at once after that
    /// reading: it is relied on for [`crate::PEER_OFF_MS`] from the completion on.
    FencePeer,
    /// Start a virtual machine whose volume is held here, or let one go on that came by live migration.
    StartVm(VmId),
    /// A checkpoint after promotion: before it, a rewind to this timeline would find nothing to do and say so.
    Checkpoint,
    /// Refuse (or allow again) new writing transactions: the volume is nearly full.
    LimitWrites(bool),
}

/// Names of actions: with the resource, an action's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "one for each action, documented there")]
pub enum Kind {
    WriteMirror,
    WriteMarker,
    ToArbiter,
    ToPeer,
    Deadman,
    OpenGate,
    CloseGate,
    ReadControl,
    Serve,
    Admit,
    ArmSync,
    Barrier,
    Canary,
    DropSync,
    StopClean,
    Kill,
    Inspect,
    Follow,
    StopFollowing,
    Rewind,
    Clone,
    Promote,
    FencePeer,
    StartVm(VmId),
    Checkpoint,
    LimitWrites,
}

impl Kind {
    /// Goes on beside the protocol, which waits for none of these.
    pub(crate) fn aside(self) -> bool {
        matches!(self, Kind::StartVm(_) | Kind::Checkpoint | Kind::LimitWrites)
    }
}

impl Action {
    /// Its name.
    pub fn kind(&self) -> Kind {
        match self {
            Action::WriteMirror(_) => Kind::WriteMirror,
            Action::WriteMarker(_) => Kind::WriteMarker,
            Action::ToArbiter(..) => Kind::ToArbiter,
            Action::ToPeer(_) => Kind::ToPeer,
            Action::Deadman(_) => Kind::Deadman,
            Action::OpenGate { .. } => Kind::OpenGate,
            Action::CloseGate(_) => Kind::CloseGate,
            Action::ReadControl => Kind::ReadControl,
            Action::Serve { .. } => Kind::Serve,
            Action::Admit => Kind::Admit,
            Action::ArmSync => Kind::ArmSync,
            Action::Barrier => Kind::Barrier,
            Action::Canary => Kind::Canary,
            Action::DropSync => Kind::DropSync,
            Action::StopClean => Kind::StopClean,
            Action::Kill => Kind::Kill,
            Action::Inspect => Kind::Inspect,
            Action::Follow => Kind::Follow,
            Action::StopFollowing => Kind::StopFollowing,
            Action::Rewind => Kind::Rewind,
            Action::Clone => Kind::Clone,
            Action::Promote => Kind::Promote,
            Action::FencePeer => Kind::FencePeer,
            Action::StartVm(vm) => Kind::StartVm(*vm),
            Action::Checkpoint => Kind::Checkpoint,
            Action::LimitWrites(_) => Kind::LimitWrites,
        }
    }

    /// Whether a completion is owed. Messages, the gate and the dead-man's switch are told, not asked.
    pub fn completes(&self) -> bool {
        !matches!(
            self.kind(),
            Kind::ToArbiter | Kind::ToPeer | Kind::Deadman | Kind::OpenGate | Kind::CloseGate
        )
    }

    /// How long it may take, in milliseconds.
    pub(crate) fn limit_ms(&self) -> u64 {
        match self {
            Action::ToArbiter(..)
            | Action::ToPeer(_)
            | Action::Deadman(_)
            | Action::OpenGate { .. }
            | Action::CloseGate(_) => 500,
            Action::WriteMirror(_)
            | Action::WriteMarker(_)
            | Action::Admit
            | Action::ArmSync
            | Action::LimitWrites(_)
            | Action::DropSync => 2_000,
            Action::ReadControl | Action::StopFollowing | Action::Kill | Action::Promote => 5_000,
            Action::Canary | Action::Inspect | Action::Follow | Action::StopClean | Action::FencePeer => {
                10_000
            }
            Action::Barrier | Action::Checkpoint | Action::Serve { .. } | Action::StartVm(_) => 120_000,
            Action::Rewind => 600_000,
            // A copy of all data takes what it takes; progress is watched by the adapter.
            Action::Clone => 24 * 3_600_000,
        }
    }
}

/// Which action: at most one of a kind is under way for a resource, so the pair names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionId {
    /// `None`: the node's own.
    pub resource: Option<ResourceId>,
    /// What.
    pub kind: Kind,
}

/// What must be true when the action is carried out. The core has seen it true; the adapter checks once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Need {
    /// The mirror on disk holds this intent.
    IntentDurable(RequestId),
    /// The mirror on disk holds this epoch of the resource.
    RegisterDurable(ResourceId, Epoch),
    /// The mirror on disk says that this node goes on alone at this epoch.
    NoArbiterDurable(ResourceId, Epoch),
    /// The marker on disk is of this pact and this data.
    MarkerDurable(ResourceId, Pact, Generation),
    /// There is no marker on disk.
    MarkerCleared(ResourceId),
    /// Nothing of the resource's service runs.
    Stopped(ResourceId),
    /// The resource receives nothing from the peer.
    NotFollowing(ResourceId),
    /// It is not later: a machine that stood still lets nobody in before it notices that its lease has ended.
    Before(Tick),
}

/// An action with what an adapter has to know about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Issued {
    /// Comes back in the completion.
    pub id: ActionId,
    /// Past it, the completion is "timed out".
    pub deadline: Tick,
    /// Preconditions.
    pub needs: Vec<Need>,
    /// What.
    pub action: Action,
}

/// What one step wants done, in order.
pub type Actions = Vec<Issued>;

/// What the data on a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Control {
    /// Whose data.
    pub system: SystemId,
    /// Which timeline.
    pub timeline: Timeline,
    /// Which copy.
    pub generation: Generation,
}

/// How own data stands to the holder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// Same history, not past the fork: it can stream.
    Streams,
    /// Past the fork, on an older timeline, and the holder has checkpointed since its promotion: rewind.
    Diverged,
    /// The same, but the holder has not checkpointed since its promotion: `pg_rewind` would see no divergence.
    TooEarly,
    /// Nothing there, checksums failed, or two histories on one timeline: copy everything.
    Unusable,
    /// Another system's data: never touched.
    Foreign,
}

/// What a completion brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Report {
    /// Nothing but that it is done.
    Nothing,
    /// Of `ReadControl`, `Rewind`, `Clone`.
    Control(Control),
    /// Of `Canary`: the copy on which the standby flushed it.
    Canary(Generation),
    /// Of `Inspect`.
    Relation(Relation),
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Done(Report),
    /// Certainly not done.
    Failed,
    /// Nobody knows.
    TimedOut,
}
