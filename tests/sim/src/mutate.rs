//! Named mutations: each breaks one clause of the protocol, and some oracle must notice.

use dyad_cluster::Voting;
use dyad_cluster::mutation::Mutation;

use crate::explore::{Bounds, NOTHING, STORM, walk};
use crate::sim;

/// Where a mutation should be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Random deep histories of the explorer, with these faults.
    Explorer(Bounds),
    /// The simulator, where time passes: leases.
    Simulator,
}

/// One row: the clauses broken together, where, and why a single one would not be enough.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Broken together.
    pub broken: &'static [Mutation],
    /// Where.
    pub ground: Ground,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Seeds tried.
    pub seeds: u64,
    /// What was noticed, with the moves or events that it took.
    pub killed: Option<(String, usize)>,
}

const STEPS_MAX: usize = 180;

const TAKE_OVER: Bounds = Bounds { writes: 2, epochs: 8, suspicions: 2, cuts: 1, ..NOTHING };

/// Clauses that an oracle notices alone.
pub const CASES: &[Case] = {
    use Ground::{Explorer, Simulator};
    use Mutation::*;
    &[
        Case { broken: &[DropBeforeSolo], ground: Explorer(TAKE_OVER) },
        Case { broken: &[SyncLeftByTimeout], ground: Explorer(Bounds { gone: true, ..TAKE_OVER }) },
        Case { broken: &[NoBarrier], ground: Explorer(TAKE_OVER) },
        Case { broken: &[RoleFromDisk], ground: Explorer(Bounds { crashes: 1, ..TAKE_OVER }) },
        Case {
            broken: &[GenerationNotCheckedOnResume],
            ground: Explorer(Bounds { crashes: 1, reclones: 1, writes: 1, ..NOTHING }),
        },
        Case {
            broken: &[OneMirrorHeard],
            ground: Explorer(Bounds { rollbacks: 1, crashes: 0, ..TAKE_OVER }),
        },
        Case {
            broken: &[IncarnationIgnored],
            ground: Explorer(Bounds { rollbacks: 1, crashes: 1, ..TAKE_OVER }),
        },
        Case { broken: &[RenounceLast], ground: Explorer(Bounds { gone: true, cuts: 0, ..TAKE_OVER }) },
        Case { broken: &[SilenceNotAwaited], ground: Simulator },
    ]
};

/// Mutations that another clause covers for, each with the argument.
pub const COVERED: &[(Mutation, &str)] = {
    use Mutation::*;
    &[
        (
            ReceiverNotStopped,
            "what arrives after the win is in the copy that is promoted; promotion itself ends the stream",
        ),
        (
            MarkerNotRechecked,
            "the marker cannot change while the take-over is open, so the second look finds the same",
        ),
        (MarkerNotCleared, "a marker of another generation is not good; the generation alone is enough"),
        (
            EpochNotRaisedOnResume,
            "the intent is on disk, so the restarted holder waits for the answer to what it asked",
        ),
        (IntentNotDurable, "the epoch is raised on resume, so a forgotten request can no longer win"),
        (LeaseEndIgnored, "PID 1's dead-man's switch has the same deadline"),
        (
            SilenceBeforeStart,
            "nothing is granted before both nodes were heard, and a node that was heard has a session",
        ),
        (PromiseForgotten, "a standby that has just started waits T of silence before it suspects anybody"),
        (OldPactMarked, "pacts are never minted twice, so an old one is not the register's"),
        (RepeatedRequestJudgedAgain, "a change needs its epoch, so a second judgement loses or is the first"),
    ]
};

/// Looks for a seed that notices the case.
pub fn judge(case: &Case, seeds: u64) -> Verdict {
    for seed in 0..seeds {
        let noticed = match case.ground {
            Ground::Explorer(bounds) => walk(bounds, case.broken, Voting::Arbiter, seed, STEPS_MAX)
                .violation
                .map(|(violation, path)| (violation.what, path.len())),
            Ground::Simulator => {
                let run = sim::run(seed, case.broken);
                run.violation.map(|violation| (violation, run.log.len()))
            }
        };
        if noticed.is_some() {
            return Verdict { seeds: seed + 1, killed: noticed };
        }
    }
    Verdict { seeds, killed: None }
}

/// Mutations that nothing here has noticed yet and no argument covers: the proof's open end.
pub const OPEN: &[Mutation] = &[
    Mutation::TakeOverWithoutMarker,
    Mutation::GenerationNotCompared,
    Mutation::NoLeaseBeforeSync,
    Mutation::PromiseWithTakeOverOpen,
    Mutation::CrashReleasesSolo,
    Mutation::NoHoldBack,
];

/// Histories of the simulator cost as much as this many of the explorer.
const EXPLORED_PER_SIMULATED: u64 = 1;

/// With every fault, in both worlds: what notices the mutation, if anything does.
pub fn try_everywhere(mutation: Mutation, seeds: u64) -> Option<String> {
    let explored = (0..seeds).find_map(|seed| {
        let found = walk(STORM, &[mutation], Voting::Arbiter, seed, 2 * STEPS_MAX).violation;
        found.map(|(violation, _)| format!("{} (explorer, seed {seed})", violation.what))
    });
    explored.or_else(|| {
        (0..seeds / EXPLORED_PER_SIMULATED).find_map(|seed| {
            sim::run(seed, &[mutation])
                .violation
                .map(|violation| format!("{violation} (simulator, seed {seed})"))
        })
    })
}
