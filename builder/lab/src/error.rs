//! What can go wrong in the lab, told so that the reader knows what to do next.

use std::io;
use std::path::{Path, PathBuf};

/// Any failure of a lab command.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The operation, as a verb phrase.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// The operation, as a verb phrase.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// No daemon answers on this state directory.
    #[error("no lab is up in {}; start one with `dyad lab up`", .0.display())]
    NotUp(PathBuf),
    /// A root of unpacked packages does not hold what it should.
    #[error("{name} is not in {}; remove that directory, and it is made anew", place.display())]
    NoTool {
        /// The program or firmware.
        name: String,
        /// The root.
        place: PathBuf,
    },
    /// The request makes no sense or came at the wrong time.
    #[error("{0}")]
    Refused(String),
    /// Something did not happen in time.
    #[error("{what} within {seconds} s; {next}")]
    Deadline {
        /// What did not happen (`node-a did not power off`).
        what: String,
        /// How long it was waited for.
        seconds: u64,
        /// What to do next.
        next: String,
    },
    /// The image could not be built.
    #[error("building the image: {0}")]
    Build(Box<dyn std::error::Error + Send + Sync>),
}

/// Shorthand of this crate.
pub(crate) type Result<T> = std::result::Result<T, LabError>;

/// Attaches the operation and the file to an I/O result.
pub(crate) trait AtPath<T> {
    /// `what` is a verb phrase: `read`, `write`, `create directory`.
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> AtPath<T> for std::result::Result<T, E> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|e| LabError::File { what, path: path.to_path_buf(), source: e.into() })
    }
}

/// Attaches the operation to a system call's result.
pub(crate) trait Doing<T> {
    /// `what` is a verb phrase.
    fn doing(self, what: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|e| LabError::Os { what, source: e.into() })
    }
}

/// A refusal with a reason made of pieces.
pub(crate) fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(LabError::Refused(reason.into()))
}
