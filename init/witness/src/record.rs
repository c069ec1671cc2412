//! What is kept on disk of each cluster, and of the codes that are open: two slots a file, each with a checksum.

use dyad_channel::PublicKey;
use dyad_channel::secret::Secret;
use dyad_channel::witness::LEASE_MS;
use dyad_cluster::arbiter::Durable;
use dyad_cluster::disk::{self, DiskError, SLOT_BYTES, Stored};
use dyad_cluster::message::{RESOURCES_MAX, Registers};
use dyad_cluster::types::{BootId, ClusterId};
use serde::{Deserialize, Serialize};

/// Size of a file: it never changes, so that a write needs no new room.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;
/// Codes that may be open at a time.
pub const CODES_MAX: usize = 16;
/// File of the open codes.
pub(crate) const CODES: &str = "codes.state";
const CLUSTER_SUFFIX: &str = ".cluster";

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub cluster: ClusterId,
    /// In force, once both members have enrolled.
    pub standing: Option<Standing>,
    /// An enrolment that waits for the other member.
    pub pending: Option<Pending>,
}

impl Stored for Record {
    const KIND: u8 = 16;
}

impl Stored for Codes {
    const KIND: u8 = 17;
}

/// What both members agreed on, and the arbiter's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Their keys, the lower one first.
    pub members: [PublicKey; 2],
    /// T.
    pub lease_ms: u64,
    /// Of the code with which this came; a member that asks again is told again.
    pub code: Secret,
    /// The arbiter's.
    pub durable: Durable,
}

/// Half of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// As the first one named them.
    pub members: [PublicKey; 2],
    /// T, as the first one named it.
    pub lease_ms: u64,
    /// Of the code; it was spent on this cluster.
    pub code: Secret,
    /// Boot and mirror of the members that have come.
    pub brought: [Option<(BootId, Registers)>; 2],
}

/// Codes that nobody has used yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Codes {
    /// At most [`CODES_MAX`].
    pub open: Vec<Secret>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    /// The newest whole slot's.
    pub value: T,
    /// Its number; the next write takes the following one.
    pub sequence: u64,
    /// Both slots are whole. If not, a write was cut off, or the disk lost one that had been answered.
    pub both_whole: bool,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No slot can be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file of another length.
    #[error("file of {0} bytes, a state file has {FILE_BYTES}")]
    Length(usize),
    /// The content contradicts itself or the file's name.
    #[error("the content is not one that this program writes: {0}")]
    Content(&'static str),
}

/// A new file with the value in both slots.
pub(crate) fn whole_file<T: Stored>(value: &T) -> Result<Vec<u8>, DiskError> {
    let mut file = vec![0; FILE_BYTES];
    for sequence in FIRST_SEQUENCE - 1..=FIRST_SEQUENCE {
        let (offset, slot) = disk::encode(sequence, value)?;
        let offset = usize::try_from(offset).unwrap_or_default();
        file[offset..offset + SLOT_BYTES].copy_from_slice(&slot);
    }
    Ok(file)
}

/// Of the newest slot in a file of [`whole_file`].
pub(crate) const FIRST_SEQUENCE: u64 = 1;

/// Any bytes are a file's value or an error.
pub fn read<T: Stored>(file: &[u8]) -> Result<Read<T>, RecordError> {
    if file.len() != FILE_BYTES {
        return Err(RecordError::Length(file.len()));
    }
    let (sequence, value) = disk::decode(file)?;
    let both_whole = file.chunks(SLOT_BYTES).all(|slot| disk::decode::<T>(slot).is_ok());
    Ok(Read { value, sequence, both_whole })
}

/// A cluster's file: for fuzzers too.
pub fn read_record(file: &[u8]) -> Result<Read<Record>, RecordError> {
    let read: Read<Record> = read(file)?;
    read.value.check().map_err(RecordError::Content)?;
    Ok(read)
}

/// Name of a cluster's file.
pub(crate) fn file_name(cluster: ClusterId) -> String {
    format!("{:032x}{CLUSTER_SUFFIX}", cluster.0)
}

/// The cluster whose file has this name.
pub(crate) fn cluster_of(name: &str) -> Option<ClusterId> {
    let id = u128::from_str_radix(name.strip_suffix(CLUSTER_SUFFIX)?, 16).ok().map(ClusterId)?;
    (file_name(id) == name).then_some(id)
}

impl Record {
    /// Keys that may speak for this cluster.
    pub(crate) fn keys(&self) -> Vec<PublicKey> {
        let standing = self.standing.iter().flat_map(|s| s.members);
        let mut keys: Vec<_> = standing.chain(self.pending.iter().flat_map(|p| p.members)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn check(&self) -> Result<(), &'static str> {
        let agreed =
            |members: &[PublicKey; 2], lease_ms| members[0] < members[1] && LEASE_MS.contains(lease_ms);
        if self.standing.is_none() && self.pending.is_none() {
            return Err("a cluster that nobody has enrolled");
        }
        if let Some(standing) = &self.standing {
            if !agreed(&standing.members, &standing.lease_ms) {
                return Err("members out of order or T out of bounds");
            }
            if standing.durable.registers.len() > RESOURCES_MAX {
                return Err("more registers than a cluster has");
            }
        }
        if let Some(pending) = &self.pending {
            if !agreed(&pending.members, &pending.lease_ms) {
                return Err("members out of order or T out of bounds");
            }
            if pending.brought.iter().all(Option::is_none) {
                return Err("an enrolment that nobody has begun");
            }
            if pending.brought.iter().flatten().any(|(_, mirror)| mirror.len() > RESOURCES_MAX) {
                return Err("more registers than a cluster has");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_channel::secret::Code;
    use dyad_cluster::message::Verdict;
    use dyad_cluster::register::{Mode, Reason, Register};
    use dyad_cluster::types::{Epoch, Node, Pact, RequestId, ResourceId};
    use proptest::prelude::*;

    fn full() -> Record {
        let pact = Pact { epoch: Epoch(u64::MAX), attempt: u32::MAX, nonce: u64::MAX };
        let register = Register {
            epoch: Epoch(u64::MAX),
            mode: Mode::Sync(pact),
            holder: Node::B,
            reason: Reason::Forced,
        };
        let boot = BootId { count: u64::MAX, nonce: u64::MAX };
        let resources = || (0..RESOURCES_MAX as u16).map(|n| ResourceId(u16::MAX - n));
        let answered = Some((RequestId(u64::MAX), vec![Verdict::HolderAlive; RESOURCES_MAX]));
        let members = [PublicKey([1; 32]), PublicKey([2; 32])];
        let mirror: Registers = resources().map(|r| (r, register)).collect();
        Record {
            cluster: ClusterId(u128::MAX),
            standing: Some(Standing {
                members,
                lease_ms: 120_000,
                code: Code::draw().secret(),
                durable: Durable {
                    registers: resources().map(|r| (r, register)).collect(),
                    holder_boots: resources().map(|r| (r, boot)).collect(),
                    answered: [answered.clone(), answered],
                    boots: [Some(boot); 2],
                },
            }),
            pending: Some(Pending {
                members,
                lease_ms: 120_000,
                code: Code::draw().secret(),
                brought: [Some((boot, mirror.clone())), Some((boot, mirror))],
            }),
        }
    }

    #[test]
    fn the_largest_record_fits() {
        let file = whole_file(&full()).unwrap();
        let read = read_record(&file).unwrap();
        assert_eq!(read.value.cluster, ClusterId(u128::MAX));
        assert!(read.both_whole);
        let codes = Codes { open: (0..CODES_MAX).map(|_| Code::draw().secret()).collect() };
        assert_eq!(super::read::<Codes>(&whole_file(&codes).unwrap()).unwrap().value, codes);
    }

    #[test]
    fn what_this_program_would_not_write_is_refused() {
        let refused = |record: &Record| read_record(&whole_file(record).unwrap()).unwrap_err();
        let nobody = Record { standing: None, pending: None, ..full() };
        assert_eq!(refused(&nobody), RecordError::Content("a cluster that nobody has enrolled"));
        let mut swapped = full();
        swapped.standing.as_mut().unwrap().members.reverse();
        assert_eq!(refused(&swapped), RecordError::Content("members out of order or T out of bounds"));
        let mut empty = full();
        empty.pending.as_mut().unwrap().brought = [None, None];
        assert_eq!(refused(&empty), RecordError::Content("an enrolment that nobody has begun"));
        assert_eq!(read_record(&[0; 100]).unwrap_err(), RecordError::Length(100));
        assert_eq!(read_record(&[0; FILE_BYTES]).unwrap_err(), RecordError::Disk(DiskError::Unreadable));
    }

    #[test]
    fn names_and_clusters_are_one_to_one() {
        let id = ClusterId(0xab);
        assert_eq!(cluster_of(&file_name(id)), Some(id));
        for name in ["ab.cluster", "codes.state", "+00000000000000000000000000000ab.cluster", ".cluster"] {
            assert_eq!(cluster_of(name), None, "{name}");
        }
    }

    proptest! {
        /// The other slot speaks, and it is told that one is gone; a flip in the padding is nothing.
        #[test]
        fn a_flipped_bit_is_noticed(at in 0..FILE_BYTES, bit in 0..8u32) {
            let record = full();
            let mut file = whole_file(&record).unwrap();
            file[at] ^= 1 << bit;
            prop_assert_eq!(read_record(&file).unwrap().value, record);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>, at in 0..FILE_BYTES) {
            let mut file = whole_file(&full()).unwrap();
            let end = (at + bytes.len()).min(FILE_BYTES);
            file[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = read_record(&file);
            prop_assert!(read_record(&bytes).is_err());
        }
    }
}
