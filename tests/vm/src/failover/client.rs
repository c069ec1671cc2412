//! The client that measures, one program for every cluster: it writes a row after the other, goes to the next host when
//! something fails, and prints when each row was acknowledged and by which server.

use std::future::Future;
use std::io::{BufRead, BufReader, Error};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::chaos::clock;

const PORT: u16 = 5432;
/// For a connection to be accepted; a host that is off costs so much in each turn.
const CONNECT: Duration = Duration::from_millis(100);
/// For anything that a server is asked. Whoever waits for longer begins anew.
const ANSWER: Duration = Duration::from_millis(1000);
/// Between two writes, and before the next host.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at what the client said, and how far back each look goes: more than it says meanwhile.
const LOOK: Duration = Duration::from_millis(50);
const RECENT: usize = 1000;
/// The server is told by when it started.
const WRITE: &str =
    "insert into beat default values returning extract(epoch from pg_postmaster_start_time())";
const TABLE: &str = "create table if not exists beat (at timestamptz not null default now())";

/// CLOCK_BOOTTIME in microseconds: nodes in containers stamp their event logs by the same clock.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// What the client is told: whom to be, where, and the hosts that it tries in turn. The password is in `PGPASSWORD`, and the file of
/// the authority that it believes, where it shall speak TLS, in `PGSSLROOTCERT`.
pub(crate) fn run(user: &str, database: &str, hosts: &[&str]) -> std::io::Result<()> {
    let hosts: Vec<IpAddr> = hosts.iter().filter_map(|host| host.parse().ok()).collect();
    let mut config = Config::new();
    config.user(user).dbname(database).password(std::env::var("PGPASSWORD").unwrap_or_default());
    let tls = std::env::var_os("PGSSLROOTCERT").map(|file| believing(Path::new(&file))).transpose()?;
    config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for host in hosts.iter().cycle() {
            // Whatever was wrong, the next one is tried.
            let _ = session(&config, tls.clone(), *host).await;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
}

/// As `sslmode=verify-full` does.
fn believing(authority: &Path) -> std::io::Result<MakeRustlsConnect> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).map_err(Error::other)? {
        roots.add(certificate.map_err(Error::other)?).map_err(Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(Error::other)?.with_root_certificates(roots).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// One connection, from its beginning to its end.
async fn session(config: &Config, tls: Option<MakeRustlsConnect>, host: IpAddr) -> Option<()> {
    let stream = within(CONNECT, TcpStream::connect(SocketAddr::new(host, PORT))).await?;
    println!("connected {}", now_us());
    stream.set_nodelay(true).ok()?;
    let (client, driver) = if let Some(mut tls) = tls {
        let tls =
            <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut tls, &host.to_string());
        let (client, connection) = within(ANSWER, config.connect_raw(stream, tls.ok()?)).await?;
        (client, tokio::spawn(connection))
    } else {
        let (client, connection) = within(ANSWER, config.connect_raw(stream, NoTls)).await?;
        (client, tokio::spawn(connection))
    };
    while let Some(server) = write(&client).await {
        println!("acknowledged {} {server}", now_us());
        tokio::time::sleep(PAUSE).await;
    }
    driver.abort();
    None
}

async fn within<T, E>(limit: Duration, work: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()?.ok()
}

async fn write(client: &Client) -> Option<String> {
    let answer = tokio::time::timeout(ANSWER, client.simple_query(WRITE)).await.ok()?;
    let rows = match answer {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            within(ANSWER, client.simple_query(TABLE)).await?;
            within(ANSWER, client.simple_query(WRITE)).await?
        }
        answer => answer.ok()?,
    };
    rows.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// A moment that the client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) at_us: u64,
    /// The server that acknowledged; `None`: a connection was accepted.
    pub(crate) server: Option<String>,
}

impl Mark {
    fn by_another(&self, old: &str) -> bool {
        self.server.as_deref().is_some_and(|server| server != old)
    }
}

fn mark(line: &str) -> Option<Mark> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let at_us = words.next()?.parse().ok()?;
    let server = words.next().map(str::to_owned);
    (kind == "connected" || server.is_some()).then_some(Mark { at_us, server })
}

/// A stretch of time in which nothing was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) last_us: u64,
    pub(crate) first_us: u64,
    /// When the connection was accepted that brought the first acknowledgement after it.
    pub(crate) accepted_us: Option<u64>,
}

impl Gap {
    pub(crate) fn ms(self) -> f64 {
        (self.first_us - self.last_us) as f64 / 1000.0
    }
}

/// The client under way, seen from its parent.
pub(crate) struct Writer {
    child: Child,
    marks: Arc<Mutex<Vec<Mark>>>,
}

impl Writer {
    /// `command` is this very program, started where the hosts can be reached.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
        let lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
        let marks = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&marks);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend(mark(&line));
            }
        });
        Self { child, marks }
    }

    /// Everything since `from`, and the acknowledgement before it.
    pub(crate) fn since(&self, from: u64) -> Vec<Mark> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let first = marks.iter().rposition(|mark| mark.server.is_some() && mark.at_us < from).unwrap_or(0);
        marks[first..].to_vec()
    }

    /// The server that acknowledged last.
    pub(crate) fn server(&self) -> Option<String> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().rev().find_map(|mark| mark.server.clone())
    }

    /// Waits for acknowledgements after this moment; false: none within `limit`.
    pub(crate) fn writes(&self, limit: Duration) -> bool {
        let begun = now_us();
        self.until(limit, |mark| mark.server.is_some() && mark.at_us > begun)
    }

    /// Waits for a server other than `old`, and tells how long nobody acknowledged in between.
    pub(crate) fn replaced(&self, old: &str, from: u64, limit: Duration) -> Option<Gap> {
        let another = |mark: &Mark| mark.at_us > from && mark.by_another(old);
        self.until(limit, another).then(|| handed_over(&self.since(from), old, from))?
    }

    /// The longest stretch without an acknowledgement since the last one before `from`.
    pub(crate) fn longest(&self, from: u64) -> Option<Gap> {
        longest(&self.since(from))
    }

    fn until(&self, limit: Duration, found: impl Fn(&Mark) -> bool) -> bool {
        let begun = clock::now();
        while clock::now() - begun < limit {
            {
                let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
                if marks.iter().rev().take(RECENT).any(&found) {
                    return true;
                }
            }
            clock::pause(LOOK);
        }
        false
    }
}

/// From the last acknowledgement of `old` to the first one of another server after `from`.
fn handed_over(all: &[Mark], old: &str, from: u64) -> Option<Gap> {
    let last = all.iter().rfind(|mark| mark.server.as_deref() == Some(old))?.at_us;
    let first = all.iter().find(|mark| mark.at_us > from && mark.by_another(old))?.at_us;
    (first > last).then(|| gap(all, last, first))
}

fn longest(all: &[Mark]) -> Option<Gap> {
    let acks: Vec<u64> = all.iter().filter(|mark| mark.server.is_some()).map(|mark| mark.at_us).collect();
    let (last, first) = acks.windows(2).map(|two| (two[0], two[1])).max_by_key(|(a, b)| b - a)?;
    Some(gap(all, last, first))
}

fn gap(all: &[Mark], last_us: u64, first_us: u64) -> Gap {
    let accepted = |mark: &&Mark| mark.server.is_none() && (last_us..first_us).contains(&mark.at_us);
    let accepted_us = all.iter().rfind(accepted).map(|mark| mark.at_us);
    Gap { last_us, first_us, accepted_us }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(lines: &[&str]) -> Vec<Mark> {
        lines.iter().filter_map(|line| mark(line)).collect()
    }

    #[test]
    fn a_gap_is_from_the_last_write_of_one_server_to_the_first_of_another() {
        let all = marks(&[
            "connected 5",
            "acknowledged 10 one",
            "acknowledged 20 one",
            "connected 60",
            "connected 90",
            "acknowledged 95 two",
            "acknowledged 99 two",
            "a line that says nothing",
        ]);
        assert_eq!(all.len(), 7);
        let gap = Gap { last_us: 20, first_us: 95, accepted_us: Some(90) };
        assert_eq!(handed_over(&all, "one", 15), Some(gap));
        assert_eq!(handed_over(&all, "two", 15), None, "nobody followed");
        assert_eq!(longest(&all), Some(gap));
        assert_eq!(longest(&all[..2]), None);
    }
}
