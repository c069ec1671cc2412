//! A machine's serial console: written to a file, watched for the phases of booting, and shared by any number of viewers.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::socket::{MsgFlags, send};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{AtPath, Doing, Result, refuse};

/// How much of the past a new viewer is shown.
const RECENT_MAX: usize = 4096;
/// The longest line that is searched for a boot phase.
const LINE_MAX: usize = 1024;

/// What is printed when a phase begins, and the phase's name. The order is that of booting.
const MARKS: [(&str, &str); 4] = [
    ("BdsDxe: starting Boot", "boot loader"),
    ("EFI stub: ", "kernel image"),
    ("Linux version ", "kernel"),
    ("dyad: ", "init"),
];

/// A phase of booting and when it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Phase {
    /// Its name.
    pub(crate) name: String,
    /// Seconds since the machine was started.
    pub(crate) seconds: f64,
}

/// The console of a running machine.
pub(crate) struct Console {
    /// Where typed bytes go, if anywhere.
    writer: Option<Mutex<File>>,
    hub: Mutex<Hub>,
    start: Instant,
}

#[derive(Default)]
struct Hub {
    recent: VecDeque<u8>,
    viewers: Vec<UnixStream>,
    line: Vec<u8>,
    phases: Vec<Phase>,
}

impl Console {
    /// Reads the console until the machine ends. The file is the log of all boots, so it is appended to.
    pub(crate) fn start(
        mut reader: impl Read + Send + 'static,
        writer: Option<OwnedFd>,
        log: &Path,
    ) -> Result<Arc<Self>> {
        let mut file = File::options().create(true).append(true).open(log).at("open", log)?;
        let writer = writer.map(|fd| Mutex::new(File::from(fd)));
        let console = Arc::new(Console { writer, hub: Mutex::default(), start: clock::now() });
        let inner = console.clone();
        let read = move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                let bytes = &buffer[..length];
                if let Err(e) = file.write_all(bytes) {
                    eprintln!("console: the log file cannot be written: {e}");
                }
                inner.hear(bytes);
            }
            // Viewers see the end of the machine.
            inner.lock().viewers.clear();
        };
        std::thread::Builder::new().name("console".into()).spawn(read).doing("start a thread")?;
        Ok(console)
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, bytes: &[u8]) {
        let seconds = (clock::now() - self.start).as_secs_f64();
        let mut hub = self.lock();
        // A viewer that does not read is left behind rather than waited for.
        hub.viewers.retain(|v| {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(v.as_raw_fd(), bytes, flags) == Ok(bytes.len())
        });
        hub.recent.extend(bytes);
        let excess = hub.recent.len().saturating_sub(RECENT_MAX);
        hub.recent.drain(..excess);
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => hub.end_line(seconds),
                _ if hub.line.len() < LINE_MAX => hub.line.push(*byte),
                _ => {}
            }
        }
    }

    /// Adds a viewer, who first gets what was said last.
    pub(crate) fn view(&self, mut stream: UnixStream) -> Result<()> {
        let mut hub = self.lock();
        let past: Vec<u8> = hub.recent.iter().copied().collect();
        stream.write_all(&past).doing("write to a console viewer")?;
        hub.viewers.push(stream);
        Ok(())
    }

    /// Types into the console.
    pub(crate) fn type_in(&self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = &self.writer else { return refuse("nobody listens to what is typed here") };
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(bytes).doing("write to the console")
    }

    /// The phases that were seen so far, in order.
    pub(crate) fn phases(&self) -> Vec<Phase> {
        self.lock().phases.clone()
    }
}

impl Hub {
    fn end_line(&mut self, seconds: f64) {
        let line = String::from_utf8_lossy(&self.line);
        let mark = MARKS.iter().position(|(text, _)| line.contains(text));
        self.line.clear();
        let Some(mark) = mark else { return };
        // The first mark again: the machine was reset and boots anew.
        if mark == 0 {
            self.phases.clear();
        }
        let name = MARKS[mark].1;
        if self.phases.iter().all(|p| p.name != name) {
            self.phases.push(Phase { name: name.into(), seconds });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn logs_shows_types_and_sees_phases() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("serial.log");
        let (mut guest, host) = UnixStream::pair().unwrap();
        let console = Console::start(host.try_clone().unwrap(), Some(host.into()), &log).unwrap();
        let (late_view, late) = UnixStream::pair().unwrap();
        guest.write_all(b"BdsDxe: starting Boot0001\r\n[0.0] Linux ver").unwrap();
        guest.write_all(b"sion 6.1\nLinux version again\n").unwrap();
        let deadline = clock::Deadline::after(Duration::from_secs(5));
        while console.phases().len() < 2 && deadline.left().is_some() {
            clock::pause(Duration::from_millis(5));
        }
        let names: Vec<_> = console.phases().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["boot loader", "kernel"]);

        console.view(late).unwrap();
        let mut seen = [0; 27];
        (&late_view).read_exact(&mut seen).unwrap();
        assert_eq!(&seen[..], b"BdsDxe: starting Boot0001\r\n");
        console.type_in(b"ls\n").unwrap();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"ls\n");

        drop(guest);
        let mut rest = Vec::new();
        (&late_view).read_to_end(&mut rest).unwrap();
        assert!(std::fs::read(&log).unwrap().ends_with(b"again\n"));
    }
}
