//! A whole copy of the holder's data, made beside what is there and put in its place in one step.

use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{self, At};
use crate::pg::adapter::{PgError, Server};
use crate::pg::cluster::{is_cluster, remove_tree};
use crate::pg::control;
use crate::pg::stance;

/// A copy takes what it takes: the connection notices a holder that is gone, this is for a disk that hangs.
const COPY: Duration = Duration::from_secs(24 * 3600);

impl Server {
    /// Copies the holder's data into a new directory, flushes it and swaps it in. What was there before is kept as
    /// `quarantine-LABEL`, whose path is returned.
    pub async fn clone_peer(&self, label: &str) -> Result<Option<PathBuf>, PgError> {
        self.needs_stopped()?;
        let holder = self.holder().await?;
        if let Some(own) = self.control_data().await?.filter(|own| own.system != holder.system) {
            return Err(PgError::Foreign { own: own.system, peer: holder.system });
        }
        let (main, copy) = (self.paths.pg_main(), self.paths.pg_clone());
        // The unfinished copy of an earlier try.
        remove_tree(&copy)?;
        let arguments = vec![
            "-D".into(),
            copy.display().to_string(),
            "-d".into(),
            stance::conninfo(&self.paths, &self.pair.peer, stance::REPLICATION, "dyad_clone"),
            "-X".into(),
            "stream".into(),
            "-S".into(),
            stance::slot(&self.pair.own),
            "--checkpoint=fast".into(),
            "-w".into(),
        ];
        self.tools().program("pg_basebackup", arguments, COPY).await?;
        let look = vec!["-D".into(), copy.display().to_string()];
        let made = control::parse(&self.tools().program("pg_controldata", look, COPY).await?)?;
        if made.system != holder.system {
            return Err(PgError::Foreign { own: made.system, peer: holder.system });
        }
        // Without it, a crash after the swap would leave a directory that looks like a primary's.
        let owner = files::Access { mode: 0o600, uid: self.owner.uid, gid: self.owner.gid };
        files::write(&copy.join("standby.signal"), b"", owner)?;
        files::sync_dir(&copy)?;
        self.forget_sync()?;
        self.renew_generation()?;
        self.swap(&main, &copy, label)
    }

    fn swap(&self, main: &PathBuf, copy: &PathBuf, label: &str) -> Result<Option<PathBuf>, PgError> {
        let volume = self.paths.pg_volume();
        if !is_cluster(main)? {
            renameat_with(CWD, copy, CWD, main, RenameFlags::empty()).at("rename into place", main)?;
            files::sync_dir(&volume)?;
            return Ok(None);
        }
        renameat_with(CWD, copy, CWD, main, RenameFlags::EXCHANGE).at("exchange", main)?;
        files::sync_dir(&volume)?;
        self.keep_old(label)
    }

    /// After an exchange the old data has the copy's name.
    fn keep_old(&self, label: &str) -> Result<Option<PathBuf>, PgError> {
        let kept = self.quarantine(label)?;
        let old = self.paths.pg_clone();
        renameat_with(CWD, &old, CWD, &kept, RenameFlags::NOREPLACE).at("rename", &old)?;
        files::sync_dir(&self.paths.pg_volume())?;
        tracing::warn!(kept = %kept.display(), "the data that was here is kept");
        Ok(Some(kept))
    }
}
