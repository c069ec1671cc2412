//! Puts the parts together and runs them on one thread.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use dyad_api::operator::{NetworkSection, PORT};
use dyad_channel::client::{Client, Limits};
use dyad_channel::operator::FRAME_BYTES_MAX;
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::{Identity, PublicKey};
use dyad_spec::site::{Node, Profile};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::driver::{self, Driver, Membership, Shown};
use crate::files::{self, FileError};
use crate::firewall::{self, Firewall};
use crate::notify::Notify;
use crate::operator::{self, Context, Declared, Keys, Other};
use crate::pairing::Pairing;
use crate::paths::Paths;
use crate::pg::Owner;
use crate::pg::certificate;
use crate::pg::crashes::Crashes;
use crate::pg::manager::{Manager, PgState};
use crate::pg::probe;
use crate::pid1::Pid1;
use crate::site::Loaded;
use crate::status::{Identity as Named, PAIRING};
use crate::{http, log, network};

/// Questions to the other node: its operators' own, and pieces of the event log.
const PEER: Limits = Limits { call_ms: 5_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 4 };

/// Why the supervisor cannot run at all. PID 1 starts it again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or the event loop.
    #[error("start a thread for the log, or the event loop: {0}")]
    Runtime(std::io::Error),
    /// The operator socket.
    #[error("make the operator socket: {0}")]
    Socket(std::io::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Runs until killed.
pub(crate) fn run(paths: Paths) -> Result<Infallible, StartError> {
    // Whatever is made without saying otherwise is root's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    log::init().map_err(StartError::Runtime)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    LocalSet::new().block_on(&runtime, serve(Rc::new(paths)))
}

async fn serve(paths: Rc<Paths>) -> Result<Infallible, StartError> {
    let notify = Notify::from_env();
    let pid1 = Pid1::start(paths.init_socket());
    let (pg_wanted, wanted) = watch::channel(true);
    let (pg_state, pg) = watch::channel(PgState::default());
    let (network_state, network) =
        watch::channel(NetworkSection { state: "waiting".into(), note: String::new(), links: Vec::new() });
    let (firewall_state, firewall) = watch::channel(Firewall::none());
    let (shown, pair) = watch::channel(None);
    let listener = operator::listen(&paths.operator_socket()).map_err(StartError::Socket)?;
    let context = Rc::new(Context {
        paths: Rc::clone(&paths),
        pid1: pid1.clone(),
        declared: RefCell::new(Declared::unknown()),
        pg: pg.clone(),
        pg_wanted,
        network,
        firewall,
        pair: pair.clone(),
        peer: RefCell::new(None),
        execs: Cell::new(0),
    });
    spawn_local(operator::serve_socket(listener, Rc::clone(&context)));
    spawn_local(operator::serve_port(Rc::clone(&paths), PORT, Rc::clone(&context)));
    spawn_local(http::serve(firewall::HTTP, Rc::clone(&context)));
    spawn_local(notify.clone().feed());
    // Operators are answered from here on. What follows waits for disks and links, for as long as they take.
    notify.send("READY=1");
    let site = read_site(&paths, &pid1).await;
    let member = membership(&paths, &pid1, &site).await;
    let node = match &member {
        // Pairing has settled it.
        Ok(Some(member)) => {
            site.site().and_then(|site| site.nodes.iter().find(|node| node.name == member.name).cloned())
        }
        Ok(None) | Err(_) => identify(&paths, &site).await,
    };
    let ground = Ground { paths, pid1, context, network: network_state, firewall: firewall_state };
    let settled = ground.settle(&site, node.as_ref(), member.as_ref().ok().and_then(Option::as_ref));
    let (notice, notices) = watch::channel(None);
    let (done, place) = oneshot::channel();
    if let (Some(two), Ok(known)) = (site.site().filter(|site| site.nodes.len() > 1), &member) {
        let (paths, pid1) = (Rc::clone(&ground.paths), ground.pid1.clone());
        let (site, node, member) = (two.clone(), node.clone(), known.clone());
        spawn_local(Pairing { paths, pid1, site, node, member, shown: notice, done }.run());
    }
    let parts = Parts { ground, settled, wanted, state: pg_state, shown, pair, notices, place };
    start_database(parts, site, member)?;
    tell_status(&notify, pg).await
}

/// What this machine is called, how it is connected and whom it answers.
struct Ground {
    paths: Rc<Paths>,
    pid1: Pid1,
    context: Rc<Context>,
    network: watch::Sender<NetworkSection>,
    firewall: watch::Sender<Firewall>,
}

/// What keeps it so.
type Settled = Vec<JoinHandle<()>>;

impl Ground {
    /// Takes the names of this node of the site, and starts keeping its network and answering who may ask it.
    fn settle(&self, site: &Loaded, node: Option<&Node>, member: Option<&Membership>) -> Settled {
        let mut settled = Vec::new();
        let (names, network) = network::of(site.site().zip(node));
        let key = remote(&self.context, site, member, &mut settled);
        let identity = Named {
            key: key.map(|key| format!("ed25519:{}", crate::status::hex(&key.0))),
            name: names.hostname.clone(),
            cluster: site.site().map(|site| site.cluster.clone()),
            site: site.text(),
        };
        tracing::info!(node = %identity.name, site = %identity.site, "this machine is known");
        let pairing = site.site().filter(|site| site.nodes.len() > 1).map(|site| site.pairing);
        let reached = site.site().map(certificate::reached).unwrap_or_default();
        let postgresql = site.postgresql();
        let client_services = site.site().map(|site| site.client_services.clone()).unwrap_or_default();
        let declared = Declared { identity, postgresql, pairing, reached, client_services };
        self.context.declared.replace(declared);
        if self.paths.is_machine()
            && let Err(error) = names.apply(&self.paths.at("/run/dyad/etc"))
        {
            tracing::error!(%error, "set the names of this machine");
        }
        settled.push(spawn_local(network::keep(Rc::clone(&self.paths), network, self.network.clone())));
        if let Some((site, node)) = site.site().zip(node) {
            let (rules, state) = (firewall::rules(site, node), self.firewall.clone());
            settled.push(spawn_local(firewall::keep(
                Rc::clone(&self.paths),
                self.pid1.clone(),
                rules,
                state,
            )));
        }
        settled
    }
}

/// Starts what answers operators on other machines, and asks the other node; this node's key. Without a state partition
/// there is none.
fn remote(
    context: &Rc<Context>,
    site: &Loaded,
    member: Option<&Membership>,
    settled: &mut Settled,
) -> Option<PublicKey> {
    let known = |error: &dyn std::fmt::Display| tracing::warn!(%error, "this node's key");
    let path = driver::identity_path(&context.paths).inspect_err(|error| known(error)).ok()?;
    let identity = Identity::load_or_make(&path).inspect_err(|error| known(error)).ok()?;
    let public = identity.public();
    if let Some(member) = member {
        let peer = &member.peer;
        match tls::client(&identity, Trust::Pinned(vec![peer.public()]), Speaks::Operator) {
            Ok(tls) => {
                let operator = dyad_channel::operator::PORT;
                let client = Rc::new(Client::by_any(peer.at_port(operator), tls, PEER));
                let ports = [("pair", peer.port), ("operator", operator), ("PostgreSQL", peer.postgresql)];
                let at = |address: &IpAddr| ports.map(|(name, port)| (name, SocketAddr::new(*address, port)));
                let ports = peer.addresses.iter().flat_map(at).collect();
                let other = Other { name: peer.name.clone(), client: Rc::clone(&client), ports };
                context.peer.replace(Some(Rc::new(other)));
                settled.push(spawn_local(driver::send_copies(driver::events_dir(&context.paths), client)));
            }
            Err(error) => known(&error),
        }
    }
    let operators = site.site().map(|site| &site.operators).into_iter().flatten();
    let keys = Keys {
        operators: operators.map(|one| (one.name.clone(), PublicKey(one.key))).collect(),
        peer: member.map(|member| member.peer.public()),
    };
    let context = Rc::clone(context);
    settled.push(spawn_local(async move {
        if let Err(error) = operator::serve_remote(identity, keys, context).await {
            tracing::error!(%error, "answer operators on other machines");
        }
    }));
    Some(public)
}

/// The site file, once the phase that mounts it has ended. A machine whose PID 1 has no such phase has no ESP.
async fn read_site(paths: &Paths, pid1: &Pid1) -> Loaded {
    match pid1.phase("esp").await {
        Ok(()) => Loaded::read(paths),
        Err(why) => Loaded::Refused(why),
    }
}

/// What whoever keeps PostgreSQL needs.
struct Parts {
    ground: Ground,
    settled: Settled,
    wanted: watch::Receiver<bool>,
    state: watch::Sender<PgState>,
    shown: watch::Sender<Option<Shown>>,
    pair: watch::Receiver<Option<Shown>>,
    /// What pairing has to say.
    notices: watch::Receiver<Option<String>>,
    /// Pairing's end.
    place: oneshot::Receiver<Membership>,
}

/// Starts what keeps PostgreSQL: a member's driver, or the bring-up of a node that is alone; or says why neither runs.
fn start_database(
    parts: Parts,
    site: Loaded,
    member: Result<Option<Membership>, String>,
) -> Result<(), FileError> {
    let owner = owner(&parts.ground.paths)?;
    let Parts { ground, settled, wanted, state, shown, pair, notices, place } = parts;
    let (paths, pid1) = (Rc::clone(&ground.paths), ground.pid1.clone());
    let say = |note: String| state.send_modify(|state| state.section.note = note);
    match (site, owner, member) {
        (Loaded::Refused(why), ..) => {
            say(format!("the site file is refused, nothing is started by guess: {why}"));
        }
        (Loaded::Site(_) | Loaded::Absent, None, _) => say("this image has no user postgres".into()),
        (Loaded::Site(_) | Loaded::Absent, _, Err(why)) => say(why),
        (Loaded::Absent, _, Ok(Some(_))) => {
            say("this node is a member of a pair, and its site file is gone".into());
        }
        (Loaded::Site(site), Some(owner), Ok(Some(membership))) => {
            let driver = Driver { paths, pid1, site: *site, owner, membership, shown, state: state.clone() };
            spawn_local(drive(driver, pair, notices, state));
        }
        (Loaded::Site(site), Some(owner), Ok(None)) if site.nodes.len() > 1 => {
            spawn_local(async move {
                let Some(membership) = pair_first(&state, notices.clone(), place).await else { return };
                settled.iter().for_each(JoinHandle::abort);
                let node = site.nodes.iter().find(|node| node.name == membership.name);
                ground.settle(&Loaded::Site(site.clone()), node, Some(&membership));
                let driver =
                    Driver { paths, pid1, site: *site, owner, membership, shown, state: state.clone() };
                drive(driver, pair, notices, state).await;
            });
        }
        (site @ (Loaded::Site(_) | Loaded::Absent), Some(owner), Ok(None)) => {
            let probe_deadline = probe::deadline(site.site().map_or(Profile::Lan, |site| site.profile));
            let names = certificate::names(site.site());
            let (site, crashes) = (site.postgresql(), Crashes::default());
            let manager = Manager { paths, pid1, site, probe_deadline, owner, names, wanted, state, crashes };
            spawn_local(manager.run());
        }
    }
    Ok(())
}

/// Which pair this node is a member of, once the state partition is there. Where that cannot be told, a node of two
/// starts nothing: the other one may be serving.
async fn membership(paths: &Paths, pid1: &Pid1, site: &Loaded) -> Result<Option<Membership>, String> {
    match pid1.phase("state").await {
        Ok(()) => Membership::load(paths).map_err(|error| error.to_string()),
        Err(why) if site.site().is_some_and(|site| site.nodes.len() > 1) => {
            Err(format!("whether this node is one of a pair is not known: {why}"))
        }
        Err(_) => Ok(None),
    }
}

/// Shows how far the pairing is until this node has its place.
async fn pair_first(
    state: &watch::Sender<PgState>,
    mut notices: watch::Receiver<Option<String>>,
    mut place: oneshot::Receiver<Membership>,
) -> Option<Membership> {
    loop {
        let note = notices.borrow_and_update().clone().unwrap_or_else(|| "the pairing begins".to_owned());
        state.send_modify(|state| {
            state.section.state = PAIRING.to_owned();
            state.section.note = note;
        });
        tokio::select! {
            member = &mut place => return member.ok(),
            changed = notices.changed() => changed.ok()?,
        }
    }
}

/// Runs the driver; what it shows is PostgreSQL's state too.
async fn drive(
    driver: Driver,
    mut pair: watch::Receiver<Option<Shown>>,
    mut notices: watch::Receiver<Option<String>>,
    state: watch::Sender<PgState>,
) {
    let failed = state.clone();
    let peer = driver.membership.peer.name.clone();
    let (joins, mut joining) = watch::channel(String::new());
    let say = move |why: &str| {
        joins.send_replace(format!("paired with {peer}; {why}"));
    };
    spawn_local(async move {
        loop {
            tokio::select! {
                changed = pair.changed() => if changed.is_err() { return },
                Ok(()) = notices.changed() => {}
                Ok(()) = joining.changed() => {}
            }
            let shown = pair.borrow_and_update().clone();
            let (step, why) = match &shown {
                Some(shown) => (shown.phase().to_owned(), shown.why()),
                None => ("joining".to_owned(), vec![joining.borrow_and_update().clone()]),
            };
            let notice = notices.borrow_and_update().clone();
            state.send_modify(|state| {
                state.serving = shown.is_some_and(|shown| shown.view.phase.admits());
                state.section.state = step;
                state.section.note = why.into_iter().chain(notice).collect::<Vec<_>>().join("; ");
            });
        }
    });
    let Err(error) = driver.run(&say).await;
    tracing::error!(%error, "this member does not run");
    failed.send_modify(|state| state.section.note = error.to_string());
}

/// Tells PID 1 how far the node is, for ever.
async fn tell_status(notify: &Notify, mut pg: watch::Receiver<PgState>) -> Result<Infallible, StartError> {
    let mut last = String::new();
    loop {
        let text = pg.borrow_and_update().section.state.clone();
        if text != last {
            notify.send(&format!("STATUS=PostgreSQL is {text}"));
            last = text;
        }
        if pg.changed().await.is_err() {
            // Without a manager nothing changes any more.
            std::future::pending::<Infallible>().await;
        }
    }
}

fn owner(paths: &Paths) -> Result<Option<Owner>, FileError> {
    let passwd = files::read_plain(&paths.at("/etc/passwd"))?;
    Ok(passwd.as_deref().and_then(Owner::from_passwd))
}

/// Which node of the site this is. Without an answer the machine stays unnamed and link-local, and says so.
async fn identify(paths: &Paths, site: &Loaded) -> Option<Node> {
    let found = network::identify(paths, site.site()?).await;
    match found {
        Ok(Some(node)) => return Some(node),
        Ok(None) => tracing::error!("no link of this machine is named in the site file"),
        Err(error) => tracing::error!(%error, "which node of the site file this is"),
    }
    None
}
