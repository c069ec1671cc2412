//! Questions and orders about a pair.

use dyad_api::operator::{Events, FREEZE_SECONDS_MAX, Failure, FailureKind, Freeze, LOG_LINES_MAX, TakeOver};
use dyad_cluster::event::{Command, Event};
use serde_json::{Value, json};

use super::calls::{Context, value};
use crate::driver::{self, DATABASE, Shown};

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Refused, message)
}

impl Context {
    fn member(&self) -> Result<Shown, Failure> {
        self.pair.borrow().clone().ok_or_else(|| refused("this node is not a member of a pair"))
    }

    async fn command(&self, command: Command) -> Result<Value, Failure> {
        let member = self.member()?;
        tracing::info!(?command, "the operator's order");
        let taken = member.orders.send(Event::Command(command)).await;
        taken.map_err(|_| Failure::new(FailureKind::Unavailable, "the supervisor is ending"))?;
        Ok(json!({}))
    }

    pub(super) fn why(&self) -> Result<Value, Failure> {
        Ok(value(&self.member()?.why()))
    }

    pub(super) async fn switch_over(&self) -> Result<Value, Failure> {
        let member = self.member()?;
        if !member.holds() {
            let holder = member.holder().unwrap_or("nobody");
            return Err(refused(format!(
                "the database is held by {holder}; its holder alone can hand it over"
            )));
        }
        self.command(Command::SwitchOver(DATABASE)).await
    }

    pub(super) async fn drain(&self, drained: bool) -> Result<Value, Failure> {
        self.command(if drained { Command::Drain } else { Command::Undrain }).await
    }

    pub(super) async fn freeze(&self, Freeze { seconds }: Freeze) -> Result<Value, Failure> {
        if seconds > FREEZE_SECONDS_MAX {
            let message =
                format!("seconds: {seconds} is out of bounds; 0 to {FREEZE_SECONDS_MAX} are accepted");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        self.command(Command::Freeze(u64::from(seconds) * 1_000)).await
    }

    pub(super) async fn take_over(&self, TakeOver { peer_is_off }: TakeOver) -> Result<Value, Failure> {
        let member = self.member()?;
        if member.holds() {
            return Err(refused("this node holds the database already"));
        }
        if !peer_is_off {
            let price = member.price();
            return Err(refused(format!(
                "a take-over by force may lose {price}. Switch the other machine off, make sure that it is, and say so"
            )));
        }
        self.command(Command::Force(DATABASE)).await
    }

    pub(super) async fn events(&self, Events { lines }: Events) -> Result<Value, Failure> {
        self.member()?;
        if lines == 0 || lines > LOG_LINES_MAX {
            let message = format!("lines: {lines} is out of bounds; 1 to {LOG_LINES_MAX} are accepted");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        let dir = driver::events_dir(&self.paths);
        let read = tokio::task::spawn_blocking(move || driver::history(&dir, lines as usize)).await;
        match read {
            Ok(Ok(rows)) => Ok(value(&rows)),
            Ok(Err(error)) => Err(Failure::new(FailureKind::Failed, format!("read the event log: {error}"))),
            Err(error) => Err(Failure::new(FailureKind::Failed, format!("read the event log: {error}"))),
        }
    }
}
