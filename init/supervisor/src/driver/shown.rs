//! The pair as operators see it. On both nodes the first line says what losing a node now would cost.

use std::net::IpAddr;
use std::rc::Rc;

use dyad_api::operator::{NodeRow, PolicyRow, Protection as Shows, ResourceRow, VipRow, WayRow};
use dyad_cluster::event::Event;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::{Mode, Register};
use dyad_cluster::report::Cause;
use dyad_cluster::types::Node;
use tokio::sync::{mpsc, watch};

use super::arbiter::Enroller;
use super::observe::Replication;
use super::peer::{Level, Status};
use super::run::View;
use super::vips::Row;
use super::ways::Way;
use super::words;

/// What a node is for the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Standby,
    None,
}

impl Role {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
            Role::None => "none",
        }
    }
}

fn role(phase: Phase) -> Role {
    match phase {
        phase if phase.serves() => Role::Primary,
        Phase::Following | Phase::Renouncing => Role::Standby,
        _ => Role::None,
    }
}

/// What operators are shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) me: Node,
    /// Names of both members, in order.
    pub(crate) names: [String; 2],
    pub(crate) view: View,
    /// What the other one said last.
    pub(crate) peer: Option<Status>,
    /// Virtual addresses of the site file, and what became of them here.
    pub(crate) vips: Vec<(String, Row)>,
    /// How this node's server stands.
    pub(crate) replication: Replication,
    /// Orders go here.
    pub(crate) orders: mpsc::Sender<Event>,
    /// `None`: there is no witness.
    pub(crate) enroller: Option<Rc<Enroller>>,
    /// The hook that fails, and why.
    pub(crate) hook: Option<String>,
    /// How the other node is reached, the preferred way first.
    pub(crate) ways: Vec<Way>,
    /// What the pair does by itself.
    pub(crate) policy: Rc<[PolicyRow]>,
}

/// Everything that is seen of this node, as it comes in.
#[derive(Clone)]
pub(crate) struct Facts {
    pub(crate) seen: watch::Receiver<View>,
    pub(crate) rows: watch::Receiver<Vec<Row>>,
    pub(crate) replication: watch::Receiver<Replication>,
}

impl Facts {
    pub(crate) fn now(&mut self) -> (View, Vec<Row>, Replication) {
        (
            self.seen.borrow_and_update().clone(),
            self.rows.borrow_and_update().clone(),
            *self.replication.borrow_and_update(),
        )
    }

    /// Until one of them has. An observer that ended tells nothing any more; without the loop there is nothing to show.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.seen.changed() => changed,
            Ok(()) = self.rows.changed() => Ok(()),
            Ok(()) = self.replication.changed() => Ok(()),
        }
    }
}

/// What of [`Shown`] does not change.
pub(crate) struct Screen {
    pub(crate) me: Node,
    pub(crate) names: [String; 2],
    pub(crate) vips: Vec<String>,
    pub(crate) orders: mpsc::Sender<Event>,
    pub(crate) enroller: Option<Rc<Enroller>>,
    pub(crate) hooks: watch::Receiver<Option<String>>,
    pub(crate) ways: watch::Receiver<Vec<Way>>,
    pub(crate) policy: Rc<[PolicyRow]>,
}

impl Screen {
    /// Keeps what operators are shown.
    pub(crate) async fn keep(
        mut self,
        shown: watch::Sender<Option<Shown>>,
        mut facts: Facts,
        mut peer: watch::Receiver<Option<Status>>,
    ) {
        loop {
            let (view, rows, replication) = facts.now();
            let status = peer.borrow_and_update().clone();
            shown.send_replace(Some(Shown {
                me: self.me,
                names: self.names.clone(),
                view,
                peer: status,
                vips: self.vips.iter().cloned().zip(rows).collect(),
                replication,
                orders: self.orders.clone(),
                enroller: self.enroller.clone(),
                hook: self.hooks.borrow_and_update().clone(),
                ways: self.ways.borrow_and_update().clone(),
                policy: Rc::clone(&self.policy),
            }));
            tokio::select! {
                changed = facts.changed() => if changed.is_err() { return },
                Ok(()) = peer.changed() => {}
                Ok(()) = self.hooks.changed() => {}
                Ok(()) = self.ways.changed() => {}
            }
        }
    }
}

impl Shown {
    fn name(&self, node: Node) -> &str {
        &self.names[node.index()]
    }

    /// What the other one said, as long as it is heard.
    fn heard(&self) -> Option<&Status> {
        self.peer.as_ref().filter(|_| !self.view.why.contains(&Cause::PeerSilent))
    }

    /// The first line, and why.
    pub(crate) fn protection(&self) -> (Shows, String) {
        let own = Status::of(&self.view, &[], self.replication);
        let says = match own.protection {
            Level::Full | Level::NoTakeOver | Level::OneCopy => (self.name(self.me), &own),
            // Whoever holds it knows.
            Level::Standby | Level::Down => match self.heard() {
                Some(peer) if !matches!(peer.protection, Level::Standby) => (self.name(self.me.peer()), peer),
                Some(_) | None => (self.name(self.me), &own),
            },
        };
        let (holder, Status { protection, phase, why, .. }) = says;
        words::first_line(*protection, holder, *phase, why)
    }

    /// One row for each member.
    pub(crate) fn nodes(&self) -> Vec<NodeRow> {
        let row = |name: &str, phase: Option<Phase>, replication: Replication| {
            let role = phase.map_or(Role::None, role);
            NodeRow {
                name: name.to_owned(),
                role: role.text().into(),
                up: phase.is_some_and(Phase::admits) || role == Role::Standby,
                timeline: replication.timeline,
                // A primary is behind nobody; its own number is its standby's.
                lag_bytes: match role {
                    Role::Primary => Some(0),
                    Role::Standby => replication.lag_bytes,
                    Role::None => None,
                },
            }
        };
        let of = |node: Node| {
            if node == self.me {
                row(self.name(node), Some(self.view.phase), self.replication)
            } else {
                let heard = self.heard();
                let replication = heard.map(|peer| peer.replication).unwrap_or_default();
                row(self.name(node), heard.map(|peer| peer.phase), replication)
            }
        };
        Node::BOTH.map(of).into()
    }

    /// Who answers for which address.
    pub(crate) fn vip_rows(&self) -> Vec<VipRow> {
        let there = |at: usize| self.heard().is_some_and(|peer| peer.vips.get(at) == Some(&true));
        let row = |(at, (address, row)): (usize, &(String, Row))| VipRow {
            address: address.clone(),
            holder: if row.here {
                Some(self.name(self.me).to_owned())
            } else {
                there(at).then(|| self.name(self.me.peer()).to_owned())
            },
            note: row.note.clone(),
        };
        self.vips.iter().enumerate().map(row).collect()
    }

    /// How the other node is reached.
    pub(crate) fn way_rows(&self) -> Vec<WayRow> {
        let row = |way: &Way| WayRow {
            address: way.address.to_string(),
            interface: way.interface.clone(),
            up: way.up,
        };
        self.ways.iter().map(row).collect()
    }

    /// The way to this address is known to be down.
    pub(crate) fn is_down(&self, address: IpAddr) -> bool {
        self.ways.iter().any(|way| way.address == address && way.up == Some(false))
    }

    /// What this node is now.
    pub(crate) fn role(&self) -> Role {
        role(self.view.phase)
    }

    /// Clients are served here as primary.
    pub(crate) fn serves(&self) -> bool {
        self.view.phase.admits()
    }

    /// This node is the standby that the holder's commits wait for.
    pub(crate) fn is_synchronous(&self) -> bool {
        let sync = |register: Register| matches!(register.mode, Mode::Sync(_)) && register.holder != self.me;
        self.role() == Role::Standby && self.view.register.is_some_and(sync)
    }

    /// What is replicated.
    pub(crate) fn resources(&self) -> Vec<ResourceRow> {
        let row = |register: Register| ResourceRow {
            name: "pg/main".into(),
            epoch: register.epoch.0,
            mode: match register.mode {
                Mode::Sync(_) => "Sync",
                Mode::Solo => "Solo",
            }
            .into(),
            holder: self.name(register.holder).to_owned(),
        };
        self.view.register.into_iter().map(row).collect()
    }

    /// This node holds the database.
    pub(crate) fn holds(&self) -> bool {
        self.view.register.is_some_and(|register| register.holder == self.me)
    }

    /// Who holds it.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.view.register.map(|register| self.name(register.holder))
    }

    /// Why there is no third vote, if there is none.
    pub(crate) fn no_vote(&self) -> Option<&'static str> {
        let votes = |cause: &Cause| {
            matches!(
                cause,
                Cause::ArbiterSilent | Cause::ArbiterHeardOne | Cause::ArbiterAmnesia | Cause::NoThirdVote
            )
        };
        self.view.why.iter().copied().find(votes).map(words::cause)
    }

    /// It must not serve now.
    pub(crate) fn lacks_lease(&self) -> bool {
        self.view.why.contains(&Cause::NoLease)
    }

    /// What taking it by force may cost, in words.
    pub(crate) fn price(&self) -> &'static str {
        words::price(self.view.price)
    }

    /// What this node does.
    pub(crate) fn phase(&self) -> &'static str {
        words::phase(self.view.phase)
    }

    /// Why it is not better, the nearest cause first, one a line; then what is odd about addresses.
    pub(crate) fn why(&self) -> Vec<String> {
        let doing = |node: Node, phase: Phase, replication: Replication| {
            let copied = replication.copied_percent.map(|percent| format!(", {percent} % of it is here"));
            format!("{} is {}{}", self.name(node), words::phase(phase), copied.unwrap_or_default())
        };
        let phase = doing(self.me, self.view.phase, self.replication);
        // The other side of a copy would like to know, too.
        let copies = self.heard().filter(|peer| peer.phase == Phase::Cloning);
        let copies = copies.map(|peer| doing(self.me.peer(), peer.phase, peer.replication));
        let own = self.view.why.iter().map(|cause| words::cause(*cause).to_owned());
        let peer = self.heard().filter(|peer| !peer.why.is_empty());
        let peer = peer.map(|peer| format!("{} says: {}", self.name(self.me.peer()), peer.why));
        let odd =
            |row: VipRow| (!row.note.is_empty()).then(|| format!("address {}: {}", row.address, row.note));
        let addresses = self.vip_rows().into_iter().filter_map(odd);
        std::iter::once(phase).chain(own).chain(copies).chain(peer).chain(addresses).collect()
    }
}
