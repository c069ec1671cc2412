//! The states that a power cut could have left on a disk with a volatile cache.
//!
//! What was flushed is there. Of what was written after the last flush any part may be there: a beginning, all but one, one
//! alone, one torn at a sector, any other selection.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::log::Record;
use crate::random::next;

const SECTOR: u64 = 512;
/// Random selections over the whole recording, at least, and for each write.
const DRAWN: usize = 12_000;
const DRAWN_PER_WRITE: usize = 4;

/// Which of the writes since the last flush are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// For each write: is it there?
    pub there: Vec<bool>,
    /// The write with this number is there up to so many bytes only.
    pub torn: Option<(usize, u64)>,
}

/// A disk that is taken through what was recorded, flush by flush.
#[derive(Debug)]
pub struct Replay<'a> {
    disk: &'a File,
    left: &'a [Record],
    drawn_per_write: usize,
    random: u64,
}

impl<'a> Replay<'a> {
    /// Begins with a disk as it was before the first record.
    pub fn new(disk: &'a File, records: &'a [Record]) -> Self {
        // A machine that was quick to write has left fewer and larger writes: more is drawn of each.
        let drawn_per_write = DRAWN.div_ceil(records.len().max(1)).max(DRAWN_PER_WRITE);
        Self { disk, left: records, drawn_per_write, random: 0x5eed }
    }

    /// The writes up to the next flush; `None` at the end of the recording.
    pub fn epoch(&self) -> Option<&'a [Record]> {
        let end = self.left.iter().position(|record| *record == Record::Flush).unwrap_or(self.left.len());
        (!self.left.is_empty()).then(|| &self.left[..end])
    }

    /// Goes past the next flush.
    pub fn advance(&mut self) -> io::Result<()> {
        let Some(epoch) = self.epoch() else { return Ok(()) };
        epoch.iter().try_for_each(|record| record.apply(self.disk))?;
        self.left = &self.left[(epoch.len() + 1).min(self.left.len())..];
        Ok(())
    }

    /// What a power cut before the next flush could leave of the writes since the last one.
    pub fn selections(&mut self) -> Vec<Selection> {
        let Some(epoch) = self.epoch() else { return Vec::new() };
        let count = epoch.len();
        let mut all: Vec<Selection> = Vec::new();
        let mut add = |there: Vec<bool>, torn| all.push(Selection { there, torn });
        for (n, record) in epoch.iter().enumerate() {
            add((0..count).map(|at| at < n).collect(), None);
            if count > 1 {
                add((0..count).map(|at| at != n).collect(), None);
            }
            if n > 0 {
                add((0..count).map(|at| at == n).collect(), None);
            }
            let sectors = record.range().map_or(0, |(_, length)| length / SECTOR);
            if sectors > 1 {
                let torn = Some((n, (1 + self.random % (sectors - 1)) * SECTOR));
                add((0..count).map(|at| at <= n).collect(), torn);
            }
            self.random = next(self.random);
        }
        for _ in 0..if count > 2 { count * self.drawn_per_write } else { 0 } {
            let drawn = (0..count).map(|_| {
                self.random = next(self.random);
                self.random & 1 == 0
            });
            all.push(Selection { there: drawn.collect(), torn: None });
        }
        all
    }

    /// A state of the disk to read from, without making it.
    pub fn view(&self, selection: &Selection) -> View<'a> {
        let epoch = self.epoch().unwrap_or_default();
        let there = epoch.iter().enumerate().filter(|(at, _)| selection.there[*at]);
        let length = |at, record: &Record| match selection.torn {
            Some((torn, length)) if torn == at => length,
            _ => record.range().map_or(0, |(_, length)| length),
        };
        View {
            disk: self.disk,
            writes: there.map(|(at, record)| (record, length(at, record))).collect(),
            at: 0,
        }
    }

    /// Puts the disk into a state, lets `look` see it, and takes it back. `look` must not change the disk.
    pub fn with<T>(&self, selection: &Selection, look: impl FnOnce(&File) -> T) -> io::Result<T> {
        let epoch = self.epoch().unwrap_or_default();
        let mut before = Vec::new();
        for (at, record) in epoch.iter().enumerate().filter(|(at, _)| selection.there[*at]) {
            if let Some((offset, length)) = record.range() {
                before.extend(saved(self.disk, offset, length)?);
            }
            match selection.torn.filter(|(torn, _)| *torn == at) {
                Some((_, length)) => record.apply_part(self.disk, length)?,
                None => record.apply(self.disk)?,
            }
        }
        let seen = look(self.disk);
        before.iter().rev().try_for_each(|record| record.apply(self.disk))?;
        Ok(seen)
    }
}

/// A disk as it was at the last flush, with some of the writes since.
#[derive(Debug)]
pub struct View<'a> {
    disk: &'a File,
    /// In their order, each with the length that is there.
    writes: Vec<(&'a Record, u64)>,
    at: u64,
}

impl View<'_> {
    /// As [`FileExt::read_exact_at`].
    pub fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.disk.read_exact_at(bytes, at)?;
        let end = at + bytes.len() as u64;
        for (record, length) in &self.writes {
            let Some((from, _)) = record.range() else { continue };
            let (first, last) = (from.max(at), (from + length).min(end));
            if first < last {
                let here = &mut bytes[(first - at) as usize..(last - at) as usize];
                match record {
                    Record::Write { bytes, .. } => {
                        here.copy_from_slice(&bytes[(first - from) as usize..(last - from) as usize]);
                    }
                    Record::Zeroes { .. } | Record::Flush => here.fill(0),
                }
            }
        }
        Ok(())
    }
}

impl Read for View<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.metadata()?.len().saturating_sub(self.at);
        let length = bytes.len().min(left as usize);
        self.read_exact_at(&mut bytes[..length], self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for View<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(by) => (self.at, by),
            SeekFrom::End(by) => (self.disk.metadata()?.len(), by),
        };
        self.at = from.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// What is needed to restore a range; stretches of zeroes are not kept.
fn saved(disk: &File, mut at: u64, mut length: u64) -> io::Result<Vec<Record>> {
    const BLOCK: u64 = 1 << 20;
    let mut all = Vec::new();
    while length > 0 {
        let part = length.min(BLOCK);
        let mut bytes = vec![0; part as usize];
        disk.read_exact_at(&mut bytes, at)?;
        all.push(if bytes.iter().all(|byte| *byte == 0) {
            Record::Zeroes { at, length: part }
        } else {
            Record::Write { at, bytes }
        });
        at += part;
        length -= part;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn write(at: u64, byte: u8) -> Record {
        Record::Write { at, bytes: vec![byte; 1024] }
    }

    #[test]
    fn pieces_are_the_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for record in [Record::Write { at: 512, bytes }, Record::Zeroes { at: 0, length: 5000 }] {
            let pieces = record.pieces(512, 4);
            let ranges: Vec<_> = pieces.iter().filter_map(Record::range).collect();
            let (at, length) = record.range().expect("it has one");
            assert_eq!((ranges.len(), ranges[0].0), (4, at));
            assert!(ranges.windows(2).all(|two| two[0].0 + two[0].1 == two[1].0 && two[0].1 % 512 == 0));
            assert_eq!(ranges.iter().map(|range| range.1).sum::<u64>(), length);
        }
        assert_eq!(Record::Flush.pieces(512, 4), [Record::Flush]);
    }

    #[test]
    fn only_what_was_flushed_is_sure() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(8192).unwrap();
        let records =
            [write(0, 1), Record::Flush, write(0, 2), write(1024, 3), Record::Zeroes { at: 0, length: 512 }];
        let mut replay = Replay::new(&disk, &records);
        let mut epochs = Vec::new();
        while replay.epoch().is_some() {
            let mut seen = BTreeSet::new();
            for selection in replay.selections() {
                let state = replay.with(&selection, |disk| {
                    let mut bytes = [0; 2048];
                    disk.read_exact_at(&mut bytes, 0).unwrap();
                    [bytes[0], bytes[600], bytes[1024], bytes[1600]]
                });
                let mut bytes = [0; 2048];
                replay.view(&selection).read_exact_at(&mut bytes, 0).unwrap();
                let viewed = [bytes[0], bytes[600], bytes[1024], bytes[1600]];
                assert_eq!(
                    state.as_ref().unwrap(),
                    &viewed,
                    "a view is what the disk would be: {selection:?}"
                );
                seen.insert(state.unwrap());
            }
            epochs.push(seen);
            replay.advance().unwrap();
        }
        assert_eq!(epochs[0], [[0; 4], [1, 0, 0, 0]].into());
        assert!(
            epochs[1].iter().all(|state| state[1] != 0),
            "what was flushed is never lost: {:?}",
            epochs[1]
        );
        for possible in [[1, 1, 0, 0], [2, 2, 0, 0], [1, 1, 3, 3], [2, 1, 0, 0], [0, 1, 0, 0], [2, 2, 3, 3]] {
            assert!(epochs[1].contains(&possible), "{possible:?} can happen: {:?}", epochs[1]);
        }
        let mut end = [0; 2048];
        disk.read_exact_at(&mut end, 0).unwrap();
        assert_eq!((end[0], end[600], end[1600]), (0, 2, 3), "in the end all is there");
    }
}
