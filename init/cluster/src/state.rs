//! The core's memory and its one entry, [`step`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::action::{Action, ActionId, Actions, Control, Issued, Kind, Need, Relation, VipId, VmId};
use crate::disk::{MarkerFile, Mirror};
use crate::event::{Condition, Event, Link, Timer};
use crate::gate::Vip;
use crate::mutation::{Mutation, Mutations};
use crate::phase::{Phase, legal};
use crate::placement::Vm;
use crate::register::{Mode, Register};
use crate::types::{
    BootId, Epoch, Generation, Greeting, Incarnation, Node, Observed, Pact, ResourceId, Tick,
};

/// A failed action is tried again after this long.
pub(crate) const RETRY_MS: u64 = 500;
/// With arbiter and answers missing for this long, the pair goes on without (rule 10).
pub const ARBITER_GONE_MS: u64 = 60_000;
/// A machine that was switched off does not run a supervisor again within this time. Later it may, unheard, and what was
/// decided over it and is not on disk yet must not be carried out.
pub const PEER_OFF_MS: u64 = 1_000;
/// Rounds of one step: each moves some resource by one edge, and no chain of edges without an event is longer.
const ROUNDS_MAX: usize = 16;

/// Who has the third vote (section 5 of the protocol).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Voting {
    /// An arbiter.
    Arbiter,
    /// Nobody: without the standby nothing is acknowledged, and nobody takes over.
    Strict,
    /// Nobody: the holder may go on alone within one unbroken boot; the standby never takes over by itself.
    PrimaryBiased,
    /// Nobody, but each node can power the other off: whoever saw the other one off may go on.
    FenceDevice,
}

/// What does not change while the core runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// This node.
    pub me: Node,
    /// T, in milliseconds.
    pub lease_ms: u64,
    /// Who has the third vote.
    pub voting: Voting,
    /// All resources of the cluster.
    pub resources: Vec<ResourceId>,
    /// Virtual machines, with the volumes that they need.
    pub vms: Vec<Vm>,
    /// Memory for virtual machines, in MiB, of each node.
    pub memory_mib: [u64; 2],
    /// Virtual addresses, with the resources that they belong to.
    pub vips: Vec<Vip>,
    /// Broken clauses, for tests of the tests.
    #[serde(skip)]
    pub mutations: Mutations,
}

/// How a service that outlived an earlier run of the supervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Running {
    /// As a holder.
    Serving,
    /// As a standby that receives, or tries to.
    Following,
}

/// What was found on the state partition at the start, and what still runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Found {
    /// The mirror; `None` when it cannot be read.
    pub mirror: Option<Mirror>,
    /// Marker files that can be read.
    pub markers: BTreeMap<ResourceId, MarkerFile>,
    /// Services that outlived an earlier run of the supervisor.
    pub running: BTreeMap<ResourceId, Running>,
    /// Virtual machines that did.
    pub vms: BTreeSet<VmId>,
}

/// One resource on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub(crate) phase: Phase,
    /// The register's epoch that the phase is about.
    pub(crate) epoch: Epoch,
    /// The register was learned from somebody else since the service stopped.
    pub(crate) learned: bool,
    /// Clients were let in, and nothing has put them out since.
    pub(crate) clients_in: bool,
    /// Something of the service may run.
    pub(crate) running: Option<Running>,
    pub(crate) control: Observed<Control>,
    pub(crate) link: Observed<Link>,
    pub(crate) marker: Observed<MarkerFile>,
    /// What the marker file should become.
    pub(crate) marker_wanted: Option<MarkerFile>,
    /// What is being written right now.
    pub(crate) marker_writing: Option<MarkerFile>,
    /// The peer's register of the same epoch says something else (only without an arbiter).
    pub(crate) split: bool,
    /// Counts attempts to protect within this epoch.
    pub(crate) attempt: u32,
    pub(crate) pact: Option<Pact>,
    pub(crate) peer_generation: Option<Generation>,
    pub(crate) marked: bool,
    /// The peer said that it handed over at this epoch.
    pub(crate) handed_over: Option<Epoch>,
    /// The peer said that it gave this pact up.
    pub(crate) renounced: Option<Pact>,
    pub(crate) relation: Option<Relation>,
    /// Somebody or something wants it on the other node.
    pub(crate) leave: bool,
    /// An operator's word that is not carried out yet: when it was given.
    pub(crate) forced: Option<u64>,
    /// It was told to cost nothing, which only an arbiter's answer can make true.
    pub(crate) free: bool,
    pub(crate) flaps: u8,
    /// It ended by itself, or hangs and was killed, while the standby had everything: the standby may take it.
    pub(crate) crashed: bool,
    /// Crashes within the last [`crate::CRASHES_WITHIN_MS`].
    pub(crate) crashes: u8,
    pub(crate) unhealthy: bool,
    /// The peer may be on again, after it had been switched off and before that change was on disk: it may have resumed, so
    /// it is switched off once more.
    pub(crate) fence_again: bool,
    /// Promoted, and no checkpoint since.
    pub(crate) checkpoint_due: bool,
    /// New writers are refused: the volume is nearly full.
    pub(crate) limited: Option<bool>,
}

/// What is known of the arbiter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub(crate) struct ArbiterView {
    pub(crate) session: Option<Incarnation>,
    pub(crate) greeting: Option<Incarnation>,
    pub(crate) greetings: Greeting,
    pub(crate) heard_both: bool,
    pub(crate) silent: bool,
    pub(crate) gone: bool,
    pub(crate) amnesia: bool,
}

/// All that the core knows. A value: it can be cloned, compared and hashed, so that an explorer can walk it, and written
/// down, so that an event log can go on in a new file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    pub(crate) config: Config,
    pub(crate) boot: BootId,
    /// What the mirror should hold.
    pub(crate) mirror: Mirror,
    /// What it holds for certain.
    pub(crate) durable: Option<Mirror>,
    pub(crate) writing: Option<Mirror>,
    /// The mirror was read at the start, or the truth has been learned since (rule 9).
    pub(crate) mirror_readable: bool,
    pub(crate) seats: BTreeMap<ResourceId, Seat>,
    pub(crate) arbiter: ArbiterView,
    pub(crate) peer_silent: bool,
    /// The peer's mirror was seen in this boot.
    pub(crate) peer_consulted: bool,
    /// The peer said that it would take over.
    pub(crate) peer_takes_over: bool,
    /// Pacts that stand on the peer's disk, as it said last.
    pub(crate) peer_marked: Vec<(ResourceId, Pact)>,
    pub(crate) peer_off: bool,
    pub(crate) pending: BTreeMap<ActionId, Tick>,
    pub(crate) timers: BTreeMap<Timer, Tick>,
    pub(crate) gates_open: BTreeSet<VipId>,
    pub(crate) lease_was_needed: bool,
    pub(crate) condition: Condition,
    pub(crate) peer_condition: Condition,
    pub(crate) clients_lost: bool,
    pub(crate) drained: bool,
    pub(crate) vms_running: BTreeSet<VmId>,
    /// Edges taken in the last step, for logs and for the coverage of tests.
    pub(crate) edges: Vec<(ResourceId, Phase, Phase)>,
}

/// One event in, the actions that follow from it out. The whole of the core.
pub fn step(state: &mut State, now: Tick, event: Event) -> Actions {
    let mut out = Actions::new();
    state.edges.clear();
    state.expire_lease(now);
    state.absorb(now, event, &mut out);
    state.advance(now, &mut out);
    out
}

/// What runs from the first tick on.
fn first_timers(config: &Config, now: Tick) -> BTreeMap<Timer, Tick> {
    let lease_ms = config.lease_ms;
    let mut timers = BTreeMap::from([
        (Timer::Beat, now),
        // Whatever the last run of this supervisor promised still holds.
        (Timer::Promise, now.plus(lease_ms)),
        (Timer::PeerSilent, now.plus(lease_ms)),
        (Timer::ArbiterSilent, now.plus(lease_ms)),
        (Timer::ArbiterGone, now.plus(ARBITER_GONE_MS)),
    ]);
    if config.mutations.broken(Mutation::PromiseForgotten) {
        timers.remove(&Timer::Promise);
    }
    if config.mutations.broken(Mutation::SuspectedAtStart) {
        timers.insert(Timer::PeerSilent, now);
    }
    timers
}

impl State {
    /// A node that has just started its supervisor: nobody, whatever its disk says (rule 5).
    pub fn new(config: Config, boot: BootId, now: Tick, found: Found) -> State {
        let seat = |resource: &ResourceId| Seat {
            phase: Phase::Unlearned,
            epoch: Epoch(0),
            learned: false,
            clients_in: false,
            running: found.running.get(resource).copied(),
            control: Observed::Unknown,
            link: Observed::Unknown,
            marker: Observed::Known(found.markers.get(resource).copied().unwrap_or_default()),
            marker_wanted: None,
            marker_writing: None,
            split: false,
            attempt: 0,
            pact: None,
            peer_generation: None,
            marked: false,
            handed_over: None,
            renounced: None,
            relation: None,
            leave: false,
            forced: None,
            free: false,
            flaps: 0,
            crashed: false,
            crashes: 0,
            unhealthy: false,
            fence_again: false,
            checkpoint_due: false,
            limited: None,
        };
        let seats = config.resources.iter().map(|r| (*r, seat(r))).collect();
        let served = |vip: &&Vip| found.running.get(&vip.resource) == Some(&Running::Serving);
        let gates_open = config.vips.iter().filter(served).map(|vip| vip.id).collect();
        let timers = first_timers(&config, now);
        State {
            config,
            boot,
            mirror: found.mirror.clone().unwrap_or_default(),
            mirror_readable: found.mirror.is_some(),
            durable: found.mirror,
            writing: None,
            seats,
            arbiter: ArbiterView { silent: true, ..ArbiterView::default() },
            peer_silent: false,
            peer_consulted: false,
            peer_takes_over: false,
            peer_marked: Vec::new(),
            peer_off: false,
            pending: BTreeMap::new(),
            timers,
            gates_open,
            lease_was_needed: false,
            condition: Condition::default(),
            peer_condition: Condition::default(),
            clients_lost: false,
            drained: false,
            vms_running: found.vms,
            edges: Vec::new(),
        }
    }

    /// Timers and when they are due: the driver sends [`Event::Fired`] then.
    pub fn timers(&self) -> &BTreeMap<Timer, Tick> {
        &self.timers
    }

    /// Actions that owe a completion, with their deadlines.
    pub fn pending(&self) -> &BTreeMap<ActionId, Tick> {
        &self.pending
    }

    /// Where a resource is.
    pub fn phase(&self, resource: ResourceId) -> Option<Phase> {
        self.seats.get(&resource).map(|seat| seat.phase)
    }

    /// The last register known of a resource.
    pub fn register(&self, resource: ResourceId) -> Option<Register> {
        self.mirror.registers.get(&resource).copied()
    }

    /// This boot of this node.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Edges taken in the last step.
    pub fn edges(&self) -> &[(ResourceId, Phase, Phase)] {
        &self.edges
    }

    /// The virtual addresses that may answer here.
    pub fn gates_open(&self) -> &BTreeSet<VipId> {
        &self.gates_open
    }

    pub(crate) fn seat(&self, resource: ResourceId) -> &Seat {
        self.seats.get(&resource).expect("a seat for every configured resource; others are filtered on entry")
    }

    pub(crate) fn seat_mut(&mut self, resource: ResourceId) -> &mut Seat {
        self.seats
            .get_mut(&resource)
            .expect("a seat for every configured resource; others are filtered on entry")
    }

    pub(crate) fn broken(&self, mutation: Mutation) -> bool {
        self.config.mutations.broken(mutation)
    }

    pub(crate) fn armed(&self, timer: Timer) -> bool {
        self.timers.contains_key(&timer)
    }

    pub(crate) fn arm(&mut self, timer: Timer, at: Tick) {
        self.timers.insert(timer, at);
    }

    /// Takes an edge of the table.
    pub(crate) fn go(&mut self, resource: ResourceId, to: Phase) {
        let epoch = self.register(resource).map_or(Epoch(0), |r| r.epoch);
        let seat = self.seat_mut(resource);
        let from = seat.phase;
        assert!(legal(from, to), "{resource:?}: {from:?} -> {to:?} is not an edge of the table");
        if epoch != seat.epoch {
            seat.epoch = epoch;
            seat.attempt = 0;
        }
        seat.phase = to;
        if !matches!(to, Phase::Unlearned | Phase::Fenced | Phase::Stopping | Phase::Forcing) {
            seat.forced = None;
        }
        match to {
            Phase::Alone | Phase::Sync => seat.clients_in = true,
            Phase::Starting | Phase::HeldBack | Phase::Promoting => seat.clients_in = false,
            _ => {}
        }
        if to.serves() {
            seat.running = Some(Running::Serving);
        }
        if to == Phase::Fenced {
            // Whatever failed before: the ladder waits for nothing.
            self.timers.remove(&Timer::Retry(Some(resource)));
        }
        self.edges.push((resource, from, to));
    }

    /// Issues an action unless one of its kind is under way or waits for its retry.
    pub(crate) fn issue(
        &mut self,
        now: Tick,
        out: &mut Actions,
        resource: Option<ResourceId>,
        action: Action,
        needs: Vec<Need>,
    ) -> bool {
        let id = ActionId { resource, kind: action.kind() };
        let retry = match id.kind {
            Kind::WriteMarker => resource.map_or(Timer::Retry(None), Timer::RetryMarker),
            kind if kind.aside() => resource.map_or(Timer::Retry(None), Timer::RetryAside),
            _ => Timer::Retry(resource),
        };
        if action.completes() && (self.pending.contains_key(&id) || self.armed(retry)) {
            return false;
        }
        let deadline = now.plus(action.limit_ms());
        if action.completes() {
            self.pending.insert(id, deadline);
        }
        out.push(Issued { id, deadline, needs, action });
        true
    }

    pub(crate) fn tell(&mut self, now: Tick, out: &mut Actions, action: Action, needs: Vec<Need>) {
        self.issue(now, out, None, action, needs);
    }

    /// The register says that this node holds the resource.
    pub(crate) fn holds(&self, resource: ResourceId) -> bool {
        self.register(resource).is_some_and(|r| r.holder == self.config.me)
    }

    /// Clients are served here.
    pub(crate) fn admits(&self, resource: ResourceId) -> bool {
        self.seats.get(&resource).is_some_and(|seat| seat.phase.admits() && seat.clients_in)
    }

    pub(crate) fn pact(&self, resource: ResourceId) -> Option<Pact> {
        match self.register(resource)?.mode {
            Mode::Sync(pact) => Some(pact),
            Mode::Solo => None,
        }
    }

    /// The register, as known, is on this node's disk.
    pub(crate) fn register_durable(&self, resource: ResourceId) -> bool {
        let durable = self.durable.as_ref().and_then(|m| m.registers.get(&resource));
        if self.broken(Mutation::MirrorNotAwaited) {
            return true;
        }
        durable.is_some() && durable == self.mirror.registers.get(&resource)
    }

    /// Some action on the resource is under way, so that its completion may still come (a marker's is told apart by
    /// what it wrote, and the ladder may always be climbed again).
    pub(crate) fn busy(&self, resource: ResourceId) -> bool {
        self.pending.keys().any(|id| {
            id.resource == Some(resource)
                && !matches!(id.kind, Kind::WriteMarker | Kind::Kill)
                && !id.kind.aside()
        })
    }

    pub(crate) fn frozen(&self) -> bool {
        self.armed(Timer::Freeze)
    }

    fn advance(&mut self, now: Tick, out: &mut Actions) {
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "edges without an event go in a circle: {:?}", self.edges);
            let before = self.edges.len();
            for resource in self.config.resources.clone() {
                self.obey(resource);
                self.settle(resource);
                self.advance_marker(now, resource, out);
                self.advance_one(now, resource, out);
            }
            let asked = self.advance_intent(now, out);
            self.advance_mirror(now, out);
            if self.edges.len() == before && !asked {
                break;
            }
        }
        self.advance_gate(now, out);
        self.advance_vms(now, out);
        self.advance_aside(now, out);
    }

    fn advance_one(&mut self, now: Tick, r: ResourceId, out: &mut Actions) {
        match self.seat(r).phase {
            Phase::Unlearned => self.unlearned(now, r, out),
            Phase::Starting => self.starting(now, r, out),
            Phase::HeldBack => self.held_back(now, r, out),
            Phase::Alone => self.alone(r),
            Phase::Arming | Phase::Barrier | Phase::Canary | Phase::Marking => self.protecting(now, r, out),
            Phase::Sync => self.synchronous(r),
            Phase::Degrading | Phase::Recording | Phase::Dropping | Phase::Disarming => {
                self.degrading(now, r, out)
            }
            Phase::HandingOver | Phase::Released => self.handing_over(now, r, out),
            Phase::Admitting => {
                let needs = self.while_leased(r);
                self.issue(now, out, Some(r), Action::Admit, needs);
            }
            Phase::Fenced => {
                self.issue(now, out, Some(r), Action::Kill, vec![]);
            }
            Phase::Inspecting | Phase::Clearing | Phase::Rewinding | Phase::Cloning | Phase::Attaching => {
                self.rejoining(now, r, out);
            }
            Phase::Following | Phase::Renouncing => self.following(r),
            Phase::Stopping | Phase::Checking | Phase::Promoting => self.taking_over(now, r, out),
            // These ask for a change, which is the intent's business, or wait for an operator.
            Phase::Founding
            | Phase::Resuming
            | Phase::Reporting
            | Phase::Protecting
            | Phase::Claiming
            | Phase::Forcing
            | Phase::Refused => {}
        }
    }
}
