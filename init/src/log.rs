//! Log lines: to the kernel's log, from where the console and, later, the journal show them.
//!
//! A line is formatted into a fixed buffer and written without waiting: nothing is allocated, and a line that does not
//! fit or cannot be written is cut or lost, never a reason to stop.

use std::fmt::{self, Write as _};
use std::sync::OnceLock;

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

static KMSG: OnceLock<OwnedFd> = OnceLock::new();

/// Opens the kernel's log; call it when `/dev` is there. In a container there is none, and standard error is used.
pub(crate) fn open() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if let Ok(fd) = rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        let _ = KMSG.set(fd);
    }
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
