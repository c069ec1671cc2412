//! What a program writes. The kernel moves it from the program's pipe into a file in memory, whose position goes with it:
//! there is no moment at which it has left the one and is not in the other, so a crash of PID 1 loses none of it.

use std::io;

use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, fallocate, memfd_create, seek};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// Bytes moved at once: what a pipe holds.
const MOVE_BYTES: usize = 64 << 10;
/// Moves before other events get their turn.
const MOVES_MAX: usize = 4;

/// One output of a program.
#[derive(Debug)]
pub(super) struct Capture {
    /// Until its end was read.
    pipe: Option<OwnedFd>,
    file: OwnedFd,
    /// Bytes at the end that are kept.
    max: u64,
}

impl Capture {
    /// Of a pipe that does not block.
    pub(super) fn new(pipe: OwnedFd, max: u32) -> io::Result<Self> {
        let file = dyad_sys::spawn::keep(memfd_create("dyad-output", MemfdFlags::CLOEXEC)?)?;
        Ok(Self::restore(Some(pipe), file, max))
    }

    /// A former image's.
    pub(super) fn restore(pipe: Option<OwnedFd>, file: OwnedFd, max: u32) -> Self {
        Self { pipe, file, max: u64::from(max) }
    }

    /// Numbers of the pipe (-1: ended) and of the file.
    pub(super) fn saved(&self) -> (RawFd, RawFd) {
        (self.pipe.as_ref().map_or(-1, AsRawFd::as_raw_fd), self.file.as_raw_fd())
    }

    /// Takes what is there. `true`: the pipe came to its end just now.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        let mut ended = Ok(false);
        for _ in 0..MOVES_MAX {
            let Some(pipe) = &self.pipe else { break };
            match splice(pipe, None, &self.file, None, MOVE_BYTES, SpliceFlags::NONBLOCK) {
                Ok(0) => {
                    self.pipe = None;
                    ended = Ok(true);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    self.pipe = None;
                    ended = Err(errno.into());
                }
            }
        }
        let past = self.written().saturating_sub(self.max);
        if past > 0 {
            // Its memory is given back; the positions stay.
            let _ = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, past);
        }
        ended
    }

    /// Bytes ever written.
    fn written(&self) -> u64 {
        seek(&self.file, SeekFrom::Current(0)).unwrap_or(0)
    }

    /// The last bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let written = self.written();
        let mut at = written.saturating_sub(self.max);
        let mut bytes = vec![0; (written - at) as usize];
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&self.file, &mut bytes[done..], at) {
                Ok(0) => break,
                Ok(length) => {
                    done += length;
                    at += length as u64;
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        bytes.truncate(done);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn the_last_bytes_are_kept_across_images() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut capture = Capture::new(read, 5).unwrap();
        rustix::io::write(&write, b"abc").unwrap();
        assert!(!capture.read().unwrap());
        assert_eq!(capture.bytes(), b"abc");
        rustix::io::write(&write, b"defg").unwrap();
        let Capture { pipe, file, max } = capture;
        let mut capture = Capture::restore(pipe, file, max as u32);
        assert!(!capture.read().unwrap());
        assert_eq!(capture.bytes(), b"cdefg");
        rustix::io::write(&write, &[b'x'; 20_000]).unwrap();
        drop(write);
        assert!(capture.read().unwrap());
        assert_eq!((capture.bytes(), capture.saved().0), (b"xxxxx".to_vec(), -1));
        assert!(!capture.read().unwrap());
        let blocks = rustix::fs::fstat(&capture.file).unwrap().st_blocks;
        assert!(blocks <= 8, "{blocks} blocks of 512 bytes for the last 5 bytes");
    }
}
