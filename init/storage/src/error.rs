//! Why a phase stopped. Every text says what was wrong, where, and what would be accepted.

use std::path::{Path, PathBuf};

pub use crate::run::ToolError;

/// Why a phase did not finish. Nothing needs undoing: the phase may be run again at once or at the next boot.
#[derive(Debug, thiserror::Error)]
pub enum PhaseError {
    /// No such phase.
    #[error("unknown phase {0:?}: grow, state, data, esp or teardown is accepted")]
    UnknownPhase(String),
    /// One system call.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The step.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel command line does not name a root.
    #[error("kernel command line: {0}; `dyad.root=` and 64 hexadecimal digits is accepted")]
    CommandLine(String),
    /// The partition table cannot be read, changed or written.
    #[error("partition table of {disk}: {source}")]
    Table {
        /// Device of the disk.
        disk: PathBuf,
        /// What is wrong.
        source: dyad_gpt::Error,
    },
    /// Two disks carry the running root and nothing tells which one is in use.
    #[error("disks {} all hold the root partition {guid}: remove all but one", .disks.join(", "))]
    Ambiguous {
        /// PARTUUID of the root.
        guid: dyad_gpt::Guid,
        /// Their kernel names.
        disks: Vec<String>,
    },
    /// First boot does not fit.
    #[error(
        "disk {disk} has {have_bytes} bytes; slot B, state and data (at least {data_min} bytes) need a disk of \
             at least {need_bytes} bytes; nothing was written"
    )]
    TooSmall {
        /// Device of the disk.
        disk: PathBuf,
        /// Its size.
        have_bytes: u64,
        /// Smallest size that would do.
        need_bytes: u64,
        /// Smallest data partition.
        data_min: u64,
    },
    /// A partition number is used for something else.
    #[error("partition {number} of {disk} is {found}, expected {expected}; nothing was written")]
    Layout {
        /// Device of the disk.
        disk: PathBuf,
        /// Partition number.
        number: u32,
        /// What is there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A partition that should be new holds something.
    #[error(
        "{device} should be blank but holds {what}; it is left alone. If nobody needs it, make its first and \
             last MiB zero (`blkdiscard -z {device}`) and boot again"
    )]
    Foreign {
        /// The partition.
        device: PathBuf,
        /// What was recognised.
        what: String,
    },
    /// A file system or volume that was finished once is not there any more.
    #[error(
        "{device} was set up as {expected} before but holds {found}; it is left alone, because making it anew \
             would hide a loss of data"
    )]
    Lost {
        /// The partition or volume.
        device: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What was recognised.
        found: String,
    },
    /// The kernel does not show a partition that the table has.
    #[error("the kernel shows no partition {number} of {disk}")]
    NotShown {
        /// Device of the disk.
        disk: PathBuf,
        /// Partition number.
        number: u32,
    },
    /// Something else is mounted in our place.
    #[error("{path} is a mount point of device {found} already, expected {expected}")]
    MountedElse {
        /// The mount point.
        path: PathBuf,
        /// Device number there.
        found: String,
        /// Device number that belongs there.
        expected: String,
    },
    /// The shutdown could not let go of everything.
    #[error("still being written to at the end: {}; everything written so far was flushed", list(.0))]
    InUse(Vec<PathBuf>),
    /// LVM said something that cannot be read.
    #[error("lvm: {0}")]
    Volumes(String),
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Gives an I/O result the step it belongs to.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, PhaseError>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, PhaseError> {
        self.map_err(|source| PhaseError::Io { doing, path: path.to_owned(), source: source.into() })
    }
}
