//! What is seen of PostgreSQL and its volume, told to the loop when it changes.

use std::rc::Rc;
use std::time::Duration;

use dyad_cluster::event::{Condition, Event, Link};
use dyad_spec::site::Profile;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::postgres::Postgres;
use super::run::View;
use crate::pg::health::Probes;
use crate::pg::session::{Session, SqlError};
use crate::pg::stance;

/// Between two looks at the link.
const LOOK: Duration = Duration::from_millis(200);
/// For one look.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// What was told of the link is told again after this long: nothing that was lost on the way is lost for good.
const AGAIN: Duration = Duration::from_secs(2);
/// A standby that cannot be looked at for this long is taken for cut off.
const BLIND: Duration = Duration::from_secs(2);
/// A standby that runs and does not receive for this long from a holder that answers has to be looked at.
const STUCK: Duration = Duration::from_secs(10);
/// Between two looks at the volume.
const ROOM: Duration = Duration::from_secs(1);

/// Tells when the server ends without having been asked to.
pub(crate) async fn ends(pg: Rc<Postgres>, events: mpsc::Sender<Event>) {
    let mut view = pg.server.pid1.view();
    let mut alive = pg.server.runs();
    while view.changed().await.is_ok() {
        if !view.borrow().connected {
            continue;
        }
        let now = pg.server.runs();
        if alive && !now && !pg.end_is_expected() {
            tracing::error!("PostgreSQL ended by itself");
            if events.send(Event::Ended(pg.resource)).await.is_err() {
                return;
            }
        }
        alive = now;
    }
}

/// One look.
struct Seen {
    standby: bool,
    up: bool,
}

struct Links {
    pg: Rc<Postgres>,
    events: mpsc::Sender<Event>,
    session: Option<Session>,
    told: Option<(Link, Instant, u64)>,
    standby: bool,
    blind_since: Option<Instant>,
    idle_since: Option<Instant>,
}

/// Tells how the replication link stands.
pub(crate) async fn links(pg: Rc<Postgres>, events: mpsc::Sender<Event>) {
    let mut links =
        Links { pg, events, session: None, told: None, standby: false, blind_since: None, idle_since: None };
    loop {
        sleep(LOOK).await;
        if !links.pg.server.runs() {
            (links.session, links.told, links.blind_since, links.idle_since) = (None, None, None, None);
            continue;
        }
        let moves = links.pg.moves();
        match links.look().await {
            Ok(seen) => {
                (links.standby, links.blind_since) = (seen.standby, None);
                let link = if seen.up { Link::AtHead } else { Link::Down };
                links.tell(link, moves).await;
                links.notice_stuck(&seen).await;
            }
            Err(_) => {
                links.session = None;
                let since = *links.blind_since.get_or_insert_with(Instant::now);
                // A holder that does not answer hangs, which its probes tell; nothing follows for its standby.
                if links.standby && since.elapsed() >= BLIND {
                    links.tell(Link::Down, moves).await;
                }
            }
        }
    }
}

impl Links {
    async fn look(&mut self) -> Result<Seen, SqlError> {
        let query = format!(
            "select pg_catalog.pg_is_in_recovery(), (select count(*) from pg_catalog.pg_stat_wal_receiver where status = 'streaming'), \
             (select count(*) from pg_catalog.pg_stat_replication where usename = '{}' and state = 'streaming' \
             and application_name like '{}%' and application_name <> 'dyad_clone')",
            stance::REPLICATION,
            stance::STANDBY_PREFIX.replace('_', "\\_"),
        );
        let session = match &self.session {
            Some(session) => session,
            None => self.session.insert(self.pg.server.connect().await?),
        };
        let row = session.rows(LOOK_LIMIT, &query).await?.into_iter().next().unwrap_or_default();
        let is = |at: usize, text: &str| row.get(at).and_then(Option::as_deref) == Some(text);
        let standby = is(0, "t");
        Ok(Seen { standby, up: if standby { is(1, "1") } else { is(2, "1") } })
    }

    async fn tell(&mut self, link: Link, moves: u64) {
        let fresh =
            |(told, at, then): (Link, Instant, u64)| told == link && then == moves && at.elapsed() < AGAIN;
        // What was seen while an action moved things is old already.
        if moves != self.pg.moves() || self.told.is_some_and(fresh) {
            return;
        }
        self.told = Some((link, Instant::now(), moves));
        // The loop ends only with the supervisor.
        let _ = self.events.send(Event::Link(self.pg.resource, link)).await;
    }

    /// Its holder's history is not one that it can follow: only a comparison helps, and that needs it stopped.
    async fn notice_stuck(&mut self, seen: &Seen) {
        if !seen.standby || seen.up || !self.pg.server.receives() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < STUCK {
            return;
        }
        self.idle_since = None;
        if self.pg.server.holder().await.is_err() || !self.pg.server.receives() {
            return;
        }
        tracing::warn!("this standby receives nothing although the other node's server answers");
        // The end is told by whoever watches for ends.
        if let Err(error) = self.pg.server.kill().await {
            tracing::warn!(%error, "stop the standby");
        }
    }
}

/// Probes a server that has clients; tells when it hangs.
pub(crate) async fn health(
    pg: Rc<Postgres>,
    profile: Profile,
    mut view: watch::Receiver<View>,
    events: mpsc::Sender<Event>,
) {
    loop {
        if view.wait_for(|view| view.phase.admits()).await.is_err() {
            return;
        }
        let mut probes = Probes::new(&pg.server, profile);
        while view.borrow().phase.admits() {
            let found = probes.round().await;
            if found.unhealthy && view.borrow().phase.admits() && pg.server.runs() {
                tracing::error!(note = %found.note, "PostgreSQL hangs");
                let _ = events.send(Event::Unhealthy(pg.resource)).await;
                probes = Probes::new(&pg.server, profile);
            }
            sleep(Probes::INTERVAL).await;
        }
    }
}

/// Tells how full the volume is.
pub(crate) async fn room(pg: Rc<Postgres>, events: mpsc::Sender<Event>) {
    let mut told = None;
    loop {
        match pg.server.room() {
            Ok(room) if told != Some(room.full_percent) => {
                told = Some(room.full_percent);
                let condition =
                    Condition { clients_up: None, full_percent: vec![(pg.resource, room.full_percent)] };
                if events.send(Event::Condition(condition)).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "look at PostgreSQL's volume"),
        }
        sleep(ROOM).await;
    }
}
