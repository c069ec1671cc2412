//! One node's pairing machine with its disk, its clock and what it last heard from whom.

use std::collections::BTreeMap;
use std::net::SocketAddrV6;
use std::rc::Rc;

use dyad_channel::secret::{Proof, Secret};
use dyad_channel::{Identity, PublicKey};
use dyad_cluster::types::{ClusterId, Node as Role, Tick};
use dyad_pairing::beacon::Beacon;
use dyad_pairing::{Action, Durable, Event, FRESH_MS, Key, Keys, Machine, Message, Own, Refusal};
use tokio::sync::watch;

use super::disk;
use super::wire::{Asked, Heard};
use crate::clock;
use crate::driver::Membership;
use crate::paths::Paths;

/// Neighbours whose addresses are remembered; all of them have the site key.
const NEIGHBOURS_MAX: usize = 16;

/// This node's key and the site's.
#[derive(Clone)]
pub(crate) struct SiteKeys {
    pub(crate) identity: Rc<Identity>,
    pub(crate) site: Secret,
}

impl Keys for SiteKeys {
    fn public(&self) -> Key {
        Key(self.identity.public().0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.identity.sign(message)
    }

    fn verify(&self, key: &Key, message: &[u8], signature: &[u8; 64]) -> bool {
        PublicKey(key.0).verify(message, signature)
    }

    fn site_mac(&self, message: &[u8]) -> [u8; 32] {
        self.site.seal(message).0
    }

    fn site_accepts(&self, message: &[u8], mac: &[u8; 32]) -> bool {
        self.site.sealed(&Proof(*mac), message)
    }
}

/// What is to be done after a step; everything on disk is done by then.
#[derive(Default)]
pub(crate) struct Todo {
    pub(crate) announce: Option<Vec<u8>>,
    pub(crate) connect: Option<Key>,
    pub(crate) send: Vec<Message>,
    pub(crate) close: bool,
}

/// The channel that words come over.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Channel {
    exporter: [u8; 32],
    /// The last word over it, of one that the other end opened.
    answered: Option<Tick>,
}

/// One node's side.
pub(crate) struct Host {
    pub(crate) paths: Rc<Paths>,
    pub(crate) keys: SiteKeys,
    machine: Machine<SiteKeys>,
    durable: Durable,
    /// What could not be written yet.
    unwritten: Option<Durable>,
    /// Where each other node was heard last, and when.
    neighbours: BTreeMap<Key, (SocketAddrV6, Tick)>,
    channel: Option<Channel>,
    refusal: Option<(Refusal, Tick)>,
    /// Why the disk or the site stands in the way.
    pub(crate) trouble: Option<String>,
    /// Links that the last beacon went over.
    pub(crate) links: Vec<String>,
    pub(crate) member: Option<Membership>,
    pub(crate) shown: watch::Sender<Option<String>>,
}

impl Host {
    pub(crate) fn new(
        paths: Rc<Paths>,
        keys: SiteKeys,
        durable: Durable,
        own: Own,
        member: Option<Membership>,
        shown: watch::Sender<Option<String>>,
    ) -> Self {
        let machine = Machine::new(keys.clone(), own, durable);
        Host {
            paths,
            keys,
            machine,
            durable,
            unwritten: None,
            neighbours: BTreeMap::new(),
            channel: None,
            refusal: None,
            trouble: None,
            links: Vec::new(),
            member,
            shown,
        }
    }

    /// The cluster and the other member, once both are durable here, and which member this node is.
    pub(crate) fn paired(&self) -> Option<(ClusterId, Key, Role)> {
        match self.durable {
            Durable::Paired { cluster, peer } => {
                let role = if self.keys.public() < peer { Role::A } else { Role::B };
                Some((cluster, peer, role))
            }
            Durable::Blank | Durable::Minted { .. } => None,
        }
    }

    /// Where a node was last heard.
    pub(crate) fn address(&self, key: &Key) -> Option<SocketAddrV6> {
        self.neighbours.get(key).map(|(address, _)| *address)
    }

    /// A step, with its writes.
    fn step(&mut self, event: Event) -> Todo {
        let mut todo = Todo::default();
        let mut actions = self.machine.step(clock::tick(), event);
        while !actions.is_empty() {
            let mut more = Vec::new();
            for action in actions {
                match action {
                    Action::Announce(beacon) => todo.announce = Some(beacon),
                    Action::Connect(key) => todo.connect = Some(key),
                    Action::Send(message) => todo.send.push(message),
                    Action::Close => todo.close = true,
                    Action::Store(durable) => more.extend(self.write(durable)),
                    Action::Report(refusal) => self.report(refusal),
                    Action::Paired { cluster, peer, role } => {
                        tracing::info!(cluster = format!("{:032x}", cluster.0), ?peer, ?role, "paired");
                    }
                }
            }
            actions = more;
        }
        todo
    }

    fn write(&mut self, durable: Durable) -> Vec<Action> {
        if let Err(error) = disk::store(&self.paths, &durable) {
            tracing::error!(%error, "write down how far the pairing is");
            self.trouble = Some(error.to_string());
            self.unwritten = Some(durable);
            return Vec::new();
        }
        (self.unwritten, self.trouble) = (None, None);
        self.durable = durable;
        self.machine.step(clock::tick(), Event::Stored)
    }

    fn report(&mut self, refusal: Refusal) {
        let now = clock::tick();
        if self.fresh_refusal(now) != Some(refusal) {
            tracing::warn!(%refusal, "pairing is refused");
        }
        self.refusal = Some((refusal, now));
    }

    fn fresh_refusal(&self, now: Tick) -> Option<Refusal> {
        self.refusal.filter(|(_, at)| now.since(*at) < FRESH_MS).map(|(refusal, _)| refusal)
    }

    /// Time went on.
    pub(crate) fn tick(&mut self) -> Todo {
        let now = clock::tick();
        if let Some(durable) = self.unwritten {
            // Words that follow are said when the channel comes again.
            let _ = self.write(durable);
        }
        let quiet = |at: Tick| now.since(at) > FRESH_MS;
        self.neighbours.retain(|_, (_, at)| !quiet(*at));
        if self.channel.and_then(|channel| channel.answered).is_some_and(quiet) {
            self.closed();
        }
        let todo = self.step(Event::Tick);
        self.show();
        todo
    }

    /// A datagram came.
    pub(crate) fn beacon(&mut self, bytes: Vec<u8>, from: SocketAddrV6) -> Todo {
        if let Some(Ok(beacon)) = Beacon::open(&bytes, &self.keys)
            && beacon.has_site_key(&self.keys)
            && beacon.key != self.keys.public()
            && (self.neighbours.len() < NEIGHBOURS_MAX || self.neighbours.contains_key(&beacon.key))
        {
            self.neighbours.insert(beacon.key, (from, clock::tick()));
        }
        self.step(Event::Beacon(bytes))
    }

    /// A channel that this node opened stands.
    pub(crate) fn opened(&mut self, key: PublicKey, exporter: [u8; 32]) -> Todo {
        self.channel = Some(Channel { exporter, answered: None });
        self.step(Event::Opened { key: Key(key.0), exporter })
    }

    /// Words came over it.
    pub(crate) fn words(&mut self, words: Vec<Message>) -> Todo {
        let mut todo = Todo::default();
        for word in words {
            let more = self.step(Event::Message(word));
            todo.send.extend(more.send);
            todo.close |= more.close;
        }
        self.show();
        todo
    }

    /// The channel is gone.
    pub(crate) fn closed(&mut self) {
        self.channel = None;
        // Nothing follows from it at once.
        let _ = self.step(Event::Closed);
    }

    /// Words over a channel that the other end opened: the answer, and whether the channel stays.
    pub(crate) fn answer(&mut self, asked: &Asked, words: Vec<Message>) -> (Heard, bool) {
        let exporter = asked.peer.exporter.bytes();
        let mut todo = Todo::default();
        if self.channel.is_none_or(|channel| channel.exporter != exporter) {
            todo = self.opened(asked.peer.key, exporter);
        }
        self.channel = Some(Channel { exporter, answered: Some(clock::tick()) });
        if !todo.close {
            let more = self.words(words);
            todo.send.extend(more.send);
            todo.close = more.close;
        }
        if todo.close {
            self.closed();
        }
        (Heard::Words(todo.send), !todo.close)
    }

    /// Keeps what operators are shown.
    pub(crate) fn show(&self) {
        let text = self.text();
        self.shown.send_if_modified(|shown| std::mem::replace(shown, text.clone()) != text);
    }

    /// `None`: a member, and nothing is odd.
    fn text(&self) -> Option<String> {
        let refused = self.fresh_refusal(clock::tick()).map(|refusal| refusal.to_string());
        let trouble = self.trouble.clone();
        if self.member.is_some() {
            return refused.or(trouble);
        }
        let own = self.keys.public();
        let step = match &self.durable {
            _ if self.links.is_empty() => "no link of this machine is up yet".to_owned(),
            Durable::Blank if self.neighbours.is_empty() => {
                format!("this node ({own:?}) looks for the other one on {}", self.links.join(", "))
            }
            Durable::Blank => format!("this node ({own:?}) has heard another one with its site key"),
            Durable::Minted { peer, .. } => format!("this node ({own:?}) pairs with {peer:?}"),
            Durable::Paired { peer, .. } => {
                format!("this node ({own:?}) is paired with {peer:?}, and waits for its name and address")
            }
        };
        Some(refused.or(trouble).unwrap_or(step))
    }
}
