//! The event log on disk: a thread of its own appends and flushes, so that no disk ever holds the loop up. Each file can
//! be played again by itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use dyad_cluster::State;
use dyad_cluster::eventlog::{self, Entry, MAGIC};
use tokio::sync::watch;

use crate::files::{self, Access, FileError};

/// Entries that wait for the disk at most; more are lost, and the log goes on with a snapshot.
const WAITING_MAX: usize = 4_096;
/// Longest file.
pub(crate) const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files kept, the oldest are removed.
pub(crate) const FILES_MAX: usize = 8;
/// An action waits this long for what led to it to be on disk, and then goes on: the log explains, it decides nothing.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

enum Order {
    Append(Vec<u8>, u64),
    /// Begin a new file with this.
    Begin(Vec<u8>, u64),
}

/// The writing end.
pub(crate) struct Journal {
    orders: SyncSender<Order>,
    appended: u64,
    in_file: u64,
    broken: Arc<AtomicBool>,
    flushed: watch::Receiver<u64>,
}

/// Waits for entries to be on disk.
#[derive(Clone)]
pub(crate) struct Flushed {
    upto: u64,
    flushed: watch::Receiver<u64>,
}

impl Flushed {
    /// Returns when they are, or after [`FLUSH_WAIT`].
    pub(crate) async fn wait(mut self) {
        let upto = self.upto;
        let done = self.flushed.wait_for(|flushed| *flushed >= upto);
        // A thread that ended flushes nothing any more.
        let _ = tokio::time::timeout(FLUSH_WAIT, done).await;
    }
}

impl Journal {
    /// Begins a new file in `dir` with this entry.
    pub(crate) fn start(dir: &Path, first: &Entry) -> Result<Self, FileError> {
        files::ensure_dir(dir, Access::own(0o700))?;
        let (orders, queue) = sync_channel(WAITING_MAX);
        let (publish, flushed) = watch::channel(0);
        let broken = Arc::new(AtomicBool::new(false));
        let writer = Writer { dir: dir.to_owned(), file: None, broken: Arc::clone(&broken), publish };
        let spawned = std::thread::Builder::new().name("event-log".into()).spawn(move || writer.run(&queue));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the event log");
        }
        let mut journal = Self { orders, appended: 0, in_file: 0, broken, flushed };
        journal.begin(first);
        Ok(journal)
    }

    fn begin(&mut self, first: &Entry) {
        if let Some(bytes) = encoded(first) {
            self.in_file = bytes.len() as u64;
            self.send(|number| Order::Begin(bytes, number));
        }
    }

    fn send(&mut self, order: impl FnOnce(u64) -> Order) {
        match self.orders.try_send(order(self.appended + 1)) {
            Ok(()) => self.appended += 1,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.broken.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Appends one. With what the core knew before it, a new file goes on from there.
    pub(crate) fn append(&mut self, before: Option<State>, entry: &Entry) {
        if let Some(before) = before {
            self.broken.store(false, Ordering::Relaxed);
            self.begin(&Entry::Snapshot(Box::new(before)));
        }
        if let Some(bytes) = encoded(entry) {
            self.in_file += bytes.len() as u64;
            self.send(|number| Order::Append(bytes, number));
        }
    }

    /// Whether the next entry should begin a new file: the old one is long enough, or entries were lost.
    pub(crate) fn begins_anew(&self) -> bool {
        self.in_file >= FILE_BYTES_MAX || self.broken.load(Ordering::Relaxed)
    }

    /// Waits for all entries so far.
    pub(crate) fn flushed(&self) -> Flushed {
        Flushed { upto: self.appended, flushed: self.flushed.clone() }
    }
}

fn encoded(entry: &Entry) -> Option<Vec<u8>> {
    eventlog::encode(entry)
        .inspect_err(|error| tracing::error!(%error, "an entry of the event log is left out"))
        .ok()
}

struct Writer {
    dir: PathBuf,
    file: Option<File>,
    broken: Arc<AtomicBool>,
    publish: watch::Sender<u64>,
}

impl Writer {
    /// Takes what waits, writes it, flushes once, and says so.
    fn run(mut self, queue: &Receiver<Order>) {
        while let Ok(first) = queue.recv() {
            let orders = std::iter::once(first).chain(queue.try_iter());
            let mut last = 0;
            let mut failed = None;
            for order in orders {
                match self.write(order) {
                    Ok(number) => last = number,
                    // What is torn is left behind: nothing is written after it.
                    Err(error) => (self.file, failed) = (None, Some(error)),
                }
            }
            let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
            if let Some(error) = failed.or(synced.err()) {
                tracing::error!(%error, dir = %self.dir.display(), "the event log is not written");
                self.file = None;
                self.broken.store(true, Ordering::Relaxed);
            }
            if last > 0 {
                self.publish.send_replace(last);
            }
        }
    }

    fn write(&mut self, order: Order) -> io::Result<u64> {
        match order {
            Order::Begin(bytes, number) => {
                let mut file = begin_file(&self.dir)?;
                file.write_all(&MAGIC)?;
                file.write_all(&bytes)?;
                self.file = Some(file);
                Ok(number)
            }
            Order::Append(bytes, number) => {
                if let Some(file) = &mut self.file {
                    file.write_all(&bytes)?;
                }
                Ok(number)
            }
        }
    }
}

/// Log files of a directory, oldest first.
pub(crate) fn all(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "log") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn begin_file(dir: &Path) -> io::Result<File> {
    let old = all(dir)?;
    let surplus = (old.len() + 1).saturating_sub(FILES_MAX);
    for path in &old[..surplus] {
        fs::remove_file(path)?;
    }
    let number = old.last().and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok()).unwrap_or(0);
    let path = dir.join(format!("{:010}.log", number + 1));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}
