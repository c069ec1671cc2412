//! Named faults. Each breaks one clause of the protocol, so that a test can show that its oracles would notice.
//!
//! Without the feature `mutations` the question [`Mutations::broken`] is answered `false` at compile time.

/// One clause, broken.
#[cfg_attr(
    not(feature = "mutations"),
    allow(dead_code, reason = "named at its clause; asked for only under test")
)]
#[cfg_attr(not(feature = "mutations"), allow(unreachable_pub, reason = "public only with the feature"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// Rule 2: the synchronous setting is dropped before Solo is won.
    DropBeforeSolo,
    /// Rule 2: Sync is left when no answer came in time.
    SyncLeftByTimeout,
    /// Rule 3: a standby asks with whatever pact the register names, marker or not.
    TakeOverWithoutMarker,
    /// Rule 3: the receiver still streams while take-over is asked for.
    ReceiverNotStopped,
    /// Rule 3: the winner does not look at marker and data again.
    MarkerNotRechecked,
    /// Rule 4b: a reload is believed without the checkpoint barrier.
    NoBarrier,
    /// Rule 4d: the standby marks whatever data it has.
    GenerationNotCompared,
    /// Rule 4d: the standby marks old promises again.
    OldPactMarked,
    /// Rule 4e: Sync is entered with no lease.
    NoLeaseBeforeSync,
    /// Rule 3: the marker outlives the data it spoke of.
    MarkerNotCleared,
    /// Rule 5: the role is read from the node's own disk.
    RoleFromDisk,
    /// Rule 5: a holder goes on at its old epoch.
    EpochNotRaisedOnResume,
    /// Rule 5: a holder goes on with other data than it won with.
    GenerationNotCheckedOnResume,
    /// Rule 6: a change is asked for before the intent is on disk.
    IntentNotDurable,
    /// Rule 6: the arbiter answers a repeated request afresh.
    RepeatedRequestJudgedAgain,
    /// Rule 7: the holder's silence is not waited for.
    SilenceNotAwaited,
    /// Rule 7: silence counts from before the arbiter's own start.
    SilenceBeforeStart,
    /// Rule 9: one mirror is enough after a restart.
    OneMirrorHeard,
    /// Rule 9: messages of another incarnation are believed.
    IncarnationIgnored,
    /// Rule 10: the holder records first and the standby renounces afterwards.
    RenounceLast,
    /// Section 4: after a crash in Sync clients are let in before the standby has what recovery brought back.
    NoHoldBack,
    /// Section 4: a service that crashed in Solo is given to the standby.
    CrashReleasesSolo,
    /// Leases: the standby forgets its promise when it restarts.
    PromiseForgotten,
    /// Leases: the standby promises while its own take-over is open.
    PromiseWithTakeOverOpen,
    /// Leases: the end of the lease is ignored.
    LeaseEndIgnored,
}

impl Mutation {
    /// All of them.
    #[cfg(feature = "mutations")]
    pub const ALL: [Mutation; 25] = {
        use Mutation::*;
        [
            DropBeforeSolo,
            SyncLeftByTimeout,
            TakeOverWithoutMarker,
            ReceiverNotStopped,
            MarkerNotRechecked,
            NoBarrier,
            GenerationNotCompared,
            OldPactMarked,
            NoLeaseBeforeSync,
            MarkerNotCleared,
            RoleFromDisk,
            EpochNotRaisedOnResume,
            GenerationNotCheckedOnResume,
            IntentNotDurable,
            RepeatedRequestJudgedAgain,
            SilenceNotAwaited,
            SilenceBeforeStart,
            OneMirrorHeard,
            IncarnationIgnored,
            RenounceLast,
            NoHoldBack,
            CrashReleasesSolo,
            PromiseForgotten,
            PromiseWithTakeOverOpen,
            LeaseEndIgnored,
        ]
    };
}

/// Which clauses are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mutations {
    #[cfg(feature = "mutations")]
    set: u64,
}

impl Mutations {
    /// Breaks these.
    #[cfg(feature = "mutations")]
    pub fn of(broken: &[Mutation]) -> Mutations {
        Mutations { set: broken.iter().fold(0, |set, m| set | 1 << (*m as u64)) }
    }

    #[cfg(feature = "mutations")]
    pub(crate) fn broken(self, mutation: Mutation) -> bool {
        self.set & (1 << (mutation as u64)) != 0
    }

    #[cfg(not(feature = "mutations"))]
    pub(crate) fn broken(self, _mutation: Mutation) -> bool {
        false
    }
}
