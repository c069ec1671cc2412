//! A row that is written on the primary and read on the standby, in a table that is made and dropped for it.

use std::time::Duration;

use dyad_api::operator::{Call, Failure, FailureKind, RoundTrip, RoundTripRow};
use serde_json::{Value, json};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::calls::{Caller, Context, value};
use crate::driver::Role;
use crate::pg::session::{Address, Session, SqlError, literal};
use crate::status::hex;

/// In the database `postgres`, which is nobody's but the cluster's.
const TABLE: &str = "dyad_round_trip";
const DROP: &str = "drop table if exists dyad_round_trip";
/// For each statement.
const SQL: Duration = Duration::from_secs(5);
/// For what waits for its standby.
const LATER: Duration = Duration::from_secs(120);
/// For the standby to show what it has flushed already.
const SHOWN: Duration = Duration::from_secs(3);
/// Between two looks there.
const PAUSE: Duration = Duration::from_millis(1);

fn failed(error: &SqlError) -> Failure {
    Failure::new(FailureKind::Failed, format!("PostgreSQL: {error}"))
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Context {
    /// Asked of either node; the holder writes and has the other one read.
    pub(super) async fn round_trip(&self, part: RoundTrip, caller: &Caller) -> Result<Value, Failure> {
        let member = self.member()?;
        if let (Some(token), Caller::Peer) = (&part.token, caller) {
            return self.read_back(token, member.role()).await;
        }
        if part.token.is_some() {
            return Err(Failure::new(
                FailureKind::Usage,
                "token: only the other node says what is to be read",
            ));
        }
        if !member.holds() {
            return self.forward(Call::RoundTrip(part), caller).await;
        }
        let session = self.session().await?;
        // One at a time; a table that was left by a supervisor that ended half-way is dropped first.
        let alone = format!("select pg_catalog.pg_advisory_lock(pg_catalog.hashtext({}))", literal(TABLE));
        let anew = format!("{alone}; {DROP}; create table {TABLE} (token text not null)");
        session.execute(SQL, &anew).await.map_err(|error| failed(&error))?;
        let round = self.write_and_have_read(&session).await;
        if session.execute(SQL, DROP).await.is_err() {
            self.drop_later();
        }
        let (reader, written_us, read_us) = round?;
        let writer = self.declared.borrow().identity.name.clone();
        Ok(value(&RoundTripRow { writer, reader, written_us, read_us }))
    }

    async fn write_and_have_read(&self, session: &Session) -> Result<(String, u64, u64), Failure> {
        let mut token = [0; 8];
        let drawn = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
        drawn.map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
        let token = hex(&token);
        // As any client's: acknowledged when the standby has it.
        let begun = Instant::now();
        let insert = format!("insert into {TABLE} values ({})", literal(&token));
        let insert = format!("begin; set local synchronous_commit = on; {insert}; commit");
        session.execute(SQL, &insert).await.map_err(|error| failed(&error))?;
        let (written_us, begun) = (us(begun), Instant::now());
        // Whoever asked: with a token it is answered there, and never asked back.
        let read = self.forward(Call::RoundTrip(RoundTrip { token: Some(token) }), &Caller::Local).await?;
        let reader = read["reader"].as_str().unwrap_or_default().to_owned();
        Ok((reader, written_us, us(begun)))
    }

    async fn read_back(&self, token: &str, role: Role) -> Result<Value, Failure> {
        if role != Role::Standby {
            return Err(Failure::new(FailureKind::Refused, "this node is no standby now"));
        }
        let session = self.session().await?;
        let wanted = format!("select token from {TABLE} where token = {}", literal(token));
        let begun = Instant::now();
        loop {
            match session.value(SQL, &wanted).await {
                Ok(Some(_)) => break,
                // The table itself may not have come yet.
                Ok(None) | Err(SqlError::Server { .. }) if begun.elapsed() < SHOWN => sleep(PAUSE).await,
                Ok(None) => {
                    let what = format!("the standby has not shown the row within {} s", SHOWN.as_secs());
                    return Err(Failure::new(FailureKind::Failed, what));
                }
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(json!({ "reader": self.declared.borrow().identity.name }))
    }

    /// A commit that waits for its standby holds the table until the pair goes on without.
    fn drop_later(&self) {
        let address = Address::local(&self.paths, self.declared.borrow().postgresql.port);
        spawn_local(async move {
            let session = match address.connect(SQL).await {
                Ok(session) => session,
                Err(error) => {
                    return tracing::warn!(%error, "the next round trip drops what is left of this one");
                }
            };
            if let Err(error) = session.execute(LATER, DROP).await {
                tracing::warn!(%error, "the next round trip drops what is left of this one");
            }
        });
    }

    async fn session(&self) -> Result<Session, Failure> {
        let address = Address::local(&self.paths, self.declared.borrow().postgresql.port);
        address.connect(SQL).await.map_err(|error| failed(&error))
    }
}
