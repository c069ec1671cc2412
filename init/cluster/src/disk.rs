//! What a node keeps on its `state` partition: mirror with intent, and a marker for each resource; and how it is laid
//! out so that a torn write or a flipped byte is noticed and the older slot still speaks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::Cas;
use crate::register::Register;
use crate::types::{Epoch, Generation, Pact, RequestId, ResourceId, SystemId, Timeline};

/// The last values known of all registers, and what this node needs to remember about its own asking.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mirror {
    /// Last register known of each resource.
    pub registers: BTreeMap<ResourceId, Register>,
    /// What was asked for and has no answer yet.
    pub intent: Option<Intent>,
    /// Last request id used.
    pub request: RequestId,
    /// The data generation with which this node won each resource that it holds (rule 5).
    pub won: BTreeMap<ResourceId, Generation>,
    /// Resources that this node goes on with at this epoch, the standby having renounced (rule 10).
    pub no_arbiter: BTreeMap<ResourceId, Epoch>,
}

/// A batch that was, or is about to be, sent (rule 6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Intent {
    /// Its id.
    pub request: RequestId,
    /// Its changes, each with the data generation on this node's disk when it asked.
    pub items: Vec<(Cas, Generation)>,
}

/// "Everything that the holder acknowledges under this pact is on my disk."
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Marker {
    /// The promise.
    pub pact: Pact,
    /// Of the data.
    pub system: SystemId,
    /// Of the data.
    pub timeline: Timeline,
    /// Of the data.
    pub generation: Generation,
}

/// A resource's marker file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct MarkerFile {
    /// Newest pact ever marked, kept when the marker is cleared: no promise is marked twice.
    pub last: Option<Pact>,
    /// The marker, if it stands.
    pub marker: Option<Marker>,
}

/// What a two-slot file may hold. The kind and the format's version are the first bytes of a slot's body, so that no file
/// is ever read as something that it is not.
pub trait Stored: Serialize + for<'a> Deserialize<'a> {
    /// Tells files apart.
    const KIND: u8;
}

impl Stored for Mirror {
    const KIND: u8 = 1;
}

impl Stored for MarkerFile {
    const KIND: u8 = 2;
}

impl Stored for crate::arbiter::Durable {
    const KIND: u8 = 3;
}

/// Version of the bodies; another one is refused by name, never guessed at.
const VERSION: u8 = 1;
/// Size of one slot; a file has two. Bounds what a mirror of [`crate::message::RESOURCES_MAX`] resources can need.
pub const SLOT_BYTES: usize = 16 << 10;
const MAGIC: [u8; 8] = *b"DyadSlt1";
const HEADER_BYTES: usize = 8 + 8 + 4;
const CRC_BYTES: usize = 4;

/// Why a file cannot be read or a value not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Neither slot is whole.
    #[error("neither of the two slots is whole: magic, length or checksum is wrong in both")]
    Unreadable,
    /// The checksum holds but the content is not what it should be: another version wrote it.
    #[error(
        "slot with sequence {sequence} is whole but of version {version} and kind {kind}, not what belongs here: \
         it was written by another program or release"
    )]
    Foreign {
        /// Of the slot.
        sequence: u64,
        /// First byte of its body.
        version: u8,
        /// Second byte.
        kind: u8,
    },
    /// The value does not fit.
    #[error("value of {0} bytes does not fit into a slot of {SLOT_BYTES}")]
    TooLarge(usize),
}

/// The bytes of one slot, and the offset in the file where they go: never over the newest whole slot.
pub fn encode<T: Stored>(sequence: u64, value: &T) -> Result<(u64, Vec<u8>), DiskError> {
    let body =
        postcard::to_extend(value, vec![VERSION, T::KIND]).map_err(|_| DiskError::TooLarge(usize::MAX))?;
    if HEADER_BYTES + body.len() + CRC_BYTES > SLOT_BYTES {
        return Err(DiskError::TooLarge(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| DiskError::TooLarge(body.len()))?;
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&sequence.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&body);
    let crc = crc32fast::hash(&slot);
    slot.extend_from_slice(&crc.to_le_bytes());
    slot.resize(SLOT_BYTES, 0);
    Ok(((sequence % 2) * SLOT_BYTES as u64, slot))
}

/// The newest whole slot of a file: its sequence number (the next write takes the following one) and its value.
pub fn decode<T: Stored>(file: &[u8]) -> Result<(u64, T), DiskError> {
    let newest = file.chunks(SLOT_BYTES).take(2).filter_map(whole).max_by_key(|(sequence, _)| *sequence);
    let (sequence, body) = newest.ok_or(DiskError::Unreadable)?;
    let head = |at: usize| body.get(at).copied().unwrap_or_default();
    let foreign = DiskError::Foreign { sequence, version: head(0), kind: head(1) };
    let Some(body) = body.strip_prefix(&[VERSION, T::KIND]) else { return Err(foreign) };
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok((sequence, value)),
        Ok(_) | Err(_) => Err(foreign),
    }
}

fn whole(slot: &[u8]) -> Option<(u64, &[u8])> {
    let rest = slot.strip_prefix(&MAGIC)?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let body = rest.get(..length)?;
    let crc = rest.get(length..)?.first_chunk::<CRC_BYTES>()?;
    let sum = crc32fast::hash(&slot[..HEADER_BYTES + length]);
    (sum == u32::from_le_bytes(*crc)).then_some((u64::from_le_bytes(*sequence), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(first: &Mirror, second: &Mirror) -> Vec<u8> {
        let mut file = vec![0; 2 * SLOT_BYTES];
        for (sequence, value) in [(4, first), (5, second)] {
            let (at, slot) = encode(sequence, value).unwrap();
            file[at as usize..at as usize + SLOT_BYTES].copy_from_slice(&slot);
        }
        file
    }

    fn mirror(request: u64) -> Mirror {
        Mirror { request: RequestId(request), ..Mirror::default() }
    }

    #[test]
    fn newest_whole_slot_speaks() {
        assert_eq!(decode(&file(&mirror(1), &mirror(2))), Ok((5, mirror(2))));
        assert_eq!(decode::<Mirror>(&[0; 2 * SLOT_BYTES]), Err(DiskError::Unreadable));
        assert_eq!(decode::<Mirror>(&[]), Err(DiskError::Unreadable));
    }

    #[test]
    fn no_file_is_read_as_another() {
        let (_, slot) = encode(7, &mirror(1)).unwrap();
        let foreign = Err(DiskError::Foreign { sequence: 7, version: 1, kind: 1 });
        assert_eq!(decode::<MarkerFile>(&slot), foreign);
    }

    #[test]
    fn sixty_four_resources_fit() {
        let register = Register {
            epoch: Epoch(u64::MAX),
            mode: crate::register::Mode::Sync(Pact {
                epoch: Epoch(u64::MAX),
                attempt: u32::MAX,
                nonce: u64::MAX,
            }),
            holder: crate::types::Node::B,
            reason: crate::register::Reason::Forced,
        };
        let all = || (0..crate::message::RESOURCES_MAX as u16).map(|i| ResourceId(u16::MAX - i));
        let change =
            crate::register::Change::TakeOver(Pact { epoch: Epoch(u64::MAX), attempt: 9, nonce: u64::MAX });
        let cas = |resource| Cas { resource, expect: Epoch(u64::MAX), change };
        let mirror = Mirror {
            registers: all().map(|r| (r, register)).collect(),
            intent: Some(Intent {
                request: RequestId(u64::MAX),
                items: all().map(|r| (cas(r), Generation(u64::MAX))).collect(),
            }),
            request: RequestId(u64::MAX),
            won: all().map(|r| (r, Generation(u64::MAX))).collect(),
            no_arbiter: all().map(|r| (r, Epoch(u64::MAX))).collect(),
        };
        let (_, slot) = encode(1, &mirror).unwrap();
        assert_eq!(decode(&slot), Ok((1, mirror)));
    }

    proptest! {
        /// A flipped byte anywhere is noticed: the other slot answers, or (in a slot's padding) nothing changes.
        #[test]
        fn flipped_byte(at in 0..2 * SLOT_BYTES, bit in 0..8u32) {
            let mut bytes = file(&mirror(1), &mirror(2));
            bytes[at] ^= 1 << bit;
            let (_, read): (_, Mirror) = decode(&bytes).unwrap();
            prop_assert!(read == mirror(1) || read == mirror(2));
            if at < SLOT_BYTES { prop_assert_eq!(read, mirror(2)); }
        }

        /// A write that was cut anywhere leaves the older value or the new one, whole.
        #[test]
        fn torn_write(cut in 0..SLOT_BYTES) {
            let mut bytes = file(&mirror(1), &mirror(2));
            let (at, slot) = encode(6, &mirror(3)).unwrap();
            let at = at as usize;
            bytes[at..at + cut].copy_from_slice(&slot[..cut]);
            let (_, read): (_, Mirror) = decode(&bytes).unwrap();
            prop_assert!(read == mirror(2) || read == mirror(3));
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<Mirror>(&bytes).is_err());
        }
    }
}
