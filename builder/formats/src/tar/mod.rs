//! tar (ustar with PAX records): an image's tree for inspection and for containers.

mod read;
mod write;

use std::io;

use crate::tree::TreeError;

pub use read::read;
pub use write::write;

pub(crate) const BLOCK: usize = 512;
/// Largest number in an octal field of 8 bytes.
pub(crate) const OCTAL_8_MAX: u64 = 0o7_777_777;
/// Prefix of the PAX keys that hold extended attributes.
pub(crate) const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// ustar has no way to say it.
    #[error("{path}: device number {number}: at most {OCTAL_8_MAX} is accepted in a tar archive")]
    Device {
        /// The device node.
        path: String,
        /// Its major or minor number.
        number: u32,
    },
    /// There is no type for them.
    #[error("{0}: a tar archive holds no sockets")]
    Socket(String),
    /// The archive does not follow the format.
    #[error("tar archive, byte {at}: {what}")]
    Malformed {
        /// Offset of the member.
        at: usize,
        /// What was found.
        what: &'static str,
    },
    /// The names do not make a tree.
    #[error("tar archive, byte {at}: {source}")]
    Tree {
        /// Offset of the member.
        at: usize,
        /// What the tree said.
        source: TreeError,
    },
}
