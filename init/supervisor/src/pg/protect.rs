//! Synchronous replication: arming it, proving that it works, and leaving it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::files::{self, Access};
use crate::pg::adapter::{PAUSE, PgError, SQL, Server};
use crate::pg::lsn::Lsn;
use crate::pg::session::{Session, identifier};
use crate::pg::stance::{self, Stance};

/// For two checkpoints.
const CHECKPOINTS: Duration = Duration::from_secs(110);
/// For the standby to flush what was just written.
const FLUSHED: Duration = Duration::from_secs(9);
/// Transaction that leaves nothing behind but its record.
const CANARY: &str = "select pg_catalog.pg_logical_emit_message(true, 'dyad', 'canary')";

impl Server {
    /// From here on commits wait for the standby that receives now, and for no other copy of the data.
    pub async fn arm_sync(&self) -> Result<(), PgError> {
        let session = self.connect().await?;
        let query = format!(
            "select application_name from pg_catalog.pg_stat_replication where usename = '{}' and state = 'streaming'",
            stance::REPLICATION
        );
        let names: Vec<String> = session.rows(SQL, &query).await?.into_iter().flatten().flatten().collect();
        let standbys: Vec<&String> = names.iter().filter(|name| stance::generation(name).is_some()).collect();
        let [name] = standbys[..] else { return Err(PgError::Standbys(standbys.len())) };
        // Remembered first: after a restart the server must not begin by committing alone.
        files::write(&self.paths.pg_sync(), name.as_bytes(), Access::own(0o600))?;
        self.declare(|stance| stance.sync = Some(name.clone()))?;
        Ok(session.reload(SQL).await?)
    }

    /// Proof that every backend waits: a new connection shows the setting, and the checkpointer, which publishes it, has
    /// done two whole checkpoints since.
    pub async fn barrier(&self) -> Result<(), PgError> {
        let name = self.stance.borrow().sync.clone().ok_or(PgError::NotArmed)?;
        let session = self.connect().await?;
        let expected = format!("FIRST 1 ({})", identifier(&name));
        let shown = self.shown(&session).await?;
        if shown != expected {
            return Err(PgError::Setting { shown, expected });
        }
        session.execute(CHECKPOINTS / 2, "checkpoint").await?;
        Ok(session.execute(CHECKPOINTS / 2, "checkpoint").await?)
    }

    async fn shown(&self, session: &Session) -> Result<String, PgError> {
        Ok(session.value(SQL, "show synchronous_standby_names").await?.unwrap_or_default())
    }

    /// Commits something and waits until the armed standby has flushed it; the generation of its data.
    pub async fn canary(&self) -> Result<u64, PgError> {
        let name = self.stance.borrow().sync.clone().ok_or(PgError::NotArmed)?;
        let generation = stance::generation(&name).ok_or(PgError::NotArmed)?;
        let session = self.connect().await?;
        session.execute(SQL, CANARY).await?;
        // The session commits without waiting for the standby, so everything up to its record is flushed here.
        let written = session.value(SQL, "select pg_catalog.pg_current_wal_flush_lsn()").await?;
        let written: Lsn = written.unwrap_or_default().parse()?;
        let query = format!(
            "select 1 from pg_catalog.pg_stat_replication where application_name = '{name}' and usename = '{}' \
             and sync_state = 'sync' and flush_lsn >= '{written}'",
            stance::REPLICATION
        );
        let end = Instant::now() + FLUSHED;
        while session.value(SQL, &query).await?.is_none() {
            if Instant::now() >= end {
                return Err(PgError::Late { what: "the standby's flush of the canary", limit: FLUSHED });
            }
            sleep(PAUSE).await;
        }
        Ok(generation)
    }

    /// From here on commits wait for nobody; those that wait are let go. Proven by one that would have waited.
    pub async fn drop_sync(&self) -> Result<(), PgError> {
        self.forget_sync()?;
        let session = self.connect().await?;
        session.reload(SQL).await?;
        let shown = self.shown(&self.connect().await?).await?;
        if !shown.is_empty() {
            return Err(PgError::Setting { shown, expected: String::new() });
        }
        session.execute(SQL, "set synchronous_commit = on").await?;
        Ok(session.execute(SQL, CANARY).await?)
    }

    pub(crate) fn forget_sync(&self) -> Result<(), PgError> {
        self.declare(|stance| stance.sync = None)?;
        Ok(files::remove(&self.paths.pg_sync())?)
    }

    /// Lets clients in.
    pub async fn admit(&self) -> Result<(), PgError> {
        self.apply(|stance| stance.admit = true).await
    }

    /// Refuses new writing transactions of clients, or allows them again.
    pub async fn limit_writes(&self, limited: bool) -> Result<(), PgError> {
        self.apply(|stance| stance.read_only = limited).await
    }

    /// Starts the stopped server as primary. `sync`: it acknowledges what the standby flushed and nothing else, and lets
    /// nobody in until [`Server::admit`]. Data of a standby is promoted.
    pub async fn serve(&self, sync: bool) -> Result<(), PgError> {
        self.needs_stopped()?;
        if sync {
            // Which copy was armed is not known any more: no standby has this name, so nothing is acknowledged.
            let unknown = || stance::standby(0);
            self.declare(|stance| {
                let sync = Some(stance.sync.take().unwrap_or_else(unknown));
                *stance = Stance { sync, admit: false, receive: None, ..stance.clone() };
            })?;
        } else {
            self.forget_sync()?;
            self.declare(|stance| *stance = Stance { admit: true, receive: None, ..stance.clone() })?;
        }
        let session = self.start().await?;
        if self.recovering(&session).await? {
            self.promote_now(&session).await?;
        }
        self.after_promotion(&session).await
    }

    /// The same for one that runs already, as after a restart of the supervisor: clients stay in.
    pub(crate) async fn serve_on(&self, sync: bool) -> Result<(), PgError> {
        let session = self.connect().await?;
        self.declare(|stance| stance.receive = None)?;
        if self.recovering(&session).await? {
            self.promote_now(&session).await?;
        }
        if sync {
            self.declare(|stance| {
                stance.sync = Some(stance.sync.take().unwrap_or_else(|| stance::standby(0)))
            })?;
            session.reload(SQL).await?;
        } else {
            self.let_go().await?;
        }
        self.after_promotion(&session).await
    }

    /// [`Server::drop_sync`], and clients are in from then on.
    pub(crate) async fn let_go(&self) -> Result<(), PgError> {
        self.declare(|stance| (stance.admit, stance.receive) = (true, None))?;
        self.drop_sync().await
    }

    /// A checkpoint: after a promotion the first thing that lets a rewind see the new timeline.
    pub async fn checkpoint(&self) -> Result<(), PgError> {
        Ok(self.connect().await?.execute(CHECKPOINTS, "checkpoint").await?)
    }
}
