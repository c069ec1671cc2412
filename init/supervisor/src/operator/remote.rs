//! Operators on other machines, and the other node's forwarded questions: TLS with pinned keys, the same lines as on the
//! operator socket. The other node may ask only what a pair needs of each other, and sends a copy of its event log.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dyad_channel::frame::{self, FrameError, Numbered};
use dyad_channel::operator::{Ask, FRAME_BYTES_MAX, PORT, Told};
use dyad_channel::server::{self, Answer, Counters, Limits, Service};
use dyad_channel::tls::{self, Speaks, TlsError, Trust};
use dyad_channel::{Identity, PublicKey};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_blocking, spawn_local};

use super::calls::{Caller, Context};
use crate::driver::{copies_dir, keep_copy};

const LIMITS: Limits = Limits {
    strangers_max: 8,
    per_key_max: 4,
    frame_bytes_max: FRAME_BYTES_MAX,
    handshake_ms: 5_000,
    idle_ms: 300_000,
    frame_ms: 5_000,
    // A journal is read page by page, a power off drains first.
    answer_ms: 60_000,
};
/// Questions that wait for the supervisor's thread at most.
const QUESTIONS_MAX: usize = 16;
/// Between two tries to listen.
const PAUSE: Duration = Duration::from_millis(200);

/// Who may ask.
pub(crate) struct Keys {
    /// Names of the site file with their keys.
    pub(crate) operators: Vec<(String, PublicKey)>,
    /// The other node.
    pub(crate) peer: Option<PublicKey>,
}

struct Question {
    line: Vec<u8>,
    caller: Caller,
    reply: oneshot::Sender<Vec<u8>>,
}

struct Remote {
    keys: Keys,
    questions: mpsc::Sender<Question>,
    copies: PathBuf,
}

impl Remote {
    async fn told(&self, key: &PublicKey, ask: Ask) -> Told {
        let peer = self.keys.peer == Some(*key);
        let operator = self.keys.operators.iter().find(|(_, known)| known == key);
        let caller = match operator {
            Some((name, _)) => Caller::Operator(name.clone()),
            None => Caller::Peer,
        };
        match ask {
            Ask::Line(line) => {
                let (reply, answered) = oneshot::channel();
                if self.questions.send(Question { line, caller, reply }).await.is_err() {
                    return Told::Refused;
                }
                answered.await.map_or(Told::Refused, Told::Line)
            }
            Ask::Log { file, offset, bytes } if peer => {
                let dir = self.copies.clone();
                match spawn_blocking(move || keep_copy(&dir, file, offset, &bytes)).await {
                    Ok(Ok(length)) => Told::Has(length),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "copy the other node's event log");
                        Told::Refused
                    }
                    Err(_) => Told::Refused,
                }
            }
            Ask::Log { .. } => Told::Refused,
        }
    }
}

impl Service for Remote {
    fn knows(&self, key: &PublicKey) -> bool {
        self.keys.peer == Some(*key) || self.keys.operators.iter().any(|(_, known)| known == key)
    }

    async fn answer(&self, peer: &server::Peer, frame: Vec<u8>) -> Answer {
        let close = Answer { frame: Vec::new(), keep: false };
        let Ok(Numbered { number, message }) = frame::decode(&frame) else { return close };
        let message = self.told(&peer.key, message).await;
        match frame::encode(&Numbered { number, message }, FRAME_BYTES_MAX) {
            Ok(frame) => Answer { frame, keep: true },
            Err(_) => close,
        }
    }

    fn refuse(&self, _: &FrameError) -> Option<Vec<u8>> {
        None
    }
}

/// Listens for ever; with nobody who may ask, not at all.
pub(crate) async fn serve_remote(
    identity: Identity,
    keys: Keys,
    context: Rc<Context>,
) -> Result<(), TlsError> {
    let trusted: Vec<PublicKey> = keys.operators.iter().map(|(_, key)| *key).chain(keys.peer).collect();
    if trusted.is_empty() {
        return Ok(());
    }
    let tls = tls::server(&identity, Trust::Pinned(trusted), Speaks::Operator)?;
    let mut said = false;
    let listener = loop {
        match listen() {
            Ok(listener) => break listener,
            Err(error) if !said => {
                said = true;
                tracing::error!(%error, port = PORT, "listen for operators");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    };
    let (questions, mut queue) = mpsc::channel::<Question>(QUESTIONS_MAX);
    let copies = copies_dir(&context.paths);
    spawn_local(async move {
        while let Some(Question { line, caller, reply }) = queue.recv().await {
            let context = Rc::clone(&context);
            spawn_local(async move {
                // Whoever asked may be gone.
                let _ = reply.send(context.answer(Ok(line), caller).await.to_line());
            });
        }
    });
    let service = Arc::new(Remote { keys, questions, copies });
    server::serve(listener, tls, service, LIMITS, Arc::new(Counters::default())).await;
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)))?;
    socket.listen(16)
}
