//! The driver of a paired node: `observers -> Event -> dyad_cluster::step -> Actions -> adapters -> Event`.
//!
//! `docs/decisions/2026-11-21-driver.md` says what is one task, what is in order, and how a restart goes on.

mod arbiter;
mod clients;
mod copies;
mod flights;
mod hands;
mod history;
mod hooks;
mod journal;
mod keep;
mod membership;
mod observe;
mod peer;
mod postgres;
mod record;
mod run;
mod shown;
#[cfg(test)]
mod tests;
mod vips;
mod ways;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::operator::PolicyRow;
use dyad_channel::Identity;
use dyad_channel::identity::IdentityError;
use dyad_channel::tls::TlsError;
use dyad_cluster::action::VipId;
use dyad_cluster::event::{Command, Event};
use dyad_cluster::eventlog::Entry;
use dyad_cluster::gate::Vip;
use dyad_cluster::phase::Phase;
use dyad_cluster::types::{BootId, Node, ResourceId};
use dyad_cluster::{Config, Found, Mutations, Running, State, Voting};
use dyad_spec::site::{Site, WithoutWitness};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::clock;
use crate::files::FileError;
use crate::paths::Paths;
use crate::pg::manager::PgState;
use crate::pg::{Owner, Pair, Peer, PgError, SERVICE, Server, certificate};
use crate::pid1::{Pid1, is_alive};
use arbiter::Enroller;
use clients::Clients;
use hooks::Hooks;
use journal::Journal;
use peer::Status;
use postgres::Postgres;
use record::Record;
use run::{EVENTS_MAX, Loop, View};
use shown::{Facts, Screen};
use vips::Vips;
use ways::{Way, Ways};

pub(crate) use copies::{copies_dir, keep_copy, send as send_copies};
pub(crate) use history::history;
pub(crate) use membership::identity_path;
pub use membership::{Member, Membership, MembershipError};
pub(crate) use observe::Replication;
pub use peer::PORT;
pub(crate) use shown::{Role, Shown};

/// PostgreSQL, the first resource of every cluster.
pub(crate) const DATABASE: ResourceId = ResourceId(0);
/// Between two tries of what must be there before the loop can run.
const PAUSE: Duration = Duration::from_secs(1);
/// A server of an earlier supervisor that cannot be asked for this long is ended.
const GO_ON: Duration = Duration::from_secs(10);

/// Why a member does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("{0}")]
    Phase(String),
}

/// What a member is made of.
pub(crate) struct Driver {
    pub(crate) paths: Rc<Paths>,
    pub(crate) pid1: Pid1,
    pub(crate) site: Site,
    pub(crate) owner: Owner,
    pub(crate) membership: Membership,
    pub(crate) shown: watch::Sender<Option<Shown>>,
    /// What PostgreSQL does, for operators.
    pub(crate) state: watch::Sender<PgState>,
}

impl Driver {
    /// Runs until the supervisor is killed. `say` is told what it waits for until it has something to show.
    pub(crate) async fn run(mut self, say: &dyn Fn(&str)) -> Result<std::convert::Infallible, DriverError> {
        self.wait_for_volume(say).await?;
        say("what is on its disk is looked at");
        let identity = Rc::new(Identity::load_or_make(&membership::identity_path(&self.paths)?)?);
        let me = self.membership.role(&identity.public());
        let record = Rc::new(Record::open(&self.paths, &[DATABASE])?);
        let boot = self.boot().await?;
        let server = self.server()?;
        let postgres = Rc::new(Postgres::new(server, DATABASE, Rc::clone(&record)));
        let running = go_on(&postgres).await;
        let nobodys = record.mirror().is_some_and(|mirror| mirror.registers.is_empty());
        if me == Node::A && nobodys && running.is_none() {
            self.make_cluster(&postgres.server).await;
        }
        let config = self.config(me);
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let (witness, enroller) = match self.enroller(&identity, &record, boot, &config) {
            Some(enroller) => {
                let key = self.witness_key(&enroller, say).await?;
                (Some(Rc::new(enroller.witness(key, events.clone())?)), Some(Rc::new(enroller)))
            }
            None => (None, None),
        };
        let found = Found {
            mirror: record.mirror(),
            markers: record.markers(),
            running: running.map(|running| (DATABASE, running)).into_iter().collect::<BTreeMap<_, _>>(),
            vms: Default::default(),
        };
        let at = clock::tick();
        let start = Entry::Start { config: config.clone(), boot, at, found: found.clone() };
        let journal = Journal::start(&events_dir(&self.paths), &start)?;
        let state = State::new(config.clone(), boot, at, found);
        let (view, seen) = watch::channel(View::of(&state, DATABASE));
        let (said, own_status) = watch::channel(None);
        let (heard, peer_status) = watch::channel(None);
        let member = &self.membership.peer;
        let link = peer::Link::start(&identity, member, config.lease_ms, own_status)?;
        let sysfs = self.paths.at("/sys");
        let runs_on = running == Some(Running::Serving);
        let vips = Vips::start(self.site.vips.clone(), sysfs.clone(), runs_on);
        let hands = hands::Node {
            record,
            postgres: Rc::clone(&postgres),
            witness,
            peer: link,
            pid1: self.pid1.clone(),
            vips: vips.clone(),
        };
        let (replicates, replication) = watch::channel(Replication::default());
        let facts = Facts { seen: seen.clone(), rows: vips.rows(), replication };
        let ways = self.spawn_observers(&postgres, &seen, &events, vips, replicates);
        let hooks = self.spawn_hooks(facts.clone());
        if me == Node::A {
            spawn_local(found_when_nobody(seen.clone(), events.clone()));
        }
        spawn_local(tell_peer(facts.clone(), said));
        let screen = self.screen(me, events.clone(), enroller, hooks, ways);
        spawn_local(screen.keep(self.shown.clone(), facts, peer_status));
        let (peer_key, listen) = (member.public(), self.membership.listen);
        spawn_local(async move {
            if let Err(error) = peer::hear(&identity, peer_key, listen, events, heard).await {
                tracing::error!(%error, "listen for the other node");
            }
        });
        let all = Loop { state, hands: Rc::new(hands), events: queue, journal, resource: DATABASE, view };
        Ok(all.run().await)
    }

    /// This boot, as PID 1 names it; waits for PID 1.
    async fn boot(&self) -> Result<BootId, DriverError> {
        loop {
            if let Some(info) = self.pid1.boot().await {
                return Ok(record::boot(&self.paths, info.boot_id)?);
            }
            sleep(PAUSE).await;
        }
    }

    fn server(&self) -> Result<Server, PgError> {
        let member = &self.membership.peer;
        let peer =
            Peer { name: member.name.clone(), addresses: member.addresses.clone(), port: member.postgresql };
        let pair = Pair { own: self.membership.name.clone(), peer };
        let (paths, site) = (Rc::clone(&self.paths), self.site.postgresql.clone());
        Server::new(self.pid1.clone(), paths, site, self.owner, pair, certificate::names(Some(&self.site)))
    }

    fn config(&self, me: Node) -> Config {
        let voting = match (self.site.witness, self.site.without_witness) {
            (Some(_), WithoutWitness::PrimaryBiased | WithoutWitness::Strict) => Voting::Arbiter,
            (None, WithoutWitness::PrimaryBiased) => Voting::PrimaryBiased,
            (None, WithoutWitness::Strict) => Voting::Strict,
        };
        Config {
            me,
            lease_ms: self.site.profile.t_ms().into(),
            voting,
            resources: vec![DATABASE],
            vms: Vec::new(),
            memory_mib: [0; 2],
            vips: (0..)
                .zip(&self.site.vips)
                .map(|(at, _)| Vip { id: VipId(at), resource: DATABASE })
                .collect(),
            mutations: Mutations::default(),
        }
    }

    fn names(&self, me: Node) -> [String; 2] {
        let (own, peer) = (self.membership.name.clone(), self.membership.peer.name.clone());
        if me == Node::A { [own, peer] } else { [peer, own] }
    }

    fn screen(
        &self,
        me: Node,
        orders: mpsc::Sender<Event>,
        enroller: Option<Rc<Enroller>>,
        hooks: watch::Receiver<Option<String>>,
        ways: watch::Receiver<Vec<Way>>,
    ) -> Screen {
        let vips = self.site.vips.iter().map(|vip| vip.address.to_string()).collect();
        let rules = dyad_cluster::policy(&self.config(me)).into_iter();
        let policy = rules.map(|rule| PolicyRow { when: rule.when.to_owned(), then: rule.then }).collect();
        Screen { me, names: self.names(me), vips, orders, enroller, hooks, ways, policy }
    }

    /// The founder makes the first data; nobody is asked yet, and whoever wins the register later goes on with it.
    async fn make_cluster(&self, server: &Server) {
        while let Err(error) = server.found().await {
            tracing::error!(%error, "make the database cluster");
            sleep(PAUSE).await;
        }
    }

    /// What goes to the witness; `None`: there is none.
    fn enroller(
        &self,
        identity: &Rc<Identity>,
        record: &Rc<Record>,
        boot: BootId,
        config: &Config,
    ) -> Option<Enroller> {
        let address = self.site.witness.filter(|_| config.voting == Voting::Arbiter)?;
        let members = self.membership.keys(identity.public());
        let (cluster, lease_ms) = (self.membership.cluster, config.lease_ms);
        let (identity, record) = (Rc::clone(identity), Rc::clone(record));
        Some(Enroller { identity, address, cluster, members, lease_ms, boot, record })
    }

    /// The witness's key: known, or learnt by enrolling.
    async fn witness_key(
        &mut self,
        enroller: &Enroller,
        say: &dyn Fn(&str),
    ) -> Result<dyad_channel::PublicKey, DriverError> {
        if let Some(key) = self.membership.witness {
            return Ok(key);
        }
        let code = self.paths.at("/efi/dyad/witness.code");
        let key = arbiter::enroll(enroller, &code, say).await?;
        self.membership.witness = Some(key);
        self.membership.store(&self.paths)?;
        tracing::info!(witness = %key.id(), "enrolled at the witness");
        Ok(key)
    }

    /// Until the volume is mounted its place is an empty directory: data that is not there yet would be taken for data that is
    /// lost.
    async fn wait_for_volume(&self, say: &dyn Fn(&str)) -> Result<(), DriverError> {
        say("PostgreSQL's volume is waited for");
        self.pid1.phase("data").await.map_err(DriverError::Phase)
    }

    /// What they have to say.
    fn spawn_hooks(&self, facts: Facts) -> watch::Receiver<Option<String>> {
        let (failing, hooks) = watch::channel(None);
        let (paths, pid1, name) = (Rc::clone(&self.paths), self.pid1.clone(), self.membership.name.clone());
        spawn_local(Hooks { paths, pid1, name, facts, failing }.run());
        hooks
    }

    fn spawn_observers(
        &self,
        postgres: &Rc<Postgres>,
        seen: &watch::Receiver<View>,
        events: &mpsc::Sender<Event>,
        vips: Vips,
        replication: watch::Sender<Replication>,
    ) -> watch::Receiver<Vec<Way>> {
        let (up, clients) = watch::channel(None);
        let (works, ways) = watch::channel(Vec::new());
        if let Some(node) = self.site.nodes.iter().find(|node| node.name == self.membership.name) {
            let sysfs = self.paths.at("/sys");
            spawn_local(Clients::of(&self.site, node).watch(sysfs.clone(), self.pid1.clone(), vips, up));
            let ways = Ways::of(node, &self.membership.peer.addresses);
            spawn_local(ways.watch(sysfs, Rc::clone(postgres), works));
        }
        spawn_local(observe::ends(Rc::clone(postgres), events.clone()));
        spawn_local(observe::links(Rc::clone(postgres), events.clone(), replication));
        spawn_local(keep::keep(Rc::clone(postgres), seen.clone(), self.state.clone(), events.clone()));
        let profile = self.site.profile;
        spawn_local(observe::health(Rc::clone(postgres), profile, seen.clone(), events.clone()));
        spawn_local(observe::condition(Rc::clone(postgres), clients, events.clone()));
        ways
    }
}

/// Where the event log is.
pub(crate) fn events_dir(paths: &Paths) -> PathBuf {
    paths.at("/state/supervisor/events")
}

/// What an earlier supervisor left running. A server that cannot be asked, or that was told to stop receiving, is ended:
/// nothing that runs may be something else than it is taken for.
async fn go_on(postgres: &Postgres) -> Option<Running> {
    let server = &postgres.server;
    let mut view = server.pid1.view();
    // Until PID 1 is heard nobody knows what runs; its connection is made by then or comes soon.
    let _ = view.wait_for(|view| view.connected).await;
    let alive = view.borrow().service(SERVICE).is_some_and(|service| is_alive(service.state));
    if !alive {
        return None;
    }
    let since = Instant::now();
    while since.elapsed() < GO_ON {
        match server.go_on().await {
            Ok(Some(true)) => return Some(Running::Following),
            Ok(Some(false)) => return Some(Running::Serving),
            Ok(None) => break,
            Err(_) if !server.runs() => return None,
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
    while let Err(error) = server.kill().await {
        tracing::error!(%error, "end what an earlier supervisor left");
    }
    None
}

/// The founder asks for the first register for as long as nobody holds it.
async fn found_when_nobody(seen: watch::Receiver<View>, events: mpsc::Sender<Event>) {
    loop {
        let nobodys = {
            let view = seen.borrow();
            view.register.is_none() && view.phase == Phase::Unlearned
        };
        if nobodys && events.send(Event::Command(Command::Found(DATABASE))).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Puts what this member holds into words for the other one's status screen.
async fn tell_peer(mut facts: Facts, said: watch::Sender<Option<Status>>) {
    loop {
        let (view, rows, replication) = facts.now();
        said.send_replace(Some(Status::of(&view, &rows, replication)));
        if facts.changed().await.is_err() {
            return;
        }
    }
}
