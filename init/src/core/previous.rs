//! How this and the former boot ended: told to a helper process that writes it on the state partition.

use super::{Core, jobs};
use crate::log::{info, warning};
use crate::record::Record;

/// Longest time for one record.
const RECORD_MS: u32 = 10_000;

impl Core {
    /// Has this written down; of several that wait for a slow disk only the last one counts.
    pub(super) fn record(&mut self, record: &Record) {
        let [word, reason] = record.words();
        self.book.record = Some((word.to_owned(), reason.to_owned()));
        self.next_record();
    }

    /// Starts the helper, unless one is at it or the state partition is not there.
    pub(super) fn next_record(&mut self) {
        let state_is_there =
            self.book.phases.iter().any(|phase| phase.name == "state" && phase.state.is_done());
        if !state_is_there || self.jobs.runs(jobs::Kind::Record) {
            return;
        }
        let Some((word, reason)) = self.book.record.take() else { return };
        let words = ["record", &word, &reason];
        if let Err(error) = self.start_helper(&words, jobs::Kind::Record, RECORD_MS) {
            warning!("cannot record how this boot ends: {error}");
        }
    }

    /// What the helper found there, and the next one.
    pub(super) fn recorded(&mut self, found: &[u8], failure: Option<&str>) {
        if let Some(reason) = failure {
            warning!("cannot record how this boot ends: {reason}");
        }
        let found = String::from_utf8_lossy(found);
        // The first record of a boot finds the last one of the boot before it; later ones find those of this boot.
        if !std::mem::replace(&mut self.book.previous_known, true) && !found.trim().is_empty() {
            found.trim().clone_into(&mut self.book.previous);
            info!("the boot before this one ended: {}", self.book.previous);
        }
        self.next_record();
    }
}
