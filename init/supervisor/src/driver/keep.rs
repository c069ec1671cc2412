//! Keeps the server as declared while the pair works: settings, access rules, roles, databases; and what a standby must
//! not hold on to.

use std::rc::Rc;
use std::time::Duration;

use dyad_cluster::event::{Command, Event};
use dyad_cluster::phase::Phase;
use dyad_cluster::report::{Cause, Protection};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::postgres::Postgres;
use super::run::View;
use crate::pg::manager::{PgState, REPAIRS_MAX};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// So many looks between two moves of the slot that a standby keeps for its peer.
const SLOT_LOOKS: u32 = 12;

/// A primary whose settings wait for a restart hands over once it has been protected for this long: its standby, which was told
/// the same at about the same time, has them by then.
const STANDBY_FIRST: Duration = Duration::from_secs(20);

/// Between two restarts of a standby for settings, should one not help.
const AGAIN: Duration = Duration::from_secs(300);

/// Looks for ever.
pub(crate) async fn keep(
    pg: Rc<Postgres>,
    seen: watch::Receiver<View>,
    state: watch::Sender<PgState>,
    events: mpsc::Sender<Event>,
) {
    let mut looks = 0_u32;
    let mut restart = Restart::default();
    loop {
        sleep(LOOK).await;
        let phase = seen.borrow().phase;
        if !pg.server.runs() || !(phase.admits() || phase == Phase::Following) {
            continue;
        }
        // No turn is taken: what the files should say is known at every moment, and nothing may wait for a role's commit,
        // which itself may wait for the standby.
        let repaired = match pg.server.repair().await {
            Ok(repaired) if phase.admits() => {
                pg.server.repair_contents().await.map(|contents| [repaired, contents].concat())
            }
            other => other,
        };
        match repaired {
            Ok(repaired) => note(&state, &repaired),
            // A server that hangs or ends is others' business.
            Err(error) => tracing::info!(%error, "look for drift"),
        }
        restart.look(&pg, &seen, &events).await;
        looks = looks.wrapping_add(1);
        if phase == Phase::Following && looks % SLOT_LOOKS == 0 {
            if let Err(error) = pg.server.advance_slot().await {
                tracing::info!(%error, "move the slot on");
            }
        }
    }
}

/// What is done about settings that wait for a restart.
#[derive(Default)]
struct Restart {
    /// Since when a protected primary has any.
    since: Option<Instant>,
    /// It has handed over for that; once, whatever comes of it.
    asked: bool,
    /// When a standby was started anew for them last.
    restarted: Option<Instant>,
}

impl Restart {
    async fn look(&mut self, pg: &Postgres, seen: &watch::Receiver<View>, events: &mpsc::Sender<Event>) {
        let lately = self.restarted.is_some_and(|at| at.elapsed() < AGAIN);
        let may_hand_over = |asked: bool| {
            let view = seen.borrow();
            let full = view.phase == Phase::Sync && view.protection == Protection::Full;
            full && !asked && !view.why.contains(&Cause::Frozen)
        };
        let may_restart = || {
            let follows = seen.borrow().phase == Phase::Following;
            follows && !pg.busy() && !lately && pg.server.receives()
        };
        if !(may_hand_over(self.asked) || may_restart())
            || !pg.server.must_restart().await.is_ok_and(|must| must)
        {
            self.since = None;
            return;
        }
        // Looked at again: it may be promoted by now.
        if may_restart() {
            self.restarted = Some(Instant::now());
            tracing::warn!("settings, or a replay that stands still, wait for a restart of this standby");
            // The end is told by whoever watches for ends.
            if let Err(error) = pg.server.kill().await {
                tracing::warn!(%error, "stop the standby");
            }
            return;
        }
        // Its checkpoint comes first, or a busy server would not be down in time and be killed.
        if self.since.get_or_insert_with(Instant::now).elapsed() >= STANDBY_FIRST
            && pg.server.checkpoint().await.is_ok()
            && may_hand_over(self.asked)
        {
            self.asked = true;
            tracing::warn!(
                "settings wait for a restart of this primary: it hands over, and gets them as standby"
            );
            // The loop ends only with the supervisor.
            let _ = events.send(Event::Command(Command::SwitchOver(pg.resource))).await;
        }
    }
}

fn note(state: &watch::Sender<PgState>, repaired: &[String]) {
    if repaired.is_empty() {
        return;
    }
    for what in repaired {
        tracing::warn!(%what, "put right");
    }
    state.send_modify(|state| {
        let all = &mut state.section.repaired;
        all.extend_from_slice(repaired);
        let surplus = all.len().saturating_sub(REPAIRS_MAX);
        all.drain(..surplus);
    });
}
