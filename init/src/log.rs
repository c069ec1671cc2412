//! Log lines: to the kernel's log, from where the console and, later, the journal show them.
//!
//! A line is formatted into a fixed buffer and written without waiting: nothing is allocated, and a line that does not
//! fit or cannot be written is cut or lost, never a reason to stop.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, OnceLock};

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

/// The kernel cuts a record near 1,000 bytes.
const LINE_BYTES_MAX: usize = 960;

/// syslog levels with facility daemon (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The machine cannot go on.
    Critical = 26,
    /// Something that should work does not.
    Error = 27,
    /// Works, but somebody should know.
    Warning = 28,
    /// Progress, on the console too until the image lowers the console level: notice.
    Info = 29,
}

/// The last lines, kept for whoever asks: the kernel's log may have lost them to louder ones.
const RING_BYTES: usize = 16 << 10;

static KMSG: OnceLock<OwnedFd> = OnceLock::new();
static RING: Mutex<Ring> = Mutex::new(Ring { bytes: [0; RING_BYTES], written: 0 });

/// Opens the kernel's log; call it when `/dev` is there. In a container there is none, and standard error is used.
pub(crate) fn open() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if let Ok(fd) = rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        let _ = KMSG.set(fd);
    }
}

struct Ring {
    bytes: [u8; RING_BYTES],
    /// Bytes ever written.
    written: usize,
}

impl Ring {
    fn push(&mut self, line: &[u8]) {
        for byte in line {
            self.bytes[self.written % RING_BYTES] = *byte;
            self.written += 1;
        }
    }

    /// Whole lines, oldest first.
    fn lines(&self) -> Vec<u8> {
        let (new, old) = self.bytes.split_at(self.written % RING_BYTES);
        if self.written <= RING_BYTES {
            return self.bytes[..self.written].to_vec();
        }
        let all = [old, new].concat();
        let first = all.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        all[first..].to_vec()
    }
}

/// The last lines of this process, oldest first.
pub(crate) fn recent() -> Vec<u8> {
    RING.try_lock().map(|ring| ring.lines()).unwrap_or_default()
}

struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.used == LINE_BYTES_MAX - 1 {
                return Ok(());
            }
            self.bytes[self.used] = if byte == b'\n' { b' ' } else { byte };
            self.used += 1;
        }
        Ok(())
    }
}

/// Writes one line.
pub(crate) fn write(level: Level, text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_BYTES_MAX], used: 0 };
    let to_kernel = KMSG.get();
    let _ = match to_kernel {
        Some(_) => write!(line, "<{}>dyad: {text}", level as u8),
        None => write!(line, "dyad: {text}"),
    };
    line.bytes[line.used] = b'\n';
    let bytes = &line.bytes[..=line.used];
    // Never waited for: a panic while it is held must still be told.
    if let Ok(mut ring) = RING.try_lock() {
        let text = if to_kernel.is_some() {
            bytes.iter().position(|b| *b == b'>').map_or(0, |at| at + 1)
        } else {
            0
        };
        ring.push(&bytes[text..]);
    }
    let _ = match to_kernel {
        Some(fd) => rustix::io::write(fd, bytes),
        None => rustix::io::write(rustix::stdio::stderr(), bytes),
    };
}

/// Progress.
macro_rules! info { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($arg)*)) } }
/// Works, but somebody should know.
macro_rules! warning { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Warning, format_args!($($arg)*)) } }
/// Something that should work does not.
macro_rules! error { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($arg)*)) } }
/// The machine cannot go on.
macro_rules! critical { ($($arg:tt)*) => { $crate::log::write($crate::log::Level::Critical, format_args!($($arg)*)) } }
pub(crate) use {critical, error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_whole_lines() {
        let mut ring = Ring { bytes: [0; RING_BYTES], written: 0 };
        assert!(ring.lines().is_empty());
        ring.push(b"first\n");
        assert_eq!(ring.lines(), b"first\n");
        for n in 0..10_000 {
            ring.push(format!("line {n}\n").as_bytes());
        }
        let lines = String::from_utf8(ring.lines()).expect("text");
        assert!(lines.len() <= RING_BYTES && lines.starts_with("line ") && lines.ends_with("line 9999\n"));
    }
}
