//! Whether the server does its work: a write on a connection that is kept, and a new connection. A stopped postmaster
//! hangs new connections while old ones go on; a stopped checkpointer or a full disk shows in the write.

use std::time::Duration;

use dyad_spec::site::Profile;
use tokio_postgres::error::SqlState;

use crate::pg::session::{Address, Session, SqlError};

/// Pause between two probes.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);
/// So many misses in a row, and the server is taken for hung.
const MISSES_MAX: u32 = 3;
/// A transaction with its own commit record, flushed before it returns, that leaves nothing behind.
const WRITE: &str = "select pg_logical_emit_message(true, 'dyad', '')";

/// Longest time for each half of a probe: a server that says nothing for T is hung, and what T is, the site knows. A
/// machine that is emulated or busy is silent for seconds without anything being wrong.
pub(crate) const fn deadline(profile: Profile) -> Duration {
    Duration::from_millis((profile.t_ms() / MISSES_MAX) as u64)
}

/// Processes that a primary cannot do without.
const PROCESSES: &str = "select pid, backend_type from pg_catalog.pg_stat_activity \
     where backend_type in ('checkpointer', 'walwriter', 'background writer', 'startup')";

/// How one half of a probe went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well.
    Ok,
    /// No answer in this time.
    Timeout(Duration),
    /// Nobody listens, or the connection broke.
    NoConnection(String),
    /// It is starting, stopping or recovering, and says so.
    NotYet,
    /// It answers, and does not take writes.
    ReadOnly,
    /// It answers, with another error.
    Error(String),
}

impl Outcome {
    /// Whether this speaks for a server that a restart would help: any answer at all speaks against it.
    fn is_dead(&self) -> bool {
        match self {
            Outcome::Timeout(_) | Outcome::NoConnection(_) => true,
            Outcome::Ok | Outcome::NotYet | Outcome::ReadOnly | Outcome::Error(_) => false,
        }
    }

    /// In words, for the status.
    pub(crate) fn text(&self) -> String {
        match self {
            Outcome::Ok => "ok".to_owned(),
            Outcome::Timeout(limit) => format!("no answer within {} ms", limit.as_millis()),
            Outcome::NoConnection(why) => format!("no connection: {why}"),
            Outcome::NotYet => "starting or stopping".to_owned(),
            Outcome::ReadOnly => "read-only".to_owned(),
            Outcome::Error(why) => why.clone(),
        }
    }
}

impl<T> From<Result<T, SqlError>> for Outcome {
    fn from(result: Result<T, SqlError>) -> Self {
        match result {
            Ok(_) => Outcome::Ok,
            Err(SqlError::Timeout(limit)) => Outcome::Timeout(limit),
            Err(SqlError::Connection(why)) => Outcome::NoConnection(why),
            Err(SqlError::Server { code, .. }) if code == SqlState::CANNOT_CONNECT_NOW => Outcome::NotYet,
            Err(SqlError::Server { code, .. }) if code == SqlState::READ_ONLY_SQL_TRANSACTION => {
                Outcome::ReadOnly
            }
            Err(SqlError::Server { code, message }) => Outcome::Error(format!("{message} ({})", code.code())),
        }
    }
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The write on the kept connection.
    pub(crate) write: Outcome,
    /// The new connection.
    pub(crate) connect: Outcome,
    /// Milliseconds that the slower of both took.
    pub(crate) took_ms: u32,
}

/// What the probes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It takes writes and connections.
    Serving,
    /// It lives and does not serve, or it is too early to say.
    NotServing,
    /// Restart it.
    Dead,
}

/// Counts misses.
#[derive(Debug, Default)]
pub(crate) struct Misses(u32);

impl Misses {
    /// Takes the next probe.
    pub(crate) fn judge(&mut self, probe: &Probe) -> Verdict {
        let dead = probe.write.is_dead() || probe.connect.is_dead();
        self.0 = if dead { self.0 + 1 } else { 0 };
        match (&probe.write, &probe.connect) {
            (Outcome::Ok, Outcome::Ok) => Verdict::Serving,
            _ if self.0 >= MISSES_MAX => Verdict::Dead,
            _ => Verdict::NotServing,
        }
    }

    /// Misses in a row.
    pub(crate) fn count(&self) -> u32 {
        self.0
    }
}

/// Probes one server.
pub(crate) struct Prober {
    address: Address,
    deadline: Duration,
    kept: Option<Session>,
}

impl Prober {
    /// Nothing is connected yet.
    pub(crate) fn new(address: Address, deadline: Duration) -> Self {
        Self { address, deadline, kept: None }
    }

    /// One probe; takes no longer than its deadline.
    pub(crate) async fn probe(&mut self) -> Probe {
        let start = tokio::time::Instant::now();
        let Self { address, deadline, kept } = self;
        let limit = *deadline;
        let write = async {
            let result = tokio::time::timeout(limit, write(address, kept, limit)).await;
            result.unwrap_or(Err(SqlError::Timeout(limit)))
        };
        let (write, connect) = tokio::join!(write, address.connect(limit));
        if write.is_err() {
            // A new one next time: the old one may wait for an answer that never comes.
            self.kept = None;
        }
        let took_ms = u32::try_from(start.elapsed().as_millis()).unwrap_or(u32::MAX);
        Probe { write: write.into(), connect: connect.into(), took_ms }
    }
}

impl Prober {
    /// A process of the server that is stopped, over the kept connection: a stopped checkpointer lets writes go on, and
    /// blocks whatever waits for a checkpoint or a setting.
    pub(crate) async fn stopped(&self) -> Option<String> {
        let rows = self.kept.as_ref()?.rows(self.deadline, PROCESSES).await.ok()?;
        rows.into_iter().find_map(|row| {
            let mut values = row.into_iter().flatten();
            let (pid, name) = (values.next()?, values.next()?);
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The state follows the name, which is in parentheses and may hold any letter.
            let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
            matches!(state, 'T' | 't').then(|| format!("the {name} is stopped"))
        })
    }
}

async fn write(address: &Address, kept: &mut Option<Session>, limit: Duration) -> Result<(), SqlError> {
    let session = match kept {
        Some(session) => session,
        None => kept.insert(address.connect(limit).await?),
    };
    session.execute(limit, WRITE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(write: Outcome, connect: Outcome) -> Probe {
        Probe { write, connect, took_ms: 1 }
    }

    #[test]
    fn three_misses_in_a_row_are_death_and_any_answer_starts_the_count_anew() {
        let mut misses = Misses::default();
        let hung = probe(Outcome::Ok, Outcome::Timeout(deadline(Profile::Lan)));
        assert_eq!(misses.judge(&hung), Verdict::NotServing);
        assert_eq!(misses.judge(&hung), Verdict::NotServing);
        assert_eq!(misses.judge(&probe(Outcome::NotYet, Outcome::NotYet)), Verdict::NotServing);
        assert_eq!(misses.judge(&hung), Verdict::NotServing);
        assert_eq!(misses.judge(&probe(Outcome::NoConnection("x".into()), Outcome::Ok)), Verdict::NotServing);
        assert_eq!(misses.judge(&hung), Verdict::Dead);
        assert_eq!(misses.judge(&probe(Outcome::Ok, Outcome::Ok)), Verdict::Serving);
        assert_eq!(misses.count(), 0);
    }

    #[test]
    fn silence_for_t_is_death() {
        for profile in [Profile::Lan, Profile::Medium, Profile::Wan] {
            let t = Duration::from_millis(profile.t_ms().into());
            let silence = deadline(profile) * MISSES_MAX;
            assert!(silence <= t && t < silence + Duration::from_millis(10), "{profile:?}: {silence:?}");
        }
    }

    #[test]
    fn a_server_that_answers_is_never_restarted_for_it() {
        let mut misses = Misses::default();
        let full = probe(Outcome::Error("disk full (53100)".into()), Outcome::Ok);
        let standby = probe(Outcome::ReadOnly, Outcome::Ok);
        assert!((0..10).all(|_| misses.judge(&full) == Verdict::NotServing));
        assert!((0..10).all(|_| misses.judge(&standby) == Verdict::NotServing));
    }
}
