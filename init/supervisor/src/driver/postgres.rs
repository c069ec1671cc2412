//! PostgreSQL's part of the actions.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use dyad_cluster::action::{Action, Control, Need, Outcome, Relation, Report};
use dyad_cluster::types::{Generation, ResourceId, SystemId, Timeline};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::record::Record;
use crate::pg::{self, PgError, Server};

/// A standby that recovers for longer than this is under way, and said to be.
const FOLLOW: Duration = Duration::from_secs(8);

/// The server of one resource.
pub(crate) struct Postgres {
    pub(crate) server: Server,
    pub(crate) resource: ResourceId,
    record: Rc<Record>,
    /// Actions go one after another; the ladder is climbed beside them.
    turn: Mutex<()>,
    /// An end of the server is what was asked for, and no news.
    end_expected: Cell<bool>,
    /// Counts what changes the link: it is told anew.
    moved: Cell<u64>,
}

impl Postgres {
    pub(crate) fn new(server: Server, resource: ResourceId, record: Rc<Record>) -> Self {
        let (turn, end_expected, moved) = (Mutex::new(()), Cell::new(false), Cell::new(0));
        Self { server, resource, record, turn, end_expected, moved }
    }

    pub(crate) fn end_is_expected(&self) -> bool {
        self.end_expected.get()
    }

    /// Whether something is being done to the server.
    pub(crate) fn busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    pub(crate) fn moves(&self) -> u64 {
        self.moved.get()
    }

    /// Whether the need holds; `None`: it is not about the service.
    pub(crate) fn holds(&self, need: &Need) -> Option<bool> {
        match need {
            // What still runs is stopped first: whoever needs this has decided that nothing of it may run.
            Need::Stopped(_) => Some(true),
            Need::NotFollowing(_) => Some(!self.server.receives()),
            Need::IntentDurable(_)
            | Need::RegisterDurable(..)
            | Need::NoArbiterDurable(..)
            | Need::MarkerDurable(..)
            | Need::MarkerCleared(_)
            | Need::Before(_) => None,
        }
    }

    /// Carries one out.
    pub(crate) async fn carry_out(&self, action: Action) -> Outcome {
        let kind = action.kind();
        let result = match action {
            Action::Kill => self.kill().await,
            Action::Checkpoint => done(self.server.checkpoint()).await,
            Action::LimitWrites(limited) => done(self.server.limit_writes(limited)).await,
            other => {
                let _turn = self.turn.lock().await;
                let result = self.in_turn(other).await;
                self.moved.set(self.moved.get() + 1);
                result
            }
        };
        match result {
            Ok(report) => Outcome::Done(report),
            Err(error) => {
                let unknown = error.is_unknown();
                tracing::warn!(?kind, unknown, %error, "PostgreSQL");
                if unknown { Outcome::TimedOut } else { Outcome::Failed }
            }
        }
    }

    async fn in_turn(&self, action: Action) -> Result<Report, PgError> {
        let server = &self.server;
        match action {
            Action::ReadControl => Ok(Report::Control(control(server.known().await?))),
            Action::Serve { sync } => {
                self.end_expected.set(false);
                if server.runs() { done(server.serve_on(sync)).await } else { done(server.serve(sync)).await }
            }
            Action::Admit => done(server.admit()).await,
            Action::ArmSync => done(server.arm_sync()).await,
            Action::Barrier => done(server.barrier()).await,
            Action::Canary => Ok(Report::Canary(Generation(server.canary().await?))),
            Action::DropSync => done(server.let_go()).await,
            Action::StopClean => {
                self.end_expected.set(true);
                done(server.stop_clean()).await
            }
            Action::Inspect => {
                self.stop().await?;
                Ok(Report::Relation(relation(server.inspect().await?)))
            }
            Action::Follow => self.follow().await,
            Action::StopFollowing if server.runs() => done(server.stop_following()).await,
            // Its next start shall not receive either.
            Action::StopFollowing => {
                server.declare(|stance| stance.receive = None)?;
                Ok(Report::Nothing)
            }
            Action::Rewind => {
                self.stop().await?;
                server.rewind(&self.label()).await?;
                Ok(Report::Control(control(server.known().await?)))
            }
            Action::Clone => {
                self.stop().await?;
                server.clone_peer(&self.label()).await?;
                Ok(Report::Control(control(server.known().await?)))
            }
            Action::Promote => {
                self.end_expected.set(false);
                if server.runs() { done(server.promote()).await } else { done(server.serve(false)).await }
            }
            // Of the node, told instead of asked, of volumes, or handled above: never sent here.
            Action::WriteMirror(_)
            | Action::WriteMarker(_)
            | Action::ToArbiter(..)
            | Action::ToPeer(_)
            | Action::Deadman(_)
            | Action::OpenGate { .. }
            | Action::CloseGate(_)
            | Action::FencePeer
            | Action::StartVm(_)
            | Action::Kill
            | Action::Checkpoint
            | Action::LimitWrites(_) => {
                unreachable!("{:?} is no action on PostgreSQL in turn", action.kind())
            }
        }
    }

    /// The ladder; and whatever program still works on the data ends before this is done.
    async fn kill(&self) -> Result<Report, PgError> {
        self.end_expected.set(true);
        self.server.kill().await?;
        let _turn = self.turn.lock().await;
        // What was under way may have started it in the meantime.
        done(self.server.kill()).await
    }

    async fn stop(&self) -> Result<(), PgError> {
        if !self.server.runs() {
            return Ok(());
        }
        self.end_expected.set(true);
        self.server.kill().await
    }

    async fn follow(&self) -> Result<Report, PgError> {
        self.stop().await?;
        self.end_expected.set(false);
        match timeout(FOLLOW, self.server.follow()).await {
            Ok(followed) => done(async { followed }).await,
            // It has its signal file and its configuration; recovery takes what it takes.
            Err(_) if self.server.runs() => Ok(Report::Nothing),
            Err(_) => Err(PgError::Late { what: "start of the standby", limit: FOLLOW }),
        }
    }

    /// Names a quarantine.
    fn label(&self) -> String {
        let epoch = self.record.mirror().and_then(|m| m.registers.get(&self.resource).map(|r| r.epoch.0));
        epoch.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string())
    }
}

async fn done(work: impl Future<Output = Result<(), PgError>>) -> Result<Report, PgError> {
    work.await.map(|()| Report::Nothing)
}

fn control(found: pg::Control) -> Control {
    Control {
        system: SystemId(found.system),
        timeline: Timeline(found.timeline),
        generation: Generation(found.generation),
    }
}

fn relation(found: pg::Relation) -> Relation {
    match found {
        pg::Relation::Streams => Relation::Streams,
        pg::Relation::Diverged => Relation::Diverged,
        pg::Relation::TooEarly => Relation::TooEarly,
        pg::Relation::Unusable => Relation::Unusable,
        pg::Relation::Foreign => Relation::Foreign,
    }
}
