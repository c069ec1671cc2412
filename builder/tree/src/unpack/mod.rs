//! Debian packages to lists of members, without touching a disk: ar, then a compressed tar inside.
//!
//! Everything here reads bytes that somebody else made. Each refusal has its own variant, so that the message says
//! which rule the archive broke; nothing is repaired or skipped silently.

mod ar;
mod compress;
mod deb;
mod select;
mod tarball;
mod xz;

pub use deb::{Package, unpack};
pub(crate) use deb::{open, release};
pub(crate) use select::apply;
pub use select::{Filter, Pruned, Verdict};
pub use tarball::{Member, MemberKind};

/// Bounds on what one package may make the builder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the decompressed data archive.
    pub data_bytes_max: u64,
    /// Bytes of the decompressed control archive.
    pub control_bytes_max: u64,
    /// Members of the data archive.
    pub members_max: usize,
    /// Bytes of a member's name or link target.
    pub name_bytes_max: usize,
    /// Memory of one xz decoder, bytes (xz -9 needs 65 MiB).
    pub decoder_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            data_bytes_max: 4 << 30,
            control_bytes_max: 64 << 20,
            members_max: 500_000,
            name_bytes_max: 4095,
            decoder_bytes_max: 256 << 20,
        }
    }
}

/// Why an archive was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The first bytes are not an ar archive's.
    #[error("not a Debian package: it does not start with `!<arch>`")]
    NotAr,
    /// An ar header is malformed.
    #[error("ar header at byte {at}: {what}")]
    ArHeader {
        /// Offset of the 60-byte header.
        at: usize,
        /// The broken rule.
        what: &'static str,
    },
    /// The input ends before its own lengths say.
    #[error("truncated: {what} ends early")]
    Truncated {
        /// The part that is short.
        what: &'static str,
    },
    /// deb(5) names the parts and their order.
    #[error(
        "not a version 2 Debian package: {0} (accepted: debian-binary, control.tar[.gz|.xz|.zst], data.tar[.gz|.xz|.zst])"
    )]
    Layout(String),
    /// A compressed stream does not decode.
    #[error("{part}: damaged {format} data: {what}")]
    Damaged {
        /// `control.tar.xz`, ...
        part: String,
        /// `xz`, `zstd`, `gzip`.
        format: &'static str,
        /// What the decoder said.
        what: String,
    },
    /// More output than a package may have: a decompression bomb.
    #[error("{part}: unpacks to more than {limit} bytes")]
    TooLarge {
        /// Which part.
        part: String,
        /// The bound from [`Limits`].
        limit: u64,
    },
    /// More members than a package may have.
    #[error("{part}: more than {limit} members")]
    TooMany {
        /// Which part.
        part: String,
        /// The bound from [`Limits`].
        limit: usize,
    },
    /// The tar structure itself is broken.
    #[error("{part}: damaged tar: {what}")]
    Tar {
        /// Which part.
        part: String,
        /// The broken rule.
        what: String,
    },
    /// A member's name breaks a rule.
    #[error("member {name:?}: {what}")]
    Name {
        /// The name, shown lossily.
        name: String,
        /// The broken rule.
        what: &'static str,
    },
    /// A member's type is not one that a package may carry.
    #[error(
        "member {name:?}: type {kind:?} is not accepted (accepted: file, directory, link, symbolic link, device, fifo)"
    )]
    Kind {
        /// The name.
        name: String,
        /// The tar type byte.
        kind: char,
    },
    /// The same path twice.
    #[error("member {0:?} occurs twice")]
    Duplicate(String),
    /// A path that leads through a symbolic link (or a file) of the same package.
    #[error(
        "member {name:?} lies below {parent:?}, which this package ships as something other than a directory"
    )]
    ThroughLink {
        /// The member.
        name: String,
        /// Its ancestor.
        parent: String,
    },
    /// A hard link to something that this package does not hold.
    #[error("member {name:?} is a hard link to {target:?}, which is not an earlier file of this package")]
    LinkTarget {
        /// The link.
        name: String,
        /// Where it points.
        target: String,
    },
    /// The control file lacks something.
    #[error("control file: {0}")]
    Control(String),
}
