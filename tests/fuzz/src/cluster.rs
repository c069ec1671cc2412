//! What the pair and its witness say to each other, and what a node keeps of it on disk.

use dyad_channel::frame;
use dyad_channel::witness::{Call, FRAME_BYTES_MAX, Reply, decode_call, decode_reply};
use dyad_cluster::arbiter::Durable;
use dyad_cluster::disk::{self, MarkerFile, Mirror, SLOT_BYTES, Stored};
use dyad_cluster::eventlog;
use dyad_cluster::message::ToPeer;

/// Calls, replies and what node says to node: whatever is understood is said again in the same words.
pub(crate) fn wire(data: &[u8]) {
    fn again<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(message: &T) {
        if let Ok(frame) = frame::encode(message, FRAME_BYTES_MAX) {
            assert_eq!(frame::decode::<T>(&frame[4..]).as_ref(), Ok(message));
        }
    }
    if let Ok(call) = decode_call(data) {
        if let Call::Enroll(enroll) = &call.message {
            let _ = enroll.statement.check();
        }
        again(&call);
    }
    if let Ok(reply) = decode_reply(data) {
        if let Reply::Refused(why) = &reply.message {
            assert!(!why.to_string().is_empty());
        }
        again(&reply);
    }
    if let Ok(message) = frame::decode::<ToPeer>(data) {
        again(&message);
    }
}

/// Mirror, marker and arbiter's state: as bytes of a file, and as what a slot holds whose checksum is right.
pub(crate) fn mirror(data: &[u8]) {
    fn read<T: Stored + PartialEq + std::fmt::Debug>(file: &[u8]) {
        if let Ok((sequence, value)) = disk::decode::<T>(file)
            && let Ok((at, slot)) = disk::encode(sequence, &value)
        {
            assert_eq!(at, (sequence % 2) * SLOT_BYTES as u64);
            assert_eq!(disk::decode::<T>(&slot), Ok((sequence, value)));
        }
    }
    let sealed = |kind: u8| {
        let mut slot = b"DyadSlt1".to_vec();
        slot.extend(7u64.to_le_bytes());
        slot.extend((data.len() as u32 + 2).to_le_bytes());
        slot.extend([1, kind]);
        slot.extend(data);
        slot.extend(crc32fast::hash(&slot).to_le_bytes());
        slot
    };
    read::<Mirror>(data);
    read::<Mirror>(&sealed(Mirror::KIND));
    read::<MarkerFile>(&sealed(MarkerFile::KIND));
    read::<Durable>(&sealed(Durable::KIND));
}

/// An event log, and an entry whose checksum is right.
pub(crate) fn eventlog(data: &[u8]) {
    let again = |log: &[u8]| {
        if let Ok(entries) = eventlog::decode(log) {
            let mut bytes = eventlog::MAGIC.to_vec();
            entries
                .iter()
                .filter_map(|entry| eventlog::encode(entry).ok())
                .for_each(|frame| bytes.extend(frame));
            assert_eq!(eventlog::decode(&bytes), Ok(entries));
        }
    };
    again(data);
    let mut sealed = eventlog::MAGIC.to_vec();
    sealed.extend((data.len() as u32 + 1).to_le_bytes());
    let body = [&[eventlog::VERSION], data].concat();
    sealed.extend(crc32fast::hash(&body).to_le_bytes());
    sealed.extend(body);
    again(&sealed);
}
