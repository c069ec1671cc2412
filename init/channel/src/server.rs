//! The answering end: a bound on every connection, message and wait, so that nobody can keep it from the others.
//!
//! Strangers (no handshake yet, or a key that the service does not know) share a few places; a newcomer takes the oldest
//! one's place, so slow ones cannot lock out a node that has come to enrol. A known key has a few places of its own.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::frame::{self, FrameError};
use crate::identity::PublicKey;
use crate::secret::Exporter;
use crate::tls;

/// After an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections without a known key.
    pub strangers_max: usize,
    /// Connections of one known key.
    pub per_key_max: usize,
    /// Largest message either way, in bytes.
    pub frame_bytes_max: usize,
    /// From the connection to the end of the handshake.
    pub handshake_ms: u64,
    /// Between an answer and the next question.
    pub idle_ms: u64,
    /// From the first byte of a message to its last, either way.
    pub frame_ms: u64,
    /// For the service to answer.
    pub answer_ms: u64,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address: a label.
    pub address: SocketAddr,
    /// Its key, proven.
    pub key: PublicKey,
    /// Of this connection.
    pub exporter: Exporter,
}

/// What to send, and whether to go on.
#[derive(Debug)]
pub struct Answer {
    /// A frame of [`frame::encode`].
    pub frame: Vec<u8>,
    /// False: the connection is closed behind it.
    pub keep: bool,
}

/// What is asked.
pub trait Service: Send + Sync + 'static {
    /// Whether this key has places of its own.
    fn knows(&self, key: &PublicKey) -> bool;
    /// The answer to a frame: version byte and body. May be dropped at any await when the connection ends.
    fn answer(&self, peer: &Peer, frame: Vec<u8>) -> impl Future<Output = Answer> + Send;
    /// What a message gets that is no frame, before the connection is closed.
    fn refuse(&self, error: &FrameError) -> Option<Vec<u8>>;
}

/// How connections ended that did not end well, since the start. For status.
#[derive(Debug, Default)]
pub struct Counters {
    /// No handshake: not TLS 1.3, no Ed25519 key, not in time.
    pub handshakes_failed: AtomicU64,
    /// Closed because a newer connection took the place.
    pub displaced: AtomicU64,
    /// Closed for a message that came too slowly, too large, or not at all.
    pub closed: AtomicU64,
}

#[derive(Default)]
struct Places {
    next: u64,
    strangers: VecDeque<(u64, AbortHandle)>,
    known: HashMap<PublicKey, VecDeque<(u64, AbortHandle)>>,
}

/// Serves until the future is dropped; every connection ends with it.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Arc<S>,
    limits: Limits,
    counters: Arc<Counters>,
) {
    let tls = TlsAcceptor::from(tls);
    let places = Arc::new(Mutex::new(Places::default()));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Ended connections are forgotten as they end.
            Some(_) = connections.join_next() => continue,
        };
        let Ok((tcp, address)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = Connection {
            number: {
                let mut places = lock(&places);
                places.next += 1;
                places.next
            },
            limits,
            places: places.clone(),
            counters: counters.clone(),
        };
        let number = connection.number;
        let (tls, service) = (tls.clone(), service.clone());
        // The place is taken before the task runs: a task that ended already could not give it back.
        let (go, wait) = tokio::sync::oneshot::channel();
        let handle = connections.spawn(async move {
            if wait.await.is_ok() {
                connection.run(tcp, address, tls, service).await;
            }
        });
        let displaced = {
            let mut places = lock(&places);
            places.strangers.push_back((number, handle));
            over(&mut places.strangers, limits.strangers_max)
        };
        displace(displaced, &counters);
        // Fails only if the task was aborted at once.
        let _ = go.send(());
    }
}

fn lock(places: &Mutex<Places>) -> std::sync::MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

fn over(queue: &mut VecDeque<(u64, AbortHandle)>, most: usize) -> Option<AbortHandle> {
    if queue.len() > most { queue.pop_front().map(|(_, handle)| handle) } else { None }
}

fn displace(handle: Option<AbortHandle>, counters: &Counters) {
    if let Some(handle) = handle {
        handle.abort();
        counters.displaced.fetch_add(1, Ordering::Relaxed);
    }
}

struct Connection {
    number: u64,
    limits: Limits,
    places: Arc<Mutex<Places>>,
    counters: Arc<Counters>,
}

/// Gives the place back, also when the task is aborted.
impl Drop for Connection {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        places.strangers.retain(|(number, _)| *number != self.number);
        places.known.retain(|_, queue| {
            queue.retain(|(number, _)| *number != self.number);
            !queue.is_empty()
        });
    }
}

impl Connection {
    async fn run<S: Service>(self, tcp: TcpStream, address: SocketAddr, tls: TlsAcceptor, service: Arc<S>) {
        let handshake = async {
            tcp.set_nodelay(true).ok()?;
            let stream = tls.accept(tcp).await.ok()?;
            let session = stream.get_ref().1;
            let key = tls::key_of(session.peer_certificates()?.first()?)?;
            let exporter = Exporter::of(session).ok()?;
            Some((stream, Peer { address, key, exporter }))
        };
        let done = timeout(Duration::from_millis(self.limits.handshake_ms), handshake).await;
        let Some((stream, peer)) = done.ok().flatten() else {
            self.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.serve(stream, &peer, &*service).await.is_none() {
            self.counters.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A stranger that has shown a known key gets one of that key's own places.
    fn settle<S: Service>(&self, peer: &Peer, service: &S) {
        if !service.knows(&peer.key) {
            return;
        }
        let mut places = lock(&self.places);
        let Some(at) = places.strangers.iter().position(|(number, _)| *number == self.number) else {
            return;
        };
        let Some(place) = places.strangers.remove(at) else { return };
        let queue = places.known.entry(peer.key).or_default();
        queue.push_back(place);
        let displaced = over(queue, self.limits.per_key_max);
        drop(places);
        displace(displaced, &self.counters);
    }

    /// `None`: closed by this side for a reason.
    async fn serve<S: Service>(
        &self,
        mut stream: TlsStream<TcpStream>,
        peer: &Peer,
        service: &S,
    ) -> Option<()> {
        let frame_time = Duration::from_millis(self.limits.frame_ms);
        loop {
            self.settle(peer, service);
            let mut length = [0; 4];
            let idle = Duration::from_millis(self.limits.idle_ms);
            match timeout(idle, frame::first_byte(&mut stream, &mut length)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Some(()),
                Ok(Err(_)) | Err(_) => return None,
            }
            let read = frame::rest(&mut stream, length, self.limits.frame_bytes_max);
            let answer = match timeout(frame_time, read).await {
                Ok(Ok(frame)) => {
                    let answer_time = Duration::from_millis(self.limits.answer_ms);
                    timeout(answer_time, service.answer(peer, frame)).await.ok()?
                }
                Ok(Err(error)) => Answer { frame: service.refuse(&error)?, keep: false },
                Err(_) => return None,
            };
            timeout(frame_time, frame::write(&mut stream, &answer.frame)).await.ok()?.ok()?;
            if !answer.keep {
                // The other end reads the answer before it sees the end.
                let _ = timeout(frame_time, stream.shutdown()).await;
                return None;
            }
        }
    }
}
