//! The link to the other member: each side dials the other and says its own messages there, in order, each batch answered
//! by a word. What is not said in time is dropped: the core says everything that matters again with its next beat.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dyad_channel::client::{Client, Limits};
use dyad_channel::frame::{self, FrameError, Numbered};
use dyad_channel::server::{self, Answer, Counters, Service};
use dyad_channel::tls::{self, Speaks, TlsError, Trust};
use dyad_channel::{Identity, PublicKey};
use dyad_cluster::event::Event;
use dyad_cluster::message::ToPeer;
use dyad_cluster::phase::Phase;
use dyad_cluster::report::Protection;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use super::membership::Member;
use super::observe::Replication;
use super::run::View;
use super::vips::Row;

/// Where members listen for each other unless told otherwise.
pub const PORT: u16 = 7401;
/// Messages that wait for the link at most.
const WAITING_MAX: usize = 64;
/// Messages of one batch at most; a beat has three and one for each resource.
const BATCH_MAX: usize = 32;
/// Largest batch in bytes: a mirror of 64 registers takes 4 KiB.
const FRAME_BYTES_MAX: usize = 128 << 10;
/// Pause after a batch that was not answered.
const PAUSE: Duration = Duration::from_millis(100);

const SERVER: server::Limits = server::Limits {
    strangers_max: 8,
    // The one of now, and one that the other side has given up and this one not yet.
    per_key_max: 2,
    frame_bytes_max: FRAME_BYTES_MAX,
    handshake_ms: 5_000,
    idle_ms: 60_000,
    frame_ms: 5_000,
    answer_ms: 1_000,
};

/// One member to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Say {
    messages: Vec<ToPeer>,
    status: Option<Status>,
}

/// What a member says of itself to the other's status screen; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// What it does for the resource.
    pub(crate) phase: Phase,
    /// How well what it holds is protected.
    pub(crate) protection: Level,
    /// Why not better, in words.
    pub(crate) why: String,
    /// Which virtual addresses answer there, in the order of the site file.
    pub(crate) vips: Vec<bool>,
    /// Of its server.
    pub(crate) replication: Replication,
}

/// [`Protection`], as it is said to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Level {
    Full,
    NoTakeOver,
    OneCopy,
    Standby,
    Down,
}

impl Status {
    /// Of what the loop and the observers see.
    pub(crate) fn of(view: &View, vips: &[Row], replication: Replication) -> Self {
        let protection = match view.protection {
            Protection::Full => Level::Full,
            Protection::NoTakeOver => Level::NoTakeOver,
            Protection::OneCopy => Level::OneCopy,
            Protection::Standby => Level::Standby,
            Protection::Down => Level::Down,
        };
        let vips = vips.iter().map(|row| row.here).collect();
        Status { phase: view.phase, protection, why: super::words::causes(&view.why), vips, replication }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Heard {
    Taken,
}

/// The saying end.
pub(crate) struct Link {
    queue: mpsc::Sender<ToPeer>,
    full: Cell<bool>,
}

impl Link {
    /// Starts the task that says what is queued.
    pub(crate) fn start(
        identity: &Identity,
        peer: &Member,
        lease_ms: u64,
        status: watch::Receiver<Option<Status>>,
    ) -> Result<Self, TlsError> {
        let tls = tls::client(identity, Trust::Pinned(vec![peer.public()]), Speaks::Peer)?;
        let limits = Limits { call_ms: lease_ms / 3, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 0 };
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        spawn_local(say(Client::by_any(peer.at_port(peer.port), tls, limits), waiting, status));
        Ok(Self { queue, full: Cell::new(false) })
    }

    /// Says it, or drops it when the queue is full.
    pub(crate) fn say(&self, message: ToPeer) {
        let full = self.queue.try_send(message).is_err();
        if full && !self.full.replace(full) {
            tracing::warn!("the link to the other node is too slow, messages are dropped");
        }
        self.full.set(full);
    }
}

async fn say(
    client: Client<Say, Heard>,
    mut waiting: mpsc::Receiver<ToPeer>,
    status: watch::Receiver<Option<Status>>,
) {
    let mut answers = None;
    let mut messages = Vec::new();
    while waiting.recv_many(&mut messages, BATCH_MAX).await > 0 {
        let batch = Say { messages: std::mem::take(&mut messages), status: status.borrow().clone() };
        let heard = client.call(&batch).await;
        let before = answers.replace(heard.is_ok());
        match heard {
            Ok(Heard::Taken) if before != Some(true) => tracing::info!("the other node hears this one"),
            Ok(Heard::Taken) => {}
            Err(unknown) => {
                if before != Some(false) {
                    tracing::warn!(%unknown, "the other node does not answer");
                }
                // What has become old meanwhile is worth nothing.
                tokio::time::sleep(PAUSE).await;
                while waiting.len() > BATCH_MAX && waiting.try_recv().is_ok() {}
            }
        }
    }
}

/// The hearing end.
struct Hear {
    peer: PublicKey,
    events: mpsc::Sender<Event>,
    status: watch::Sender<Option<Status>>,
    dropped: AtomicBool,
}

impl Service for Hear {
    fn knows(&self, key: &PublicKey) -> bool {
        *key == self.peer
    }

    async fn answer(&self, _: &server::Peer, frame: Vec<u8>) -> Answer {
        let close = Answer { frame: Vec::new(), keep: false };
        let Ok(Numbered { number, message: Say { messages, status } }) = frame::decode(&frame) else {
            return close;
        };
        self.status.send_replace(status);
        for message in messages {
            // A loop that does not keep up loses messages, as a network would.
            let dropped = self.events.try_send(Event::FromPeer(message)).is_err();
            if dropped && !self.dropped.swap(dropped, Ordering::Relaxed) {
                tracing::warn!("messages of the other node are dropped: the loop does not keep up");
            }
        }
        match frame::encode(&Numbered { number, message: Heard::Taken }, FRAME_BYTES_MAX) {
            Ok(frame) => Answer { frame, keep: true },
            Err(_) => close,
        }
    }

    fn refuse(&self, _: &FrameError) -> Option<Vec<u8>> {
        None
    }
}

/// Hears the other member, for ever. Binding is tried again: the address may come later than the supervisor.
pub(crate) async fn hear(
    identity: &Identity,
    peer: PublicKey,
    listen: SocketAddr,
    events: mpsc::Sender<Event>,
    status: watch::Sender<Option<Status>>,
) -> Result<(), TlsError> {
    let tls = tls::server(identity, Trust::Pinned(vec![peer]), Speaks::Peer)?;
    let mut said = false;
    let listener = loop {
        match bind(listen) {
            Ok(listener) => break listener,
            Err(error) if !said => {
                said = true;
                tracing::warn!(%listen, %error, "cannot listen for the other node yet");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    };
    let service = Arc::new(Hear { peer, events, status, dropped: AtomicBool::new(false) });
    server::serve(listener, tls, service, SERVER, Arc::new(Counters::default())).await;
    Ok(())
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(16)
}
