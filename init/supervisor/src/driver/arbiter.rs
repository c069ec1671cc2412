//! The witness as the loop sees it: what is asked is answered in an event, or never. Every error means *unknown*.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dyad_channel::client::{Client, Limits};
use dyad_channel::link::{ArbiterLink, WitnessLink};
use dyad_channel::secret::{Code, Exporter, Secret, Side};
use dyad_channel::tls::{self, Speaks, TlsError, Trust};
use dyad_channel::witness::{Call, Enroll, FRAME_BYTES_MAX, Reply, Statement};
use dyad_channel::{Identity, PublicKey};
use dyad_cluster::event::Event;
use dyad_cluster::message::ToArbiter;
use dyad_cluster::types::{BootId, ClusterId, Greeting};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::record::Record;
use crate::files;

/// Questions that wait for their turn at most: a beat and what a step may want beside it, twice.
const WAITING_MAX: usize = 8;
/// For an enrolment.
const ENROLL: Limits = Limits { call_ms: 10_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 0 };
/// Between two tries to enrol.
const ENROLL_PAUSE: Duration = Duration::from_secs(1);

/// A witness that has let this cluster in.
pub(crate) struct Witness {
    link: WitnessLink,
    events: mpsc::Sender<Event>,
    /// Answered last time; for the log.
    answers: Cell<Option<bool>>,
}

impl Witness {
    /// With its pinned key; a question is given up after a third of the lease.
    fn new(
        identity: &Identity,
        key: PublicKey,
        address: SocketAddr,
        cluster: ClusterId,
        lease_ms: u64,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, TlsError> {
        let tls = tls::client(identity, Trust::Pinned(vec![key]), Speaks::Witness)?;
        let limits =
            Limits { call_ms: lease_ms / 3, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: WAITING_MAX };
        let link = WitnessLink::new(Client::new(address, tls, limits), cluster);
        Ok(Self { link, events, answers: Cell::new(None) })
    }

    /// Asks, and tells the loop what is answered.
    pub(crate) fn ask(self: &Rc<Self>, greeting: Greeting, message: ToArbiter) {
        let witness = Rc::clone(self);
        spawn_local(async move {
            let answer = witness.link.ask(message).await;
            let before = witness.answers.replace(Some(answer.is_ok()));
            match answer {
                Ok(answer) => {
                    if before != Some(true) {
                        tracing::info!("the witness answers");
                    }
                    // The loop is gone only when the supervisor ends.
                    let _ = witness.events.send(Event::FromArbiter(greeting, answer)).await;
                }
                Err(unknown) if before != Some(false) => {
                    tracing::warn!(%unknown, "the witness does not answer")
                }
                Err(_) => {}
            }
        });
    }
}

/// Brings this node's part of an enrolment, the first one and later ones: what it knows by then.
pub(crate) struct Enroller {
    pub(crate) identity: Rc<Identity>,
    pub(crate) address: SocketAddr,
    pub(crate) cluster: ClusterId,
    pub(crate) members: [PublicKey; 2],
    pub(crate) lease_ms: u64,
    pub(crate) boot: BootId,
    pub(crate) record: Rc<Record>,
}

impl std::fmt::Debug for Enroller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Enroller({})", self.address)
    }
}

impl Enroller {
    /// What is said for this node.
    pub(crate) fn statement(&self) -> Statement {
        let registers = self.record.mirror().map(|mirror| mirror.registers).unwrap_or_default();
        Statement {
            cluster: self.cluster,
            members: self.members,
            lease_ms: self.lease_ms,
            boot: self.boot,
            mirror: registers.into_iter().collect(),
        }
    }

    /// The witness with this key.
    pub(crate) fn witness(&self, key: PublicKey, events: mpsc::Sender<Event>) -> Result<Witness, TlsError> {
        Witness::new(&self.identity, key, self.address, self.cluster, self.lease_ms, events)
    }

    /// Once, with an operator's code; the key of the witness that knew it, or why there is none.
    pub(crate) async fn bring(&self, code: &Secret) -> Result<PublicKey, String> {
        let tls = tls::client(&self.identity, Trust::AnyKey, Speaks::Witness).map_err(|e| e.to_string())?;
        once(&Client::new(self.address, tls, ENROLL), &self.statement(), code).await
    }
}

/// Brings this cluster to the witness with the code that lies in this file, until both know each other; the key to pin.
pub(crate) async fn enroll(
    enroller: &Enroller,
    code: &Path,
    say: &dyn Fn(&str),
) -> Result<PublicKey, TlsError> {
    let Enroller { identity, address, .. } = enroller;
    let client: Client<Call, Reply> =
        Client::new(*address, tls::client(identity, Trust::AnyKey, Speaks::Witness)?, ENROLL);
    let statement = enroller.statement();
    let mut said = String::new();
    say("the witness is asked to let the two in");
    loop {
        let why = match secret(code) {
            Ok(secret) => match once(&client, &statement, &secret).await {
                Ok(key) => return Ok(key),
                Err(why) => why,
            },
            Err(why) => why,
        };
        if why != said {
            tracing::warn!(%why, "not enrolled at the witness yet");
            say(&format!("not enrolled at the witness yet: {why}"));
            said = why;
        }
        sleep(ENROLL_PAUSE).await;
    }
}

fn secret(path: &Path) -> Result<Secret, String> {
    let text = files::read_plain(path).map_err(|error| error.to_string())?;
    let text = text.ok_or_else(|| format!("no code: {} is not there", path.display()))?;
    Ok(Code::parse(text.trim()).map_err(|error| format!("{}: {error}", path.display()))?.secret())
}

async fn once(
    client: &Client<Call, Reply>,
    statement: &Statement,
    secret: &Secret,
) -> Result<PublicKey, String> {
    let mut seen: Option<(PublicKey, Exporter)> = None;
    let reply = client
        .call_proving(|key, exporter| {
            seen = Some((*key, *exporter));
            let proof = statement.prove(secret, Side::Asking, exporter);
            Call::Enroll(Enroll { statement: statement.clone(), proof })
        })
        .await
        .map_err(|unknown| unknown.to_string())?;
    match (reply, seen) {
        (Reply::Enrolled { proof, .. }, Some((key, exporter))) => {
            let known = statement.accepts(secret, &proof, Side::Answering, &exporter);
            if known { Ok(key) } else { Err("the witness does not know the code itself".into()) }
        }
        (Reply::Refused(refused), _) => Err(refused.to_string()),
        (Reply::Enrolled { .. } | Reply::Arbiter(_) | Reply::Registers { .. } | Reply::Left, _) => {
            Err("the witness answered something else; it may be another version".into())
        }
    }
}
