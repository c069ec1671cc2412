//! Being a standby, and ceasing to be one.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::credentials;
use crate::files::{self, Access};
use crate::pg::adapter::{PAUSE, PgError, SQL, Server};
use crate::pg::roles;
use crate::pg::session::Session;
use crate::pg::stance::{self, Stance};

/// For `pg_promote` to end recovery; 0.4 s at most was measured.
const PROMOTION: Duration = Duration::from_secs(4);
/// For the receiver to end.
const RECEIVER: Duration = Duration::from_secs(4);

impl Server {
    /// Starts the stopped server as standby of the peer.
    pub async fn follow(&self) -> Result<(), PgError> {
        self.needs_stopped()?;
        let name = stance::standby(self.generation()?);
        self.forget_sync()?;
        self.declare(|stance| *stance = Stance { receive: Some(name), admit: true, ..stance.clone() })?;
        let owner = Access { mode: 0o600, uid: self.owner.uid, gid: self.owner.gid };
        files::write(&self.paths.pg_main().join("standby.signal"), b"", owner)?;
        let session = self.start().await?;
        if !self.recovering(&session).await? {
            return Err(PgError::NotStandby);
        }
        Ok(())
    }

    /// Stops receiving; the server stays a standby, with the data that it has.
    pub async fn stop_following(&self) -> Result<(), PgError> {
        let session = self.connect().await?;
        if !self.recovering(&session).await? {
            return Err(PgError::NotStandby);
        }
        self.declare(|stance| stance.receive = None)?;
        session.reload(SQL).await?;
        let end = Instant::now() + RECEIVER;
        while session.value(SQL, "select pid from pg_catalog.pg_stat_wal_receiver").await?.is_some() {
            if Instant::now() >= end {
                return Err(PgError::Late { what: "end of the receiver", limit: RECEIVER });
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Makes the standby a primary on a new timeline, serving alone. Never by restarting it without its signal file: that
    /// would go on on the old timeline.
    pub async fn promote(&self) -> Result<(), PgError> {
        let session = self.connect().await?;
        if !self.recovering(&session).await? {
            return Err(PgError::NotStandby);
        }
        self.forget_sync()?;
        self.declare(|stance| *stance = Stance { admit: true, receive: None, ..stance.clone() })?;
        session.reload(SQL).await?;
        self.promote_now(&session).await?;
        self.after_promotion(&session).await
    }

    pub(crate) async fn recovering(&self, session: &Session) -> Result<bool, PgError> {
        let answer = session.value(SQL, "select pg_catalog.pg_is_in_recovery()").await?;
        Ok(answer.as_deref() == Some("t"))
    }

    pub(crate) async fn promote_now(&self, session: &Session) -> Result<(), PgError> {
        // The log that the old primary needs to come back is kept from here on.
        self.reserve_slot(session).await?;
        let before = self.timeline_reached(session).await?;
        let wait = PROMOTION.as_secs();
        session.value(PROMOTION, &format!("select pg_catalog.pg_promote(true, {wait})")).await?;
        let now = match self.recovering(session).await? {
            true => before,
            false => self.timeline(session).await?,
        };
        if now <= before { Err(PgError::NotPromoted { before, now }) } else { Ok(()) }
    }

    /// What a primary has: the peer's slot, and the roles it logs in as.
    pub(crate) async fn after_promotion(&self, session: &Session) -> Result<(), PgError> {
        self.reserve_slot(session).await?;
        let done = self.ensure_roles(session).await?;
        tracing::info!(?done, "roles and databases are as declared");
        Ok(())
    }

    /// Of a primary: roles and databases that are other than declared are put right, and so is the slot of a peer that was away
    /// for longer than its log is kept: without one it could not even be copied anew. What had to be done, in words.
    pub async fn repair_contents(&self) -> Result<Vec<String>, PgError> {
        let session = self.connect().await?;
        let mut done = self.ensure_roles(&session).await?;
        if self.reserve_slot(&session).await? {
            done.push(format!("slot {} for the other node", stance::slot(&self.pair.peer.name)));
        }
        Ok(done)
    }

    async fn ensure_roles(&self, session: &Session) -> Result<Vec<String>, PgError> {
        let site = self.site();
        let own = [stance::REPLICATION, stance::REWIND];
        let names = own.into_iter().chain(site.roles.iter().map(|role| &*role.name));
        let known = credentials::ensure(&self.paths.credentials(), names)?.roles;
        let mut done = roles::ensure_own(session, &known).await?;
        done.extend(roles::ensure(session, &site.roles, &site.databases, &known).await?);
        Ok(done)
    }

    /// The peer's slot, keeping log from the last checkpoint on. One that has lost its log is made anew. Whether one was made.
    async fn reserve_slot(&self, session: &Session) -> Result<bool, PgError> {
        let slot = stance::slot(&self.pair.peer.name);
        let query =
            format!("select wal_status from pg_catalog.pg_replication_slots where slot_name = '{slot}'");
        let found = session.rows(SQL, &query).await?;
        let status = found.first().map(|row| row.first().cloned().flatten());
        if matches!(status.as_ref().map(Option::as_deref), Some(None | Some("lost"))) {
            session.value(SQL, &format!("select pg_catalog.pg_drop_replication_slot('{slot}')")).await?;
        } else if status.is_some() {
            return Ok(false);
        }
        session
            .value(SQL, &format!("select pg_catalog.pg_create_physical_replication_slot('{slot}', true)"))
            .await?;
        Ok(true)
    }

    /// On a standby: moves the peer's slot to what a restart here would need, so that it pins no more. To be called
    /// every minute or so.
    pub async fn advance_slot(&self) -> Result<(), PgError> {
        let session = self.connect().await?;
        if !self.recovering(&session).await? {
            return Err(PgError::NotStandby);
        }
        self.reserve_slot(&session).await?;
        let slot = stance::slot(&self.pair.peer.name);
        let statement = format!(
            "select pg_catalog.pg_replication_slot_advance(slot_name, redo_lsn) from pg_catalog.pg_replication_slots, \
             pg_catalog.pg_control_checkpoint() where slot_name = '{slot}' and restart_lsn < redo_lsn"
        );
        session.value(SQL, &statement).await?;
        Ok(())
    }

    /// The timeline that is written now.
    pub(crate) async fn timeline(&self, session: &Session) -> Result<u32, PgError> {
        let query = "select pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())";
        let name = session.value(SQL, query).await?.unwrap_or_default();
        let timeline = name.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        timeline.ok_or(PgError::Strange { what: "its log file", found: name })
    }

    /// Highest timeline of a standby.
    pub(crate) async fn timeline_reached(&self, session: &Session) -> Result<u32, PgError> {
        // The control file learns of a switch at the next restart point only, the receiver at once.
        let query = "select greatest(c.timeline_id, r.min_recovery_end_timeline, \
             (select received_tli from pg_catalog.pg_stat_wal_receiver)) \
             from pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r";
        let value = session.value(SQL, query).await?.unwrap_or_default();
        value.parse().map_err(|_| PgError::Strange { what: "its timeline", found: value })
    }
}
