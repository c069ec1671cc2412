use std::path::PathBuf;

use dyad_debian::{Digest, IndexError, ReleaseError, format_utc};

use crate::gpgv::VerifyError;
use crate::process::ProcessError;

/// Finding, verifying or fetching packages failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Nothing says where packages come from.
    #[error(
        "no mirror for Debian {suite} is known: this machine's apt configuration has none; give one with \
         DYAD_MIRROR=URL and DYAD_KEYRING=FILE, or with `mirror` and `keyring` in the image definition"
    )]
    NoMirror {
        /// The suite wanted.
        suite: String,
    },
    /// A mirror was given, but nothing to verify it with.
    #[error(
        "no keyring to verify {mirror} with: give one with DYAD_KEYRING=FILE or `keyring` in the image definition \
         (on Debian: /usr/share/keyrings/debian-archive-keyring.gpg from package debian-archive-keyring)"
    )]
    NoKeyring {
        /// The mirror.
        mirror: String,
    },
    /// A setting that cannot be used.
    #[error("{setting}: {value:?} {problem}")]
    Setting {
        /// Where it was set (`DYAD_MIRROR`, a file with its line).
        setting: String,
        /// What stood there.
        value: String,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file or directory could not be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A download failed, retries included.
    #[error("cannot download {url}: {problem}")]
    Download {
        /// Where it should have come from.
        url: String,
        /// Why it failed.
        problem: String,
    },
    /// The server does not have the file.
    #[error("{url} does not exist on the server (HTTP {status})")]
    Gone {
        /// The URL.
        url: String,
        /// The server's status.
        status: u16,
    },
    /// A pinned file is not there any more.
    #[error(
        "{name} {version} is pinned by the lock file, but neither the cache nor the mirror has it any more ({url}); run `dyad lock --update`, or use a mirror that keeps old versions"
    )]
    PinnedGone {
        /// Package name.
        name: String,
        /// Its version.
        version: String,
        /// Where it should be.
        url: String,
    },
    /// What came is not what was promised.
    #[error(
        "{url}: wrong content: expected {expected_size} bytes with SHA-256 {expected}, got {size} bytes with {got}"
    )]
    Digest {
        /// Where it came from.
        url: String,
        /// What the signed index or the lock file says.
        expected: Digest,
        /// What came.
        got: Digest,
        /// Size that the signed index or the lock file says.
        expected_size: u64,
        /// Size that came.
        size: u64,
    },
    /// More bytes than promised or allowed.
    #[error("{url}: more than {limit} bytes came, which is more than it may have")]
    TooLarge {
        /// Where it came from.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Offline, and the cache does not have it.
    #[error("{what} is not in the cache {cache} and --offline forbids to download it ({url})")]
    Offline {
        /// What is missing.
        what: String,
        /// The cache's directory.
        cache: PathBuf,
        /// Where it would come from.
        url: String,
    },
    /// A signature that does not verify.
    #[error("{url}: {source}; it was refused")]
    Signature {
        /// The InRelease file.
        url: String,
        /// What is wrong with it.
        source: VerifyError,
    },
    /// A Release file that cannot be read.
    #[error("{url}: {source}")]
    Release {
        /// The InRelease file.
        url: String,
        /// What is wrong with it.
        source: ReleaseError,
    },
    /// A Release file past its date.
    #[error("{url}: expired: it was valid until {}, and it is {} now; the mirror is stale or somebody replays an old file (set Acquire::Check-Valid-Until \"false\" in apt's configuration to accept it)", format_utc(*.valid_until), format_utc(*.now))]
    Expired {
        /// The InRelease file.
        url: String,
        /// Its Valid-Until, in seconds since 1970.
        valid_until: u64,
        /// The host's clock, in seconds since 1970.
        now: u64,
    },
    /// A Release file older than one seen before.
    #[error("{url}: replayed: it is of {}, but one of {} was seen before; the mirror went back in time or somebody replays an old file (if the mirror was restored on purpose, remove {})", format_utc(*.date), format_utc(*.seen), .cached.display())]
    Replayed {
        /// The InRelease file.
        url: String,
        /// Its date, in seconds since 1970.
        date: u64,
        /// The date seen before, in seconds since 1970.
        seen: u64,
        /// Where the one seen before is kept.
        cached: PathBuf,
    },
    /// A Release file of another suite or publisher.
    #[error("{url}: wrong {field}: expected {expected:?}, it is for {got:?}")]
    WrongRelease {
        /// The InRelease file.
        url: String,
        /// What differs.
        field: &'static str,
        /// What was asked for.
        expected: String,
        /// What it says.
        got: String,
    },
    /// A Release file without the index wanted.
    #[error(
        "{url}: it lists no {path} (.xz, .gz or plain); it offers components {components} for {architectures}"
    )]
    NoIndex {
        /// The InRelease file.
        url: String,
        /// The index.
        path: String,
        /// Components offered.
        components: String,
        /// Architectures offered.
        architectures: String,
    },
    /// An index that does not decompress.
    #[error("{url}: cannot decompress: {problem}")]
    Decompress {
        /// The index.
        url: String,
        /// Why.
        problem: String,
    },
    /// An index that cannot be used.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A lock file names a suite that no mirror is known for.
    #[error("{name} {version} comes from suite {suite}, but no mirror for it is configured; known: {known}")]
    NoSource {
        /// Package name.
        name: String,
        /// Its version.
        version: String,
        /// The suite.
        suite: String,
        /// Suites with a mirror.
        known: String,
    },
    /// Somebody else holds a cache entry.
    #[error("another build has held {path} for {seconds} s; wait for it or end it")]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

impl ArchiveError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
