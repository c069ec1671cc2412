//! PID 1's memory outside of itself: a memfd that survives its own re-exec.
//!
//! Layout, little endian: header (128 bytes: magic 8, format 4, number of services 4, boot id 16, re-execs in a row
//! without a whole turn of the loop 4 at 36, client whose request is being answered 4 at 40, cause of the last re-exec 4
//! and its time 8 at 48, the dead-man's deadline and when killed writers must be gone 8 each at 64), then one record of 256 bytes for each service (state, crc32 at 252), then the book: length 4, crc32 4,
//! postcard. A record is written in one system call before anything is done that depends on it, and the crash of this
//! process cannot cut a system call in two, so what is read is always whole.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use dyad_api::control::{FenceTimes, Phase};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::services::{Id, Phases, RECORD_BYTES, Slot};

const MAGIC: [u8; 8] = *b"DYADPID1";
/// What another binary must read to go on from here.
pub(crate) const FORMAT: u32 = 5;
const HEADER_BYTES: usize = 128;
const STRIDE: usize = 256;
/// Where the fault handler writes the cause and the time.
pub(super) const CAUSE_AT: u32 = 48;
const FENCE_AT: u64 = 64;
/// Room for the book that is made at once, so that it need not grow later.
const BOOK_BYTES: usize = 64 << 10;
const STREAK_AT: u64 = 36;
const CLIENT_AT: u64 = 40;
/// Marks that no request is being answered.
const NO_CLIENT: u32 = u32::MAX;
/// A book larger than this is damaged.
const BOOK_BYTES_MAX: u32 = 16 << 20;

/// A job as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedJob {
    pub(super) at: u16,
    pub(super) kind: super::jobs::Kind,
    pub(super) name: String,
    pub(super) group_name: String,
    pub(super) pid: u32,
    /// Exited (not signalled), and the status or signal.
    pub(super) exit: Option<(bool, i32)>,
    pub(super) killed: bool,
    pub(super) timed_out: bool,
    /// Pipe and file, as `capture::Capture` has them.
    pub(super) out: (RawFd, RawFd),
    pub(super) err: (RawFd, RawFd),
    pub(super) capture_max: u32,
    pub(super) started_ms: u64,
    pub(super) deadline_ms: u64,
}

/// Everything but the services' states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) container: bool,
    pub(super) origin: String,
    pub(super) reexecs: u32,
    /// Every service that starts by itself was told to.
    pub(super) begun: bool,
    pub(super) ended_phases: Phases,
    pub(super) shutting_down: bool,
    pub(super) shutdown: Option<super::shutdown::Progress>,
    pub(super) phases: Vec<Phase>,
    pub(super) marks: Vec<(String, u64)>,
    /// How the boot before this one ended.
    pub(super) previous: String,
    pub(super) previous_known: bool,
    /// The hardware watchdog says that it ended it.
    pub(super) watchdog_reset: bool,
    /// What is to be written down of how this one ends (`Record::words`), as soon as the disk can be written.
    pub(super) record: Option<(String, String)>,
    pub(super) recovery_us_max: u32,
    pub(super) fence: FenceTimes,
    pub(super) watchdog: RawFd,
    /// To the process that closes the gate.
    pub(super) gate: RawFd,
    pub(super) notify: RawFd,
    pub(super) control: RawFd,
    /// (service, name, descriptor)
    pub(super) sockets: Vec<(Id, String, RawFd)>,
    pub(super) stored: Vec<(Id, String, RawFd)>,
    /// (number, descriptor, subscribed, missed events)
    pub(super) clients: Vec<(u16, RawFd, bool, u32)>,
    pub(super) jobs: Vec<SavedJob>,
}

/// Why a former image's memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BookError {
    #[error("cannot read PID 1's state: {0}")]
    Read(#[from] io::Error),
    #[error("PID 1's state is damaged: {0}")]
    Damaged(&'static str),
    #[error("PID 1's state holds {found} services, the image has {expected}")]
    Services { found: u32, expected: usize },
}

/// The memfd.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    services: usize,
    buffer: Vec<u8>,
}

/// What the header says about the last life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) boot_id: [u8; 16],
    pub(super) cause: i32,
    /// CLOCK_BOOTTIME of the fault.
    pub(super) fault_ns: u64,
    /// Re-execs without a whole turn of the loop between them, this one included.
    pub(super) streak: u32,
    /// The client whose request was being answered.
    pub(super) client: Option<u16>,
}

impl Memory {
    /// A new one.
    pub(super) fn create(services: usize, boot_id: [u8; 16]) -> io::Result<Self> {
        let file = dyad_sys::spawn::keep(rustix::fs::memfd_create("dyad-pid1", MemfdFlags::CLOEXEC)?)?;
        let mut header = [0u8; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        header[12..16].copy_from_slice(&(services as u32).to_le_bytes());
        header[16..32].copy_from_slice(&boot_id);
        header[40..44].copy_from_slice(&NO_CLIENT.to_le_bytes());
        let memory = Self { file, services, buffer: Vec::with_capacity(BOOK_BYTES) };
        memory.put(&header, 0)?;
        Ok(memory)
    }

    /// Takes a former image's over.
    pub(super) fn take(file: OwnedFd, services: usize) -> Result<(Self, Header), BookError> {
        let memory = Self { file, services, buffer: Vec::with_capacity(BOOK_BYTES) };
        let mut header = [0u8; HEADER_BYTES];
        memory.get(&mut header, 0)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != MAGIC || word(8) != FORMAT {
            return Err(BookError::Damaged("not a state of this format"));
        }
        if word(12) as usize != services {
            return Err(BookError::Services { found: word(12), expected: services });
        }
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&header[16..32]);
        let streak = word(STREAK_AT as usize).saturating_add(1);
        memory.put(&streak.to_le_bytes(), STREAK_AT)?;
        let client = u16::try_from(word(CLIENT_AT as usize)).ok();
        memory.put(&NO_CLIENT.to_le_bytes(), CLIENT_AT)?;
        let cause = CAUSE_AT as usize;
        let fault_ns = u64::from(word(cause + 4)) | u64::from(word(cause + 8)) << 32;
        Ok((memory, Header { boot_id, cause: word(cause) as i32, fault_ns, streak, client }))
    }

    /// Its descriptor number.
    pub(super) fn number(&self) -> RawFd {
        self.file.as_fd().as_raw_fd()
    }

    fn put(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = rustix::io::pwrite(&self.file, bytes, at)?;
            bytes = &bytes[written..];
            at += written as u64;
        }
        Ok(())
    }

    fn get(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&self.file, &mut bytes[done..], at + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        Ok(())
    }

    fn record_at(id: Id) -> u64 {
        (HEADER_BYTES + usize::from(id) * STRIDE) as u64
    }

    fn book_at(&self) -> u64 {
        (HEADER_BYTES + self.services * STRIDE) as u64
    }

    /// A whole turn of the loop went well.
    pub(super) fn steady(&self) -> io::Result<()> {
        self.put(&0u32.to_le_bytes(), STREAK_AT)
    }

    /// Whose request is being answered.
    pub(super) fn answering(&self, client: Option<u16>) -> io::Result<()> {
        self.put(&client.map_or(NO_CLIENT, u32::from).to_le_bytes(), CLIENT_AT)
    }

    /// Writes the deadline and when killed writers must be gone; 0: neither.
    pub(super) fn save_fence(&self, deadline_ns: u64, gone_by_ns: u64) -> io::Result<()> {
        let mut both = [0; 16];
        both[..8].copy_from_slice(&deadline_ns.to_le_bytes());
        both[8..].copy_from_slice(&gone_by_ns.to_le_bytes());
        self.put(&both, FENCE_AT)
    }

    /// What [`Memory::save_fence`] wrote.
    pub(super) fn load_fence(&self) -> io::Result<(u64, u64)> {
        let (mut deadline, mut gone_by) = ([0; 8], [0; 8]);
        self.get(&mut deadline, FENCE_AT)?;
        self.get(&mut gone_by, FENCE_AT + 8)?;
        Ok((u64::from_le_bytes(deadline), u64::from_le_bytes(gone_by)))
    }

    /// Writes a service's state.
    pub(super) fn save_slot(&self, id: Id, slot: &Slot) -> io::Result<()> {
        let mut record = [0u8; STRIDE];
        record[..RECORD_BYTES].copy_from_slice(&slot.encode());
        let crc = crc32fast::hash(&record[..STRIDE - 4]);
        record[STRIDE - 4..].copy_from_slice(&crc.to_le_bytes());
        self.put(&record, Self::record_at(id))
    }

    /// Reads a service's state.
    pub(super) fn load_slot(&self, id: Id) -> Result<Slot, BookError> {
        let mut record = [0u8; STRIDE];
        self.get(&mut record, Self::record_at(id))?;
        let crc = crc32fast::hash(&record[..STRIDE - 4]);
        if record[STRIDE - 4..] != crc.to_le_bytes() {
            return Err(BookError::Damaged("checksum of a service"));
        }
        let mut state = [0; RECORD_BYTES];
        state.copy_from_slice(&record[..RECORD_BYTES]);
        Slot::decode(&state).ok_or(BookError::Damaged("state of a service"))
    }

    /// Writes the book, in one call.
    pub(super) fn save_book(&mut self, book: &Saved) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(8, 0);
        let mut buffer = postcard::to_extend(book, buffer).map_err(io::Error::other)?;
        let length = (buffer.len() - 8) as u32;
        let crc = crc32fast::hash(&buffer[8..]);
        buffer[..4].copy_from_slice(&length.to_le_bytes());
        buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        let result = self.put(&buffer, self.book_at());
        self.buffer = buffer;
        result
    }

    /// Reads the book.
    pub(super) fn load_book(&self) -> Result<Saved, BookError> {
        let mut head = [0u8; 8];
        self.get(&mut head, self.book_at())?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if length > BOOK_BYTES_MAX {
            return Err(BookError::Damaged("length of the book"));
        }
        let mut body = vec![0; length as usize];
        self.get(&mut body, self.book_at() + 8)?;
        if crc32fast::hash(&body).to_le_bytes() != head[4..] {
            return Err(BookError::Damaged("checksum of the book"));
        }
        postcard::from_bytes(&body).map_err(|_| BookError::Damaged("book"))
    }
}

/// For fuzzers: reads a book, and panics when it would not be read again as it was written.
pub(crate) fn is_sane(bytes: &[u8]) {
    if let Ok(book) = postcard::from_bytes::<Saved>(bytes) {
        let again = postcard::to_allocvec(&book).expect("a book can be written");
        assert!(postcard::from_bytes(&again) == Ok(book), "what is accepted has one meaning");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let memory = Memory::create(2, [7; 16]).expect("memfd");
        let slot = Slot::new();
        memory.save_slot(1, &slot).expect("save");
        assert_eq!(memory.load_slot(1).expect("load"), slot);
        assert!(memory.load_slot(0).is_err(), "a record never written is no record");
        memory.answering(Some(3)).expect("mark");
        memory.save_fence(5, u64::MAX).expect("save");
        assert_eq!(memory.load_fence().expect("load"), (5, u64::MAX));
        let copy = memory.file.try_clone().expect("dup");
        let (_, header) = Memory::take(copy, 2).expect("take");
        assert_eq!(header, Header { boot_id: [7; 16], cause: 0, fault_ns: 0, streak: 1, client: Some(3) });
        assert!(matches!(Memory::take(memory.file, 3), Err(BookError::Services { found: 2, expected: 3 })));
    }

    #[test]
    fn damage_is_seen() {
        let mut memory = Memory::create(1, [0; 16]).expect("memfd");
        memory.save_slot(0, &Slot::new()).expect("save");
        let book = Saved {
            origin: "a".into(),
            reexecs: 1,
            marks: vec![("early".into(), 9)],
            notify: 200,
            ..Saved::default()
        };
        memory.save_book(&book).expect("save");
        assert_eq!(memory.load_book().expect("load"), book);
        for at in [Memory::record_at(0), memory.book_at(), memory.book_at() + 9] {
            let mut byte = [0u8];
            memory.get(&mut byte, at).expect("read");
            memory.put(&[byte[0] ^ 1], at).expect("write");
        }
        assert!(memory.load_slot(0).is_err());
        assert!(memory.load_book().is_err());
    }
}
