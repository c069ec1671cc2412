//! The event log of a running node: everything that `step` was told, and what it answered, so that what happened on an
//! appliance can be played again at a desk, step by step.
//!
//! Layout: magic, then frames of `length u32 | crc32 of the body u32 | body`, little endian. A body is a version byte and
//! a postcard [`Entry`]. A log that ends within a frame was cut by a crash and is good up to there.

use serde::{Deserialize, Serialize};

use crate::action::Actions;
use crate::event::Event;
use crate::state::{Config, Found, State, step};
use crate::types::{BootId, Tick};

/// First bytes of a log.
pub const MAGIC: [u8; 8] = *b"DyadLog1";
/// Most bytes of one entry.
pub const ENTRY_BYTES_MAX: usize = 256 << 10;
/// First byte of an entry's body.
pub const VERSION: u8 = 2;
const FRAME_BYTES: usize = 8;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A supervisor started.
    Start {
        /// What it was configured for.
        config: Config,
        /// Its node's boot.
        boot: BootId,
        /// When.
        at: Tick,
        /// What it found.
        found: Found,
    },
    /// One step.
    Step {
        /// When.
        at: Tick,
        /// What was told.
        event: Event,
        /// What was answered.
        actions: Actions,
    },
    /// All that the core knew at this point: a log goes on in a new file, or after entries that were lost.
    Snapshot(Box<State>),
}

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Not a log.
    #[error("the file does not begin with \"DyadLog1\": it is no event log")]
    Magic,
    /// An entry is damaged.
    #[error("entry {entry} at byte {at}: the checksum does not match what is there")]
    Checksum {
        /// Counted from 0.
        entry: usize,
        /// Offset of its frame.
        at: usize,
    },
    /// Too long, another version, or not an entry.
    #[error(
        "entry {entry} at byte {at}: not an entry of version {VERSION} of at most {ENTRY_BYTES_MAX} bytes"
    )]
    Entry {
        /// Counted from 0.
        entry: usize,
        /// Offset of its frame.
        at: usize,
    },
    /// Steps before any start.
    #[error("entry {0}: a step before the first start")]
    NoStart(usize),
    /// The core answers something else now.
    #[error("entry {entry}: the log has {logged}, the core answers {answered}")]
    Differs {
        /// Counted from 0.
        entry: usize,
        /// Actions in the log.
        logged: String,
        /// Actions now.
        answered: String,
    },
}

/// The bytes of one entry, to be appended.
pub fn encode(entry: &Entry) -> Result<Vec<u8>, LogError> {
    let refused = LogError::Entry { entry: 0, at: 0 };
    let body = postcard::to_extend(entry, vec![VERSION]).map_err(|_| refused.clone())?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= ENTRY_BYTES_MAX).ok_or(refused)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(crc32fast::hash(&body).to_le_bytes());
    frame.extend(body);
    Ok(frame)
}

/// All whole entries.
pub fn decode(log: &[u8]) -> Result<Vec<Entry>, LogError> {
    let mut rest = log.strip_prefix(&MAGIC).ok_or(LogError::Magic)?;
    let mut entries = Vec::new();
    while let Some((frame, after)) = rest.split_first_chunk::<FRAME_BYTES>() {
        let (entry, at) = (entries.len(), log.len() - rest.len());
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *frame;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > ENTRY_BYTES_MAX {
            return Err(LogError::Entry { entry, at });
        }
        let Some((body, next)) = after.split_at_checked(length) else { break };
        if crc32fast::hash(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(LogError::Checksum { entry, at });
        }
        let decoded = match body.split_first() {
            Some((&VERSION, body)) => {
                postcard::take_from_bytes(body).ok().filter(|(_, left)| left.is_empty())
            }
            Some(_) | None => None,
        };
        entries.push(decoded.ok_or(LogError::Entry { entry, at })?.0);
        rest = next;
    }
    Ok(entries)
}

/// Plays a log again and shows the state after each step, with the step's tick. Steps of which no beginning is known are
/// passed over.
pub fn walk(entries: &[Entry], mut show: impl FnMut(&State, Tick)) {
    let mut state: Option<State> = None;
    for entry in entries {
        match entry {
            Entry::Start { config, boot, at, found } => {
                state = Some(State::new(config.clone(), *boot, *at, found.clone()));
            }
            Entry::Snapshot(known) => state = Some((**known).clone()),
            Entry::Step { at, event, .. } => {
                let Some(state) = &mut state else { continue };
                step(state, *at, event.clone());
                show(state, *at);
            }
        }
    }
}

/// Plays a log again. Ok: so many steps, each answered as it was then.
pub fn replay(entries: &[Entry]) -> Result<usize, LogError> {
    let mut state = None;
    let mut steps = 0;
    for (number, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Start { config, boot, at, found } => {
                state = Some(State::new(config.clone(), *boot, *at, found.clone()));
            }
            Entry::Snapshot(known) => state = Some((**known).clone()),
            Entry::Step { at, event, actions } => {
                let state = state.as_mut().ok_or(LogError::NoStart(number))?;
                let answered = step(state, *at, event.clone());
                if answered != *actions {
                    return Err(LogError::Differs {
                        entry: number,
                        logged: format!("{actions:?}"),
                        answered: format!("{answered:?}"),
                    });
                }
                steps += 1;
            }
        }
    }
    Ok(steps)
}
