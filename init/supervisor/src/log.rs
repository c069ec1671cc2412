//! Logging to journald from a thread of its own.
//!
//! journald's socket blocks its writers when it is not read, and does not exist until journald runs: neither may stop
//! the event loop. Events are formatted where they happen, pass a bounded queue and are sent by the thread; what does
//! not fit the queue is dropped and counted. Without journald lines go to standard error.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// journald's native socket.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Events that wait for the thread at most.
const QUEUE_MAX: usize = 1024;
/// Bytes of one field at most: an event must fit a datagram.
const FIELD_MAX: usize = 8 * 1024;

struct Line {
    level: Level,
    /// Native protocol fields without MESSAGE.
    fields: Vec<u8>,
    message: String,
}

struct Journal {
    queue: SyncSender<Line>,
    dropped: &'static AtomicU64,
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts the thread and makes it the receiver of all events of level INFO and above.
pub(crate) fn init() -> std::io::Result<()> {
    let (queue, lines) = sync_channel(QUEUE_MAX);
    std::thread::Builder::new().name("log".into()).spawn(move || send_all(lines, Path::new(SOCKET)))?;
    tracing::subscriber::set_global_default(Journal { queue, dropped: &DROPPED })
        .expect("the subscriber is set once, at the start of main");
    Ok(())
}

fn send_all(lines: Receiver<Line>, path: &Path) {
    let mut socket = None;
    for line in lines {
        send(&mut socket, path, &line);
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let message = format!("{dropped} log events dropped, the journal was too slow");
            send(&mut socket, path, &Line { level: Level::WARN, fields: Vec::new(), message });
        }
    }
}

fn send(socket: &mut Option<UnixDatagram>, path: &Path, line: &Line) {
    let datagram = datagram(line);
    // A journald that was restarted without keeping its socket needs a new connection: try twice.
    for _ in 0..2 {
        if socket.is_none() {
            *socket = UnixDatagram::unbound().and_then(|new| new.connect(path).map(|()| new)).ok();
        }
        match socket.as_ref().map(|socket| socket.send(&datagram)) {
            Some(Ok(_)) => return,
            Some(Err(_)) => *socket = None,
            None => break,
        }
    }
    // Standard error is the last place: when that fails too there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "<{}>{}", priority(line.level), line.message);
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn datagram(line: &Line) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.fields.len() + line.message.len() + 64);
    put(&mut out, "MESSAGE", &line.message);
    put(&mut out, "PRIORITY", &priority(line.level).to_string());
    put(&mut out, "SYSLOG_IDENTIFIER", "supervisor");
    out.extend_from_slice(&line.fields);
    out
}

/// One field in the native protocol: `NAME=value\n`, or with an explicit length when the value has line ends.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(FIELD_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = &value.as_bytes()[..end];
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[derive(Default)]
struct Fields {
    message: String,
    extra: String,
    native: Vec<u8>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            put(&mut self.native, &field.name().to_uppercase().replace('.', "_"), &text);
            let _ = write!(self.extra, " {}={text}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

impl Subscriber for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        put(&mut fields.native, "TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            put(&mut fields.native, "CODE_FILE", file);
            put(&mut fields.native, "CODE_LINE", &line.to_string());
        }
        let line =
            Line { level: *metadata.level(), fields: fields.native, message: fields.message + &fields.extra };
        if self.queue.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    // Spans are not used: an event says all it has to say.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_native_datagrams_and_survive_a_new_journald() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut buffer = [0; 1024];
        let mut socket = None;
        for _ in 0..2 {
            let journald = UnixDatagram::bind(&path).unwrap();
            let (queue, lines) = sync_channel(1);
            let journal = Journal { queue, dropped: &DROPPED };
            tracing::subscriber::with_default(journal, || tracing::warn!(count = 3, text = "a\nb", "odd"));
            send(&mut socket, &path, &lines.recv().unwrap());
            let count = journald.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..count]);
            assert!(text.starts_with("MESSAGE\n"), "a value with a line end has a length: {text:?}");
            assert!(text.contains("PRIORITY=4\nSYSLOG_IDENTIFIER=supervisor\n"), "{text:?}");
            assert!(text.contains("COUNT=3\nTEXT\n\u{3}\0\0\0\0\0\0\0a\nb\n"), "{text:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_waiting() {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (queue, lines) = sync_channel(1);
        tracing::subscriber::with_default(Journal { queue, dropped: &COUNT }, || {
            (0..5).for_each(|number| tracing::info!(number, "event"));
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), 4);
        assert_eq!(lines.recv().unwrap().message, "event number=0");
    }
}
