//! What stands behind a server: a file, and what becomes of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::Record;

/// A disk, as a server asks for it. Calls come one after the other.
pub trait Medium: Send {
    /// A client comes; the size of the disk in bytes.
    fn begun(&mut self) -> io::Result<u64>;
    /// Reads from an offset.
    fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes or flushes. It is done when this returns; stable it is after the next flush.
    fn record(&mut self, record: Record) -> io::Result<()>;
    /// The client is gone: with a farewell, or as a machine goes that loses its power.
    fn ended(&mut self, farewell: bool) -> io::Result<()>;
}

/// What was written so far; shared with the serving thread.
pub type Log = Arc<Mutex<Vec<Record>>>;

/// A file that keeps everything, and a list of it.
#[derive(Debug)]
pub struct Recorder {
    disk: File,
    log: Log,
}

impl Recorder {
    /// For a disk whose size is that of the file.
    pub fn new(disk: File) -> Self {
        Self { disk, log: Log::default() }
    }

    /// What it records.
    pub fn log(&self) -> Log {
        Arc::clone(&self.log)
    }
}

impl Medium for Recorder {
    fn begun(&mut self) -> io::Result<u64> {
        Ok(self.disk.metadata()?.len())
    }

    fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read_exact_at(out, at)
    }

    fn record(&mut self, record: Record) -> io::Result<()> {
        record.apply(&self.disk)?;
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        Ok(())
    }

    fn ended(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
}
