//! GUID partition tables: decode (either copy), encode, grow and add. No I/O but through `Read + Seek` arguments.
//!
//! The builder writes a table with it, first boot grows the same table to the size of the disk, the flasher adapts it.

mod decode;
mod encode;
mod guid;
mod table;

pub use decode::{Copy, Defect, Found, detect_sector_size, read};
pub use encode::Encoded;
pub use guid::{BadGuid, Guid, types};
pub use table::{ALIGNMENT_BYTES, ATTRIBUTE_READ_ONLY, Partition, Span, Table};

/// Number of entries that this crate writes: what every other tool writes, and the minimum of the specification.
pub const ENTRY_COUNT: u32 = 128;
/// Bytes of one entry.
pub const ENTRY_BYTES: u32 = 128;
/// UTF-16 units that a partition name may have.
pub const NAME_UNITS_MAX: usize = 36;

pub(crate) const SIGNATURE: &[u8; 8] = b"EFI PART";
pub(crate) const REVISION: u32 = 0x0001_0000;
pub(crate) const HEADER_BYTES: usize = 92;

/// Why a table could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device failed.
    #[error("reading the partition table: {0}")]
    Io(#[from] std::io::Error),
    /// Only two sector sizes exist in practice.
    #[error("sector size {0}: 512 or 4096 is accepted")]
    SectorSize(u32),
    /// The disk has no room for two tables and a partition.
    #[error("a disk of {sectors} sectors of {sector_size} bytes is too small for a partition table")]
    DiskTooSmall {
        /// Sectors of the disk.
        sectors: u64,
        /// Bytes of a sector.
        sector_size: u32,
    },
    /// Neither copy can be used.
    #[error("no partition table: the primary copy {primary}; the backup copy {backup}")]
    NoTable {
        /// What is wrong with the primary copy.
        primary: Defect,
        /// What is wrong with the backup copy.
        backup: Defect,
    },
    /// Numbers are 1 to 128.
    #[error("partition number {0}: 1 to {ENTRY_COUNT} is accepted")]
    Number(u32),
    /// The number is used by another partition.
    #[error("partition number {0} is taken")]
    NumberTaken(u32),
    /// The name does not fit.
    #[error("partition name {0:?}: at most {NAME_UNITS_MAX} UTF-16 units without NUL are accepted")]
    Name(String),
    /// An all-zero type means "unused entry".
    #[error("partition {0}: the type GUID is all zero, which means an unused entry")]
    UnusedType(u32),
    /// The range is inverted or leaves the usable area.
    #[error("partition {number}: sectors {first}..={last} are not within {usable_first}..={usable_last}")]
    Range {
        /// Partition number.
        number: u32,
        /// First sector.
        first: u64,
        /// Last sector, inclusive.
        last: u64,
        /// First usable sector of the disk.
        usable_first: u64,
        /// Last usable sector of the disk.
        usable_last: u64,
    },
    /// Two partitions share sectors.
    #[error("partitions {0} and {1} overlap")]
    Overlap(u32, u32),
    /// No gap is large enough.
    #[error("no free space of {wanted} bytes on a 1 MiB boundary: the largest gap has {largest} bytes")]
    NoSpace {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes of the largest aligned gap.
        largest: u64,
    },
    /// The disk is smaller than what is on it.
    #[error("the disk has {disk} sectors, but partition {number} ends at sector {last}")]
    Shrink {
        /// Sectors of the disk.
        disk: u64,
        /// The partition that does not fit.
        number: u32,
        /// Its last sector.
        last: u64,
    },
}
