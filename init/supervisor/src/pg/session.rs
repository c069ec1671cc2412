//! Connections to the local server as its superuser, over the unix socket, every step with a deadline.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::paths::Paths;

/// Between two looks whether the server has read its files.
const RELOAD_INTERVAL: Duration = Duration::from_millis(10);

/// Why a statement or connection failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The server answered, with an error.
    #[error("{message} ({code})", code = .code.code())]
    Server {
        /// SQLSTATE.
        code: SqlState,
        /// Text.
        message: String,
    },
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Connection(String),
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(answer) = error.as_db_error() {
            return Self::Server { code: answer.code().clone(), message: answer.message().to_owned() };
        }
        match std::error::Error::source(&error) {
            Some(source) => Self::Connection(format!("{error}: {source}")),
            None => Self::Connection(error.to_string()),
        }
    }
}

/// Waits for the server, but not for ever.
pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SqlError::Timeout(deadline)),
    }
}

/// A connection; dropping it closes it.
pub(crate) struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How to reach the server.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    config: tokio_postgres::Config,
}

impl Address {
    /// The local server on this port.
    pub(crate) fn local(paths: &Paths, port: u16) -> Self {
        let mut config = tokio_postgres::Config::new();
        config.host_path(paths.pg_socket()).port(port).user("postgres").dbname("postgres");
        // Statements that fail are logged by the server: none of ours may bring a password verifier there.
        config.application_name("dyad-supervisor").options(
            "-c log_min_error_statement=panic -c standard_conforming_strings=on -c synchronous_commit=local \
             -c default_transaction_read_only=off",
        );
        Self { config }
    }

    /// Connects. Must run inside a local task set.
    pub(crate) async fn connect(&self, deadline: Duration) -> Result<Session, SqlError> {
        let (client, connection) = within(deadline, self.config.connect(NoTls)).await?;
        let driver = tokio::task::spawn_local(async move {
            // Whoever uses the client sees the same error.
            let _ = connection.await;
        });
        Ok(Session { client, driver })
    }
}

impl Session {
    /// Runs a statement, whose result is of no interest.
    pub(crate) async fn execute(&self, deadline: Duration, statement: &str) -> Result<(), SqlError> {
        within(deadline, self.client.batch_execute(statement)).await
    }

    /// Runs a query; every value comes as text, `None` for null.
    pub(crate) async fn rows(
        &self,
        deadline: Duration,
        query: &str,
    ) -> Result<Vec<Vec<Option<String>>>, SqlError> {
        use tokio_postgres::SimpleQueryMessage::Row;
        let messages = within(deadline, self.client.simple_query(query)).await?;
        let rows =
            messages.iter().filter_map(|message| if let Row(row) = message { Some(row) } else { None });
        Ok(rows
            .map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            .collect())
    }

    /// Has the server read its files, and waits until it has.
    pub(crate) async fn reload(&self, deadline: Duration) -> Result<(), SqlError> {
        let loaded = "select pg_catalog.pg_conf_load_time()";
        let before = self.value(deadline, loaded).await?;
        self.execute(deadline, "select pg_catalog.pg_reload_conf()").await?;
        let end = tokio::time::Instant::now() + deadline;
        while self.value(deadline, loaded).await? == before {
            if tokio::time::Instant::now() >= end {
                return Err(SqlError::Timeout(deadline));
            }
            tokio::time::sleep(RELOAD_INTERVAL).await;
        }
        Ok(())
    }

    /// The first value of the first row.
    pub(crate) async fn value(&self, deadline: Duration, query: &str) -> Result<Option<String>, SqlError> {
        Ok(self
            .rows(deadline, query)
            .await?
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next())
            .flatten())
    }
}

/// A name in a statement.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in a statement (`standard_conforming_strings` is on for our sessions).
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
