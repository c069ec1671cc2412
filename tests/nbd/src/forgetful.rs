//! A disk that loses what was not flushed, when the machine before it loses its power.
//!
//! Writes go to the file at once; what they replaced is kept until the next flush, and a part of it comes back when the
//! client ends without a farewell.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::log::Record;
use crate::medium::Medium;
use crate::random;

/// What the disk writes at once where nothing tears.
const BLOCK: u64 = 4096;
/// What it writes at once in any case.
const SECTOR: usize = 512;
/// Size of the cache: what is older than this is stable though nobody flushed it.
const CACHE_BYTES: u64 = 64 << 20;
/// Earlier contents of one block, at most; the oldest is what was flushed.
const VERSIONS_MAX: usize = 8;
/// Longer ranges are zeroed past the cache.
const ZEROES_MAX: u64 = 16 << 20;

/// What power cuts have done to a disk so far; shared with the serving thread.
#[derive(Debug, Default)]
pub struct Losses {
    /// Clients that ended without a farewell.
    pub cuts: AtomicU64,
    /// Blocks of 4096 bytes that were not flushed then.
    pub unflushed: AtomicU64,
    /// Of these, those that went back to an older content, whole or in part.
    pub lost: AtomicU64,
}

/// The disk in one file, opened anew for each client.
#[derive(Debug)]
pub struct Forgetful {
    path: PathBuf,
    disk: Option<File>,
    /// Block -> its contents before, oldest first.
    before: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Blocks in the order in which they came into the cache.
    order: VecDeque<u64>,
    random: u64,
    losses: Arc<Losses>,
}

/// How a power cut finds the cache.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Nothing of it was written.
    Nothing,
    /// Any of it was.
    Any,
    /// Any of it was, sector by sector.
    Torn,
}

impl Forgetful {
    /// The disk that will be in this file when the first client comes.
    pub fn new(path: PathBuf, seed: u64) -> Self {
        let (before, order, losses) = (BTreeMap::new(), VecDeque::new(), Arc::default());
        // Not zero, which is followed by itself.
        let random = seed.wrapping_mul(2).wrapping_add(0x9E37_79B9_7F4A_7C15);
        Self { path, disk: None, before, order, random, losses }
    }

    /// What becomes of it.
    pub fn losses(&self) -> Arc<Losses> {
        Arc::clone(&self.losses)
    }

    fn disk(&self) -> io::Result<&File> {
        self.disk.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = random::next(self.random);
        self.random % below
    }

    /// Keeps what a range of the disk has now.
    fn remember(&mut self, at: u64, length: u64) -> io::Result<()> {
        let end = at + length;
        for block in at / BLOCK..end.div_ceil(BLOCK) {
            let mut content = vec![0; BLOCK as usize];
            self.disk()?.read_exact_at(&mut content, block * BLOCK)?;
            let versions = self.before.entry(block).or_default();
            if versions.is_empty() {
                self.order.push_back(block);
            }
            if versions.len() == VERSIONS_MAX {
                versions.remove(1);
            }
            versions.push(content);
        }
        while self.order.len() as u64 > CACHE_BYTES / BLOCK {
            if let Some(oldest) = self.order.pop_front() {
                self.before.remove(&oldest);
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.before.clear();
        self.order.clear();
    }

    /// Some of what was replaced since the last flush comes back.
    fn cut(&mut self) -> io::Result<()> {
        let how = [Cut::Nothing, Cut::Any, Cut::Torn][self.draw(3) as usize];
        let (before, mut lost) = (std::mem::take(&mut self.before), 0);
        for (block, versions) in &before {
            let mut content = vec![0; BLOCK as usize];
            self.disk()?.read_exact_at(&mut content, block * BLOCK)?;
            let mut next = content.clone();
            match how {
                Cut::Nothing => next.clone_from(&versions[0]),
                Cut::Any => {
                    let at = self.draw(versions.len() as u64 + 1) as usize;
                    next.clone_from(versions.get(at).unwrap_or(&content));
                }
                Cut::Torn => {
                    let older = &versions[self.draw(versions.len() as u64) as usize];
                    for (new, old) in next.chunks_mut(SECTOR).zip(older.chunks(SECTOR)) {
                        if self.draw(2) == 0 {
                            new.copy_from_slice(old);
                        }
                    }
                }
            }
            if next != content {
                self.disk()?.write_all_at(&next, block * BLOCK)?;
                lost += 1;
            }
        }
        self.losses.cuts.fetch_add(1, Ordering::Relaxed);
        self.losses.unflushed.fetch_add(before.len() as u64, Ordering::Relaxed);
        self.losses.lost.fetch_add(lost, Ordering::Relaxed);
        Ok(())
    }
}

impl Medium for Forgetful {
    fn begun(&mut self) -> io::Result<u64> {
        let disk = File::options().read(true).write(true).open(&self.path)?;
        let bytes = disk.metadata()?.len();
        self.disk = Some(disk);
        Ok(bytes)
    }

    fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk()?.read_exact_at(out, at)
    }

    fn record(&mut self, record: Record) -> io::Result<()> {
        match record.range() {
            None => {
                // The file itself is safe: it is the machine that loses its power, not the host.
                self.forget();
                return Ok(());
            }
            Some((at, length)) if length <= ZEROES_MAX || matches!(record, Record::Write { .. }) => {
                self.remember(at, length)?;
            }
            // What was in the range before is out of reach for good.
            Some((at, length)) => {
                self.before.retain(|block, _| block * BLOCK + BLOCK <= at || block * BLOCK >= at + length)
            }
        }
        record.apply(self.disk()?)
    }

    fn ended(&mut self, farewell: bool) -> io::Result<()> {
        if !farewell && self.disk.is_some() {
            self.cut()?;
        }
        self.forget();
        self.disk = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 1 << 20;

    fn disk(seed: u64) -> (tempfile::TempDir, Forgetful) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(BYTES).unwrap();
        (dir, Forgetful::new(path, seed))
    }

    fn write(disk: &mut Forgetful, block: u64, value: u8) {
        disk.record(Record::Write { at: block * BLOCK, bytes: vec![value; BLOCK as usize] }).unwrap();
    }

    fn block(disk: &mut Forgetful, block: u64) -> Vec<u8> {
        let mut out = vec![0; BLOCK as usize];
        disk.read(block * BLOCK, &mut out).unwrap();
        out
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_any_part_goes() {
        let (mut gone, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..64 {
            let (_dir, mut disk) = disk(seed);
            assert_eq!(disk.begun().unwrap(), BYTES);
            write(&mut disk, 0, 1);
            write(&mut disk, 1, 1);
            disk.record(Record::Flush).unwrap();
            write(&mut disk, 1, 2);
            write(&mut disk, 2, 2);
            assert_eq!(block(&mut disk, 2), vec![2; BLOCK as usize], "a machine reads what it wrote");
            disk.ended(false).unwrap();
            disk.begun().unwrap();
            assert_eq!(block(&mut disk, 0), vec![1; BLOCK as usize], "it was flushed");
            let one = block(&mut disk, 1);
            assert!(one.chunks(SECTOR).all(|sector| sector == [1; SECTOR] || sector == [2; SECTOR]));
            match one.iter().filter(|byte| **byte == 2).count() as u64 {
                0 => gone += 1,
                BLOCK => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(gone > 10 && kept > 3 && torn > 10, "{gone} {kept} {torn}");
    }

    #[test]
    fn a_farewell_loses_nothing_and_a_full_cache_writes() {
        let (_dir, mut disk) = disk(7);
        disk.begun().unwrap();
        write(&mut disk, 3, 9);
        disk.ended(true).unwrap();
        disk.begun().unwrap();
        assert_eq!(block(&mut disk, 3), vec![9; BLOCK as usize]);
        for value in 0..=u8::MAX {
            write(&mut disk, 3, value);
        }
        assert_eq!(disk.before[&3].len(), VERSIONS_MAX);
        assert_eq!(
            disk.before[&3][0],
            vec![9; BLOCK as usize],
            "what was flushed is the oldest that comes back"
        );
        assert_eq!(disk.losses().cuts.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_long_range_of_zeroes_is_not_undone() {
        let (dir, mut disk) = disk(1);
        File::options().write(true).open(dir.path().join("disk")).unwrap().set_len(2 * ZEROES_MAX).unwrap();
        disk.begun().unwrap();
        write(&mut disk, 5, 5);
        disk.record(Record::Zeroes { at: 0, length: ZEROES_MAX + BLOCK }).unwrap();
        disk.ended(false).unwrap();
        disk.begun().unwrap();
        assert_eq!(block(&mut disk, 5), vec![0; BLOCK as usize]);
    }
}
