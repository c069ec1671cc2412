//! The asking end: one question at a time, each with a deadline. Whatever goes wrong, the outcome is [`Unknown`].

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frame::{self, FrameError, Numbered};
use crate::identity::{PublicKey, SUBJECT};
use crate::secret::Exporter;
use crate::tls;

/// Limits of a client.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For one question, connecting included.
    pub call_ms: u64,
    /// Largest message either way, in bytes.
    pub frame_bytes_max: usize,
    /// Questions that may wait for their turn; one more is answered `Unknown` at once.
    pub waiting_max: usize,
}

/// What became of the question is not known: it may have had its effect, may have it later, or never.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("outcome unknown: {at}: {cause}")]
pub struct Unknown {
    /// Whom was asked.
    pub at: String,
    /// What was seen.
    pub cause: Cause,
}

/// What was seen of a question without an answer. For people: nothing may be decided by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// Too many questions wait already.
    #[error("{0} questions wait for an answer already")]
    Busy(usize),
    /// No answer in time.
    #[error("no answer within {0} ms")]
    Deadline(u64),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The handshake failed: wrong key, or not one of ours at all.
    #[error("TLS handshake: {0}")]
    Handshake(String),
    /// The connection broke or brought something else than an answer.
    #[error(transparent)]
    Frame(FrameError),
    /// An answer to another question.
    #[error("the answer is to question {found}, {asked} was asked")]
    Number {
        /// Sent.
        asked: u64,
        /// Received.
        found: u64,
    },
    /// The connection was closed instead of an answer.
    #[error("the connection was closed instead of an answer")]
    Closed,
    /// An answer of another kind than the question.
    #[error("the answer is of another kind than the question")]
    OtherAnswer,
    /// The other end did not look at the question, and said why.
    #[error("not looked at: {0}")]
    Declined(String),
    /// A backend of another kind failed.
    #[error("{0}")]
    Backend(String),
}

struct Connection {
    stream: TlsStream<TcpStream>,
    key: PublicKey,
    exporter: Exporter,
}

/// Asks `Q`, hears `A`. Connects when there is something to ask, and again after any error.
pub struct Client<Q, A> {
    /// Of the one that is asked, the preferred one first.
    addresses: Vec<SocketAddr>,
    /// Where the next connection begins: behind an address that was connected to and brought no answer.
    first: AtomicUsize,
    tls: TlsConnector,
    limits: Limits,
    turns: Semaphore,
    number: AtomicU64,
    connection: Mutex<Option<Connection>>,
    of: PhantomData<fn(Q) -> A>,
}

impl<Q, A> Client<Q, A> {
    fn at(&self) -> String {
        self.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" or ")
    }
}

impl<Q, A> std::fmt::Debug for Client<Q, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.at())
    }
}

impl<Q: Serialize, A: DeserializeOwned> Client<Q, A> {
    /// A client that has not connected yet.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>, limits: Limits) -> Self {
        Self::by_any(vec![address], tls, limits)
    }

    /// The same for one that has several addresses. Each is tried without waiting for long for those before it, so that
    /// a network that is down costs a fraction of a question's time and not the question.
    pub fn by_any(addresses: Vec<SocketAddr>, tls: Arc<ClientConfig>, limits: Limits) -> Self {
        Client {
            addresses,
            first: AtomicUsize::new(0),
            tls: TlsConnector::from(tls),
            limits,
            turns: Semaphore::new(limits.waiting_max + 1),
            number: AtomicU64::new(1),
            connection: Mutex::new(None),
            of: PhantomData,
        }
    }

    /// An outcome that is not known, with this client's address.
    pub fn unknown(&self, cause: Cause) -> Unknown {
        Unknown { at: self.at(), cause }
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, question: &Q) -> Result<A, Unknown>
    where
        Q: Clone,
    {
        self.call_proving(|_, _| question.clone()).await
    }

    /// The same with a question that is made for this one channel: from the other end's key and the exporter.
    pub async fn call_proving(
        &self,
        question: impl FnOnce(&PublicKey, &Exporter) -> Q,
    ) -> Result<A, Unknown> {
        let _turn =
            self.turns.try_acquire().map_err(|_| self.unknown(Cause::Busy(self.limits.waiting_max)))?;
        let deadline = Duration::from_millis(self.limits.call_ms);
        let outcome = match tokio::time::timeout(deadline, self.exchange(question)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Cause::Deadline(self.limits.call_ms)),
        };
        outcome.map_err(|cause| {
            self.first.fetch_add(1, Ordering::Relaxed);
            self.unknown(cause)
        })
    }

    /// The connection is taken out while it is in use: an error, or a caller that stops waiting, drops it, and no late
    /// answer can be taken for the answer to a later question.
    async fn exchange(&self, question: impl FnOnce(&PublicKey, &Exporter) -> Q) -> Result<A, Cause> {
        let mut kept = self.connection.lock().await;
        let mut connection = match kept.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let message = question(&connection.key, &connection.exporter);
        let bytes = frame::encode(&Numbered { number, message }, self.limits.frame_bytes_max)
            .map_err(Cause::Frame)?;
        frame::write(&mut connection.stream, &bytes).await.map_err(Cause::Frame)?;
        let answer = frame::read(&mut connection.stream, self.limits.frame_bytes_max)
            .await
            .map_err(Cause::Frame)?
            .ok_or(Cause::Closed)?;
        let answer: Numbered<A> = frame::decode(&answer).map_err(Cause::Frame)?;
        if answer.number != number {
            return Err(Cause::Number { asked: number, found: answer.number });
        }
        *kept = Some(connection);
        Ok(answer.message)
    }

    /// The first connection that comes about.
    async fn dial(&self) -> io::Result<TcpStream> {
        // Half of the time for all addresses: the rest is for handshake and question.
        let share = Duration::from_millis(self.limits.call_ms / 2)
            / u32::try_from(self.addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut tries = JoinSet::new();
        let count = self.addresses.len();
        let first = self.first.load(Ordering::Relaxed) % count.max(1);
        let mut left = self.addresses[first..].iter().chain(&self.addresses[..first]).take(count);
        let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        loop {
            if let Some(address) = left.next() {
                tries.spawn(TcpStream::connect(*address));
            }
            tokio::select! {
                ended = tries.join_next() => match ended {
                    Some(Ok(Ok(stream))) => return Ok(stream),
                    Some(Ok(Err(error))) => failed = error,
                    Some(Err(error)) => failed = io::Error::other(error),
                    None => return Err(failed),
                },
                () = tokio::time::sleep(share), if left.clone().next().is_some() => {}
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Cause> {
        let tcp = self.dial().await.map_err(|e| Cause::Connect(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| Cause::Connect(e.to_string()))?;
        let handshake = |error: &dyn std::fmt::Display| Cause::Handshake(error.to_string());
        let name = ServerName::try_from(SUBJECT).map_err(|e| handshake(&e))?;
        let stream = self.tls.connect(name, tcp).await.map_err(|e| handshake(&e))?;
        let session = stream.get_ref().1;
        let key = session
            .peer_certificates()
            .and_then(|chain| tls::key_of(chain.first()?))
            .ok_or_else(|| handshake(&"the other end showed no Ed25519 key"))?;
        let exporter = Exporter::of(session).map_err(|e| handshake(&e))?;
        Ok(Connection { stream, key, exporter })
    }
}
