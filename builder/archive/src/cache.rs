//! The content-addressed cache: a file's name is its SHA-256, and it gets that name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_debian::Digest;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::clock::{Deadline, pause, unix_now};
use crate::error::ArchiveError;

/// How long to wait for another build that fetches the same file.
const LOCK_WAIT: Duration = Duration::from_secs(15 * 60);
const LOCK_POLL: Duration = Duration::from_millis(50);
const LEFTOVER_SECONDS: u64 = 24 * 3600;
const CHUNK: usize = 128 << 10;

/// A cache directory. Several builds may use it at once, and each may be killed at any time.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `DYAD_CACHE`, else `$XDG_CACHE_HOME/dyad`, else `~/.cache/dyad`.
    ///
    /// # Errors
    /// No such variable is set, or the directory cannot be made.
    pub fn open_default() -> Result<Self, ArchiveError> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = variable("DYAD_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME").filter(|p| p.is_absolute())?.join("dyad")))
            .or_else(|| Some(variable("HOME")?.join(".cache/dyad")));
        let root = root.ok_or_else(|| ArchiveError::Setting {
            setting: "cache".to_owned(),
            value: String::new(),
            problem: "has no place: set DYAD_CACHE, XDG_CACHE_HOME or HOME to a directory".to_owned(),
        })?;
        Self::open(&root)
    }

    /// The cache at `root`; it is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, ArchiveError> {
        let root = std::path::absolute(root).map_err(ArchiveError::io("find", root))?;
        for directory in ["sha256", "partial", "releases"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(ArchiveError::io("make directory", &path))?;
        }
        let cache = Self { root };
        cache.remove_leftovers();
        Ok(cache)
    }

    /// Removes what killed builds left: files without a digest for a name that nobody has written to for a day.
    fn remove_leftovers(&self) {
        let entries = fs::read_dir(self.root.join("partial")).into_iter().flatten().filter_map(Result::ok);
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp")) {
            let age = entry.metadata().map_or(0, |m| unix_now().saturating_sub(m.mtime().max(0) as u64));
            if age > LEFTOVER_SECONDS {
                // Another build may have removed it just now.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the file with this digest is kept.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join("sha256").join(&hex[..2]).join(&hex)
    }

    /// The complete, undamaged file with this digest, if it is there. A damaged one is removed.
    ///
    /// # Errors
    /// The file is there but cannot be read or removed.
    pub fn lookup(&self, digest: &Digest, size: u64) -> Result<Option<PathBuf>, ArchiveError> {
        let path = self.blob_path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ArchiveError::io("open", path)(e)),
        };
        let length = file.metadata().map_err(ArchiveError::io("look at", &path))?.len();
        if length == size && hash(&mut file).map_err(ArchiveError::io("read", &path))? == *digest {
            return Ok(Some(path));
        }
        tracing::warn!(path = %path.display(), "damaged cache entry removed");
        remove(&path)?;
        Ok(None)
    }

    /// Puts bytes into the cache that were checked against this digest already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, digest: &Digest, bytes: &[u8]) -> Result<PathBuf, ArchiveError> {
        let path = self.blob_path(digest);
        self.write_atomically(&path, bytes)?;
        Ok(path)
    }

    /// Writes a file so that its name never shows a half-written one. There is no fsync: after a power cut the entry
    /// may be damaged, and damaged entries are found by their digest.
    pub(crate) fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), ArchiveError> {
        make_parent(path)?;
        let partial = self.root.join("partial");
        let mut file =
            tempfile::NamedTempFile::new_in(&partial).map_err(ArchiveError::io("write in", &partial))?;
        file.write_all(bytes).map_err(ArchiveError::io("write", file.path().to_owned()))?;
        file.persist(path).map_err(|e| ArchiveError::io("write", path)(e.error))?;
        Ok(())
    }

    /// Where the last verified InRelease of an archive's suite is kept.
    pub(crate) fn release_path(&self, base: &str, suite: &str) -> PathBuf {
        let key = Digest(Sha256::digest(format!("{base} {suite}").as_bytes()).into()).to_string();
        self.root.join("releases").join(format!("{suite}-{}", &key[..16]))
    }

    /// Takes the unfinished download of this file, or starts one; waits while another build has it.
    pub(crate) fn partial(&self, digest: &Digest) -> Result<Partial, ArchiveError> {
        let path = self.root.join("partial").join(digest.to_string());
        let deadline = Deadline::after(LOCK_WAIT);
        loop {
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(ArchiveError::io("open", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever had it may have finished: then the name stands for another file or for none.
                Ok(()) if is_same_file(&file, &path) => return Partial::resume(file, path),
                Ok(()) => continue,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(ArchiveError::io("lock", path)(e.into())),
            }
            if deadline.passed() {
                return Err(ArchiveError::Busy { path, seconds: LOCK_WAIT.as_secs() });
            }
            pause(LOCK_POLL);
        }
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (held.dev(), held.ino()) == (named.dev(), named.ino())
}

fn make_parent(path: &Path) -> Result<(), ArchiveError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(ArchiveError::io("make directory", parent))
}

fn remove(path: &Path) -> Result<(), ArchiveError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ArchiveError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn hash(file: &mut impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    feed(file, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()))
}

fn feed(file: &mut impl Read, hasher: &mut Sha256) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut length = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(length),
            Ok(n) => {
                hasher.update(&chunk[..n]);
                length += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// An unfinished download, locked for this process; its digest is computed as it grows.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    length: u64,
}

impl Partial {
    fn resume(mut file: File, path: PathBuf) -> Result<Self, ArchiveError> {
        let mut hasher = Sha256::new();
        let length = feed(&mut file, &mut hasher).map_err(ArchiveError::io("read", &path))?;
        Ok(Self { file, path, hasher, length })
    }

    /// Bytes that are there already.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Starts again from nothing.
    pub(crate) fn restart(&mut self) -> Result<(), ArchiveError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(ArchiveError::io("empty", &self.path))?;
        (self.hasher, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(bytes).map_err(ArchiveError::io("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest(self.hasher.clone().finalize().into())
    }

    /// Gives the complete file its final name.
    pub(crate) fn finish(self, cache: &Cache, digest: &Digest) -> Result<PathBuf, ArchiveError> {
        let path = cache.blob_path(digest);
        make_parent(&path)?;
        fs::rename(&self.path, &path).map_err(ArchiveError::io("write", &path))?;
        Ok(path)
    }

    /// Gives the name up: the file was finished by another build, or what is in it is worth nothing.
    pub(crate) fn discard(self) -> Result<(), ArchiveError> {
        remove(&self.path)
    }
}
