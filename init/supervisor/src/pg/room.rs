//! Room on PostgreSQL's volume: a reserve that is given up when the volume is full, so that the server can still write
//! what ends its transactions.

use std::io;

use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::files::{self, At, Extent};
use crate::pg::adapter::{PgError, Server};

/// Size of the reserve: a hundredth of the volume, within these bounds.
const RESERVE_BYTES: (u64, u64) = (16 * 1024 * 1024, 256 * 1024 * 1024);
/// With less than this free the reserve is given up.
const FULL_BYTES: u64 = 4 * 1024 * 1024;
/// Below this use it is made again, in percent.
const ROOMY_PERCENT: u8 = 90;

/// How the volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Used, in percent, rounded up; the reserve counts as free.
    pub full_percent: u8,
    /// The reserve is there.
    pub reserved: bool,
}

/// What is to be done with the reserve.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Give,
    Make,
    Nothing,
}

fn judge(total: u64, free: u64, reserve: u64) -> (u8, Step) {
    let used = total.saturating_sub(free).saturating_sub(reserve);
    let percent = used.saturating_mul(100).div_ceil(total.max(1)).min(100);
    let percent = u8::try_from(percent).unwrap_or(100);
    let step = match () {
        () if reserve != 0 && free < FULL_BYTES => Step::Give,
        () if reserve == 0 && percent < ROOMY_PERCENT && free > 2 * RESERVE_BYTES.0 => Step::Make,
        () => Step::Nothing,
    };
    (percent, step)
}

impl Server {
    /// Looks at the volume and keeps the reserve. To be called every second or so.
    pub fn room(&self) -> Result<Room, PgError> {
        let (volume, path) = (self.paths.pg_volume(), self.paths.pg_reserve());
        let Extent { total_bytes: total, free_bytes: free } = files::extent(&volume)?;
        let reserve = match std::fs::symlink_metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Ok(Err(error).at("look at", &path)?),
        };
        let (full_percent, step) = judge(total, free, reserve);
        match step {
            Step::Give => {
                tracing::error!(bytes = reserve, "the volume is full: the reserve is given up");
                files::remove(&path)?;
            }
            Step::Make => {
                let bytes = (total / 100).clamp(RESERVE_BYTES.0, RESERVE_BYTES.1);
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).at("create", &path)?;
                rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes).at("reserve room in", &path)?;
            }
            Step::Nothing => {}
        }
        Ok(Room {
            full_percent,
            reserved: if step == Step::Nothing { reserve != 0 } else { step == Step::Make },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_given_up_when_full_and_made_again_when_there_is_room() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(judge(1000 * MIB, 500 * MIB, 0), (50, Step::Make));
        assert_eq!(judge(1000 * MIB, 484 * MIB, 16 * MIB), (50, Step::Nothing));
        assert_eq!(judge(1000 * MIB, MIB, 16 * MIB), (99, Step::Give));
        assert_eq!(judge(1000 * MIB, 17 * MIB, 0), (99, Step::Nothing), "given up, and still full");
        assert_eq!(judge(0, 0, 0), (0, Step::Nothing));
    }
}
