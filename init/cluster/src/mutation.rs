//! Named faults. Each breaks one clause of the protocol, so that a test can show that its oracles would notice.
//!
//! Without the feature `mutations` the question [`Mutations::broken`] is answered `false` at compile time.

crate::listed::listed! {
    all if feature = "mutations";

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
        /// Rule 1: a take-over from Solo is asked for and granted.
        TakeOverFromSolo,
        /// Rule 3: the receiver still streams while take-over is asked for.
        ReceiverNotStopped,
        /// Rule 3: the winner does not look at marker and data again.
        MarkerNotRechecked,
        /// Rule 3: data is replaced while a take-over that was asked for with it is open.
        ReplacedWhileOpen,
        /// Rules 2 and 3: nothing waits for the register to be on the node's own disk.
        MirrorNotAwaited,
        /// Rule 4a: the setting is not switched on.
        NotArmed,
        /// Rule 4b: a reload is believed without the checkpoint barrier.
        NoBarrier,
        /// Rule 4c: the canary is not waited for until the standby has flushed it.
        CanaryNotAwaited,
        /// Rule 4d: Sync is asked for before the standby has marked.
        MarkNotAwaited,
        /// Rule 4d: the standby marks whatever data it has.
        GenerationNotCompared,
        /// Rule 4d: the standby marks old promises again.
        OldPactMarked,
        /// Rule 4e: Sync is entered with no lease.
        NoLeaseBeforeSync,
        /// Rule 3: the marker outlives the data it spoke of.
        MarkerNotCleared,
        /// Rule 3: a marker counts for whatever data is here.
        MarkerOfOtherData,
        /// Rule 5: the role is read from the node's own disk.
        RoleFromDisk,
        /// Rule 5: what outlived a supervisor goes on though another node holds it by now.
        RunsOnUnheld,
        /// Rule 5: a holder goes on at its old epoch.
        EpochNotRaisedOnResume,
        /// Rule 5: a holder goes on with other data than it won with.
        GenerationNotCheckedOnResume,
        /// Rule 6: a change is asked for before the intent is on disk.
        IntentNotDurable,
        /// Rule 6: the arbiter judges a repeated or older request afresh.
        RepeatedRequestJudgedAgain,
        /// Rule 6: the arbiter does not compare epochs.
        EpochNotCompared,
        /// Rule 7: a release counts at whatever epoch.
        ReleaseAtAnyEpoch,
        /// Rule 7: the holder's silence is not waited for.
        SilenceNotAwaited,
        /// Rule 7: silence counts from before the arbiter's own start.
        SilenceBeforeStart,
        /// Rule 9: one mirror is enough after a restart.
        OneMirrorHeard,
        /// Rule 9: messages of another incarnation are believed.
        IncarnationIgnored,
        /// Rule 9: mirrors that are ahead of the arbiter's disk are no amnesia.
        AmnesiaIgnored,
        /// Rule 10: that the holder goes on alone is not on its disk before it does.
        AloneNotRecorded,
        /// Rule 10: the holder records first and the standby renounces afterwards.
        RenounceLast,
        /// Section 4: after a crash in Sync clients are let in before the standby has what recovery brought back.
        NoHoldBack,
        /// Section 4: a service that crashed in Solo is given to the standby.
        CrashReleasesSolo,
        /// Leases: a promise does not say what the promising node knows.
        PromiseTellsNothing,
        /// Leases: the standby asks while it hears the holder, whatever it promised.
        PromiseNotKept,
        /// Leases: the standby forgets its promise when it restarts.
        PromiseForgotten,
        /// Leases: a supervisor that has just started suspects its peer at once.
        SuspectedAtStart,
        /// Leases: a lease counts from its answer, not from when it was asked for.
        LeaseFromAnswer,
        /// Modes without an arbiter: a peer that was switched off once is taken for off until it is heard.
        FenceRemembered,
        /// Leases: PID 1 is given no deadline.
        DeadmanNotArmed,
        /// Leases: the standby promises while its own take-over is open.
        PromiseWithTakeOverOpen,
        /// Leases: the end of the lease is ignored.
        LeaseEndIgnored,
    }
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

    /// Whether this one is broken: adapters of a simulated world ask too.
    #[cfg(feature = "mutations")]
    pub fn broken(self, mutation: Mutation) -> bool {
        self.set & (1 << (mutation as u64)) != 0
    }

    #[cfg(not(feature = "mutations"))]
    pub(crate) fn broken(self, _mutation: Mutation) -> bool {
        false
    }
}
