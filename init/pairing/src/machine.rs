//! One node's side of pairing: takes an event, answers with actions.

use std::collections::BTreeMap;

use dyad_cluster::types::{ClusterId, Node, Tick};
use serde::{Deserialize, Serialize};

use crate::beacon::{Beacon, VERSION, tag_text};
use crate::{Key, Keys};

/// Between two beacons.
pub const BEACON_MS: u64 = 1_000;
/// A node is thought to be there this long after its last beacon.
pub const FRESH_MS: u64 = 10_000;
/// Nobody is settled on before a third node had this long to be heard.
pub const SETTLE_MS: u64 = 3_000;
/// Between two attempts to open a channel.
pub const RETRY_MS: u64 = 2_000;
/// Nodes remembered; more with the same site key are a third node all the same.
const CANDIDATES_MAX: usize = 8;

/// What is on disk of a pairing. Only ever goes down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Durable {
    /// Nothing was promised to anybody.
    #[default]
    Blank,
    /// The lower key's: an id was minted for this peer, who may know it already.
    Minted {
        /// The id.
        cluster: ClusterId,
        /// Whom it was minted for.
        peer: Key,
    },
    /// Member of this cluster.
    Paired {
        /// The cluster.
        cluster: ClusterId,
        /// The other member.
        peer: Key,
    },
}

impl Durable {
    fn held(&self) -> Option<(ClusterId, Key)> {
        match self {
            Durable::Blank => None,
            Durable::Minted { cluster, peer } | Durable::Paired { cluster, peer } => Some((*cluster, *peer)),
        }
    }
}

/// What a node knows of itself at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Drawn at this start.
    pub nonce: u64,
    /// Random: the cluster's id, should this node have to mint one.
    pub fresh_id: ClusterId,
    /// Data that was found on its disks although it belongs to no cluster (system identifier).
    pub foreign: Option<u64>,
}

/// Over the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first word of both sides: the site key, on this very channel, for these two keys.
    Prove {
        /// Of protocol and beacons.
        version: u8,
        /// HMAC over side, exporter and both keys.
        proof: [u8; 32],
    },
    /// From the lower key: be a member of this cluster.
    Offer {
        /// Its id.
        cluster: ClusterId,
    },
    /// From the higher key: is one, durably.
    Accept {
        /// Its id.
        cluster: ClusterId,
    },
    /// Neither, and why.
    Refuse(Refusal),
}

/// Why two nodes do not pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another version.
    #[error("the other node speaks pairing version {theirs}, this one {ours}: bring both to the same image")]
    Version {
        /// Of this node.
        ours: u8,
        /// Of the other.
        theirs: u8,
    },
    /// Data that nobody accounts for.
    #[error(
        "node {key:?} holds data of a cluster that it does not belong to (system identifier {system}): move it away or wipe it"
    )]
    ForeignData {
        /// Whose disks.
        key: Key,
        /// Whose data.
        system: u64,
    },
    /// More than two nodes with this site key.
    #[error(
        "node {key:?} has the site key too, but a cluster has two members: switch it off, or give it another site key"
    )]
    ThirdNode {
        /// The one too many, or one of them.
        key: Key,
    },
    /// No proof of the site key.
    #[error("node {key:?} does not have this site key")]
    Stranger {
        /// Whose.
        key: Key,
    },
    /// The same key twice.
    #[error(
        "another machine has this node's identity: one of the two was cloned; remove its identity and start it again"
    )]
    Cloned,
    /// Member elsewhere.
    #[error("node {key:?} is a member of another cluster, {}", hex(cluster))]
    OtherCluster {
        /// Who.
        key: Key,
        /// Where.
        cluster: ClusterId,
    },
}

fn hex(cluster: &ClusterId) -> String {
    format!("{:032x}", cluster.0)
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time went on. Due at least every [`BEACON_MS`].
    Tick,
    /// A datagram came on some link.
    Beacon(Vec<u8>),
    /// A channel to this key stands; its exporter is known to both ends alone.
    Opened {
        /// The other end's key, pinned or proven by TLS.
        key: Key,
        /// Of the channel.
        exporter: [u8; 32],
    },
    /// A message came over the channel.
    Message(Message),
    /// The channel is gone.
    Closed,
    /// What [`Action::Store`] asked for is on disk.
    Stored,
}

/// What the caller is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this datagram on every link.
    Announce(Vec<u8>),
    /// Open a channel to the node with this key, at the address its beacon came from.
    Connect(Key),
    /// Send this over the channel.
    Send(Message),
    /// Close the channel.
    Close,
    /// Make this durable, then say [`Event::Stored`].
    Store(Durable),
    /// Show this to people.
    Report(Refusal),
    /// Both members know: go on with roles, addresses and data.
    Paired {
        /// The cluster.
        cluster: ClusterId,
        /// The other member's key, to be pinned.
        peer: Key,
        /// Which member this node is.
        role: Node,
    },
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    key: Key,
    exporter: [u8; 32],
    proven: bool,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    first: Tick,
    last: Tick,
}

/// One node.
#[derive(Debug)]
pub struct Machine<K> {
    keys: K,
    own: Own,
    durable: Durable,
    /// Asked to be stored.
    storing: Option<Durable>,
    candidates: BTreeMap<Key, Candidate>,
    channel: Option<Channel>,
    announced: Option<Tick>,
    dialled: Option<Tick>,
    /// The caller was told of the pairing in this run.
    done: bool,
    /// The peer's last beacon said that it is a member too.
    peer_knows: bool,
}

impl<K: Keys> Machine<K> {
    /// A node that has just started with what is on its disk.
    pub fn new(keys: K, own: Own, durable: Durable) -> Self {
        Machine {
            keys,
            own,
            durable,
            storing: None,
            candidates: BTreeMap::new(),
            channel: None,
            announced: None,
            dialled: None,
            done: false,
            peer_knows: false,
        }
    }

    /// One event.
    pub fn step(&mut self, now: Tick, event: Event) -> Vec<Action> {
        match event {
            Event::Tick => self.tick(now),
            Event::Beacon(bytes) => match Beacon::open(&bytes, &self.keys) {
                None => Vec::new(),
                Some(Err(refusal)) => vec![Action::Report(refusal)],
                Some(Ok(beacon)) => self.beacon(now, &beacon).err().map(Action::Report).into_iter().collect(),
            },
            Event::Opened { key, exporter } => self.opened(key, exporter),
            Event::Message(message) => self.message(now, message),
            Event::Closed => {
                self.channel = None;
                Vec::new()
            }
            Event::Stored => self.stored(),
        }
    }

    fn me(&self) -> Key {
        self.keys.public()
    }

    fn tick(&mut self, now: Tick) -> Vec<Action> {
        self.candidates.retain(|_, c| now.since(c.last) < FRESH_MS);
        let mut actions = Vec::new();
        if self.announced.is_none_or(|at| now.since(at) >= BEACON_MS) {
            self.announced = Some(now);
            let (key, nonce) = (self.me(), self.own.nonce);
            let tag = self.keys.site_mac(&tag_text(&key, nonce));
            let beacon = Beacon { key, nonce, tag, held: self.durable.held(), foreign: self.foreign() };
            actions.push(Action::Announce(beacon.seal(&self.keys)));
        }
        if let Some(system) = self.foreign() {
            actions.push(Action::Report(Refusal::ForeignData { key: self.me(), system }));
            return actions;
        }
        if let Durable::Paired { cluster, peer } = self.durable {
            actions.extend(self.finish(cluster, peer));
        }
        match self.partner(now) {
            Err(refusal) => actions.push(Action::Report(refusal)),
            Ok(Some(peer)) if self.dials(&peer, now) => {
                self.dialled = Some(now);
                actions.push(Action::Connect(peer));
            }
            Ok(_) => {}
        }
        actions
    }

    /// Data without a cluster of ours; data of our own cluster is none.
    fn foreign(&self) -> Option<u64> {
        if self.durable == Durable::Blank { self.own.foreign } else { None }
    }

    fn dials(&self, peer: &Key, now: Tick) -> bool {
        let lower = self.me() < *peer;
        let rested = self.dialled.is_none_or(|at| now.since(at) >= RETRY_MS);
        lower && rested && self.channel.is_none() && !(self.done && self.peer_knows)
    }

    /// The one node to pair with: the peer of before, or the only one that was heard for long enough.
    fn partner(&self, now: Tick) -> Result<Option<Key>, Refusal> {
        if let Some((_, peer)) = self.durable.held() {
            return Ok(self.candidates.contains_key(&peer).then_some(peer));
        }
        let mut heard = self.candidates.iter();
        match (heard.next(), heard.next()) {
            (Some(_), Some((key, _))) => Err(Refusal::ThirdNode { key: *key }),
            (Some((key, c)), None) if now.since(c.first) >= SETTLE_MS => Ok(Some(*key)),
            (Some(_) | None, None) | (None, Some(_)) => Ok(None),
        }
    }

    fn beacon(&mut self, now: Tick, beacon: &Beacon) -> Result<(), Refusal> {
        let Beacon { key, nonce, tag: _, held, foreign } = beacon;
        if *key == self.me() {
            // Our own comes back from every bridge.
            return if *nonce == self.own.nonce { Ok(()) } else { Err(Refusal::Cloned) };
        }
        if !beacon.has_site_key(&self.keys) {
            return Err(Refusal::Stranger { key: *key });
        }
        if let Some(system) = foreign {
            return Err(Refusal::ForeignData { key: *key, system: *system });
        }
        match (self.durable.held(), held) {
            (Some((_, peer)), _) if peer != *key => return Err(Refusal::ThirdNode { key: *key }),
            (Some((ours, _)), Some((theirs, _))) if ours != *theirs => {
                return Err(Refusal::OtherCluster { key: *key, cluster: *theirs });
            }
            (None, Some((cluster, peer))) if *peer != self.me() => {
                return Err(Refusal::OtherCluster { key: *key, cluster: *cluster });
            }
            (Some(_) | None, Some(_) | None) => {}
        }
        // Past the checks a node that holds has heard its own peer.
        self.peer_knows = self.durable.held().is_some() && held.is_some();
        if self.candidates.len() < CANDIDATES_MAX || self.candidates.contains_key(key) {
            self.candidates.entry(*key).or_insert(Candidate { first: now, last: now }).last = now;
        }
        Ok(())
    }

    fn proof_text(&self, prover: Key, channel: &Channel) -> Vec<u8> {
        let other = if prover == self.me() { channel.key } else { self.me() };
        [&b"dyad pairing v1"[..], &channel.exporter, &prover.0, &other.0].concat()
    }

    fn opened(&mut self, key: Key, exporter: [u8; 32]) -> Vec<Action> {
        let channel = Channel { key, exporter, proven: false };
        if key == self.me() {
            return vec![Action::Close, Action::Report(Refusal::Cloned)];
        }
        self.channel = Some(channel);
        let proof = self.keys.site_mac(&self.proof_text(self.me(), &channel));
        vec![Action::Send(Message::Prove { version: VERSION, proof })]
    }

    /// Says no, and hangs up.
    fn refuse(&mut self, refusal: Refusal) -> Vec<Action> {
        self.channel = None;
        vec![Action::Send(Message::Refuse(refusal)), Action::Close, Action::Report(refusal)]
    }

    fn message(&mut self, now: Tick, message: Message) -> Vec<Action> {
        let Some(channel) = self.channel else { return Vec::new() };
        match message {
            Message::Prove { version, .. } if version != VERSION => {
                self.refuse(Refusal::Version { ours: VERSION, theirs: version })
            }
            Message::Prove { proof, .. } => {
                if !self.keys.site_accepts(&self.proof_text(channel.key, &channel), &proof) {
                    return self.refuse(Refusal::Stranger { key: channel.key });
                }
                self.channel = Some(Channel { proven: true, ..channel });
                self.proven(now, channel.key)
            }
            // Nothing is heard from somebody who has not proven the site key.
            Message::Offer { .. } | Message::Accept { .. } | Message::Refuse(_) if !channel.proven => {
                self.refuse(Refusal::Stranger { key: channel.key })
            }
            Message::Offer { cluster } => self.offered(channel.key, cluster),
            Message::Accept { cluster } => self.accepted(channel.key, cluster),
            Message::Refuse(refusal) => {
                self.channel = None;
                vec![Action::Close, Action::Report(refusal)]
            }
        }
    }

    /// The other end has the site key too. The lower key goes on.
    fn proven(&mut self, now: Tick, peer: Key) -> Vec<Action> {
        if let Some(system) = self.foreign() {
            return self.refuse(Refusal::ForeignData { key: self.me(), system });
        }
        match self.durable.held() {
            Some((_, known)) if known != peer => return self.refuse(Refusal::ThirdNode { key: peer }),
            Some(_) => {}
            None => {
                if let Some(other) = self.candidates.keys().find(|key| **key != peer).copied() {
                    return self.refuse(Refusal::ThirdNode { key: other });
                }
                self.candidates.entry(peer).or_insert(Candidate { first: now, last: now }).last = now;
            }
        }
        if self.me() > peer {
            return Vec::new();
        }
        match self.durable {
            // The id is on disk before anybody hears it: it is minted once.
            Durable::Blank => self.store(Durable::Minted { cluster: self.own.fresh_id, peer }),
            Durable::Minted { cluster, .. } | Durable::Paired { cluster, .. } => {
                vec![Action::Send(Message::Offer { cluster })]
            }
        }
    }

    fn offered(&mut self, peer: Key, cluster: ClusterId) -> Vec<Action> {
        if self.me() < peer {
            return self.refuse(Refusal::Stranger { key: peer });
        }
        match self.durable {
            Durable::Blank => self.store(Durable::Paired { cluster, peer }),
            Durable::Minted { cluster: ours, peer: with } | Durable::Paired { cluster: ours, peer: with } => {
                if (ours, with) == (cluster, peer) {
                    let mut actions = vec![Action::Send(Message::Accept { cluster })];
                    actions.extend(self.finish(cluster, peer));
                    actions
                } else {
                    self.refuse(Refusal::OtherCluster { key: self.me(), cluster: ours })
                }
            }
        }
    }

    fn accepted(&mut self, peer: Key, cluster: ClusterId) -> Vec<Action> {
        match self.durable {
            Durable::Minted { cluster: ours, peer: with } if (ours, with) == (cluster, peer) => {
                self.store(Durable::Paired { cluster, peer })
            }
            Durable::Paired { cluster: ours, peer: with } if (ours, with) == (cluster, peer) => {
                self.finish(cluster, peer).into_iter().collect()
            }
            Durable::Blank | Durable::Minted { .. } | Durable::Paired { .. } => {
                self.refuse(Refusal::OtherCluster { key: peer, cluster })
            }
        }
    }

    fn store(&mut self, durable: Durable) -> Vec<Action> {
        // One write at a time: what is being written decides, and the channel comes again if this one has to wait.
        if self.storing.is_some() {
            return Vec::new();
        }
        self.storing = Some(durable);
        vec![Action::Store(durable)]
    }

    fn stored(&mut self) -> Vec<Action> {
        let Some(durable) = self.storing.take() else { return Vec::new() };
        self.durable = durable;
        let proven = |peer: &Key| self.channel.is_some_and(|c| c.proven && c.key == *peer);
        match durable {
            Durable::Minted { cluster, peer } if proven(&peer) => {
                vec![Action::Send(Message::Offer { cluster })]
            }
            Durable::Paired { cluster, peer } => {
                let mut actions = Vec::new();
                if self.me() > peer && proven(&peer) {
                    actions.push(Action::Send(Message::Accept { cluster }));
                }
                actions.extend(self.finish(cluster, peer));
                actions
            }
            Durable::Blank | Durable::Minted { .. } => Vec::new(),
        }
    }

    fn finish(&mut self, cluster: ClusterId, peer: Key) -> Option<Action> {
        if std::mem::replace(&mut self.done, true) {
            return None;
        }
        let role = if self.me() < peer { Node::A } else { Node::B };
        Some(Action::Paired { cluster, peer, role })
    }
}
