//! What a machine wrote, in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One thing that the disk was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bytes written at an offset.
    Write {
        /// Offset on the disk.
        at: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A range that reads as zeroes from then on.
    Zeroes {
        /// Offset on the disk.
        at: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Everything before is on stable storage once this was answered.
    Flush,
}

impl Record {
    /// The range that it changes: offset and length.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Record::Write { at, bytes } => Some((*at, bytes.len() as u64)),
            Record::Zeroes { at, length } => Some((*at, *length)),
            Record::Flush => None,
        }
    }

    /// The parts of which each can be on the disk without the others: a disk keeps whole sectors, not whole requests. At
    /// most `parts` of them, each a multiple of `block` bytes long.
    pub fn pieces(&self, block: u64, parts: u64) -> Vec<Record> {
        let Some((at, length)) = self.range() else { return vec![self.clone()] };
        let piece = length.div_ceil(parts).next_multiple_of(block).max(block);
        let starts = (0..length).step_by(piece as usize);
        let part = |from: u64| match self {
            Record::Write { bytes, .. } => {
                let to = (from + piece).min(length) as usize;
                Record::Write { at: at + from, bytes: bytes[from as usize..to].to_vec() }
            }
            Record::Zeroes { .. } => Record::Zeroes { at: at + from, length: piece.min(length - from) },
            Record::Flush => Record::Flush,
        };
        starts.map(part).collect()
    }

    /// Whether it changes something between two offsets.
    pub fn touches(&self, from: u64, to: u64) -> bool {
        self.range().is_some_and(|(at, length)| at < to && at + length > from)
    }

    /// Carries it out on a file.
    pub fn apply(&self, disk: &File) -> io::Result<()> {
        match self {
            Record::Write { at, bytes } => disk.write_all_at(bytes, *at),
            Record::Zeroes { at, length } => zero(disk, *at, *length),
            Record::Flush => Ok(()),
        }
    }

    /// Carries out its first `length` bytes only.
    pub fn apply_part(&self, disk: &File, length: u64) -> io::Result<()> {
        match self {
            Record::Write { at, bytes } => disk.write_all_at(&bytes[..bytes.len().min(length as usize)], *at),
            Record::Zeroes { at, length: all } => zero(disk, *at, length.min(*all)),
            Record::Flush => Ok(()),
        }
    }
}

/// Blocks of zeroes, written only where there is something else: holes stay holes.
fn zero(disk: &File, mut at: u64, mut length: u64) -> io::Result<()> {
    const BLOCK: usize = 1 << 16;
    let mut block = vec![0u8; BLOCK];
    while length > 0 {
        let part = length.min(BLOCK as u64) as usize;
        disk.read_exact_at(&mut block[..part], at)?;
        if block[..part].iter().any(|byte| *byte != 0) {
            disk.write_all_at(&vec![0; part], at)?;
        }
        at += part as u64;
        length -= part as u64;
    }
    Ok(())
}
