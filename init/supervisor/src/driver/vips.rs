//! Virtual addresses: where the core lets one answer, it is asked for, let through the gate, taken and announced.
//!
//! A thread of its own: each change of the gate waits for the kernel, and nothing here may hold the loop up. What it is
//! told is a whole picture, the newest counts, so an order to close waits behind none to open.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dyad_cluster::action::VipId;
use dyad_cluster::types::Tick;
use dyad_net::{Gate, GateError, NetError, Netlink, Port, frames};
use dyad_spec::site::Vip;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::clock;

/// Announcements of an address that was just taken, and the pause between them.
const ANNOUNCEMENTS: (u32, Duration) = (5, Duration::from_millis(200));
/// Between announcements of one that stays.
const REMIND: Duration = Duration::from_secs(60);
/// Pause before an address that was refused is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// An element of the gate lives this much shorter than it may: the kernel rounds up to its own ticks.
const ROUNDING_MS: u64 = 10;

/// What the core wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    /// Which may answer, and until when; `None`: it was told to close. Nothing is said of the others yet.
    until: BTreeMap<VipId, Option<Tick>>,
    /// Counts the times that a network came back: neighbours may have missed what was said.
    heals: u64,
}

/// What became of one address on this node, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Row {
    /// It answers here.
    pub(crate) here: bool,
    /// Why it does not, although it should.
    pub(crate) note: String,
}

/// The ordering end.
#[derive(Clone)]
pub(crate) struct Vips {
    wanted: Arc<watch::Sender<Wanted>>,
    rows: watch::Receiver<Vec<Row>>,
}

impl Vips {
    /// Starts the thread. Addresses of an earlier supervisor are given up, unless the server that they belong to runs on.
    pub(crate) fn start(vips: Vec<Vip>, sysfs: PathBuf, runs_on: bool) -> Self {
        let (wanted, orders) = watch::channel(Wanted::default());
        let (publish, rows) = watch::channel(vec![Row::default(); vips.len()]);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(keep(vips, sysfs, runs_on, orders, publish)),
                Err(error) => tracing::error!(%error, "no event loop for the virtual addresses"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("vips".into()).spawn(run) {
            tracing::error!(%error, "no thread for the virtual addresses");
        }
        Self { wanted: Arc::new(wanted), rows }
    }

    /// Lets one answer until this tick.
    pub(crate) fn open(&self, vip: VipId, until: Tick) {
        self.wanted.send_modify(|wanted| {
            wanted.until.insert(vip, Some(until));
        });
    }

    /// Ends it.
    pub(crate) fn close(&self, vip: VipId) {
        self.wanted.send_modify(|wanted| {
            wanted.until.insert(vip, None);
        });
    }

    /// The network came back.
    pub(crate) fn healed(&self) {
        self.wanted.send_modify(|wanted| wanted.heals += 1);
    }

    /// One row for each address, in the order of the site file.
    pub(crate) fn rows(&self) -> watch::Receiver<Vec<Row>> {
        self.rows.clone()
    }
}

#[derive(Debug, thiserror::Error)]
enum VipError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("speak on {interface}: {error}")]
    Speak { interface: String, error: std::io::Error },
    #[error("its time was over before the packet filter was told")]
    Late,
    #[error("there is no link {0}")]
    NoLink(String),
    #[error("{mac} has this address: it is not used until that one is gone")]
    Taken { mac: dyad_spec::Mac },
}

/// Where one address is.
enum Stage {
    /// An earlier supervisor may have left it open, for a server that runs on.
    Inherited,
    Closed,
    /// It is being asked for; a later question has a higher number.
    Asked(u64),
    /// Refused, and asked for again then.
    Refused(Instant),
    /// Answering; so many announcements are left of the burst, the next is due then.
    Open {
        port: Port,
        left: u32,
        next: Instant,
    },
}

struct Keeper {
    vips: Vec<Vip>,
    netlink: Netlink,
    gate: Gate,
    stages: Vec<Stage>,
    rows: Vec<Row>,
    asked: JoinSet<(usize, u64, Result<Port, VipError>)>,
    questions: u64,
    heals: u64,
}

async fn keep(
    vips: Vec<Vip>,
    sysfs: PathBuf,
    runs_on: bool,
    mut orders: watch::Receiver<Wanted>,
    publish: watch::Sender<Vec<Row>>,
) {
    let netlink = match Netlink::open(&sysfs) {
        Ok(netlink) => netlink,
        Err(error) => return tracing::error!(%error, "virtual addresses"),
    };
    let stages = vips.iter().map(|_| Stage::Inherited).collect();
    let rows = vec![Row::default(); vips.len()];
    let (asked, gate) = (JoinSet::new(), Gate::default());
    let mut keeper = Keeper { vips, netlink, gate, stages, rows, asked, questions: 0, heals: 0 };
    if !runs_on {
        for at in 0..keeper.vips.len() {
            keeper.close(at).await;
        }
    }
    loop {
        let wanted = orders.borrow_and_update().clone();
        keeper.follow(&wanted).await;
        publish.send_if_modified(|shown| {
            let changed = *shown != keeper.rows;
            shown.clone_from(&keeper.rows);
            changed
        });
        let due = keeper.due(&wanted);
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            Some(Ok((at, question, answer))) = keeper.asked.join_next() => {
                // A copy: who gives orders must never wait for the packet filter.
                let wanted = orders.borrow().clone();
                keeper.answered(at, question, answer, &wanted).await;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// What is left of the life of an element that must be gone by then.
fn life_ms(until: Tick) -> Option<u64> {
    until.since(clock::tick()).checked_sub(ROUNDING_MS).filter(|left| *left > 0)
}

/// Until when an address may answer, if that lies ahead.
fn until(wanted: &Wanted, at: usize) -> Option<Tick> {
    let id = VipId(u16::try_from(at).ok()?);
    let until = (*wanted.until.get(&id)?)?;
    life_ms(until).map(|_| until)
}

impl Keeper {
    fn address(&self, at: usize) -> IpAddr {
        self.vips[at].address.address
    }

    async fn follow(&mut self, wanted: &Wanted) {
        let healed = self.heals != wanted.heals;
        self.heals = wanted.heals;
        let id = |at: usize| u16::try_from(at).ok().map(VipId);
        // First all that close: nobody may be answered while a service is being stopped.
        for at in 0..self.vips.len() {
            let closes = id(at).is_some_and(|id| wanted.until.get(&id) == Some(&None));
            if closes && !matches!(self.stages[at], Stage::Closed) {
                self.close(at).await;
            }
        }
        for at in 0..self.vips.len() {
            let Some(until) = until(wanted, at) else { continue };
            match &mut self.stages[at] {
                Stage::Inherited | Stage::Closed => self.ask(at),
                Stage::Refused(again) if *again <= Instant::now() => self.ask(at),
                Stage::Asked(_) | Stage::Refused(_) => {}
                Stage::Open { left, next, .. } => {
                    if healed {
                        (*left, *next) = (ANNOUNCEMENTS.0, Instant::now());
                    }
                    self.prolong(at, until).await;
                    self.announce(at, wanted);
                }
            }
        }
    }

    /// Asks the link whether somebody has the address.
    fn ask(&mut self, at: usize) {
        self.questions += 1;
        let (question, vip, netlink) = (self.questions, self.vips[at].clone(), self.netlink.clone());
        self.stages[at] = Stage::Asked(question);
        self.asked.spawn(async move { (at, question, free(&vip, &netlink).await) });
    }

    async fn answered(&mut self, at: usize, question: u64, answer: Result<Port, VipError>, wanted: &Wanted) {
        if !matches!(self.stages[at], Stage::Asked(asked) if asked == question) {
            return;
        }
        let Some(until) = until(wanted, at) else {
            self.stages[at] = Stage::Closed;
            return;
        };
        let done = match answer {
            Ok(port) => self.open(at, port, until).await.map(|()| port),
            Err(error) => Err(error),
        };
        match done {
            Ok(port) => {
                tracing::info!(address = %self.address(at), "this node answers for it");
                self.stages[at] = Stage::Open { port, left: ANNOUNCEMENTS.0, next: Instant::now() };
                self.rows[at] = Row { here: true, note: String::new() };
                self.announce(at, wanted);
            }
            Err(error) => {
                self.note(at, &error);
                self.stages[at] = Stage::Refused(Instant::now() + AGAIN);
            }
        }
    }

    /// The gate first: an address without a gate is never used.
    async fn open(&self, at: usize, port: Port, until: Tick) -> Result<(), VipError> {
        self.gate.open(self.address(at), life_ms(until).ok_or(VipError::Late)?)?;
        // What the kernel is told is a span: whoever stood still on the way there told it one that began too late.
        if life_ms(until).is_none() {
            self.gate.close(self.address(at))?;
            return Err(VipError::Late);
        }
        Ok(self.netlink.take(port, self.address(at)).await?)
    }

    async fn prolong(&mut self, at: usize, until: Tick) {
        let Stage::Open { port, .. } = self.stages[at] else { return };
        // Also puts back an address that somebody took off, or that its link lost with its cable.
        if let Err(error) = self.open(at, port, until).await {
            self.note(at, &error);
            // The link may be another one now: all of it again.
            self.stages[at] = Stage::Refused(Instant::now() + AGAIN);
            self.rows[at].here = false;
        } else if !self.rows[at].note.is_empty() {
            self.rows[at].note.clear();
        }
    }

    /// Says what is due, as long as it is true.
    fn announce(&mut self, at: usize, wanted: &Wanted) {
        let address = self.address(at);
        let Stage::Open { port, left, next } = &mut self.stages[at] else { return };
        if *next > Instant::now() || until(wanted, at).is_none() {
            return;
        }
        *left = left.saturating_sub(1);
        *next = Instant::now() + if *left > 0 { ANNOUNCEMENTS.1 } else { REMIND };
        if let Err(error) = dyad_net::speak(*port, address, &frames::announce(port.mac, address)) {
            tracing::warn!(%error, %address, "announce it");
        }
    }

    async fn close(&mut self, at: usize) {
        let address = self.address(at);
        if let Err(error) = self.gate.close(address) {
            tracing::warn!(%error, %address, "close the gate");
        }
        if let Err(error) = self.netlink.give_up(address).await {
            tracing::warn!(%error, %address, "give it up");
        }
        if self.rows[at].here {
            tracing::info!(%address, "this node answers for it no more");
        }
        self.stages[at] = Stage::Closed;
        self.rows[at] = Row::default();
    }

    fn note(&mut self, at: usize, error: &VipError) {
        let note = error.to_string();
        if self.rows[at].note != note {
            tracing::error!(address = %self.address(at), %note, "virtual address");
            self.rows[at].note = note;
        }
    }

    /// When something is due without an order; nothing is for an address whose time is over.
    fn due(&self, wanted: &Wanted) -> Option<Instant> {
        let of = |(at, stage): (usize, &Stage)| match stage {
            Stage::Refused(again) => until(wanted, at).map(|_| *again),
            Stage::Open { next, .. } => until(wanted, at).map(|_| *next),
            Stage::Inherited | Stage::Closed | Stage::Asked(_) => None,
        };
        self.stages.iter().enumerate().filter_map(of).min()
    }
}

/// Where an address can be put, if nobody else has it.
async fn free(vip: &Vip, netlink: &Netlink) -> Result<Port, VipError> {
    let interface = &vip.interface;
    let port = netlink.port(interface).await?.ok_or_else(|| VipError::NoLink(interface.clone()))?;
    let speak = |error| VipError::Speak { interface: interface.clone(), error };
    match dyad_net::taken(port, vip.address.address).await.map_err(speak)? {
        Some(mac) => Err(VipError::Taken { mac }),
        None => Ok(port),
    }
}
