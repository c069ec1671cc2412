//! What a stopped cluster says of itself: `pg_controldata`'s text. Starting the server to ask it could recycle log that a
//! rewind needs.

use std::collections::BTreeMap;

use crate::pg::lsn::{Lsn, SEGMENT_BYTES};

/// The part that decisions rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlData {
    /// Whose data.
    pub(crate) system: u64,
    /// It was shut down in order, and says so.
    pub(crate) clean: bool,
    /// Last checkpoint record.
    pub(crate) checkpoint: Lsn,
    /// Where replay begins.
    pub(crate) redo: Lsn,
    /// Recovery has written what is before this; 0/0 of a primary.
    pub(crate) recovered: Lsn,
    /// Highest timeline that it has reached.
    pub(crate) timeline: u32,
    /// What the primary that wrote it ran with: a standby that has less neither starts nor goes on.
    pub(crate) least: Least,
}

/// Settings of which a standby needs as much as its primary has, and what PostgreSQL has unless told otherwise.
pub(crate) const LEAST: [(&str, u64); 5] = [
    ("max_connections", 100),
    ("max_locks_per_transaction", 64),
    ("max_prepared_transactions", 0),
    ("max_wal_senders", 10),
    ("max_worker_processes", 8),
];

/// Values of [`LEAST`], in its order.
pub(crate) type Least = [u64; 5];

/// A line that is missing or says something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pg_controldata: {key:?} is {found:?}; expected {expected}")]
pub struct ControlError {
    key: &'static str,
    found: String,
    expected: &'static str,
}

/// Reads the program's output.
pub(crate) fn parse(text: &str) -> Result<ControlData, ControlError> {
    let lines: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let get = |key: &'static str| lines.get(key).copied().unwrap_or_default();
    let wrong = |key, expected| ControlError { key, found: get(key).to_owned(), expected };
    let number = |key| get(key).parse::<u64>().map_err(|_| wrong(key, "a number"));
    let position = |key| get(key).parse::<Lsn>().map_err(|_| wrong(key, "a position in the log"));
    let segment = "Bytes per WAL segment";
    if number(segment)? != SEGMENT_BYTES {
        return Err(wrong(segment, "16777216"));
    }
    let checkpoint = number("Latest checkpoint's TimeLineID")?;
    // A server that was promoted and ended before its first checkpoint has written the new timeline here alone.
    let recovery = number("Min recovery ending loc's timeline")?;
    let timeline = u32::try_from(checkpoint.max(recovery)).ok().filter(|timeline| *timeline != 0);
    Ok(ControlData {
        system: number("Database system identifier")?,
        clean: matches!(get("Database cluster state"), "shut down" | "shut down in recovery"),
        checkpoint: position("Latest checkpoint location")?,
        redo: position("Latest checkpoint's REDO location")?,
        recovered: position("Minimum recovery ending location")?,
        timeline: timeline.ok_or_else(|| wrong("Latest checkpoint's TimeLineID", "a timeline"))?,
        least: [
            number("max_connections setting")?,
            number("max_locks_per_xact setting")?,
            number("max_prepared_xacts setting")?,
            number("max_wal_senders setting")?,
            number("max_worker_processes setting")?,
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pg_control version number:            1300\n\
         Database system identifier:           7575757575757575757\n\
         Database cluster state:               shut down\n\
         Latest checkpoint location:           0/3000028\n\
         Latest checkpoint's REDO location:    0/3000028\n\
         Latest checkpoint's TimeLineID:       2\n\
         Minimum recovery ending location:     0/0\n\
         Min recovery ending loc's timeline:   0\n\
         max_connections setting:              30\n\
         max_worker_processes setting:         8\n\
         max_wal_senders setting:              10\n\
         max_prepared_xacts setting:           2\n\
         max_locks_per_xact setting:           64\n\
         Bytes per WAL segment:                16777216\n";

    #[test]
    fn the_text_is_read_and_a_wrong_line_is_named() {
        let data = parse(TEXT).unwrap();
        assert_eq!((data.system, data.timeline, data.clean), (7_575_757_575_757_575_757, 2, true));
        assert_eq!(data.redo.to_string(), "0/3000028");
        assert_eq!(data.least, [30, 64, 2, 10, 8]);
        let promoted = parse(&TEXT.replace("timeline:   0", "timeline:   3")).unwrap();
        assert_eq!(promoted.timeline, 3, "promoted, and no checkpoint since");
        let error = parse(&TEXT.replace("16777216", "1048576")).unwrap_err().to_string();
        assert!(error.contains("\"Bytes per WAL segment\" is \"1048576\"; expected 16777216"), "{error}");
        assert!(parse("").is_err());
    }
}
