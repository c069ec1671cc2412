//! Actions that are under way: one task each, ended by its own outcome or by its deadline, and never heard of afterwards.

use std::collections::BTreeMap;
use std::future::Future;

use dyad_cluster::action::{ActionId, Issued, Kind, Outcome};
use dyad_cluster::types::{ResourceId, Tick};
use tokio::task::{AbortHandle, JoinSet};

struct Flight {
    serial: u64,
    deadline: Tick,
    task: AbortHandle,
}

/// All of them. Their number is bounded by the core: one of a kind for each resource.
#[derive(Default)]
pub(crate) struct Flights {
    all: BTreeMap<ActionId, Flight>,
    tasks: JoinSet<(ActionId, u64, Outcome)>,
    serial: u64,
}

impl Flights {
    /// Begins one. Must run inside a local task set.
    pub(crate) fn begin(&mut self, issued: &Issued, work: impl Future<Output = Outcome> + 'static) {
        self.serial += 1;
        let (id, serial) = (issued.id, self.serial);
        let task = self.tasks.spawn_local(async move { (id, serial, work.await) });
        self.all.insert(id, Flight { serial, deadline: issued.deadline, task });
    }

    /// The next deadline.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.all.values().map(|flight| flight.deadline).min()
    }

    /// Gives up those past their deadline: what they did is not known, and they go no further.
    pub(crate) fn late(&mut self, now: Tick) -> Vec<ActionId> {
        self.give_up(|_, flight| flight.deadline < now)
    }

    /// Gives up what the ladder must not wait for. A program of PostgreSQL cannot be called back, and a marker is told
    /// apart by what it wrote: both end by themselves.
    pub(crate) fn cleared_for_kill(&mut self, resource: ResourceId) -> Vec<ActionId> {
        self.give_up(|id, _| {
            id.resource == Some(resource)
                && !matches!(
                    id.kind,
                    Kind::WriteMarker
                        | Kind::Kill
                        | Kind::ReadControl
                        | Kind::Inspect
                        | Kind::Rewind
                        | Kind::Clone
                )
        })
    }

    fn give_up(&mut self, which: impl Fn(&ActionId, &Flight) -> bool) -> Vec<ActionId> {
        let gone: Vec<ActionId> =
            self.all.iter().filter(|(id, flight)| which(id, flight)).map(|(id, _)| *id).collect();
        for id in &gone {
            if let Some(flight) = self.all.remove(id) {
                flight.task.abort();
            }
        }
        gone
    }

    /// The next that ended; for ever while none is under way.
    pub(crate) async fn next(&mut self) -> (ActionId, Outcome) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok((id, serial, outcome))) => {
                    // One that was given up may have ended all the same in that moment.
                    if self.all.get(&id).is_some_and(|flight| flight.serial == serial) {
                        self.all.remove(&id);
                        return (id, outcome);
                    }
                }
                Some(Err(error)) => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                None => std::future::pending().await,
            }
        }
    }
}
