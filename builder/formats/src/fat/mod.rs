//! FAT32 with long names: the EFI system partition, written once and read back by firmware, flasher and `inspect`.

mod names;
mod read;
mod write;

pub use read::{Entry, Volume};
pub use write::{Image, Options, write};

/// Firmware takes a volume with fewer clusters for FAT16 and does not see its files.
pub const CLUSTERS_MIN: u64 = 65_525;
/// Cluster numbers have 28 bits, the topmost values are marks.
pub const CLUSTERS_MAX: u64 = 0x0fff_fff5;

pub(crate) const ATTR_READ_ONLY: u8 = 0x01;
pub(crate) const ATTR_LABEL: u8 = 0x08;
pub(crate) const ATTR_DIR: u8 = 0x10;
pub(crate) const ATTR_ARCHIVE: u8 = 0x20;
pub(crate) const ATTR_LONG_NAME: u8 = 0x0f;
pub(crate) const ENTRY_BYTES: usize = 32;
pub(crate) const END_OF_CHAIN: u32 = 0x0fff_ffff;

/// Why a volume could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Only two sector sizes exist in practice.
    #[error("FAT volume: sector size {0}: 512 or 4096 is accepted")]
    SectorSize(u32),
    /// Too small for FAT32.
    #[error(
        "FAT volume of {bytes} bytes with {sector_size}-byte sectors has {clusters} clusters: FAT32 needs at least \
         {CLUSTERS_MIN}, else firmware does not see its files"
    )]
    TooSmall {
        /// Size asked for.
        bytes: u64,
        /// Bytes of a sector.
        sector_size: u32,
        /// Clusters there would be.
        clusters: u64,
    },
    /// Too large for FAT32.
    #[error("FAT volume of {0} bytes: at most 2^32 - 1 sectors and {CLUSTERS_MAX} clusters are accepted")]
    TooLarge(u64),
    /// The files do not fit.
    #[error("FAT volume: the files need {needed} clusters of {cluster_bytes} bytes, there are {available}")]
    Full {
        /// Clusters needed.
        needed: u64,
        /// Clusters there are.
        available: u64,
        /// Bytes of a cluster.
        cluster_bytes: u64,
    },
    /// A name that FAT cannot hold, or that exists already in another case.
    #[error("FAT volume: {name:?}: {why}")]
    Name {
        /// The path.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file of 4 GiB or more.
    #[error("FAT volume: {0}: files of less than 4 GiB are accepted")]
    FileTooLarge(String),
    /// The label does not fit.
    #[error("FAT volume: label {0:?}: 1 to 11 of A-Z, 0-9, space, _ and - are accepted")]
    Label(String),
    /// The volume does not follow the format.
    #[error("FAT volume: {0}")]
    Malformed(String),
}

/// A time as FAT stores it: two-second steps from 1980 to 2107, no zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    pub(crate) date: u16,
    pub(crate) time: u16,
}

impl Timestamp {
    /// From seconds since 1970, UTC; clamped to what FAT can say.
    pub fn from_unix(seconds: u32) -> Self {
        let days = i64::from(seconds / 86_400);
        let rest = seconds % 86_400;
        let (year, month, day) = civil_from_days(days);
        if year < 1980 {
            return Timestamp { date: (1 << 5) | 1, time: 0 };
        }
        let date = ((year - 1980) as u16) << 9 | (month as u16) << 5 | day as u16;
        let time = ((rest / 3600) as u16) << 11 | ((rest / 60 % 60) as u16) << 5 | (rest % 60 / 2) as u16;
        Timestamp { date, time }
    }
}

/// Proleptic Gregorian calendar from days since 1970 (Howard Hinnant's algorithm).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}
