//! Timelines: where two histories part.

use crate::pg::lsn::Lsn;

/// One history: each timeline with the position where the next one leaves it; the last goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History(Vec<(u32, Lsn)>);

/// A history file that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("history of timeline {timeline}: line {line:?}; expected a timeline, a position and a reason")]
pub struct HistoryError {
    timeline: u32,
    line: String,
}

/// The last position that two histories share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fork {
    /// On which timeline.
    pub(crate) timeline: u32,
    /// Where the first of them leaves it; the end of all positions when neither does.
    pub(crate) at: Lsn,
}

const NEVER: Lsn = Lsn(u64::MAX);

impl History {
    /// Of `timeline`, from the text of its history file; the first timeline has none.
    pub(crate) fn parse(timeline: u32, text: &str) -> Result<Self, HistoryError> {
        let mut all = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let entry = words
                .next()
                .and_then(|word| word.parse().ok())
                .zip(words.next().and_then(|w| w.parse().ok()));
            all.push(entry.ok_or_else(|| HistoryError { timeline, line: line.to_owned() })?);
        }
        all.push((timeline, NEVER));
        Ok(Self(all))
    }

    /// Where it parts from another; `None`: nothing in common.
    pub(crate) fn fork(&self, other: &Self) -> Option<Fork> {
        let mut last = None;
        for ((timeline, end), (other_timeline, other_end)) in self.0.iter().zip(&other.0) {
            if timeline != other_timeline {
                break;
            }
            last = Some(Fork { timeline: *timeline, at: (*end).min(*other_end) });
            if end != other_end {
                break;
            }
        }
        last
    }

    /// The timeline it is on.
    pub(crate) fn current(&self) -> u32 {
        self.0.last().map_or(0, |(timeline, _)| *timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, text: &str) -> History {
        History::parse(timeline, text).unwrap()
    }

    #[test]
    fn forks_lie_where_the_first_history_leaves_the_common_timeline() {
        let one = history(1, "");
        let two = history(2, "1\t0/3000060\tno recovery target specified\n");
        let other_two = history(2, "1\t0/2000000\tno recovery target specified\n");
        let three = history(3, "1\t0/3000060\tx\n\n2\t0/5000000\ty\n");
        let fork = |timeline, at: &str| Some(Fork { timeline, at: at.parse().unwrap() });
        assert_eq!(one.fork(&two), fork(1, "0/3000060"));
        assert_eq!(three.fork(&one), fork(1, "0/3000060"));
        assert_eq!(two.fork(&three), fork(2, "0/5000000"));
        assert_eq!(two.fork(&other_two), fork(1, "0/2000000"), "the same number, another timeline");
        assert_eq!(one.fork(&one), Some(Fork { timeline: 1, at: NEVER }));
        assert_eq!(three.current(), 3);
        assert!(History::parse(2, "one\n").unwrap_err().to_string().contains("\"one\""));
    }
}
