//! Many clusters in one process: who may speak for which, and every write before its answer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use dyad_channel::PublicKey;
use dyad_channel::frame::{self, FrameError, Numbered};
use dyad_channel::secret::{self, Exporter, Secret, Side};
use dyad_channel::server::{Answer, Peer, Service};
use dyad_channel::witness::{Call, Enroll, FRAME_BYTES_MAX, Refused, Reply, decode_call};
use dyad_cluster::message::ToArbiter;
use dyad_cluster::types::{ClusterId, Incarnation, Tick};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock;
use crate::cluster::{Change, Cluster, Decision, Start, Write, storage};
use crate::disk::{self, Disk};
use crate::record::{self, CODES, CODES_MAX, Codes, Pending, Record};

/// Clusters of one process. Each takes 32 KiB of disk, and while its nodes are connected about 60 KiB of memory.
pub const CLUSTERS_MAX: usize = 4096;

/// How a witness behaves.
#[derive(Clone)]
pub struct Settings {
    /// The owner asserts that the disk is never restored from a snapshot (rule 9).
    pub storage_is_durable: bool,
    /// CLOCK_BOOTTIME, except in tests.
    pub clock: Arc<dyn Fn() -> Tick + Send + Sync>,
}

impl Settings {
    /// With the machine's clock.
    pub fn new(storage_is_durable: bool) -> Self {
        Settings { storage_is_durable, clock: Arc::new(clock::now) }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Settings(storage_is_durable: {})", self.storage_is_durable)
    }
}

/// What happened since the start, for status.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) calls: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) writes_failed: AtomicU64,
    pub(crate) write_us_max: AtomicU64,
    /// The last write failed.
    failing: AtomicBool,
}

/// A cluster's place.
#[derive(Clone)]
pub(crate) enum Entry {
    /// Served.
    Served {
        /// One question at a time: a renewal that comes while a grant is being written is judged behind it.
        cluster: Arc<Mutex<Cluster>>,
        /// Keys that may speak for it.
        keys: Vec<PublicKey>,
    },
    /// Its file cannot be read; the text says why.
    Damaged(String),
}

#[derive(Default)]
struct Directory {
    entries: HashMap<ClusterId, Entry>,
    /// In how many clusters a key may speak.
    keys: HashMap<PublicKey, usize>,
}

impl Directory {
    fn place(&mut self, id: ClusterId, entry: Option<Entry>) {
        let keys = |entry: &Option<Entry>| match entry {
            Some(Entry::Served { keys, .. }) => keys.clone(),
            Some(Entry::Damaged(_)) | None => Vec::new(),
        };
        for key in keys(&entry) {
            *self.keys.entry(key).or_default() += 1;
        }
        let before = match entry {
            Some(entry) => self.entries.insert(id, entry),
            None => self.entries.remove(&id),
        };
        for key in keys(&before) {
            if let Some(count) = self.keys.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&key);
                }
            }
        }
    }
}

/// Codes that are open, and those that a cluster of this witness came with.
#[derive(Default)]
struct CodeBook {
    codes: Codes,
    spent: Vec<Secret>,
}

/// Why a witness does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be read or written.
    #[error("{step} {name}: {source}")]
    Disk {
        /// Start of a sentence.
        step: &'static str,
        /// In the state directory.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// More clusters than one process serves.
    #[error("{0} clusters in the state directory, a witness serves at most {CLUSTERS_MAX}")]
    TooMany(usize),
}

/// The witness.
pub struct Witness<D> {
    disk: Arc<D>,
    settings: Settings,
    directory: RwLock<Directory>,
    /// Held during an enrolment: a code is spent once.
    codes: Mutex<CodeBook>,
    pub(crate) figures: Figures,
}

impl<D> std::fmt::Debug for Witness<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness({:?})", self.settings)
    }
}

impl<D: Disk> Witness<D> {
    /// Starts with what is on disk. A cluster whose file cannot be read is not served; the others are.
    pub fn open(disk: D, settings: Settings) -> Result<Self, OpenError> {
        let failed = |step, name: &str| {
            let name = name.to_owned();
            move |source| OpenError::Disk { step, name, source }
        };
        let mut directory = Directory::default();
        let mut codes = Codes::default();
        let mut spent: Vec<Secret> = Vec::new();
        for name in disk.names().map_err(failed("list", "state directory"))? {
            if name.ends_with(".new") {
                disk.remove(&name).map_err(failed("remove", &name))?;
            } else if name == CODES {
                let bytes = disk.read(&name).map_err(failed("read", &name))?;
                codes = record::read(&bytes).map(|read| read.value).unwrap_or_else(|error| {
                    eprintln!("dyad-witness: {name}: {error}; codes that were open must be made again");
                    Codes::default()
                });
            } else if let Some(id) = record::cluster_of(&name) {
                let bytes = disk.read(&name).map_err(failed("read", &name))?;
                let entry = Self::load(id, &bytes, &settings, &mut spent);
                if let Entry::Damaged(why) = &entry {
                    eprintln!(
                        "dyad-witness: {name}: {why}; this cluster is not served until it enrols again"
                    );
                }
                directory.place(id, Some(entry));
            }
        }
        if directory.entries.len() > CLUSTERS_MAX {
            return Err(OpenError::TooMany(directory.entries.len()));
        }
        // A crash between the enrolment and this leaves the code in both places.
        codes.open.retain(|code| !spent.contains(code));
        codes.open.truncate(CODES_MAX);
        Ok(Witness {
            disk: Arc::new(disk),
            settings,
            directory: RwLock::new(directory),
            codes: Mutex::new(CodeBook { codes, spent }),
            figures: Figures::default(),
        })
    }

    fn load(id: ClusterId, bytes: &[u8], settings: &Settings, spent: &mut Vec<Secret>) -> Entry {
        match record::read_record(bytes) {
            Ok(read) if read.value.cluster != id => {
                Entry::Damaged("the file is another cluster's, under this one's name".to_owned())
            }
            Ok(read) => {
                spent.extend(read.value.standing.iter().map(|s| s.code.clone()));
                spent.extend(read.value.pending.iter().map(|p| p.code.clone()));
                let keys = read.value.keys();
                let start = Start { now: (settings.clock)(), incarnation: Incarnation(secret::draw()) };
                let cluster = Cluster::load(read, start, settings.storage_is_durable);
                Entry::Served { cluster: Arc::new(Mutex::new(cluster)), keys }
            }
            Err(error) => Entry::Damaged(error.to_string()),
        }
    }

    fn read_directory<T>(&self, look: impl FnOnce(&Directory) -> T) -> T {
        look(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn place(&self, id: ClusterId, entry: Option<Entry>) {
        self.directory.write().unwrap_or_else(PoisonError::into_inner).place(id, entry);
    }

    pub(crate) fn entries(&self) -> Vec<(ClusterId, Entry)> {
        let mut entries: Vec<_> =
            self.read_directory(|d| d.entries.iter().map(|(id, e)| (*id, e.clone())).collect());
        entries.sort_by_key(|(id, _)| *id);
        entries
    }

    pub(crate) fn now(&self) -> Tick {
        (self.settings.clock)()
    }

    pub(crate) fn storage_is_durable(&self) -> bool {
        self.settings.storage_is_durable
    }

    fn start(&self) -> Start {
        Start { now: self.now(), incarnation: Incarnation(secret::draw()) }
    }

    /// Runs a disk call where it may block. It runs to its end even if nobody waits for it any more.
    async fn on_disk<T: Send + 'static>(&self, call: impl FnOnce(&D) -> T + Send + 'static) -> T {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || call(&disk)).await.expect("disk calls do not panic")
    }

    fn count_write(&self, began_us: u64, done: &io::Result<()>) {
        let took = clock::now_us().saturating_sub(began_us);
        self.figures.write_us_max.fetch_max(took, Ordering::Relaxed);
        self.figures.writes.fetch_add(1, Ordering::Relaxed);
        // One line when it begins and one when it ends: nodes ask again twice a second.
        let failing = self.figures.failing.swap(done.is_err(), Ordering::Relaxed);
        match done {
            Err(error) => {
                self.figures.writes_failed.fetch_add(1, Ordering::Relaxed);
                if !failing {
                    eprintln!(
                        "dyad-witness: writing state: {error}; nothing is granted until this works again"
                    );
                }
            }
            Ok(()) if failing => eprintln!("dyad-witness: writing state works again"),
            Ok(()) => {}
        }
    }

    /// A cluster's lock, taken by a key that may speak for it, with the disk in order.
    async fn member(
        &self,
        id: ClusterId,
        key: &PublicKey,
    ) -> Result<(OwnedMutexGuard<Cluster>, dyad_cluster::types::Node), Refused> {
        let entry = self.read_directory(|d| d.entries.get(&id).cloned());
        let cluster = match entry {
            Some(Entry::Served { cluster, .. }) => cluster,
            Some(Entry::Damaged(_)) => return Err(Refused::Damaged),
            None => return Err(Refused::NotEnrolled),
        };
        let guard = cluster.lock_owned().await;
        let from = guard.admits(key)?;
        let guard = self.in_order(id, guard).await?;
        Ok((guard, from))
    }

    /// After a write that failed nothing is answered before the disk says what this process says.
    async fn in_order(
        &self,
        id: ClusterId,
        mut guard: OwnedMutexGuard<Cluster>,
    ) -> Result<OwnedMutexGuard<Cluster>, Refused> {
        let Some(write) = guard.repair()? else { return Ok(guard) };
        let began = clock::now_us();
        let (guard, done) = self
            .on_disk(move |disk| {
                let done = put(disk, id, &write);
                let told = done.as_ref().map(|_| ()).map_err(copy);
                (guard.repaired(done).map(|()| guard), told)
            })
            .await;
        self.count_write(began, &done);
        guard
    }

    /// Writes a change and makes it count. The lock goes along, so that nothing is judged before the outcome is known,
    /// also when the connection has ended meanwhile.
    async fn commit(
        &self,
        id: ClusterId,
        mut guard: OwnedMutexGuard<Cluster>,
        change: Change,
    ) -> (OwnedMutexGuard<Cluster>, Result<Reply, Refused>) {
        let write = match guard.write(&change) {
            Ok(write) => write,
            Err(refused) => return (guard, Err(refused)),
        };
        let began = clock::now_us();
        let (guard, done, told) = self
            .on_disk(move |disk| {
                let outcome = put(disk, id, &write);
                let told = outcome.as_ref().map(|_| ()).map_err(copy);
                let done = guard.settle(change, &write, outcome);
                (guard, done, told)
            })
            .await;
        self.count_write(began, &told);
        (guard, done)
    }

    async fn finish(
        &self,
        id: ClusterId,
        guard: OwnedMutexGuard<Cluster>,
        decision: Decision,
    ) -> Result<Reply, Refused> {
        match decision {
            Decision::Answer(reply) => Ok(reply),
            Decision::Write(change) => self.commit(id, guard, *change).await.1,
        }
    }

    /// The answer to a node whose key is proven.
    pub async fn call(&self, key: &PublicKey, exporter: &Exporter, call: Call) -> Result<Reply, Refused> {
        match call {
            Call::Enroll(enroll) => self.enroll(key, exporter, enroll).await,
            Call::Arbiter { cluster, message } => self.arbiter(cluster, key, message).await,
            Call::Read { cluster } => self.member(cluster, key).await?.0.read(),
            Call::Leave { cluster } => self.leave(cluster, key).await,
        }
    }

    async fn arbiter(&self, id: ClusterId, key: &PublicKey, message: ToArbiter) -> Result<Reply, Refused> {
        let (mut guard, from) = self.member(id, key).await?;
        // The clock is read under the lock: questions are judged in the order of their times.
        let decision = guard.decide(self.now(), from, message)?;
        self.finish(id, guard, decision).await
    }

    async fn leave(&self, id: ClusterId, key: &PublicKey) -> Result<Reply, Refused> {
        let (mut guard, _) = self.member(id, key).await?;
        let removed = self
            .on_disk(move |disk| {
                let done = disk.remove(&record::file_name(id)).and_then(|()| disk.sync_names());
                if done.is_err() {
                    guard.doubt();
                }
                done
            })
            .await;
        removed.map_err(storage)?;
        self.place(id, None);
        Ok(Reply::Left)
    }

    async fn enroll(&self, key: &PublicKey, exporter: &Exporter, enroll: Enroll) -> Result<Reply, Refused> {
        let mut book = self.codes.lock().await;
        enroll.statement.check()?;
        let from = enroll.statement.member(key).ok_or(Refused::Members)?;
        let id = enroll.statement.cluster;
        let entry = self.read_directory(|d| d.entries.get(&id).cloned());
        let served = match entry {
            Some(Entry::Served { cluster, .. }) => Some(self.in_order(id, cluster.lock_owned().await).await?),
            Some(Entry::Damaged(_)) | None => None,
        };
        if let Some(known) = served.as_ref().and_then(|c| c.enroll(from, &enroll, exporter, self.start())) {
            let guard = served.expect("a cluster that answered is served");
            return match known? {
                Decision::Answer(reply) => Ok(reply),
                Decision::Write(change) => self.settle_enrolment(id, guard, *change).await,
            };
        }
        let fits = |code: &Secret| enroll.statement.accepts(code, &enroll.proof, Side::Asking, exporter);
        let code = book.codes.open.iter().find(|code| fits(code)).cloned().ok_or(Refused::Code)?;
        if served.is_none() && self.read_directory(|d| d.entries.len()) >= CLUSTERS_MAX {
            return Err(Refused::Full(CLUSTERS_MAX as u32));
        }
        let guard = match served {
            Some(guard) => guard,
            None => self.new_cluster(id).await,
        };
        let (members, lease_ms) = (enroll.statement.members, enroll.statement.lease_ms);
        let pending = Pending { members, lease_ms, code: code.clone(), brought: [None, None] };
        let decision = guard.bring(pending, from, &enroll, exporter, self.start())?;
        let Decision::Write(change) = decision else { return Err(Refused::Code) };
        let reply = self.settle_enrolment(id, guard, *change).await?;
        // Spent. Should this write fail, the code is dropped at the next start, because the cluster's file names it.
        book.codes.open.retain(|open| *open != code);
        book.spent.push(code);
        if let Err(error) = self.write_codes(&book.codes).await {
            eprintln!("dyad-witness: {CODES}: {error}");
        }
        Ok(reply)
    }

    async fn new_cluster(&self, id: ClusterId) -> OwnedMutexGuard<Cluster> {
        let record = Record { cluster: id, standing: None, pending: None };
        let cluster = Cluster::new(record, self.settings.storage_is_durable);
        Arc::new(Mutex::new(cluster)).lock_owned().await
    }

    async fn settle_enrolment(
        &self,
        id: ClusterId,
        guard: OwnedMutexGuard<Cluster>,
        change: Change,
    ) -> Result<Reply, Refused> {
        let (guard, done) = self.commit(id, guard, change).await;
        let reply = done?;
        let keys = guard.record().keys();
        let cluster = OwnedMutexGuard::mutex(&guard).clone();
        self.place(id, Some(Entry::Served { cluster, keys }));
        Ok(reply)
    }

    /// Opens a one-time code, until it is used. Opening it twice is the same as once.
    pub async fn open_code(&self, code: &Secret) -> Result<(), OpenCodeError> {
        let mut book = self.codes.lock().await;
        if book.codes.open.contains(code) {
            return Ok(());
        }
        if book.spent.contains(code) {
            return Err(OpenCodeError::Used);
        }
        if book.codes.open.len() >= CODES_MAX {
            return Err(OpenCodeError::TooMany);
        }
        let mut next = book.codes.clone();
        next.open.push(code.clone());
        self.write_codes(&next).await?;
        book.codes = next;
        Ok(())
    }

    pub(crate) async fn open_codes(&self) -> usize {
        self.codes.lock().await.codes.open.len()
    }

    async fn write_codes(&self, codes: &Codes) -> io::Result<()> {
        let bytes = record::whole_file(codes).map_err(io::Error::other)?;
        self.on_disk(move |disk| disk::replace(disk, CODES, &bytes)).await
    }
}

/// A code that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenCodeError {
    /// It let a cluster in already.
    #[error("this code was used; make another one with `dyad-witness enroll`")]
    Used,
    /// As many as may be open.
    #[error("{CODES_MAX} codes are open already; use them first")]
    TooMany,
    /// It cannot be kept.
    #[error("cannot write {CODES}: {0}")]
    Disk(#[from] io::Error),
}

fn put(disk: &impl Disk, id: ClusterId, write: &Write) -> io::Result<()> {
    let name = record::file_name(id);
    match write {
        Write::Slot { offset, bytes } => disk.overwrite(&name, *offset, bytes),
        Write::File(bytes) => disk::replace(disk, &name, bytes),
    }
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// The witness on the channel.
impl<D: Disk> Service for Witness<D> {
    fn knows(&self, key: &PublicKey) -> bool {
        self.read_directory(|d| d.keys.contains_key(key))
    }

    async fn answer(&self, peer: &Peer, bytes: Vec<u8>) -> Answer {
        self.figures.calls.fetch_add(1, Ordering::Relaxed);
        let (number, done) = match decode_call(&bytes) {
            Ok(Numbered { number, message }) => (number, self.call(&peer.key, &peer.exporter, message).await),
            Err(refused) => (0, Err(refused)),
        };
        // A stranger that was refused has nothing more to say here; a node may go on.
        let keep = done.is_ok() || (number != 0 && self.knows(&peer.key));
        Answer { frame: self.encode(number, done.unwrap_or_else(Reply::Refused)), keep }
    }

    fn refuse(&self, error: &FrameError) -> Option<Vec<u8>> {
        match error {
            FrameError::TooLarge { .. } => {
                Some(self.encode(0, Reply::Refused(Refused::TooLarge(FRAME_BYTES_MAX as u32))))
            }
            FrameError::Empty | FrameError::Version(_) | FrameError::Malformed(_) | FrameError::Io(_) => None,
        }
    }
}

impl<D: Disk> Witness<D> {
    fn encode(&self, number: u64, message: Reply) -> Vec<u8> {
        if matches!(message, Reply::Refused(_)) {
            self.figures.refused.fetch_add(1, Ordering::Relaxed);
        }
        frame::encode(&Numbered { number, message }, FRAME_BYTES_MAX)
            .expect("registers of one cluster fit into a frame, and storage errors are short")
    }
}
