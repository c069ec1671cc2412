//! The arbiter's state in etcd, and one question at a time through the rules.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dyad_channel::client::{Cause, Unknown};
use dyad_channel::{ArbiterLink, secret};
use dyad_cluster::arbiter::{Arbiter, Durable, Memory};
use dyad_cluster::message::{Answer, Authenticated, FromArbiter, Refusal, ToArbiter};
use dyad_cluster::types::{BootId, ClusterId, Epoch, Incarnation, Node, ResourceId, Tick};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::api::{Api, ApiError, Header, Put, Range};

/// Times that a question goes through the rules again because the other node changed the state meanwhile.
const RACES_MAX: usize = 16;
/// Of what is kept in etcd.
const VERSION: u8 = 1;

/// Which cluster, where, and with which T.
#[derive(Debug, Clone)]
pub struct Settings {
    /// etcd's client addresses (plain HTTP: on loopback or inside a tunnel).
    pub endpoints: Vec<SocketAddr>,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which member asks.
    pub node: Node,
    /// T, in milliseconds. etcd counts whole seconds, and none below its own election timeout; it never ends earlier.
    pub lease_ms: u64,
    /// For one question, all its calls included.
    pub call_ms: u64,
}

/// What is kept under the cluster's state key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Kept {
    durable: Durable,
    /// Drawn whenever this is found to be another etcd, or the same at an earlier time.
    incarnation: u64,
    etcd: u64,
    /// Newest Raft term in which this was written; a lower one later means that etcd was restored.
    term: u64,
    heard: [bool; 2],
    amnesia: bool,
    boots: [Option<BootId>; 2],
    released: BTreeSet<(ResourceId, Epoch)>,
}

/// What one node knows of its own session and of etcd's past.
#[derive(Debug, Default)]
struct Own {
    lease: Option<u64>,
    revision: u64,
}

/// One node's way to the arbiter in etcd.
#[derive(Debug)]
pub struct EtcdArbiter {
    api: Api,
    settings: Settings,
    own: Mutex<Own>,
}

/// What was read before the rules were asked.
struct Seen {
    kept: Kept,
    /// Of the state key; zero: there is none.
    revision: u64,
    /// Of the session keys; zero: that node is silent.
    sessions: [u64; 2],
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("etcd is at revision {now} after {before}: it was restored to an earlier time")]
    BackInTime { now: u64, before: u64 },
    #[error("the arbiter's state in etcd does not decode: another version wrote it")]
    Foreign,
    #[error("the other node changed the state {RACES_MAX} times meanwhile")]
    Races,
}

impl EtcdArbiter {
    /// Asks nothing yet.
    pub fn new(settings: Settings) -> Self {
        EtcdArbiter { api: Api::new(settings.endpoints.clone()), settings, own: Mutex::default() }
    }

    fn key(&self, name: &str) -> String {
        format!("dyad/{:032x}/{name}", self.settings.cluster.0)
    }

    fn session_key(&self, node: Node) -> String {
        self.key(match node {
            Node::A => "session/a",
            Node::B => "session/b",
        })
    }

    fn read(&self, range: &Range) -> Result<Seen, Failed> {
        let find = |key: String| range.kvs.iter().find(|kv| kv.key == key.as_bytes());
        let state = find(self.key("state"));
        let mut kept = match state.map(|kv| kv.value.split_first()) {
            None => Kept::default(),
            Some(Some((&VERSION, body))) => postcard::from_bytes(body).map_err(|_| Failed::Foreign)?,
            Some(_) => return Err(Failed::Foreign),
        };
        if state.is_none() || kept.etcd != range.header.cluster_id || range.header.raft_term < kept.term {
            // Another run (rule 9): nothing that was said to the one before counts.
            kept = Kept { durable: kept.durable, incarnation: secret::draw(), ..Kept::default() };
        }
        kept.etcd = range.header.cluster_id;
        let revision = |key: String| find(key).map_or(0, |kv| kv.mod_revision);
        Ok(Seen {
            kept,
            revision: state.map_or(0, |kv| kv.mod_revision),
            sessions: Node::BOTH.map(|node| revision(self.session_key(node))),
        })
    }

    /// The rules' arbiter in the middle of its run. Its clock has two hours: a node whose lease ended was last heard at
    /// the first one, everybody else at the second.
    fn arbiter(&self, seen: &Seen, now: Tick) -> Arbiter {
        let sessions = Node::BOTH.map(|node| {
            let renewed = if seen.sessions[node.index()] > 0 { now } else { Tick(0) };
            seen.kept.boots[node.index()].map(|boot| (boot, renewed))
        });
        let Kept { durable, incarnation, heard, amnesia, released, .. } = seen.kept.clone();
        let memory = Memory { heard, amnesia, sessions, released };
        Arbiter::start(durable, Incarnation(incarnation), Tick(0), self.settings.lease_ms, false)
            .remembering(memory)
    }

    async fn exchange(&self, own: &mut Own, message: &ToArbiter) -> Result<FromArbiter, Failed> {
        let node = self.settings.node;
        // Before anything is read: from here on the session stands for T, whatever the answer will be.
        let alive = match own.lease {
            Some(lease) => self.api.keep(lease).await?,
            None => false,
        };
        let now = Tick(self.settings.lease_ms);
        for _ in 0..RACES_MAX {
            let range = self.api.range(&self.key("")).await?;
            forward(own, range.header)?;
            let seen = self.read(&range)?;
            let mut arbiter = self.arbiter(&seen, now);
            let answer = arbiter.handle(now, &Authenticated { from: node, message: message.clone() });
            let memory = arbiter.memory();
            let kept = Kept {
                durable: arbiter.durable().clone(),
                term: range.header.raft_term,
                heard: memory.heard,
                amnesia: memory.amnesia,
                boots: memory.sessions.map(|s| s.map(|(boot, _)| boot)),
                released: memory.released,
                ..seen.kept
            };
            let state =
                [&[VERSION][..], &postcard::to_allocvec(&kept).map_err(|_| Failed::Foreign)?].concat();
            let before = range.kvs.iter().find(|kv| kv.key == self.key("state").as_bytes());
            let mut puts = Vec::new();
            // A term that rose alone is not worth a write.
            let same = before.is_some_and(|kv| {
                let old =
                    kv.value.split_first().and_then(|(_, body)| postcard::from_bytes::<Kept>(body).ok());
                old.is_some_and(|old| Kept { term: old.term, ..kept.clone() } == old)
            });
            if !same {
                puts.push(Put { key: self.key("state"), value: state, lease: 0 });
            }
            let session = in_session(&answer);
            let standing = alive && seen.sessions[node.index()] > 0;
            if session && !standing {
                let lease = self.api.grant(self.settings.lease_ms.div_ceil(1000)).await?;
                own.lease = Some(lease);
                puts.push(Put { key: self.session_key(node), value: Vec::new(), lease });
            }
            if puts.is_empty() {
                return Ok(answer);
            }
            // Also the other's session as it was seen: a renewal in between makes a take-over be judged again.
            let peer = node.peer();
            let expect =
                [(self.key("state"), seen.revision), (self.session_key(peer), seen.sessions[peer.index()])];
            let (header, done) = self.api.txn(&expect, &puts).await?;
            forward(own, header)?;
            if done {
                return Ok(answer);
            }
        }
        Err(Failed::Races)
    }
}

/// Whether an answer means that the asking node has a session.
fn in_session(answer: &FromArbiter) -> bool {
    match &answer.answer {
        Answer::Welcome | Answer::Renewed { .. } | Answer::Verdicts { .. } | Answer::Released => true,
        Answer::Refused(Refusal::Amnesia | Refusal::Request | Refusal::TooLarge) => true,
        Answer::Refused(Refusal::Incarnation | Refusal::Boot | Refusal::Session) => false,
    }
}

/// etcd's revisions only rise. One that does not was restored from a copy, and its word about what was granted is void.
fn forward(own: &mut Own, header: Header) -> Result<(), Failed> {
    if header.revision < own.revision {
        return Err(Failed::BackInTime { now: header.revision, before: own.revision });
    }
    own.revision = header.revision;
    Ok(())
}

impl ArbiterLink for EtcdArbiter {
    async fn ask(&self, message: ToArbiter) -> Result<FromArbiter, Unknown> {
        let unknown = |cause| Unknown { at: "etcd".to_owned(), cause };
        let asked = async {
            let mut own = self.own.lock().await;
            self.exchange(&mut own, &message).await
        };
        match tokio::time::timeout(Duration::from_millis(self.settings.call_ms), asked).await {
            Ok(done) => done.map_err(|error| unknown(Cause::Backend(error.to_string()))),
            Err(_) => Err(unknown(Cause::Deadline(self.settings.call_ms))),
        }
    }
}
