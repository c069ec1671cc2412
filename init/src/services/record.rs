//! A service's state as bytes of fixed layout: what a new image of PID 1 reads after a crash of the old one.

use dyad_api::control::ServiceState as State;

use super::{Ended, Slot, Why};

/// Bytes of a `STATUS=` text that are kept.
pub(crate) const NOTE_BYTES: usize = 96;
const BURST_AT: usize = 64 + NOTE_BYTES;
/// Length of a record.
pub(crate) const RECORD_BYTES: usize = 192;

const STATES: [State; 8] = [
    State::Stopped,
    State::Waiting,
    State::Starting,
    State::Ready,
    State::Done,
    State::Stopping,
    State::BackOff,
    State::Failed,
];

impl Slot {
    /// The record.
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        let state = STATES.iter().position(|s| *s == self.state).unwrap_or(0) as u8;
        let (last, last_value) = match self.last {
            Ended::Never => (0, 0),
            Ended::Status(status) => (1, status),
            Ended::Signal(signal) => (2, signal),
            Ended::Deadline => (3, 0),
            Ended::NotStarted(errno) => (4, errno),
        };
        let (why, why_value) = match self.why {
            Why::Nothing => (0, 0),
            Why::WaitsFor(id) => (1, id),
            Why::WaitsForPhases => (2, 0),
            Why::PhaseFailed(phase) => (3, u16::from(phase)),
            Why::StartTimeout => (4, 0),
            Why::Silent => (5, 0),
            Why::Unkillable => (6, 0),
            Why::GaveUp => (7, 0),
        };
        out[..8].copy_from_slice(&[
            state,
            u8::from(self.wanted),
            u8::from(self.dirty),
            last,
            why,
            self.rung,
            self.note_len,
            0,
        ]);
        out[8..12].copy_from_slice(&self.pid.to_le_bytes());
        out[12..16].copy_from_slice(&last_value.to_le_bytes());
        out[16..18].copy_from_slice(&why_value.to_le_bytes());
        out[18..20].copy_from_slice(&self.burst.to_le_bytes());
        out[20..24].copy_from_slice(&self.ready_after_ms.to_le_bytes());
        out[24..28].copy_from_slice(&self.restarts.to_le_bytes());
        out[28..32].copy_from_slice(&self.backoff_ms.to_le_bytes());
        for (at, time) in [self.since_ms, self.started_ms, self.deadline_ms, self.bark_ms].iter().enumerate()
        {
            out[32 + at * 8..40 + at * 8].copy_from_slice(&time.to_le_bytes());
        }
        out[64..BURST_AT].copy_from_slice(&self.note);
        out[BURST_AT..BURST_AT + 8].copy_from_slice(&self.burst_since_ms.to_le_bytes());
        out
    }

    /// Reads a record; `None` if a field has a value that is never written.
    pub(crate) fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let last_value = u32_at(12) as i32;
        let last = match bytes[3] {
            0 => Ended::Never,
            1 => Ended::Status(last_value),
            2 => Ended::Signal(last_value),
            3 => Ended::Deadline,
            4 => Ended::NotStarted(last_value),
            _ => return None,
        };
        let why = match bytes[4] {
            0 => Why::Nothing,
            1 => Why::WaitsFor(u16_at(16)),
            2 => Why::WaitsForPhases,
            3 => Why::PhaseFailed(u8::try_from(u16_at(16)).ok()?),
            4 => Why::StartTimeout,
            5 => Why::Silent,
            6 => Why::Unkillable,
            7 => Why::GaveUp,
            _ => return None,
        };
        let mut note = [0; NOTE_BYTES];
        note.copy_from_slice(&bytes[64..64 + NOTE_BYTES]);
        let note_len = bytes[6];
        std::str::from_utf8(note.get(..usize::from(note_len))?).ok()?;
        Some(Self {
            state: *STATES.get(usize::from(bytes[0]))?,
            wanted: bytes[1] != 0,
            dirty: bytes[2] != 0,
            pid: u32_at(8),
            since_ms: u64_at(32),
            started_ms: u64_at(40),
            ready_after_ms: u32_at(20),
            restarts: u32_at(24),
            backoff_ms: u32_at(28),
            last,
            why,
            rung: bytes[5],
            burst: u16_at(18),
            burst_since_ms: u64_at(BURST_AT),
            deadline_ms: u64_at(48),
            bark_ms: u64_at(56),
            note,
            note_len,
        })
    }

    /// The `STATUS=` text.
    pub(crate) fn note(&self) -> &str {
        self.note.get(..usize::from(self.note_len)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
    }
}
