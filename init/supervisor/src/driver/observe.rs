//! What is seen of PostgreSQL and its volume, told to the loop when it changes.

use std::rc::Rc;
use std::time::Duration;

use dyad_cluster::event::{Condition, Event, Link};
use dyad_spec::site::Profile;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

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
/// A server that receives by its declaration and takes writes for this long was promoted by hand.
const PROMOTED: Duration = Duration::from_millis(500);
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

/// How a server stands, for people, balancers and monitors; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Replication {
    /// Of a primary, or of the primary that a standby receives from.
    pub(crate) timeline: Option<u32>,
    /// A standby receives, or a primary has one that does.
    pub(crate) streams: bool,
    /// Of a standby: what its primary has and it has not replayed. Of a primary: what its standby has not flushed.
    pub(crate) lag_bytes: Option<u64>,
    /// Flushed by a primary, replayed by a standby.
    pub(crate) position: Option<u64>,
    /// Of a primary: how many transactions ago its standby's oldest query began, whose rows are not cleaned up.
    pub(crate) held_back: Option<u64>,
    /// While it copies the primary's data: how much of it is here.
    pub(crate) copied_percent: Option<u8>,
}

/// One look.
struct Seen {
    standby: bool,
    up: bool,
    replication: Replication,
}

struct Links {
    pg: Rc<Postgres>,
    events: mpsc::Sender<Event>,
    shown: watch::Sender<Replication>,
    session: Option<Session>,
    told: Option<(Link, Instant, u64)>,
    standby: bool,
    blind_since: Option<Instant>,
    idle_since: Option<Instant>,
}

/// Tells how the replication link stands.
pub(crate) async fn links(pg: Rc<Postgres>, events: mpsc::Sender<Event>, shown: watch::Sender<Replication>) {
    let (session, told) = (None, None);
    let mut links =
        Links { pg, events, shown, session, told, standby: false, blind_since: None, idle_since: None };
    loop {
        sleep(LOOK).await;
        if !links.pg.server.runs() {
            let copied_percent = links.pg.server.copied_percent.get();
            let now = Replication { copied_percent, ..Replication::default() };
            links.shown.send_if_modified(|shown| std::mem::replace(shown, now) != now);
            (links.session, links.told, links.blind_since, links.idle_since) = (None, None, None, None);
            continue;
        }
        let moves = links.pg.moves();
        match links.look().await {
            Ok(seen) => {
                (links.standby, links.blind_since) = (seen.standby, None);
                links
                    .shown
                    .send_if_modified(|shown| std::mem::replace(shown, seen.replication) != seen.replication);
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
            "select r.recovering, \
             (select count(*) from pg_catalog.pg_stat_wal_receiver where status = 'streaming'), \
             count(s.*), \
             case when r.recovering then (select received_tli from pg_catalog.pg_stat_wal_receiver) \
             else ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int end, \
             case when r.recovering then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end - '0/0'::pg_lsn, \
             case when r.recovering then (select latest_end_lsn from pg_catalog.pg_stat_wal_receiver) - pg_last_wal_replay_lsn() \
             else pg_current_wal_flush_lsn() - min(s.flush_lsn) end, \
             case when not r.recovering then (select max(age(xmin)) from pg_catalog.pg_replication_slots) end \
             from (select pg_catalog.pg_is_in_recovery() as recovering) r \
             left join pg_catalog.pg_stat_replication s on usename = '{}' and state = 'streaming' \
             and application_name like '{}%' and application_name <> 'dyad_clone' group by r.recovering",
            stance::REPLICATION,
            stance::STANDBY_PREFIX.replace('_', "\\_"),
        );
        let session = match &self.session {
            Some(session) => session,
            None => self.session.insert(self.pg.server.connect().await?),
        };
        let row = session.rows(LOOK_LIMIT, &query).await?.into_iter().next().unwrap_or_default();
        let is = |at: usize, text: &str| row.get(at).and_then(Option::as_deref) == Some(text);
        let number = |at: usize| row.get(at)?.as_ref()?.parse::<i64>().ok();
        let standby = is(0, "t");
        let up = if standby { is(1, "1") } else { is(2, "1") };
        let replication = Replication {
            timeline: number(3).and_then(|found| u32::try_from(found).ok()),
            streams: up,
            // What is replayed may be ahead of what the primary said last.
            lag_bytes: number(5).map(|found| u64::try_from(found).unwrap_or(0)),
            position: number(4).and_then(|found| u64::try_from(found).ok()),
            held_back: number(6).and_then(|found| u64::try_from(found).ok()),
            copied_percent: None,
        };
        Ok(Seen { standby, up, replication })
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

    /// Its holder's history is not one that it can follow, or somebody else has promoted it: only a comparison helps, and
    /// that needs it stopped.
    async fn notice_stuck(&mut self, seen: &Seen) {
        let as_told = seen.standby && seen.up;
        if as_told || self.pg.busy() || !self.pg.server.receives() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < if seen.standby { STUCK } else { PROMOTED } {
            return;
        }
        self.idle_since = None;
        if seen.standby {
            if self.pg.server.holder().await.is_err() || !self.pg.server.receives() {
                return;
            }
            tracing::warn!("this standby receives nothing although the other node's server answers");
        } else {
            tracing::error!("this standby was promoted by hand: it is stopped and follows again");
        }
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

/// Tells how full the volume is, and whether clients can reach this node.
pub(crate) async fn condition(
    pg: Rc<Postgres>,
    mut clients: watch::Receiver<Option<bool>>,
    events: mpsc::Sender<Event>,
) {
    let mut told = None;
    let mut full = None;
    loop {
        match pg.server.room() {
            Ok(room) => full = Some((pg.resource, room.full_percent)),
            Err(error) => tracing::warn!(%error, "look at PostgreSQL's volume"),
        }
        let clients_up = *clients.borrow_and_update();
        let now = Condition { clients_up, full_percent: full.into_iter().collect() };
        if told.as_ref() != Some(&now) {
            told = Some(now.clone());
            if events.send(Event::Condition(now)).await.is_err() {
                return;
            }
        }
        // A sender that is gone tells nothing any more; the volume is looked at all the same.
        if let Ok(Err(_)) = timeout(ROOM, clients.changed()).await {
            sleep(ROOM).await;
        }
    }
}
