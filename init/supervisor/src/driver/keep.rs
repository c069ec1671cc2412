//! Keeps the server as declared while the pair works: settings, access rules, roles, databases; and what a standby must
//! not hold on to.

use std::rc::Rc;
use std::time::Duration;

use dyad_cluster::phase::Phase;
use tokio::sync::watch;
use tokio::time::sleep;

use super::postgres::Postgres;
use super::run::View;
use crate::pg::manager::{PgState, REPAIRS_MAX};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// So many looks between two moves of the slot that a standby keeps for its peer.
const SLOT_LOOKS: u32 = 12;

/// Looks for ever.
pub(crate) async fn keep(pg: Rc<Postgres>, seen: watch::Receiver<View>, state: watch::Sender<PgState>) {
    let mut looks = 0_u32;
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
        looks = looks.wrapping_add(1);
        if phase == Phase::Following && looks % SLOT_LOOKS == 0 {
            if let Err(error) = pg.server.advance_slot().await {
                tracing::info!(%error, "move the slot on");
            }
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
