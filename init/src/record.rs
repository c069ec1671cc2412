//! How the machine's boots ended, in a file of two slots on the state partition. Written by helper processes only: a disk
//! that hangs must not hang PID 1.
//!
//! A slot is `magic 8 | number 8 | length 2 | text | crc32 4 at its end`, 512 bytes; the slots stand 4096 bytes apart, so
//! that no write of one touches a block of the other. The slot with the higher number counts; the other one is written
//! next. A power cut can damage the slot being written, never both.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the file lies.
pub(crate) const FILE: &str = "/state/init/boots";
const MAGIC: [u8; 8] = *b"DYADBOOT";
/// Length of a slot, bytes.
pub const SLOT_BYTES: usize = 512;
/// From one slot to the other.
pub const SLOT_STRIDE: u64 = 4096;
const HEAD_BYTES: usize = 18;
/// Longest text of a record, bytes.
pub const TEXT_BYTES_MAX: usize = SLOT_BYTES - HEAD_BYTES - 4;

/// What the machine was at when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It ran.
    Running,
    /// The dead-man's deadline had passed and writers were being killed.
    Fenced,
    /// It was shutting down for this reason.
    Begun(String),
    /// It had shut down in order for this reason.
    Done(String),
}

impl Record {
    /// The words of a helper's command line.
    pub(crate) fn words(&self) -> [&str; 2] {
        match self {
            Record::Running => ["running", ""],
            Record::Fenced => ["fenced", ""],
            Record::Begun(reason) => ["begun", reason],
            Record::Done(reason) => ["done", reason],
        }
    }

    /// Reads them again.
    pub(crate) fn from_words(word: &str, reason: &str) -> Option<Self> {
        match word {
            "running" => Some(Record::Running),
            "fenced" => Some(Record::Fenced),
            "begun" => Some(Record::Begun(reason.to_owned())),
            "done" => Some(Record::Done(reason.to_owned())),
            _ => None,
        }
    }

    /// How a boot ended of which this is the last record, for a person.
    pub fn tell(&self) -> String {
        match self {
            Record::Running => "without a shutdown: power cut, reset or kernel panic".to_owned(),
            Record::Fenced => "reset after the dead-man's deadline".to_owned(),
            Record::Begun(reason) => format!("reset before the shutdown was complete: {reason}"),
            Record::Done(reason) => reason.clone(),
        }
    }

    /// The slot's bytes. A reason that is too long is cut.
    pub fn encode(&self, number: u64) -> [u8; SLOT_BYTES] {
        let text = self.words().join(" ");
        let cut =
            (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&MAGIC);
        slot[8..16].copy_from_slice(&number.to_le_bytes());
        slot[16..HEAD_BYTES].copy_from_slice(&(cut as u16).to_le_bytes());
        slot[HEAD_BYTES..HEAD_BYTES + cut].copy_from_slice(&text.as_bytes()[..cut]);
        let crc = crc32fast::hash(&slot[..SLOT_BYTES - 4]);
        slot[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    /// Reads a slot: its number and record; `None` if it was never written whole.
    pub fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let slot: &[u8; SLOT_BYTES] = slot.get(..SLOT_BYTES)?.try_into().ok()?;
        if slot[..8] != MAGIC
            || slot[SLOT_BYTES - 4..] != crc32fast::hash(&slot[..SLOT_BYTES - 4]).to_le_bytes()
        {
            return None;
        }
        let number = u64::from_le_bytes(slot[8..16].try_into().ok()?);
        let length = usize::from(u16::from_le_bytes([slot[16], slot[17]]));
        let text = std::str::from_utf8(slot.get(HEAD_BYTES..HEAD_BYTES + length)?).ok()?;
        let (word, reason) = text.split_once(' ').unwrap_or((text, ""));
        Some((number, Self::from_words(word, reason)?))
    }
}

/// The newest record in the file's bytes, its number and slot.
pub fn newest(file: &[u8]) -> Option<(u64, Record, usize)> {
    let slot = |at: usize| {
        let bytes = file.get(at * SLOT_STRIDE as usize..)?;
        Record::decode(bytes).map(|(number, record)| (number, record, at))
    };
    [slot(0), slot(1)].into_iter().flatten().max_by_key(|(number, ..)| *number)
}

/// Puts a record behind the newest one, durably; gives the record that was the newest.
pub(crate) fn append(path: &Path, record: &Record) -> io::Result<Option<Record>> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut bytes = vec![0; SLOT_STRIDE as usize + SLOT_BYTES];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    let before = newest(&bytes[..length]);
    let (number, slot) = before.as_ref().map_or((0, 0), |(number, _, at)| (number + 1, 1 - at));
    file.write_all_at(&record.encode(number), slot as u64 * SLOT_STRIDE)?;
    file.sync_all()?;
    if before.is_none() {
        // The file's name may be as new as its content.
        File::open(directory)?.sync_all()?;
    }
    Ok(before.map(|(_, record, _)| record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_record_counts_and_damage_falls_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("init/boots");
        assert_eq!(append(&path, &Record::Running).expect("written"), None);
        assert_eq!(
            append(&path, &Record::Begun("reboot: test".into())).expect("written"),
            Some(Record::Running)
        );
        let done = Record::Done("reboot: test".into());
        assert_eq!(append(&path, &done).expect("written"), Some(Record::Begun("reboot: test".into())));
        let mut bytes = fs::read(&path).expect("read");
        assert_eq!(newest(&bytes).map(|(number, record, _)| (number, record)), Some((2, done)));
        bytes[100] ^= 1;
        let older = newest(&bytes).map(|(number, record, _)| (number, record));
        assert_eq!(older, Some((1, Record::Begun("reboot: test".into()))));
    }

    proptest! {
        #[test]
        fn slots_round_trip_or_are_refused(
            number in any::<u64>(), reason in "\\PC{0,700}", at in 0..SLOT_BYTES, bit in 0..8u8,
        ) {
            let mut slot = Record::Begun(reason.clone()).encode(number);
            let Some((found, Record::Begun(text))) = Record::decode(&slot) else { panic!("no record") };
            prop_assert_eq!(found, number);
            prop_assert!(reason.starts_with(&text));
            slot[at] ^= 1 << bit;
            prop_assert_eq!(Record::decode(&slot), None);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            newest(&bytes);
        }
    }
}
