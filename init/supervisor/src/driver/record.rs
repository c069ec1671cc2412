//! What a member keeps on the state partition: mirror, markers, and the count of boots. A write is done when it is
//! flushed; writes of one file go one after another, also past a deadline that nobody waits for any more.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dyad_cluster::action::Need;
use dyad_cluster::disk::{self, DiskError, MarkerFile, Mirror, SLOT_BYTES, Stored};
use dyad_cluster::types::{BootId, ResourceId};

use crate::files::{self, Access, At, FileError};
use crate::paths::Paths;

/// Why a value is not on disk, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content.
    #[error("{path}: {source}", path = .path.display())]
    Content {
        /// Of the file.
        path: PathBuf,
        /// What is wrong with it.
        source: DiskError,
    },
}

/// A file of two slots, and what it holds for certain.
struct Slots<T> {
    path: PathBuf,
    /// Of the newest whole slot.
    sequence: u64,
    value: Option<T>,
}

impl<T: Stored + Clone> Slots<T> {
    /// A file that is not there holds nothing.
    fn open(path: PathBuf) -> Result<Self, FileError> {
        let (sequence, value) = match files::read(&path)?.map(|bytes| disk::decode(&bytes)) {
            None => (0, None),
            Some(Ok((sequence, value))) => (sequence, Some(value)),
            Some(Err(source)) => {
                let sequence = match &source {
                    DiskError::Foreign { sequence, .. } => *sequence,
                    DiskError::Unreadable | DiskError::TooLarge(_) => 0,
                };
                tracing::error!(path = %path.display(), error = %source, "a record of this node cannot be read");
                (sequence, None)
            }
        };
        Ok(Self { path, sequence, value })
    }

    fn write(&mut self, value: T) -> Result<(), RecordError> {
        let (offset, slot) = disk::encode(self.sequence + 1, &value)
            .map_err(|source| RecordError::Content { path: self.path.clone(), source })?;
        // Until it is flushed nobody can say which of the two it is; after an error neither, and the retry goes to the
        // same slot, never over the other one.
        let opened = OpenOptions::new().write(true).open(&self.path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                files::write(&self.path, &[0; 2 * SLOT_BYTES], Access::own(0o600))?;
                OpenOptions::new().write(true).open(&self.path).at("open", &self.path)?
            }
            other => other.at("open", &self.path)?,
        };
        file.write_all_at(&slot, offset).at("write", &self.path)?;
        file.sync_data().at("flush", &self.path)?;
        self.sequence += 1;
        self.value = Some(value);
        Ok(())
    }
}

/// A file whose writes queue up; the value is what it held when the last of them ended.
struct Queued<T> {
    slots: Arc<tokio::sync::Mutex<Slots<T>>>,
    held: Arc<Mutex<Option<T>>>,
}

impl<T: Stored + Clone + Send + 'static> Queued<T> {
    fn open(path: PathBuf) -> Result<Self, FileError> {
        let slots = Slots::open(path)?;
        let held = Arc::new(Mutex::new(slots.value.clone()));
        Ok(Self { slots: Arc::new(tokio::sync::Mutex::new(slots)), held })
    }

    fn held(&self) -> Option<T> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn write(&self, value: T) -> Result<(), RecordError> {
        // The turn goes into the thread with the write: whoever stops waiting does not let the next one in.
        let mut turn = Arc::clone(&self.slots).lock_owned().await;
        let held = Arc::clone(&self.held);
        let written = tokio::task::spawn_blocking(move || {
            let done = turn.write(value);
            *held.lock().unwrap_or_else(PoisonError::into_inner) = turn.value.clone();
            done
        });
        match written.await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// All of it.
pub(crate) struct Record {
    mirror: Queued<Mirror>,
    markers: BTreeMap<ResourceId, Queued<MarkerFile>>,
}

impl Record {
    /// Reads what is there.
    pub(crate) fn open(paths: &Paths, resources: &[ResourceId]) -> Result<Self, FileError> {
        let marker = |r: &ResourceId| Ok((*r, Queued::open(marker_path(paths, *r))?));
        Ok(Self {
            mirror: Queued::open(mirror_path(paths))?,
            markers: resources.iter().map(marker).collect::<Result<_, FileError>>()?,
        })
    }

    /// `None`: it cannot be read, or is not there.
    pub(crate) fn mirror(&self) -> Option<Mirror> {
        self.mirror.held()
    }

    /// Those that can be read.
    pub(crate) fn markers(&self) -> BTreeMap<ResourceId, MarkerFile> {
        self.markers.iter().filter_map(|(r, file)| Some((*r, file.held()?))).collect()
    }

    pub(crate) async fn write_mirror(&self, mirror: Mirror) -> Result<(), RecordError> {
        self.mirror.write(mirror).await
    }

    pub(crate) async fn write_marker(&self, r: ResourceId, marker: MarkerFile) -> Result<(), RecordError> {
        match self.markers.get(&r) {
            Some(file) => file.write(marker).await,
            // The core asks for markers of its configured resources only, and those were opened.
            None => unreachable!("no marker file was opened for {r:?}"),
        }
    }

    /// Whether what is on disk is what this need says; `None`: the need is not about the disk.
    pub(crate) fn holds(&self, need: &Need) -> Option<bool> {
        let mirror = |says: &dyn Fn(&Mirror) -> bool| self.mirror().as_ref().is_some_and(says);
        let marker = |r: &ResourceId| self.markers.get(r).and_then(Queued::held).and_then(|file| file.marker);
        match need {
            Need::IntentDurable(request) => {
                Some(mirror(&|m| m.intent.as_ref().is_some_and(|intent| intent.request == *request)))
            }
            Need::RegisterDurable(r, epoch) => {
                Some(mirror(&|m| m.registers.get(r).is_some_and(|register| register.epoch == *epoch)))
            }
            Need::NoArbiterDurable(r, epoch) => Some(mirror(&|m| m.no_arbiter.get(r) == Some(epoch))),
            Need::MarkerDurable(r, pact, generation) => {
                Some(marker(r).is_some_and(|m| m.pact == *pact && m.generation == *generation))
            }
            Need::MarkerCleared(r) => Some(marker(r).is_none()),
            Need::Stopped(_) | Need::NotFollowing(_) | Need::Before(_) => None,
        }
    }
}

fn mirror_path(paths: &Paths) -> PathBuf {
    paths.at("/state/supervisor/mirror")
}

fn marker_path(paths: &Paths, r: ResourceId) -> PathBuf {
    paths.at(&format!("/state/supervisor/marker-{}", r.0))
}

/// A new member's record: it holds nothing, and can be read. What is there already stays.
pub(crate) fn found(paths: &Paths) -> Result<(), RecordError> {
    let mut slots = Slots::<Mirror>::open(mirror_path(paths))?;
    if slots.sequence == 0 && slots.value.is_none() { slots.write(Mirror::default()) } else { Ok(()) }
}

/// This boot: counted, so that boots are in order, and named by PID 1, so that a restart of the supervisor is none.
pub(crate) fn boot(paths: &Paths, boot_id: [u8; 16]) -> Result<BootId, FileError> {
    let path = paths.at("/state/supervisor/boot");
    let name: String = boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let count = next_boot(&path, &name)?;
    files::ensure(&path, format!("{count} {name}\n").as_bytes(), Access::own(0o600))?;
    let mut nonce = [0; 8];
    nonce.copy_from_slice(&boot_id[..8]);
    Ok(BootId { count, nonce: u64::from_le_bytes(nonce) })
}

fn next_boot(path: &Path, name: &str) -> Result<u64, FileError> {
    let known = files::read_plain(path)?;
    let known = known.as_deref().and_then(|text| text.trim().split_once(' '));
    Ok(match known.and_then(|(count, of)| Some((count.parse::<u64>().ok()?, of))) {
        Some((count, of)) if of == name => count,
        Some((count, _)) => count + 1,
        None => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_cluster::types::RequestId;

    fn root() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("state/supervisor")).unwrap();
        let paths = Paths::new(dir.path());
        (dir, paths)
    }

    fn mirror(request: u64) -> Mirror {
        Mirror { request: RequestId(request), ..Mirror::default() }
    }

    #[test]
    fn boots_are_counted_and_a_restart_is_none() {
        let (_dir, paths) = root();
        let first = boot(&paths, [1; 16]).unwrap();
        assert_eq!(boot(&paths, [1; 16]).unwrap(), first);
        let second = boot(&paths, [2; 16]).unwrap();
        assert!(second > first && second.count == 2);
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_and_a_damaged_slot_leaves_the_older_value() {
        let (_dir, paths) = root();
        let all = [ResourceId(0)];
        let record = Record::open(&paths, &all).unwrap();
        assert_eq!(record.mirror(), None, "a node that never paired has none");
        found(&paths).unwrap();
        found(&paths).unwrap();
        let record = Record::open(&paths, &all).unwrap();
        assert_eq!(record.mirror(), Some(Mirror::default()));
        for request in 1..4 {
            record.write_mirror(mirror(request)).await.unwrap();
        }
        record.write_marker(ResourceId(0), MarkerFile::default()).await.unwrap();
        let path = mirror_path(&paths);
        let mut bytes = std::fs::read(&path).unwrap();
        let (newest, _) = disk::decode::<Mirror>(&bytes).unwrap();
        bytes[usize::try_from(newest % 2).unwrap() * SLOT_BYTES + 30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let record = Record::open(&paths, &all).unwrap();
        assert_eq!(record.mirror(), Some(mirror(2)));
        assert_eq!(record.markers()[&ResourceId(0)], MarkerFile::default());
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Record::open(&paths, &all).unwrap().mirror(), None);
    }
}
