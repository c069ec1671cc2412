//! How a node whose data may have parted from the holder's comes back: it streams, rewinds, or is copied anew. Nothing
//! that the holder lacks is ever deleted: it goes to quarantine first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use crate::files::{self, Access, At};
use crate::pg::adapter::{PgError, Relation, Server};
use crate::pg::history::Fork;
use crate::pg::lsn::{Lsn, PAGE_BYTES};
use crate::pg::peer::Holder;
use crate::pg::stance;

/// A rewind reads the log since the fork and copies what changed.
const REWIND: Duration = Duration::from_secs(530);
/// So long is a holder asked that does not answer, before everything is copied instead.
const REACHED: Duration = Duration::from_secs(50);
const AGAIN: Duration = Duration::from_secs(1);

/// How the own data stands, with what the answer rests on.
struct Standing {
    relation: Relation,
    fork: Option<Fork>,
    timeline: u32,
    last: Option<Lsn>,
    holder: Holder,
}

/// Two histories of one system.
struct Parted {
    fork: Fork,
    /// The last record here.
    last: Lsn,
    timeline: u32,
    system: u64,
}

/// What a quarantined tail is.
#[derive(Serialize)]
struct Tail {
    system_identifier: u64,
    /// Records from here on are on no other node.
    from: String,
    /// Start of the last one.
    last_record: String,
    /// Timeline of them.
    timeline: u32,
    files: Vec<TailFile>,
}

#[derive(Serialize)]
struct TailFile {
    name: String,
    sha256: String,
}

impl Server {
    /// Compares the stopped data with the holder's.
    pub async fn inspect(&self) -> Result<Relation, PgError> {
        Ok(self.standing().await?.relation)
    }

    async fn standing(&self) -> Result<Standing, PgError> {
        self.needs_stopped()?;
        let holder = self.holder().await?;
        let with =
            |relation| Standing { relation, fork: None, timeline: 0, last: None, holder: holder.clone() };
        let Some(data) = self.control_data().await? else { return Ok(with(Relation::Unusable)) };
        if data.system != holder.system {
            return Ok(with(Relation::Foreign));
        }
        let history = self.own_history(data.timeline)?;
        let Some(fork) = history.fork(&holder.history) else { return Ok(with(Relation::Unusable)) };
        // Without its log nobody can say how far it went.
        let Some(last) = self.last_record(data.timeline, data.redo).await? else {
            return Ok(with(Relation::Unusable));
        };
        let last = last.max(data.checkpoint);
        // What recovery has written is past the fork, whatever is left of the log.
        let past = last >= fork.at || data.recovered > fork.at;
        let relation = if history.current() == holder.history.current() && history == holder.history {
            // On one timeline the holder is ahead, or two servers wrote it.
            if last >= holder.flushed { Relation::Unusable } else { Relation::Streams }
        } else if history.current() == fork.timeline && !past {
            Relation::Streams
        } else if holder.checkpointed {
            Relation::Diverged
        } else {
            Relation::TooEarly
        };
        let limit = fork.at.min(last).min(holder.flushed);
        let same = self.pages_agree(fork.timeline, limit).await?;
        let relation = if same { relation } else { Relation::Unusable };
        tracing::info!(?relation, own = data.timeline, last = %last, fork = %fork.at, "compared with the holder");
        Ok(Standing { relation, fork: Some(fork), timeline: data.timeline, last: Some(last), holder })
    }

    /// Whether the last whole page of the log before `limit` is the same on both nodes; of a fresh copy, whose log begins
    /// behind that page, what it has of the page of `limit`. A page that one of them no longer has speaks for nothing:
    /// then everything is copied.
    async fn pages_agree(&self, timeline: u32, limit: Lsn) -> Result<bool, PgError> {
        let page = limit.0 / PAGE_BYTES;
        let whole = page.checked_sub(1).map(|page| (Lsn(page * PAGE_BYTES), PAGE_BYTES));
        let begun = (Lsn(page * PAGE_BYTES), limit.0 % PAGE_BYTES);
        for (at, bytes) in whole.into_iter().chain([begun]) {
            let Some(own) = self.own_page(timeline, at)? else { continue };
            let bytes = usize::try_from(bytes).expect("a page is small");
            let other = self.holder_page(timeline, at).await?;
            return Ok(bytes > 0 && other.is_some_and(|other| other[..bytes] == own[..bytes]));
        }
        Ok(false)
    }

    /// Where the histories part. The alternative to an answer is to copy everything, and nothing has been touched yet.
    async fn parted(&self) -> Result<Parted, PgError> {
        let begun = Instant::now();
        loop {
            match self.standing().await {
                Err(error) if begun.elapsed() < REACHED => {
                    tracing::info!(%error, "the holder is asked again before anything is rewound");
                }
                // It was replaced, or started anew, since the two were compared.
                Ok(Standing { relation: Relation::TooEarly, .. }) if begun.elapsed() < REACHED => {}
                Ok(Standing {
                    relation: Relation::Diverged,
                    fork: Some(fork),
                    last: Some(last),
                    timeline,
                    holder,
                }) => {
                    return Ok(Parted { fork, last, timeline, system: holder.system });
                }
                Ok(_) => return Err(PgError::NoFork),
                Err(error) => return Err(error),
            }
            sleep(AGAIN).await;
        }
    }

    /// Quarantines the tail that the holder lacks, and rewinds to where the histories part. `label` names the quarantine,
    /// such as the epoch. On any error the data is of use to nobody but [`Server::clone_peer`].
    pub async fn rewind(&self, label: &str) -> Result<PathBuf, PgError> {
        let kept = self.quarantine_tail(&self.parted().await?, label)?;
        self.renew_generation()?;
        self.forget_sync()?;
        let conninfo = self.conninfo(stance::REWIND, "dyad_rewind");
        let arguments = vec![
            "-D".into(),
            self.paths.pg_main().display().to_string(),
            format!("--source-server={conninfo}"),
            format!("--config-file={}", self.paths.pg_config().join("postgresql.conf").display()),
        ];
        let note = self.paths.pg_rewinding();
        files::write(&note, b"", Access::own(0o600))?;
        let said = self.tools().program("pg_rewind", arguments, REWIND).await?;
        files::remove(&note)?;
        tracing::warn!(said = said.trim(), kept = %kept.display(), "rewound to the holder's history");
        Ok(kept)
    }

    /// Copies the segments that hold records behind the fork, durably, before anything may overwrite them.
    fn quarantine_tail(&self, parted: &Parted, label: &str) -> Result<PathBuf, PgError> {
        let Parted { fork, last, timeline: own, system } = parted;
        let dir = self.quarantine(label)?;
        let access = Access::own(0o700);
        files::ensure_dir(&dir, access)?;
        let log = self.paths.pg_main().join("pg_wal");
        let (first, end) = (fork.at.segment(0), last.segment(0));
        let mut names = Vec::new();
        for entry in fs::read_dir(&log).at("list", &log)? {
            let name = entry.at("list", &log)?.file_name().to_string_lossy().into_owned();
            let timeline = name.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            let segment = name.len() == 24 && name[8..] >= first[8..] && name[8..] <= end[8..];
            let ours = timeline.is_some_and(|timeline| timeline >= fork.timeline && timeline <= *own);
            if ours && (segment || name.ends_with(".history")) {
                names.push(name);
            }
        }
        names.sort();
        let mut copied = Vec::new();
        for name in names {
            let bytes = fs::read(log.join(&name)).at("read", &log.join(&name))?;
            files::write(&dir.join(&name), &bytes, Access::own(0o600))?;
            copied.push(TailFile { name, sha256: hex(&Sha256::digest(&bytes)) });
        }
        let tail = Tail {
            system_identifier: *system,
            from: fork.at.to_string(),
            last_record: last.to_string(),
            timeline: *own,
            files: copied,
        };
        let text = serde_json::to_vec_pretty(&tail).expect("strings can be written as JSON");
        files::write(&dir.join("tail.json"), &text, Access::own(0o600))?;
        files::sync_dir(&self.paths.pg_volume())?;
        Ok(dir)
    }

    /// A path that nothing has yet: `quarantine-LABEL`, or with a number behind it.
    pub(crate) fn quarantine(&self, label: &str) -> Result<PathBuf, PgError> {
        let volume = self.paths.pg_volume();
        let names = std::iter::once(format!("quarantine-{label}"))
            .chain((2_u32..).map(|number| format!("quarantine-{label}-{number}")));
        for name in names {
            let path = volume.join(name);
            if absent(&path)? {
                return Ok(path);
            }
        }
        unreachable!("the numbers do not end before the volume does")
    }
}

fn absent(path: &Path) -> Result<bool, PgError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Ok(Err(error).at("look at", path)?),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
