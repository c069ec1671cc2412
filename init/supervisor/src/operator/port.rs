//! The virtio-serial port, served by a thread of its own with plain blocking calls: while the host's side is away the
//! kernel reports a hang-up all the time, which an event loop would spin on. There is no udev: the device is found
//! through sysfs.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use dyad_api::line::{Lines, TooLong};
use tokio::sync::{mpsc, oneshot};

use crate::operator::calls::{Caller, Context};
use crate::paths::Paths;

/// How often a port that is not there, or whose host is away, is looked at again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// So many looks for the port at boot: a machine without one is the usual case on metal.
const LOOKS_MAX: u32 = 240;

/// A line, and where its answer goes.
type Question = (Result<Vec<u8>, TooLong>, oneshot::Sender<Vec<u8>>);

/// The device of the port with this name.
fn find(paths: &Paths, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(paths.at("/sys/class/virtio-ports")).ok()?;
    let port = entries.flatten().find(|entry| {
        std::fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name)
    })?;
    Some(paths.at("/dev").join(port.file_name()))
}

/// Serves the port for as long as the supervisor runs; ends if the machine has none.
pub(crate) async fn serve_port(paths: Rc<Paths>, name: &'static str, context: Rc<Context>) {
    let (ask, mut questions) = mpsc::channel::<Question>(1);
    let paths = Paths::clone(&paths);
    let started = thread::Builder::new().name("port".into()).spawn(move || keep(&paths, name, &ask));
    if let Err(error) = started {
        tracing::error!(%error, "no thread for the operator port");
        return;
    }
    while let Some((line, reply)) = questions.recv().await {
        // The thread waits for it; were it gone, there would be no port any more.
        let _ = reply.send(context.answer(line, Caller::Local).await.to_line());
    }
}

fn keep(paths: &Paths, name: &str, ask: &mpsc::Sender<Question>) {
    let mut looks = 0;
    loop {
        match find(paths, name) {
            Some(device) => {
                looks = 0;
                tracing::info!(device = %device.display(), "serving the operator port");
                let served =
                    OpenOptions::new().read(true).write(true).open(&device).and_then(|port| serve(port, ask));
                match served {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, device = %device.display(), "operator port"),
                }
            }
            None if looks >= LOOKS_MAX => return,
            None => looks += 1,
        }
        thread::park_timeout(LOOK_INTERVAL);
    }
}

/// Answers lines until the supervisor ends. A reply that the host does not take waits for the next host, who knows by
/// its id that it is not meant for him.
fn serve(mut port: impl Read + Write, ask: &mpsc::Sender<Question>) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match port.read(&mut buffer) {
            // The host's side is closed: what it left half-written will not be finished.
            Ok(0) => {
                lines = Lines::default();
                thread::park_timeout(LOOK_INTERVAL);
            }
            Ok(count) => lines.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        while let Some(line) = lines.next_line() {
            let (reply, answer) = oneshot::channel();
            if ask.blocking_send((line, reply)).is_err() {
                return Ok(());
            }
            match answer.blocking_recv() {
                Ok(bytes) => port.write_all(&bytes)?,
                Err(_) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let ports = dir.path().join("sys/class/virtio-ports");
        for (device, name) in [("vport1p1", "org.example.other\n"), ("vport1p2", "org.dyad.operator\n")] {
            std::fs::create_dir_all(ports.join(device)).unwrap();
            std::fs::write(ports.join(device).join("name"), name).unwrap();
        }
        let paths = Paths::new(dir.path());
        assert_eq!(find(&paths, dyad_api::operator::PORT), Some(dir.path().join("dev/vport1p2")));
        assert_eq!(find(&paths, "org.dyad"), None);
    }

    /// What the kernel gives a reader of the port: bytes, or nothing while the host is away.
    struct Port(Vec<&'static [u8]>, std::sync::mpsc::Sender<Vec<u8>>);

    impl Read for Port {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0.remove(0).read(buffer)
        }
    }

    impl Write for Port {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_host_that_leaves_in_the_middle_of_a_line_does_not_spoil_the_next_ones() {
        let (ask, mut questions) = mpsc::channel::<Question>(1);
        let echo = thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some((line, reply)) = questions.blocking_recv() {
                let line = line.unwrap();
                reply.send(line.clone()).unwrap();
                seen.push(String::from_utf8(line).unwrap());
            }
            seen
        });
        let (sent, replies) = std::sync::mpsc::channel();
        let port = Port(vec![b"one\ntw", b"", b"three\nfo", b"ur\n"], sent);
        assert_eq!(serve(port, &ask).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(ask);
        assert_eq!(echo.join().unwrap(), ["one", "three", "four"]);
        assert_eq!(
            replies.iter().collect::<Vec<_>>(),
            [b"one".to_vec(), b"three".to_vec(), b"four".to_vec()]
        );
    }
}
