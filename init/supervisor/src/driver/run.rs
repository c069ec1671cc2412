//! The loop: an event in, a step, its actions out. One step at a time; everything else is a task that ends in an event.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use dyad_cluster::action::{Action, Issued, Outcome};
use dyad_cluster::event::{Event, Timer};
use dyad_cluster::eventlog::Entry;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::Register;
use dyad_cluster::report::{Cause, Price, Protection, Word};
use dyad_cluster::types::{ResourceId, Tick};
use dyad_cluster::{State, step};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::flights::Flights;
use super::journal::{Flushed, Journal};
use crate::clock;

/// Events that wait for the loop at most: who observes waits for room, messages beyond it are lost as on a network.
pub(crate) const EVENTS_MAX: usize = 1_024;
/// The loop looks at its clock at least this often: what it sleeps on stands still while the machine is suspended.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What carries actions out.
pub(crate) trait Hands {
    /// With an end: done, failed or unknown. Given up at its deadline, wherever it is then.
    fn carry_out(&self, issued: Issued, flushed: Flushed) -> Pin<Box<dyn Future<Output = Outcome>>>;
    /// Without one, and without waiting.
    fn tell(&self, issued: Issued, flushed: Flushed);
}

/// What the rest of the supervisor sees of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    pub(crate) register: Option<Register>,
    pub(crate) protection: Protection,
    pub(crate) why: Vec<Cause>,
    /// Of a take-over by force.
    pub(crate) price: Price,
    /// What an order of that kind would do.
    pub(crate) word: Word,
}

impl View {
    /// Of a state.
    pub(crate) fn of(state: &State, r: ResourceId) -> Self {
        View {
            phase: state.phase(r).unwrap_or(Phase::Unlearned),
            register: state.register(r),
            protection: state.protection(r),
            why: state.why(r),
            price: state.price(r),
            word: state.word(r),
        }
    }
}

/// The loop of one run of the supervisor.
pub(crate) struct Loop<H> {
    pub(crate) state: State,
    pub(crate) hands: H,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) journal: Journal,
    pub(crate) resource: ResourceId,
    pub(crate) view: watch::Sender<View>,
}

impl<H: Hands> Loop<H> {
    /// For ever.
    pub(crate) async fn run(mut self) -> Infallible {
        let mut flights = Flights::default();
        let mut own = VecDeque::new();
        loop {
            let now = clock::tick();
            own.extend(flights.late(now).into_iter().map(|id| Event::Completed(id, Outcome::TimedOut)));
            if let Some(event) = own.pop_front().or_else(|| self.due(now).map(Event::Fired)) {
                self.step(event, &mut flights, &mut own);
                continue;
            }
            let timer = self.state.timers().values().min().copied();
            // One more, because a deadline is past only after its tick.
            let deadline = flights.deadline().map(|tick| tick.plus(1));
            let wake = timer.into_iter().chain(deadline).min().unwrap_or(Tick(u64::MAX));
            let pause = PAUSE_MAX.min(Duration::from_millis(wake.since(now)));
            tokio::select! {
                (id, outcome) = flights.next() => own.push_back(Event::Completed(id, outcome)),
                event = self.events.recv() => own.extend(event),
                () = sleep(pause) => {}
            }
        }
    }

    fn due(&self, now: Tick) -> Option<Timer> {
        self.state.timers().iter().find(|(_, at)| **at <= now).map(|(timer, _)| *timer)
    }

    fn step(&mut self, event: Event, flights: &mut Flights, own: &mut VecDeque<Event>) {
        let at = clock::tick();
        let before = self.journal.begins_anew().then(|| self.state.clone());
        let actions = step(&mut self.state, at, event.clone());
        let entry = Entry::Step { at, event, actions: actions.clone() };
        self.journal.append(before, &entry);
        for (resource, from, to) in self.state.edges() {
            tracing::info!(resource = resource.0, ?from, ?to, "phase");
        }
        for issued in actions {
            let flushed = self.journal.flushed();
            if !issued.action.completes() {
                self.hands.tell(issued, flushed);
                continue;
            }
            if let (Action::Kill, Some(resource)) = (&issued.action, issued.id.resource) {
                let given_up = flights.cleared_for_kill(resource);
                own.extend(given_up.into_iter().map(|id| Event::Completed(id, Outcome::TimedOut)));
            }
            flights.begin(&issued, self.hands.carry_out(issued.clone(), flushed));
        }
        let view = View::of(&self.state, self.resource);
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            if shown.protection != view.protection {
                tracing::info!(protection = ?view.protection, why = ?view.why, "protection");
            }
            *shown = view;
            changed
        });
    }
}
