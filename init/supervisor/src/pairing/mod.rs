//! Pairing over the network: two blank nodes with one site key become members of one cluster, with nothing typed.
//!
//! The decisions are `dyad_pairing`'s; here are its disk, its links and its channels. A step is on disk before anybody
//! hears of it, so a kill at any moment is continued. Members go on saying who they are: a third node, a clone and a
//! member of another cluster are refused by name, and a member that lost its last step on the way gets it again.

mod disk;
mod host;
mod links;
mod place;
mod wire;

use std::cell::{Cell, RefCell};
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dyad_channel::client::Client;
use dyad_channel::identity::IdentityError;
use dyad_channel::server::{self, Counters};
use dyad_channel::tls::{self, Speaks, TlsError, Trust};
use dyad_channel::{Identity, PublicKey, secret};
use dyad_cluster::types::{ClusterId, Node as Role};
use dyad_pairing::{Durable, Key, Keys, Own};
use dyad_spec::site::{Node, Site};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::driver::{self, Membership, MembershipError};
use crate::files::FileError;
use crate::paths::Paths;
use crate::pg::{PgError, Server};
use crate::pid1::Pid1;
use disk::DiskError;
pub(crate) use disk::{Taken, take_code};
use host::{Host, SiteKeys};
use links::Links;
use place::{Card, PlaceError};
use wire::{Asked, Heard, Listener, Say};

pub use links::PORT;

/// Between two looks at the clock; beacons go less often.
const TICK: Duration = Duration::from_millis(250);
/// Between two tries of what must be there before pairing can begin, and to fetch the other node's card.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a node cannot pair now. It tries again.
#[derive(Debug, thiserror::Error)]
enum PairingError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("pairing needs UDP and TCP port {PORT} over IPv6: {0}")]
    Socket(std::io::Error),
    #[error("{0}")]
    Other(String),
}

/// What pairing is made of.
pub(crate) struct Pairing {
    pub(crate) paths: Rc<Paths>,
    pub(crate) pid1: Pid1,
    pub(crate) site: Site,
    /// Which node of the site this is by its links.
    pub(crate) node: Option<Node>,
    /// What this node is a member of already.
    pub(crate) member: Option<Membership>,
    /// For people; `None`: nothing to say.
    pub(crate) shown: watch::Sender<Option<String>>,
    /// Told once.
    pub(crate) done: oneshot::Sender<Membership>,
}

type Shared = Rc<RefCell<Host>>;

impl Pairing {
    /// For ever. What stands in the way is shown, and tried again.
    pub(crate) async fn run(self) {
        let Pairing { paths, pid1, site, node, member, shown, done } = self;
        let site = Rc::new(site);
        let name = node.map(|node| node.name);
        let host = loop {
            match begin(&paths, &pid1, &site, member.clone(), &shown).await {
                Ok(host) => break host,
                Err(error) => {
                    let text = Some(error.to_string());
                    if shown.send_replace(text.clone()) != text {
                        tracing::warn!(%error, "pairing cannot begin yet");
                    }
                }
            }
            sleep(PAUSE).await;
        };
        let host = Rc::new(RefCell::new(host));
        let seat = Seat { host: Rc::clone(&host), site, name, done: Rc::new(RefCell::new(Some(done))) };
        let seat = Rc::new(seat);
        let (asked, questions) = mpsc::channel(1);
        spawn_local(listen(Rc::clone(&host), asked));
        spawn_local(answer(Rc::clone(&seat), questions));
        spawn_local(fetch_card(Rc::clone(&seat)));
        hear(host).await;
    }
}

/// What must be there first.
async fn begin(
    paths: &Rc<Paths>,
    pid1: &Pid1,
    site: &Site,
    member: Option<Membership>,
    shown: &watch::Sender<Option<String>>,
) -> Result<Host, PairingError> {
    let identity = Rc::new(Identity::load_or_make(&driver::identity_path(paths)?)?);
    let site_key = disk::secret(paths, site.pairing)?;
    let (durable, foreign) = match &member {
        Some(member) => (Durable::Paired { cluster: member.cluster, peer: Key(member.peer.key) }, None),
        None => {
            // On that volume data of an earlier life would be.
            pid1.phase("data").await.map_err(PairingError::Other)?;
            (disk::load(paths)?, disk::found_data(paths)?)
        }
    };
    let fresh_id = ClusterId(u128::from(secret::draw()) << 64 | u128::from(secret::draw()));
    let own = Own { nonce: secret::draw(), fresh_id, foreign };
    let keys = SiteKeys { identity, site: site_key };
    tracing::info!(key = ?keys.public(), ?durable, "pairing");
    Ok(Host::new(Rc::clone(paths), keys, durable, own, member, shown.clone()))
}

/// Beacons out and in, and the machine's clock.
async fn hear(host: Shared) {
    let mut links = loop {
        match Links::open() {
            Ok(links) => break links,
            Err(error) => trouble(&host, &PairingError::Socket(error)),
        }
        sleep(PAUSE).await;
    };
    let dialling = Rc::new(Cell::new(false));
    let mut clock = tokio::time::interval(TICK);
    loop {
        let todo = tokio::select! {
            heard = links.hear() => match heard {
                Ok((bytes, from)) => host.borrow_mut().beacon(bytes, from),
                Err(error) => {
                    trouble(&host, &PairingError::Socket(error));
                    sleep(PAUSE).await;
                    continue;
                }
            },
            _ = clock.tick() => host.borrow_mut().tick(),
        };
        if let Some(beacon) = todo.announce {
            match links.announce(&beacon).await {
                Ok(names) => host.borrow_mut().links = names,
                Err(error) => trouble(&host, &PairingError::Socket(error)),
            }
        }
        if let Some(key) = todo.connect
            && !dialling.replace(true)
        {
            let (host, dialling) = (Rc::clone(&host), Rc::clone(&dialling));
            spawn_local(async move {
                dial(&host, key).await;
                host.borrow_mut().closed();
                dialling.set(false);
            });
        }
    }
}

fn trouble(host: &Shared, error: &PairingError) {
    let mut host = host.borrow_mut();
    let text = Some(error.to_string());
    if host.trouble != text {
        tracing::warn!(%error, "pairing");
    }
    host.trouble = text;
    host.show();
}

/// A client of the node with this key, where it was last heard; nobody else is spoken to.
fn client(host: &Shared, key: Key) -> Result<Client<Say, Heard>, PairingError> {
    let host = host.borrow();
    let address = host.address(&key);
    let address = address.ok_or_else(|| PairingError::Other(format!("node {key:?} is not heard")))?;
    let tls = tls::client(&host.keys.identity, Trust::Pinned(vec![PublicKey(key.0)]), Speaks::Pairing)?;
    Ok(Client::new(SocketAddr::V6(links::at_port(address)), tls, wire::CLIENT))
}

/// Opens a channel and speaks as long as there is something to say.
async fn dial(host: &Shared, key: Key) {
    let client = match client(host, key) {
        Ok(client) => client,
        Err(error) => return tracing::info!(%error, "no channel to the other node"),
    };
    let mut channel = None;
    let mut words = Vec::new();
    loop {
        let mut another = false;
        let heard = client.call_proving(|key, exporter| {
            let exporter = exporter.bytes();
            match channel {
                None => {
                    channel = Some(exporter);
                    words = host.borrow_mut().opened(*key, exporter).send;
                }
                // It broke in between: what was to be said belongs to the old one.
                Some(before) if before != exporter => another = true,
                Some(_) => {}
            }
            Say::Words(if another { Vec::new() } else { std::mem::take(&mut words) })
        });
        match heard.await {
            Ok(Heard::Words(said)) if !another => {
                let todo = host.borrow_mut().words(said);
                if todo.close || todo.send.is_empty() {
                    return;
                }
                words = todo.send;
            }
            Ok(Heard::Words(_) | Heard::Card { .. } | Heard::No(_)) => return,
            Err(unknown) => return tracing::info!(%unknown, "the channel to the other node broke"),
        }
    }
}

/// Keeps the answering end open.
async fn listen(host: Shared, asked: mpsc::Sender<Asked>) {
    loop {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await.map_err(PairingError::Socket);
        let tls = tls::server(&host.borrow().keys.identity, Trust::AnyKey, Speaks::Pairing);
        match (listener, tls.map_err(PairingError::Tls)) {
            (Ok(listener), Ok(tls)) => {
                let service = Arc::new(Listener { asked: asked.clone() });
                server::serve(listener, tls, service, wire::SERVER, Arc::new(Counters::default())).await;
            }
            (Err(error), _) | (_, Err(error)) => trouble(&host, &error),
        }
        sleep(PAUSE).await;
    }
}

async fn answer(seat: Rc<Seat>, mut questions: mpsc::Receiver<Asked>) {
    while let Some(mut asked) = questions.recv().await {
        let answer = match std::mem::replace(&mut asked.say, Say::Words(Vec::new())) {
            Say::Words(words) => seat.host.borrow_mut().answer(&asked, words),
            Say::Card(card) => match seat.seat_peer(Key(asked.peer.key.0), &card) {
                Ok(heard) => (heard, true),
                Err(error) => {
                    trouble(&seat.host, &error);
                    (Heard::No(error.to_string()), false)
                }
            },
        };
        // Whoever asked may be gone.
        let _ = asked.reply.send(answer);
    }
}

/// This node's place in its site, as it becomes known.
struct Seat {
    host: Shared,
    site: Rc<Site>,
    name: Option<String>,
    done: Rc<RefCell<Option<oneshot::Sender<Membership>>>>,
}

impl Seat {
    fn card(&self) -> Card {
        Card { site: place::digest(&self.site), name: self.name.clone() }
    }

    /// The lower key's part: takes the other one's card, and answers with its own and the secrets. Asked again, it
    /// answers the same.
    fn seat_peer(&self, key: Key, card: &Card) -> Result<Heard, PairingError> {
        let Some((cluster, peer, role)) = self.host.borrow().paired() else {
            return Ok(Heard::No("this node is not paired yet".to_owned()));
        };
        if key != peer || role != Role::A {
            return Ok(Heard::No(format!("this node is paired with {peer:?}")));
        }
        let own = self.card();
        let paths = Rc::clone(&self.host.borrow().paths);
        let secrets = Server::secrets(&paths, &self.site.postgresql)?;
        self.take_place(place::membership(&self.site, cluster, role, &own, (key, card))?)?;
        Ok(Heard::Card { card: own, secrets })
    }

    /// Writes the membership down, unless it is there, and hands it on.
    fn take_place(&self, member: Membership) -> Result<(), PairingError> {
        let mut host = self.host.borrow_mut();
        match &host.member {
            Some(known) if known.peer == member.peer => return Ok(()),
            Some(known) => {
                return Err(PairingError::Other(format!(
                    "{} says something else of itself than when it was paired; wipe its disk to pair it anew",
                    known.peer.name
                )));
            }
            None => {}
        }
        member.store(&host.paths)?;
        tracing::info!(name = %member.name, peer = %member.peer.name, "this node has its place");
        host.trouble = None;
        host.member = Some(member.clone());
        host.show();
        if let Some(done) = self.done.borrow_mut().take() {
            // Nobody waits for it only while the supervisor ends.
            let _ = done.send(member);
        }
        Ok(())
    }

    /// The higher key's part.
    async fn fetch(&self, cluster: ClusterId, peer: Key) -> Result<(), PairingError> {
        let own = self.card();
        let client = client(&self.host, peer)?;
        let heard = client.call(&Say::Card(own.clone())).await;
        match heard.map_err(|unknown| PairingError::Other(unknown.to_string()))? {
            Heard::Card { card, secrets } => {
                let member = place::membership(&self.site, cluster, Role::B, &own, (peer, &card))?;
                let paths = Rc::clone(&self.host.borrow().paths);
                Server::adopt_secrets(&paths, &secrets)?;
                self.take_place(member)
            }
            Heard::No(why) => Err(PairingError::Other(format!("node {peer:?}: {why}"))),
            Heard::Words(_) => Err(PairingError::Other(format!("node {peer:?} answers something else"))),
        }
    }
}

/// Until this node is a member: the higher key asks the lower one for what makes it one.
async fn fetch_card(seat: Rc<Seat>) {
    loop {
        let wanted = {
            let host = seat.host.borrow();
            if host.member.is_some() {
                return;
            }
            host.paired().filter(|(_, peer, role)| *role == Role::B && host.address(peer).is_some())
        };
        if let Some((cluster, peer, _)) = wanted
            && let Err(error) = seat.fetch(cluster, peer).await
        {
            trouble(&seat.host, &error);
        }
        sleep(PAUSE).await;
    }
}
