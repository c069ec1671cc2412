//! Whether PostgreSQL and its disk do their work, and whether it still is what it was told to be.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_spec::site::Profile;
use rustix::fs::{Mode, OFlags};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::pg::adapter::{PgError, SQL, Server};
use crate::pg::probe::{self, Misses, Outcome, Prober, Verdict};
use crate::pg::session::Address;
use crate::pg::stance;

/// What the server shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// It is a standby.
    pub standby: bool,
    /// Highest timeline.
    pub timeline: u32,
    /// Somebody of this pair receives from here and has caught up.
    pub link: bool,
    /// What it shows is not what it was told: a promotion or a setting by hand.
    pub contradiction: Option<String>,
}

/// What a round of probes says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// It takes writes and connections, its disk flushes, and all its processes run.
    pub serving: bool,
    /// Three rounds in a row were missed: it hangs.
    pub unhealthy: bool,
    /// What was wrong, in words.
    pub note: String,
}

/// Probes one server every [`Probes::INTERVAL`].
pub struct Probes {
    prober: Prober,
    misses: Misses,
    disk: Disk,
}

impl Probes {
    /// Between two rounds.
    pub const INTERVAL: Duration = probe::INTERVAL;

    /// Of this server, for a site of this profile.
    pub fn new(server: &Server, profile: Profile) -> Self {
        let deadline = probe::deadline(profile);
        let address = Address::local(&server.paths, server.site().port);
        // Data and log share one volume.
        let disk = Disk { path: server.paths.pg_volume().join("probe"), pending: None, deadline };
        Self { prober: Prober::new(address, deadline), misses: Misses::default(), disk }
    }

    /// One round; takes a second at most.
    pub async fn round(&mut self) -> Health {
        let (mut found, disk) = tokio::join!(self.prober.probe(), self.disk.probe());
        if let Some(stopped) = self.prober.stopped().await {
            found.write = Outcome::NoConnection(stopped);
        }
        if disk != Outcome::Ok && found.write == Outcome::Ok {
            found.write = disk;
        }
        let verdict = self.misses.judge(&found);
        let note = format!("write: {}; new connection: {}", found.write.text(), found.connect.text());
        Health { serving: verdict == Verdict::Serving, unhealthy: verdict == Verdict::Dead, note }
    }
}

/// One block, written past the page cache.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// Writes and flushes in a thread of its own: a disk that hangs takes that thread and nothing else.
struct Disk {
    path: PathBuf,
    pending: Option<JoinHandle<io::Result<()>>>,
    deadline: Duration,
}

impl Disk {
    async fn probe(&mut self) -> Outcome {
        let path = self.path.clone();
        let mut task =
            self.pending.take().unwrap_or_else(|| tokio::task::spawn_blocking(move || write(&path)));
        match timeout(self.deadline, &mut task).await {
            Ok(Ok(Ok(()))) => Outcome::Ok,
            Ok(Ok(Err(error))) => Outcome::Error(format!("write to the volume: {error}")),
            Ok(Err(error)) => Outcome::Error(format!("write to the volume: {error}")),
            Err(_) => {
                // Looked at again next time: a second one would only hang beside it.
                self.pending = Some(task);
                Outcome::Timeout(self.deadline)
            }
        }
    }
}

fn write(path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
        // A file system in memory has no cache to write past.
        Err(rustix::io::Errno::INVAL) => rustix::fs::open(path, flags, mode)?,
        other => other?,
    };
    let (file, block) = (File::from(fd), Block([0x5a; 4096]));
    file.write_all_at(&block.0, 0)?;
    file.sync_data()
}

impl Server {
    /// What the server shows, and whether that is what it was told.
    pub async fn look(&self) -> Result<Seen, PgError> {
        let session = self.connect().await?;
        let standby = self.recovering(&session).await?;
        let timeline = match standby {
            true => self.timeline_reached(&session).await?,
            false => self.timeline(&session).await?,
        };
        let query = format!(
            "select application_name from pg_catalog.pg_stat_replication where usename = '{}' and state = 'streaming'",
            stance::REPLICATION
        );
        let names = session.rows(SQL, &query).await?;
        let link = names.into_iter().flatten().flatten().any(|name| stance::generation(&name).is_some());
        let shown = session.value(SQL, "show synchronous_standby_names").await?.unwrap_or_default();
        let told = self.stance.borrow().clone();
        let expected = told.sync.as_ref().map(|name| format!("FIRST 1 (\"{name}\")")).unwrap_or_default();
        let contradiction = if told.receive.is_some() && !standby {
            Some(format!("it was promoted by hand, to timeline {timeline}"))
        } else if shown != expected {
            Some(format!("synchronous_standby_names is {shown:?}, declared is {expected:?}"))
        } else {
            None
        };
        Ok(Seen { standby, timeline, link, contradiction })
    }
}
