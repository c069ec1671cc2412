//! Named mutations: each breaks one clause of the protocol, and some oracle must notice. Where two clauses cover for each
//! other, each alone must go unnoticed, the argument says why, and both together must be noticed.

use std::sync::atomic::{AtomicU64, Ordering};

use dyad_cluster::Voting;
use dyad_cluster::action::Kind;
use dyad_cluster::mutation::Mutation;
use dyad_cluster::phase::Phase::{Alone, Arming, Dropping, Following, Inspecting, Marking, Protecting, Sync};
use dyad_cluster::types::Node::{A, B};

use crate::explore::{Bounds, Lead, NOTHING, walk, walk_from};
use crate::scenario::Scenario;
use crate::sim::{self, Fault, Plan};
use Ground::{Explorer, Faults, Led, Simulator, Story};

/// Where a mutation should be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Random deep histories of the explorer, with these faults.
    Explorer(Bounds),
    /// The same after this beginning.
    Led(&'static [Lead], Bounds),
    /// The simulator's own histories.
    Simulator,
    /// Histories of the simulator in which each of these faults comes once, at any moment: time passes, so leases matter.
    Faults(&'static [Fault]),
    /// This story of tests/scenarios with other chances.
    Story(&'static str),
}

/// One row: the clauses broken together, and where that shows.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Broken together.
    pub broken: &'static [Mutation],
    /// Where.
    pub ground: Ground,
}

/// A clause that another one covers.
#[derive(Debug, Clone, Copy)]
pub struct Covered {
    /// Broken alone, it goes unnoticed.
    pub alone: Mutation,
    /// Broken together with these, it is noticed.
    pub with: &'static [Mutation],
    /// Where, both times.
    pub ground: Ground,
    /// Why it goes unnoticed alone.
    pub argument: &'static str,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Seeds tried.
    pub seeds: u64,
    /// What was noticed.
    pub killed: Option<String>,
}

/// Moves of one of the explorer's histories.
const STEPS_MAX: usize = 180;
/// And of one after a beginning.
const LED_STEPS_MAX: usize = 100;

const TAKE_OVER: Bounds = Bounds { writes: 2, epochs: 9, suspicions: 2, cuts: 1, ..NOTHING };
const RESTORED: Bounds = Bounds { rollbacks: 1, restarts: 1, ..TAKE_OVER };
const RECLONED: Bounds = Bounds { crashes: 2, reclones: 1, suspicions: 1, writes: 2, epochs: 9, ..NOTHING };
const ALONE: Bounds = Bounds { gone: true, cuts: 0, ..TAKE_OVER };

/// A goes on alone after its standby was lost, and acknowledges a write that only it has.
const DEGRADED: &[Lead] = {
    use Lead::{Acknowledge, Cut, Only, Until, Write};
    &[Until(A, Sync), Cut(A), Only(A, Alone), Write(A), Acknowledge(A)]
};
/// The same unknown to B, and the arbiter is restored from a copy made before.
const FORGOTTEN: &[Lead] = {
    use Lead::{Acknowledge, Copy, Cut, Only, Restore, SettleOnly, Until, Write};
    &[Until(A, Sync), Copy, Cut(A), Only(A, Alone), Write(A), Acknowledge(A), Restore, SettleOnly(B)]
};
/// The same, and A went down before anything of it was on its disk.
const UNRECORDED: &[Lead] = {
    use Lead::{Acknowledge, Boot, Copy, Crash, Cut, Finish, Only, Restore, Until, Write};
    &[
        Until(A, Sync),
        Copy,
        Cut(A),
        Only(A, Dropping),
        Finish(A, Kind::DropSync),
        Write(A),
        Acknowledge(A),
        Crash(A),
        Restore,
        Boot(A),
    ]
};
/// The arbiter is gone, B gave its marker up, and A acknowledges alone.
const RENOUNCED: &[Lead] = {
    use Lead::{Acknowledge, Gone, LateMark, Renew, Unheard, Until, Write};
    &[Until(A, Sync), Renew(B), Gone, Unheard(A, Alone), Write(A), Acknowledge(A), Renew(B), LateMark(B)]
};
/// Both have the write; then B's disk is swapped for an empty one.
const EMPTY_STANDBY: &[Lead] = {
    use Lead::{Acknowledge, Boot, Crash, Stream, SwapDisk, Until, Write};
    &[Until(A, Sync), Write(A), Stream(B), Acknowledge(A), Crash(B), SwapDisk(B), Boot(B)]
};
/// The same while A waits for B's mark.
const EMPTY_BEFORE_MARK: &[Lead] = {
    use Lead::{Acknowledge, Boot, Crash, Stream, SwapDisk, Until, Write};
    &[
        Write(A),
        Acknowledge(A),
        Stream(B),
        Until(A, Marking),
        Crash(B),
        SwapDisk(B),
        Boot(B),
        Until(B, Following),
    ]
};
/// A's supervisor restarts while Sync is asked for, and A goes on alone.
const ASKED_AND_FORGOTTEN: &[Lead] = {
    use Lead::{Acknowledge, Supervisor, Unasked, Until, Write};
    &[Until(A, Protecting), Supervisor(A), Unasked(A, Alone), Write(A), Acknowledge(A)]
};
/// Both have the write; then B's copy turns out to be unusable and is replaced.
const REPLACED: &[Lead] = {
    use Lead::{Acknowledge, Boot, Crash, Stream, Until, Unusable, Write};
    &[
        Until(A, Sync),
        Write(A),
        Stream(B),
        Acknowledge(A),
        Crash(B),
        Boot(B),
        Until(B, Inspecting),
        Unusable(B),
    ]
};
/// A is heard by the restored arbiter only through a hello from before.
const STALE: &[Lead] = {
    use Lead::{
        Acknowledge, Copy, Cut, Only, Restart, Restore, Settle, SettleOnly, StaleHello, Until, Write,
    };
    &[
        Until(A, Sync),
        Restart,
        Settle,
        Copy,
        Cut(A),
        Only(A, Alone),
        Write(A),
        Acknowledge(A),
        Restore,
        StaleHello(A),
        SettleOnly(B),
    ]
};
/// A acknowledged a write after it had seen B at its head; B does not have it yet.
const BEHIND: &[Lead] = {
    use Lead::{Acknowledge, Until, Write};
    &[Until(A, Arming), Write(A), Acknowledge(A), Until(A, Sync)]
};

/// Clauses that an oracle notices alone.
pub const CASES: &[Case] = {
    use Mutation::*;
    const fn case(broken: &'static [Mutation], ground: Ground) -> Case {
        Case { broken, ground }
    }
    &[
        case(&[TakeOverFromSolo], Explorer(TAKE_OVER)),
        case(&[DropBeforeSolo], Explorer(TAKE_OVER)),
        case(&[SyncLeftByTimeout], Explorer(Bounds { gone: true, ..TAKE_OVER })),
        case(&[MirrorNotAwaited], Led(UNRECORDED, Bounds { crashes: 1, ..RESTORED })),
        case(&[TakeOverWithoutMarker], Led(EMPTY_STANDBY, Bounds { supervisors: 1, ..RECLONED })),
        case(&[MarkerOfOtherData], Led(EMPTY_STANDBY, RECLONED)),
        case(&[NotArmed], Explorer(TAKE_OVER)),
        case(&[NoBarrier], Explorer(TAKE_OVER)),
        case(&[CanaryNotAwaited], Led(BEHIND, TAKE_OVER)),
        case(&[MarkNotAwaited], Simulator),
        case(&[GenerationNotCompared], Led(EMPTY_BEFORE_MARK, RECLONED)),
        case(&[OldPactMarked], Led(RENOUNCED, ALONE)),
        case(&[NoLeaseBeforeSync], Faults(&[Fault::NoWitness(A), Fault::Between, Fault::Stream])),
        case(&[RoleFromDisk], Explorer(Bounds { crashes: 1, ..TAKE_OVER })),
        case(
            &[GenerationNotCheckedOnResume],
            Explorer(Bounds { crashes: 1, reclones: 1, writes: 1, ..NOTHING }),
        ),
        case(&[EpochNotRaisedOnResume], Simulator),
        case(&[SilenceNotAwaited], Simulator),
        case(&[OneMirrorHeard], Led(FORGOTTEN, RESTORED)),
        case(&[IncarnationIgnored], Led(STALE, RESTORED)),
        case(&[AmnesiaIgnored], Led(FORGOTTEN, RESTORED)),
        case(&[RenounceLast], Explorer(ALONE)),
        case(&[NoHoldBack], Simulator),
        case(&[LeaseFromAnswer], Faults(&[Fault::Bad, Fault::Isolated(A)])),
        case(&[PromiseNotKept], Faults(&[Fault::NoWitness(A), Fault::Stream])),
        case(&[PromiseForgotten], Faults(&[Fault::NoWitness(A), Fault::Supervisor(B), Fault::Between])),
        case(&[FenceRemembered], Story("fenced-and-back-unheard")),
        case(&[DeadmanNotArmed], Faults(&[Fault::HangSupervisor(B), Fault::Isolated(B)])),
    ]
};

/// Clauses that another one covers for.
pub const COVERED: &[Covered] = {
    use Mutation::*;
    &[
        Covered {
            alone: MarkerNotRechecked,
            with: &[TakeOverWithoutMarker],
            ground: Led(EMPTY_STANDBY, RECLONED),
            argument: "the marker cannot change while the take-over is open, so the second look finds the same",
        },
        Covered {
            alone: ReplacedWhileOpen,
            with: &[GenerationNotCheckedOnResume],
            ground: Explorer(Bounds { crashes: 1, reclones: 1, ..TAKE_OVER }),
            argument: "data that is not what the request was made with is refused when the win is learned",
        },
        Covered {
            alone: MarkerNotCleared,
            with: &[MarkerOfOtherData],
            ground: Led(REPLACED, RECLONED),
            argument: "a marker of another generation is not good; the generation alone is enough",
        },
        Covered {
            alone: IntentNotDurable,
            with: &[EpochNotRaisedOnResume],
            ground: Led(ASKED_AND_FORGOTTEN, Bounds { supervisors: 1, ..TAKE_OVER }),
            argument: "the epoch is raised on resume, so a forgotten request can no longer win",
        },
        Covered {
            alone: EpochNotCompared,
            with: &[RepeatedRequestJudgedAgain],
            ground: Led(DEGRADED, TAKE_OVER),
            argument: "request ids rise, so a late copy is answered and not judged; mode, party and pact stop the rest",
        },
        Covered {
            alone: RepeatedRequestJudgedAgain,
            with: &[EpochNotCompared],
            ground: Led(DEGRADED, TAKE_OVER),
            argument: "a change needs its epoch, so a second judgement loses or is the first",
        },
        Covered {
            alone: CrashReleasesSolo,
            with: &[TakeOverFromSolo],
            ground: Explorer(TAKE_OVER),
            argument: "nobody takes over from Solo, released or not",
        },
        Covered {
            alone: ReceiverNotStopped,
            with: &[TakeOverWithoutMarker],
            ground: Led(EMPTY_STANDBY, RECLONED),
            argument: "what arrives after the win is in the copy that is promoted; promotion itself ends the stream",
        },
        Covered {
            alone: AloneNotRecorded,
            with: &[OldPactMarked],
            ground: Led(RENOUNCED, Bounds { crashes: 1, ..ALONE }),
            argument: "the standby gave its marker up first, on disk, and never marks that pact again",
        },
        Covered {
            alone: SilenceBeforeStart,
            with: &[OneMirrorHeard],
            ground: Faults(&[Fault::Between, Fault::Witness, Fault::NoWitness(A)]),
            argument: "nothing is granted before both nodes were heard, and a node that was heard has a session",
        },
        Covered {
            alone: ReleaseAtAnyEpoch,
            with: &[SilenceNotAwaited],
            ground: Simulator,
            argument: "a release is forgotten with the next change of its register",
        },
        Covered {
            alone: SuspectedAtStart,
            with: &[PromiseForgotten],
            ground: Faults(&[Fault::NoWitness(A), Fault::Supervisor(B), Fault::Between]),
            argument: "whatever the run before promised holds for T, and nobody asks before that",
        },
        Covered {
            alone: RunsOnUnheld,
            with: &[PromiseTellsNothing],
            ground: Faults(&[Fault::Stall(B), Fault::Supervisor(B), Fault::Witness]),
            argument: "what the promise or the arbiter says ends it as soon as its data was looked at",
        },
        Covered {
            alone: PromiseTellsNothing,
            with: &[RunsOnUnheld],
            ground: Faults(&[Fault::Stall(B), Fault::Supervisor(B), Fault::Witness]),
            argument: "the peer's mirror says the same with every beat, and what runs unheld ends",
        },
        Covered {
            alone: PromiseWithTakeOverOpen,
            with: &[PromiseNotKept],
            ground: Faults(&[Fault::NoWitness(A), Fault::Stream]),
            argument: "it is opened only when every promise has run out, so the holder's lease has ended too, and it \
                       serves again only after a change that the open request loses to",
        },
        Covered {
            alone: LeaseEndIgnored,
            with: &[DeadmanNotArmed],
            ground: Faults(&[Fault::Isolated(B), Fault::NoWitness(B)]),
            argument: "PID 1's dead-man's switch has the same deadline",
        },
    ]
};

/// What a seed's history broke.
fn noticed(ground: Ground, broken: &[Mutation], seed: u64) -> Option<String> {
    match ground {
        Ground::Explorer(bounds) => walk(bounds, broken, Voting::Arbiter, seed, STEPS_MAX)
            .violation
            .map(|(violation, path)| format!("{}, explorer ({} moves)", violation.what, path.len())),
        Ground::Led(beginning, bounds) => {
            walk_from(beginning, bounds, broken, Voting::Arbiter, seed, LED_STEPS_MAX)
                .violation
                .map(|(violation, path)| format!("{}, explorer ({} moves)", violation.what, path.len()))
        }
        Ground::Simulator => {
            sim::run(seed, broken).violation.map(|violation| format!("{violation}, simulator"))
        }
        Ground::Faults(faults) => {
            let run = sim::play(&Plan::of(faults, seed), broken, false);
            run.violation.map(|violation| format!("{violation}, simulator"))
        }
        Ground::Story(name) => {
            let story = Scenario::named(name).expect("the test of the stories reads every one");
            let run = sim::play(&Plan { seed, ..story.plan }, broken, false);
            run.violation.map(|violation| format!("{violation}, story {name}"))
        }
    }
}

/// Looks for the first seed that notices the broken clauses, on all processors.
pub fn judge(broken: &[Mutation], ground: Ground, seeds: u64) -> Verdict {
    let (next, first) = (AtomicU64::new(0), AtomicU64::new(seeds));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.load(Ordering::Relaxed) {
                        break;
                    }
                    if noticed(ground, broken, seed).is_some() {
                        first.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let first = first.into_inner();
    match first < seeds {
        true => Verdict { seeds: first + 1, killed: noticed(ground, broken, first) },
        false => Verdict { seeds, killed: None },
    }
}
