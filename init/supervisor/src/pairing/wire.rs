//! What two nodes say over the channel between them, and the answering end of it.

use std::net::SocketAddr;

use dyad_channel::frame::{self, FrameError, Numbered};
use dyad_channel::server::{self, Answer, Peer, Service};
use dyad_channel::{PublicKey, client};
use dyad_pairing::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::links::is_neighbour;
use super::place::Card;

/// Passwords of a site with very many roles still fit.
const FRAME_BYTES_MAX: usize = 256 << 10;

/// Of the asking end.
pub(crate) const CLIENT: client::Limits =
    client::Limits { call_ms: 5_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 0 };

/// Of the answering end. Nobody is known yet: all are strangers, and a newcomer takes the oldest one's place.
pub(crate) const SERVER: server::Limits = server::Limits {
    strangers_max: 8,
    per_key_max: 0,
    frame_bytes_max: FRAME_BYTES_MAX,
    handshake_ms: 5_000,
    idle_ms: 10_000,
    frame_ms: 5_000,
    answer_ms: 5_000,
};

/// Asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Say {
    /// Words of the pairing.
    Words(Vec<Message>),
    /// The higher key's card, once both are paired.
    Card(Card),
}

/// Answered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Heard {
    /// Words of the pairing.
    Words(Vec<Message>),
    /// The lower key's card, and the passwords and the authority that it made.
    Card {
        /// The card.
        card: Card,
        /// As they lie on its disk.
        secrets: Vec<u8>,
    },
    /// Not now, or not at all: why.
    No(String),
}

/// A question and where its answer goes.
pub(crate) struct Asked {
    /// Who asks, proven.
    pub(crate) peer: Peer,
    /// What.
    pub(crate) say: Say,
    /// The answer; false: and then the channel is closed.
    pub(crate) reply: oneshot::Sender<(Heard, bool)>,
}

/// Hands questions to whoever pairs.
pub(crate) struct Listener {
    /// Where to.
    pub(crate) asked: mpsc::Sender<Asked>,
}

impl Service for Listener {
    fn knows(&self, _: &PublicKey) -> bool {
        false
    }

    async fn answer(&self, peer: &Peer, frame: Vec<u8>) -> Answer {
        let close = || Answer { frame: Vec::new(), keep: false };
        let near = matches!(&peer.address, SocketAddr::V6(address) if is_neighbour(address));
        let Ok(Numbered { number, message: say }) = frame::decode(&frame) else { return close() };
        let (reply, answer) = oneshot::channel();
        let asked = Asked { peer: peer.clone(), say, reply };
        if !near || self.asked.send(asked).await.is_err() {
            return close();
        }
        let Ok((message, keep)) = answer.await else { return close() };
        match frame::encode(&Numbered { number, message }, FRAME_BYTES_MAX) {
            Ok(frame) => Answer { frame, keep },
            Err(_) => close(),
        }
    }

    fn refuse(&self, _: &FrameError) -> Option<Vec<u8>> {
        None
    }
}
