//! A whole copy of the holder's data, made beside what is there and put in its place in one step.

use std::convert::Infallible;
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

/// Between two looks at how far a copy is.
const PROGRESS: Duration = Duration::from_secs(2);
/// Bytes of all databases; what else a copy holds is little beside them.
const TOTAL: &str = "select sum(pg_catalog.pg_database_size(oid))::bigint from pg_catalog.pg_database";

/// Never whole before it is.
fn percent(copied: u64, total: u64) -> u8 {
    let percent = u128::from(copied) * 100 / u128::from(total.max(1));
    u8::try_from(percent.min(99)).unwrap_or(99)
}

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
        // A rewind that was given up would go on with its writing in what is swapped in; a copy, in what is removed here.
        for program in ["pg_rewind", "pg_basebackup"] {
            self.tools().none_left(program).await?;
        }
        // The unfinished copy of an earlier try.
        remove_tree(&copy)?;
        let mut arguments = vec![
            "-D".into(),
            copy.display().to_string(),
            "-d".into(),
            self.conninfo(stance::REPLICATION, "dyad_clone"),
            "-X".into(),
            "stream".into(),
            "-S".into(),
            stance::slot(&self.pair.own),
            "--checkpoint=fast".into(),
            "-w".into(),
        ];
        if let Some(kib) = self.site().copy_rate_kib {
            arguments.push(format!("--max-rate={kib}k"));
        }
        let copied = {
            let copying = self.tools();
            let copying = copying.program("pg_basebackup", arguments, COPY);
            tokio::select! {
                copied = copying => copied,
                never = self.tell_progress() => match never {},
            }
        };
        self.copied_percent.set(None);
        copied?;
        // What arrived is what the holder read, byte for byte; a disk or a cable may have changed it since.
        self.tools().program("pg_verifybackup", vec!["-q".into(), copy.display().to_string()], COPY).await?;
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
        let kept = self.swap(&main, &copy, label)?;
        // What a rewind left half done has gone aside.
        files::remove(&self.paths.pg_rewinding())?;
        Ok(kept)
    }

    /// Measures how much of the copy is here, for as long as it is made. Nothing else writes on the volume meanwhile.
    async fn tell_progress(&self) -> Infallible {
        let volume = self.paths.pg_volume();
        let free = || rustix::fs::statvfs(&volume).ok().map(|stat| stat.f_bfree * stat.f_frsize);
        let before = free();
        let total = self.ask_peer(TOTAL).await.ok().and_then(|text| text.trim().parse::<u64>().ok());
        loop {
            tokio::time::sleep(PROGRESS).await;
            let copied = before.zip(free()).map(|(before, now)| before.saturating_sub(now));
            self.copied_percent.set(copied.zip(total).map(|(copied, total)| percent(copied, total)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_never_told_to_be_whole() {
        let all = [(0, 10), (5, 10), (10, 10), (11, 10), (1, 0), (u64::MAX, u64::MAX)];
        assert_eq!(all.map(|(copied, total)| percent(copied, total)), [0, 50, 99, 99, 99, 99]);
    }
}
