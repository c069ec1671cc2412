//! The pair as operators see it. On both nodes the first line says what losing a node now would cost.

use dyad_api::operator::{NodeRow, Protection as Shows, ResourceRow};
use dyad_cluster::event::Event;
use dyad_cluster::phase::Phase;
use dyad_cluster::register::Mode;
use dyad_cluster::report::Cause;
use dyad_cluster::types::Node;
use tokio::sync::mpsc;

use super::peer::{Level, Status};
use super::run::View;
use super::words;

/// What operators are shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) me: Node,
    /// Names of both members, in order.
    pub(crate) names: [String; 2],
    pub(crate) view: View,
    /// What the other one said last.
    pub(crate) peer: Option<Status>,
    /// Orders go here.
    pub(crate) orders: mpsc::Sender<Event>,
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
        let own = Status::of(&self.view);
        let says = match own.protection {
            Level::Full | Level::NoTakeOver | Level::OneCopy => (self.name(self.me), &own),
            // Whoever holds it knows.
            Level::Standby | Level::Down => match self.heard() {
                Some(peer) if !matches!(peer.protection, Level::Standby) => (self.name(self.me.peer()), peer),
                Some(_) | None => (self.name(self.me), &own),
            },
        };
        let (holder, Status { protection, why, .. }) = says;
        match protection {
            Level::Full => (Shows::Protected, "losing either node loses nothing and needs nobody".into()),
            Level::NoTakeOver => (
                Shows::Synced,
                format!(
                    "every acknowledged write is on both nodes, and a take-over needs an operator: {why}"
                ),
            ),
            Level::OneCopy => (Shows::Exposed, format!("losing {holder} loses data or service: {why}")),
            Level::Standby | Level::Down => (Shows::Down, format!("the database is not served: {why}")),
        }
    }

    /// One row for each member.
    pub(crate) fn nodes(&self, timeline: Option<u32>) -> Vec<NodeRow> {
        let row = |name: &str, phase: Option<Phase>, timeline: Option<u32>| NodeRow {
            name: name.to_owned(),
            role: match phase {
                Some(phase) if phase.serves() => "primary",
                Some(Phase::Following | Phase::Renouncing) => "standby",
                Some(_) | None => "none",
            }
            .into(),
            up: phase
                .is_some_and(|phase| phase.admits() || matches!(phase, Phase::Following | Phase::Renouncing)),
            timeline,
            lag_bytes: None,
        };
        let of = |node: Node| {
            if node == self.me {
                row(self.name(node), Some(self.view.phase), timeline)
            } else {
                row(self.name(node), self.heard().map(|peer| peer.phase), None)
            }
        };
        Node::BOTH.map(of).into()
    }

    /// What is replicated.
    pub(crate) fn resources(&self) -> Vec<ResourceRow> {
        let row = |register: dyad_cluster::register::Register| ResourceRow {
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

    /// What taking it by force may cost, in words.
    pub(crate) fn price(&self) -> &'static str {
        words::price(self.view.price)
    }

    /// What this node does.
    pub(crate) fn phase(&self) -> &'static str {
        words::phase(self.view.phase)
    }

    /// Why it is not better, the nearest cause first, one a line.
    pub(crate) fn why(&self) -> Vec<String> {
        let phase = format!("{} is {}", self.name(self.me), self.phase());
        let own = self.view.why.iter().map(|cause| words::cause(*cause).to_owned());
        let peer = self.heard().filter(|peer| !peer.why.is_empty());
        let peer = peer.map(|peer| format!("{} says: {}", self.name(self.me.peer()), peer.why));
        std::iter::once(phase).chain(own).chain(peer).collect()
    }
}
