//! Who carries which action out, after its needs were looked at once more.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use dyad_api::control::Call;
use dyad_cluster::action::{Action, Issued, Need, Outcome, Report};
use dyad_cluster::types::Tick;
use tokio::task::spawn_local;

use super::arbiter::Witness;
use super::journal::Flushed;
use super::peer::Link;
use super::postgres::Postgres;
use super::record::{Record, RecordError};
use super::run::Hands;
use super::vips::Vips;
use crate::clock;
use crate::pid1::Pid1;

/// Everything that a step can move.
pub(crate) struct Node {
    pub(crate) record: Rc<Record>,
    pub(crate) postgres: Rc<Postgres>,
    /// `None`: the site has no witness.
    pub(crate) witness: Option<Rc<Witness>>,
    pub(crate) peer: Link,
    pub(crate) pid1: Pid1,
    pub(crate) vips: Vips,
}

impl Hands for Rc<Node> {
    fn carry_out(&self, issued: Issued, flushed: Flushed) -> Pin<Box<dyn Future<Output = Outcome>>> {
        let node = Rc::clone(self);
        Box::pin(async move {
            // What cannot be taken back waits until the log says why it is done; nothing that fences has a need.
            if !issued.needs.is_empty() {
                flushed.wait().await;
            }
            if !node.needs_hold(&issued) { Outcome::Failed } else { node.act(issued).await }
        })
    }

    fn tell(&self, issued: Issued, flushed: Flushed) {
        match issued.action {
            Action::ToPeer(message) => self.peer.say(message),
            Action::ToArbiter(..) if issued.needs.is_empty() => self.ask(issued),
            Action::ToArbiter(..) => {
                let node = Rc::clone(self);
                spawn_local(async move {
                    flushed.wait().await;
                    if node.needs_hold(&issued) {
                        node.ask(issued);
                    }
                });
            }
            Action::Deadman(at) => self.arm(at),
            Action::OpenGate { vip, until } => self.vips.open(vip, until),
            Action::CloseGate(vip) => self.vips.close(vip),
            // Every other action completes, and is carried out.
            other => tracing::error!(action = ?other.kind(), "an action without an end was expected"),
        }
    }
}

impl Node {
    fn needs_hold(&self, issued: &Issued) -> bool {
        let holds = |need: &Need| match need {
            Need::Before(end) => clock::tick() < *end,
            other => self.record.holds(other).or_else(|| self.postgres.holds(other)).unwrap_or(false),
        };
        let missing = issued.needs.iter().find(|need| !holds(need));
        if let Some(need) = missing {
            tracing::warn!(action = ?issued.id.kind, ?need, "not begun: what it needs is not so");
        }
        missing.is_none()
    }

    async fn act(&self, issued: Issued) -> Outcome {
        match (issued.action, issued.id.resource) {
            (Action::WriteMirror(mirror), _) => written(self.record.write_mirror(mirror).await),
            (Action::WriteMarker(marker), Some(r)) => written(self.record.write_marker(r, marker).await),
            // There is no fence device, and no machine, in a cluster of this configuration.
            (Action::FencePeer | Action::StartVm(_) | Action::WriteMarker(_), _) => Outcome::Failed,
            (action, Some(r)) if r == self.postgres.resource => self.postgres.carry_out(action).await,
            (_, _) => Outcome::Failed,
        }
    }

    fn ask(&self, issued: Issued) {
        if let (Action::ToArbiter(greeting, message), Some(witness)) = (issued.action, &self.witness) {
            witness.ask(greeting, message);
        }
    }

    /// PID 1 ends what writes past this tick, whether or not this process lives.
    fn arm(&self, at: Tick) {
        let pid1 = self.pid1.clone();
        spawn_local(async move {
            let deadline_ns = Some(at.0.saturating_mul(1_000_000));
            if let Err(error) = pid1.order(Call::Arm { deadline_ns }).await {
                tracing::warn!(%error, "arm the dead-man's switch");
            }
        });
    }
}

/// After an error nobody knows what is on the disk.
fn written(result: Result<(), RecordError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done(Report::Nothing),
        Err(error) => {
            tracing::error!(%error, "write this node's record");
            Outcome::TimedOut
        }
    }
}
