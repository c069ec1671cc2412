//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// Bytes of a log segment: initdb's default, which `control` insists on.
pub(crate) const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of a log page.
pub(crate) const PAGE_BYTES: u64 = 8192;

/// A position in the log, in bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// File that holds this position on this timeline.
    pub(crate) fn segment(self, timeline: u32) -> String {
        let number = self.0 / SEGMENT_BYTES;
        format!("{timeline:08X}{:08X}{:08X}", number >> 8, number & 0xff)
    }

    /// Timeline and start of the segment with this file name; `None`: it is not the name of one.
    pub(crate) fn of_segment(name: &str) -> Option<(u32, Self)> {
        if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).ok();
        let (high, low) = (part(8)?, part(16).filter(|low| *low <= 0xff)?);
        Some((u32::try_from(part(0)?).ok()?, Lsn((high << 32) | (low * SEGMENT_BYTES))))
    }

    /// Offset in that file.
    pub(crate) fn offset(self) -> u64 {
        self.0 % SEGMENT_BYTES
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no position in the log; accepted: two hexadecimal numbers with a slash, such as 0/16B3748")]
pub struct NoLsn(String);

impl FromStr for Lsn {
    type Err = NoLsn;

    fn from_str(text: &str) -> Result<Self, NoLsn> {
        let halves = text.trim().split_once('/');
        let half = |text: &str| u32::from_str_radix(text, 16).ok();
        let value =
            halves.and_then(|(high, low)| Some((u64::from(half(high)?) << 32) | u64::from(half(low)?)));
        value.map(Lsn).ok_or_else(|| NoLsn(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_written_and_found_in_their_file() {
        let lsn: Lsn = "1/FF00A0B0".parse().unwrap();
        assert_eq!(lsn.to_string(), "1/FF00A0B0");
        assert_eq!(lsn.segment(3), "0000000300000001000000FF");
        assert_eq!(Lsn::of_segment(&lsn.segment(3)), Some((3, Lsn(lsn.0 - lsn.offset()))));
        for other in ["00000003.history", "0000000300000001000000FG", "000000030000000100000100", ""] {
            assert_eq!(Lsn::of_segment(other), None, "{other}");
        }
        assert_eq!(lsn.offset(), 0xa0b0);
        for wrong in ["", "/", "1", "g/1", "1/123456789", "-1/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }
}
