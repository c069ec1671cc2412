//! Clients that write numbers and keep those that were acknowledged: unmodified `psql`, started again whenever it ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clock;
use crate::Lab;

/// Between two writes of one client.
const PAUSE: Duration = Duration::from_millis(25);
/// Before a client that lost its server tries again.
const AGAIN: Duration = Duration::from_millis(250);
/// So that a silent peer ends a connection as quickly as its users would want; libpq's own parameters.
const TARGET: &str = "dbname=lab user=lab connect_timeout=2 keepalives_idle=1 keepalives_interval=1 \
                      keepalives_count=2 tcp_user_timeout=3000 target_session_attrs=read-write";

/// A number that COMMIT returned for.
#[derive(Debug, Clone)]
pub(crate) struct Ack {
    pub(crate) id: u64,
    /// Timeline on which it was written.
    pub(crate) timeline: u32,
    /// Start of the server that wrote it: two servers never have the same.
    pub(crate) server: String,
    /// The node, where the client asked for one rather than for the virtual address.
    pub(crate) node: Option<&'static str>,
    pub(crate) sent: Instant,
    pub(crate) returned: Instant,
}

/// How the lab is reached by its clients.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) state: std::path::PathBuf,
    pub(crate) password: String,
}

impl Access {
    pub(crate) fn of(lab: &Lab) -> Self {
        let credentials = lab.ask("node-a", &["credentials"]);
        let password = credentials["roles"][0]["password"].as_str().expect("the lab has a role").to_owned();
        Self { state: lab.state().to_owned(), password }
    }

    /// A program within the lab's network.
    #[allow(clippy::disallowed_methods, reason = "a client that is spoken to while it runs")]
    pub(crate) fn inside(&self, argv: &[&str]) -> Command {
        let mut command = Command::new(crate::dyad());
        command.args(["lab", "--state"]).arg(&self.state).args(["exec", "--"]).args(argv);
        command
    }

    /// `psql` within the lab's network.
    pub(crate) fn psql(&self, host: &str, more: &[&str]) -> Command {
        let mut command = self.inside(&["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d"]);
        command.arg(format!("host={host} {TARGET}")).args(more);
        command.env("PGPASSWORD", &self.password).stderr(Stdio::null());
        command
    }
}

/// All clients of a run.
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    acks: Mutex<Vec<Ack>>,
}

impl Ledger {
    /// Writes through each of these hosts; those of nodes carry the node's name.
    pub(crate) fn start(access: &Access, hosts: &[(&'static str, Option<&'static str>)]) -> Self {
        let shared = Arc::new(Shared::default());
        for (host, node) in hosts.iter().copied() {
            let (access, shared) = (access.clone(), Arc::clone(&shared));
            std::thread::spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    session(&access, host, node, &shared);
                    clock::pause(AGAIN);
                }
            });
        }
        Self(shared)
    }

    /// Everything acknowledged since the last time.
    pub(crate) fn take(&self) -> Vec<Ack> {
        std::mem::take(&mut *self.0.acks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the first of them returned that was written on a timeline after this one, through no node's own address.
    pub(crate) fn first_after(&self, timeline: u32) -> Option<Instant> {
        let acks = self.0.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let later = acks.iter().filter(|ack| ack.node.is_none() && ack.timeline > timeline);
        later.map(|ack| ack.returned).min()
    }

    /// How many are not yet taken.
    pub(crate) fn count(&self) -> usize {
        self.0.acks.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // One that waits for an answer ends with the lab.
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// One connection, from its beginning to its end.
fn session(access: &Access, host: &str, node: Option<&'static str>, shared: &Shared) {
    let mut psql = access.psql(host, &[]);
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("dyad can be started");
    let (input, output) = (child.stdin.take(), child.stdout.take());
    if let (Some(input), Some(output)) = (input, output) {
        write(input, BufReader::new(output).lines(), node, shared);
    }
    end(&mut child);
}

fn write(
    mut input: ChildStdin,
    mut lines: impl Iterator<Item = std::io::Result<String>>,
    node: Option<&'static str>,
    shared: &Shared,
) {
    while !shared.stop.load(Ordering::Relaxed) {
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let sent = clock::now();
        // psql prints the row when the command is complete: the transaction is committed and acknowledged by then.
        let asked = writeln!(
            input,
            "insert into ledger values ({id}) returning id, \
             ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, \
             extract(epoch from pg_postmaster_start_time());"
        );
        let Ok(()) = asked.and_then(|()| input.flush()) else { return };
        let Some(Ok(line)) = lines.next() else { return };
        let returned = clock::now();
        let mut fields = line.split('|');
        let told = (|| {
            let id = fields.next()?.parse().ok()?;
            Some((id, fields.next()?.parse().ok()?, fields.next()?.to_owned()))
        })();
        let (id, timeline, server) = told.unwrap_or_else(|| panic!("psql answered {line:?}"));
        let ack = Ack { id, timeline, server, node, sent, returned };
        shared.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
        clock::pause(PAUSE);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}
