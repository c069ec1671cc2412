//! PostgreSQL of one node of a pair, as the cluster's decisions drive it: one method for each action, each with its own
//! limit, each either done, or failed with a reason, or not known to be done ([`PgError::is_unknown`]).

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::control::{Call, Refusal, ServiceState, SignalTarget};
use dyad_spec::site::Postgresql;
use tokio::time::{Instant, sleep, timeout};

use crate::credentials::{self, CredentialsError};
use crate::files::{self, Access, FileError};
use crate::paths::Paths;
use crate::pg::certificate::{self, CertificateError};
use crate::pg::cluster::{ClusterError, Tools, is_cluster};
use crate::pg::config::Config;
use crate::pg::control::{self, ControlData, ControlError, LEAST, Least};
use crate::pg::history::HistoryError;
use crate::pg::lsn::NoLsn;
use crate::pg::session::{Address, Session, SqlError};
use crate::pg::settings::Machine;
use crate::pg::stance::{self, Pair, Stance};
use crate::pg::{Owner, SERVICE};
use crate::pid1::{Pid1, Pid1Error, is_alive};

/// For statements that look, and for settings to take effect.
pub(crate) const SQL: Duration = Duration::from_secs(2);
/// For programs that only look.
pub(crate) const LOOK: Duration = Duration::from_secs(10);
/// Between two looks at something that is awaited.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);
/// For recovery to let the supervisor in.
const RECOVERY: Duration = Duration::from_secs(115);
/// Each rung of the demotion ladder.
const RUNG: Duration = Duration::from_secs(1);
/// The last rung: the kernel ends every process of the cgroup.
const KILLED: Duration = Duration::from_secs(5);
/// A fast stop that waits for the standby.
const STOP: Duration = Duration::from_secs(8);
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// PostgreSQL runs, and must not for this.
    #[error("PostgreSQL runs; this needs it stopped")]
    Running,
    /// It ended before it let anybody in.
    #[error("PostgreSQL ended while it started: {0}")]
    Ended(String),
    /// Nothing came of it in time.
    #[error("{what}: not within {} s", .limit.as_secs())]
    Late {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// No standby, or more than one, receives here.
    #[error("{0} standbys of this pair receive from here; expected one")]
    Standbys(usize),
    /// Commits wait for no standby.
    #[error("commits wait for no standby: it must be armed first")]
    NotArmed,
    /// A new connection shows another setting than the one that was armed.
    #[error("a new connection shows synchronous_standby_names {shown:?}; expected {expected:?}")]
    Setting {
        /// What it shows.
        shown: String,
        /// What is declared.
        expected: String,
    },
    /// It is no standby, or no longer.
    #[error("this server is no standby")]
    NotStandby,
    /// It did not become a primary on a new timeline.
    #[error("promotion ended on timeline {now}, it began on {before}; a promotion makes a new one")]
    NotPromoted {
        /// Timeline before.
        before: u32,
        /// Timeline after.
        now: u32,
    },
    /// The standby lacks the last record.
    #[error("the other node has received up to {received}, the shutdown record is at {shutdown}")]
    ShutdownNotReceived {
        /// There.
        received: String,
        /// Here.
        shutdown: String,
    },
    /// Shut down, and the data does not say so.
    #[error("PostgreSQL ended without a shutdown record")]
    NotClean,
    /// The other node answered something else than a program of this version does.
    #[error("the other node answered {found:?} to a question after {what}")]
    Strange {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        found: String,
    },
    /// Data of another system: never touched.
    #[error("the data here is of system {own}, the other node's of system {peer}; neither is touched")]
    Foreign {
        /// Here.
        own: u64,
        /// There.
        peer: u64,
    },
    /// A rewind was asked for, and there is nothing to rewind to.
    #[error("the two histories have no timeline in common")]
    NoFork,
    /// A program of PostgreSQL.
    #[error(transparent)]
    Program(#[from] ClusterError),
    /// The configuration, or another file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Passwords.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Key and certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// PID 1.
    #[error(transparent)]
    Pid1(#[from] Pid1Error),
    /// The server.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] SqlError),
    /// Control data.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A position in the log.
    #[error(transparent)]
    Position(#[from] NoLsn),
    /// A timeline's history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The kernel gave no random bytes.
    #[error("random bytes: {0}")]
    Random(rustix::io::Errno),
}

impl PgError {
    /// Whether the action may have been done all the same: a missed deadline or a connection that broke on the way.
    pub fn is_unknown(&self) -> bool {
        matches!(
            self,
            PgError::Late { .. }
                | PgError::Sql(SqlError::Timeout(_) | SqlError::Connection(_))
                | PgError::Pid1(Pid1Error::Disconnected | Pid1Error::Timeout)
                | PgError::Program(ClusterError::Pid1(Pid1Error::Disconnected | Pid1Error::Timeout))
        )
    }
}

/// What the stopped data says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// System identifier.
    pub system: u64,
    /// Highest timeline reached.
    pub timeline: u32,
    /// Which copy: drawn anew whenever data is replaced.
    pub generation: u64,
}

/// How own data stands to the holder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Same history, not past the fork: it can stream.
    Streams,
    /// Past the fork: quarantine the tail and rewind.
    Diverged,
    /// The same, but the holder has not checkpointed since its promotion.
    TooEarly,
    /// Nothing here, or two histories on one timeline: copy everything.
    Unusable,
    /// Another system's data.
    Foreign,
}

/// One node's PostgreSQL.
pub struct Server {
    pub(crate) pid1: Pid1,
    pub(crate) paths: Rc<Paths>,
    pub(crate) owner: Owner,
    pub(crate) pair: Pair,
    /// What its certificate is for.
    names: Vec<String>,
    site: Postgresql,
    pub(crate) stance: RefCell<Stance>,
    /// How much of a copy of the holder's data is here, while it is made.
    pub(crate) copied_percent: Cell<Option<u8>>,
    /// Sizes as they were at first: memory that comes and goes must not change what needs a restart.
    machine: Machine,
    /// Files were written that a running server has not been told to read.
    unread: Cell<bool>,
}

impl Server {
    /// Nothing is started or written yet. What commits waited for before this machine restarted is remembered.
    pub fn new(
        pid1: Pid1,
        paths: Rc<Paths>,
        site: Postgresql,
        owner: Owner,
        pair: Pair,
        names: Vec<String>,
    ) -> Result<Self, PgError> {
        let sync = files::read_plain(&paths.pg_sync())?.map(|text| text.trim().to_owned());
        let stance = Stance { pair: Some(pair.clone()), sync, ..Stance::alone() };
        let machine = Machine::of(&paths);
        Ok(Self {
            pid1,
            paths,
            owner,
            pair,
            names,
            site,
            stance: RefCell::new(stance),
            copied_percent: Cell::new(None),
            machine,
            unread: Cell::new(false),
        })
    }

    /// The generated passwords and the authority, to be handed to the peer over an authenticated channel.
    pub fn secrets(paths: &Paths, site: &Postgresql) -> Result<Vec<u8>, PgError> {
        let own = [stance::REPLICATION, stance::REWIND];
        credentials::ensure(
            &paths.credentials(),
            own.into_iter().chain(site.roles.iter().map(|role| &*role.name)),
        )?;
        Ok(files::read(&paths.credentials())?.unwrap_or_default())
    }

    /// Takes over the secrets of the node whose data this one will copy.
    pub fn adopt_secrets(paths: &Paths, secrets: &[u8]) -> Result<(), PgError> {
        Ok(credentials::adopt(&paths.credentials(), secrets)?)
    }

    pub(crate) fn tools(&self) -> Tools<'_> {
        Tools { pid1: &self.pid1, paths: &self.paths, owner: self.owner }
    }

    pub(crate) fn site(&self) -> &Postgresql {
        &self.site
    }

    pub(crate) async fn connect(&self) -> Result<Session, SqlError> {
        Address::local(&self.paths, self.site.port).connect(SQL).await
    }

    /// Makes the database cluster, on the one node of a pair that founds it; says whether it did.
    pub async fn found(&self) -> Result<bool, PgError> {
        self.needs_stopped()?;
        let made = self.tools().ensure_cluster().await?;
        if made {
            self.renew_generation()?;
        }
        Ok(made)
    }

    /// What the stopped data says of itself; `None` when there is none.
    pub async fn control(&self) -> Result<Option<Control>, PgError> {
        self.needs_stopped()?;
        let Some(ControlData { system, timeline, .. }) = self.control_data().await? else { return Ok(None) };
        Ok(Some(Control { system, timeline, generation: self.generation()? }))
    }

    /// The same, also while it runs. No data at all, or some that is neither one history nor another since a rewind was cut short, is
    /// a copy of nobody's: system and timeline are 0.
    pub(crate) async fn known(&self) -> Result<Control, PgError> {
        let whole = files::read_plain(&self.paths.pg_rewinding())?.is_none();
        let data = self.control_data().await?.filter(|_| whole);
        let (system, timeline) = data.map_or((0, 0), |data| (data.system, data.timeline));
        Ok(Control { system, timeline, generation: self.generation()? })
    }

    pub(crate) async fn control_data(&self) -> Result<Option<ControlData>, PgError> {
        let main = self.paths.pg_main();
        if !is_cluster(&main)? {
            return Ok(None);
        }
        let arguments = vec!["-D".into(), main.display().to_string()];
        let text = self.tools().program("pg_controldata", arguments, LOOK).await?;
        Ok(Some(control::parse(&text)?))
    }

    /// Which copy of the data this is.
    pub(crate) fn generation(&self) -> Result<u64, PgError> {
        let text = files::read_plain(&self.paths.pg_generation())?;
        match text.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) {
            Some(generation) => Ok(generation),
            // Unreadable is another copy: whatever was promised about the data no longer counts.
            None => self.renew_generation(),
        }
    }

    /// Draws a new one, durably: before the data changes, so that a crash in between voids every promise about it.
    pub(crate) fn renew_generation(&self) -> Result<u64, PgError> {
        let mut random = [0_u8; 8];
        let count = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty());
        count.map_err(PgError::Random)?;
        let generation = u64::from_le_bytes(random);
        files::write(
            &self.paths.pg_generation(),
            format!("{generation:016x}\n").as_bytes(),
            Access::own(0o644),
        )?;
        Ok(generation)
    }

    /// Changes what the files say and writes them; the server reads them at its next start or reload.
    pub(crate) fn declare(&self, change: impl FnOnce(&mut Stance)) -> Result<(), PgError> {
        change(&mut self.stance.borrow_mut());
        self.write_config().map(drop)
    }

    /// Makes the files say what is declared; what had to be written, in words.
    pub(crate) fn write_config(&self) -> Result<Vec<String>, PgError> {
        let stance = self.stance.borrow();
        let (paths, owner) = (&*self.paths, self.owner);
        let config = Config::declared(self.machine, paths, &self.site, &stance);
        let mut written = config.apply(paths, owner)?;
        let roles = [stance::REPLICATION, stance::REWIND];
        let secrets = credentials::ensure(&paths.credentials(), roles.into_iter())?;
        written.extend(certificate::lay(paths, owner, &secrets, &self.names)?);
        let passwords: String =
            roles.iter().map(|role| format!("*:*:*:{role}:{}\n", secrets.roles[*role].password)).collect();
        // libpq insists that nobody else can read a password.
        let access = Access { mode: 0o600, uid: owner.uid, gid: owner.gid };
        files::ensure(&paths.pg_config().join(stance::PASSWORDS), passwords.as_bytes(), access)?;
        self.unread.set(self.unread.get() || !written.is_empty());
        Ok(written)
    }

    /// Repairs drift of the files and of what overrides them, and has the server read them; what was repaired.
    pub async fn repair(&self) -> Result<Vec<String>, PgError> {
        let written = self.write_config()?;
        if self.unread.get() {
            self.reload().await?;
        }
        Ok(written)
    }

    pub(crate) async fn apply(&self, change: impl FnOnce(&mut Stance)) -> Result<(), PgError> {
        self.declare(change)?;
        self.reload().await
    }

    /// Has the running server read its files.
    async fn reload(&self) -> Result<(), PgError> {
        // Before: what is written while it reads is for the next time.
        self.unread.set(false);
        let read = async { self.connect().await?.reload(SQL).await };
        read.await.inspect_err(|_| self.unread.set(true))?;
        Ok(())
    }

    /// Goes on with a server that an earlier supervisor started: what its files say is what it was told. Whether it is a
    /// standby that receives; one that was told to stop receiving is `None`.
    pub(crate) async fn go_on(&self) -> Result<Option<bool>, PgError> {
        let session = self.connect().await?;
        let standby = self.recovering(&session).await?;
        let shown = |name: &'static str| {
            let session = &session;
            async move { session.value(SQL, &format!("show {name}")).await.map(Option::unwrap_or_default) }
        };
        let follows = !shown("primary_conninfo").await?.is_empty();
        let receives = standby && follows;
        // This session shows its own; of one that was told to follow it says nothing.
        let query = "select true from pg_catalog.pg_file_settings where name = 'default_transaction_read_only' \
                     and setting = 'on' and applied";
        let read_only = !follows && session.value(SQL, query).await?.is_some();
        let hba = files::read_plain(&self.paths.pg_config().join("pg_hba.conf"))?.unwrap_or_default();
        let receive = if receives { Some(stance::standby(self.generation()?)) } else { None };
        let admit = !hba.contains(stance::HELD);
        let least = self.least().await?;
        let mut stance = self.stance.borrow_mut();
        *stance = Stance { receive, admit, read_only, least, ..stance.clone() };
        Ok(if standby && !receives { None } else { Some(standby) })
    }

    /// What data that is recovered as a standby's asks of the settings; nothing of a primary's own.
    async fn least(&self) -> Result<Option<Least>, PgError> {
        if !self.paths.pg_main().join("standby.signal").exists() {
            return Ok(None);
        }
        Ok(self.control_data().await?.map(|data| data.least))
    }

    /// Whether settings wait for a restart: those of a site file that has changed, or of a standby those of a primary that
    /// has more than it, which stops its replay and would stop its promotion. Less of what a standby must match waits for the
    /// next start as primary: handing over would not bring it.
    pub async fn must_restart(&self) -> Result<bool, PgError> {
        let names = LEAST.map(|(name, _)| format!("'{name}'")).join(", ");
        let query = format!(
            "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_is_wal_replay_paused() else false end \
             or exists (select from pg_catalog.pg_settings s where pending_restart and not \
             (name in ({names}) and exists (select from pg_catalog.pg_file_settings f where f.name = s.name \
             and case when f.name in ({names}) then f.setting::bigint < s.setting::bigint end)))"
        );
        Ok(self.connect().await?.value(SQL, &query).await?.as_deref() == Some("t"))
    }

    /// Whether it was told to receive from the peer.
    pub(crate) fn receives(&self) -> bool {
        self.stance.borrow().receive.is_some()
    }

    /// Whether a process of it may live. Unknown counts as alive.
    pub fn runs(&self) -> bool {
        let view = self.pid1.view();
        let view = view.borrow();
        !view.connected || view.service(SERVICE).is_some_and(|service| is_alive(service.state))
    }

    pub(crate) fn needs_stopped(&self) -> Result<(), PgError> {
        if self.runs() { Err(PgError::Running) } else { Ok(()) }
    }

    /// Starts it and waits until it lets the supervisor in.
    pub(crate) async fn start(&self) -> Result<Session, PgError> {
        self.needs_stopped()?;
        let least = self.least().await?;
        self.declare(|stance| stance.least = least)?;
        let key = |view: &crate::pid1::View| {
            view.service(SERVICE).map(|service| (service.state, service.since_ms, service.restarts))
        };
        let mut view = self.pid1.view();
        let before = key(&view.borrow());
        self.pid1.order(Call::Start { name: SERVICE.into() }).await?;
        let moved = view.wait_for(|view| {
            let now = key(view);
            now != before && now.is_some_and(|(state, ..)| state != ServiceState::Waiting)
        });
        match timeout(LOOK, moved).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Pid1Error::Disconnected.into()),
            Err(_) => return Err(PgError::Late { what: "start of the service", limit: LOOK }),
        }
        let end = Instant::now() + RECOVERY;
        loop {
            match self.connect().await {
                Ok(session) => return Ok(session),
                Err(error) if !self.runs() => {
                    // Its own words for what it does not accept are better than a lost connection.
                    self.tools().check_config().await?;
                    return Err(PgError::Ended(error.to_string()));
                }
                Err(_) if Instant::now() >= end => {
                    return Err(PgError::Late { what: "recovery", limit: RECOVERY });
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    pub(crate) async fn wait_ended(&self, limit: Duration) -> Result<(), PgError> {
        let mut view = self.pid1.view();
        let ended = view.wait_for(|view| {
            view.connected && view.service(SERVICE).is_none_or(|service| !is_alive(service.state))
        });
        match timeout(limit, ended).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Pid1Error::Disconnected.into()),
            Err(_) => Err(PgError::Late { what: "end of PostgreSQL", limit }),
        }
    }

    async fn signal(&self, target: SignalTarget) -> Result<(), PgError> {
        match self.pid1.order(Call::Signal { name: SERVICE.into(), target }).await {
            // It ended by itself meanwhile: that is what was wanted.
            Ok(()) | Err(Pid1Error::Refused(Refusal::NotRunning(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The demotion ladder: fast, immediate, and the whole cgroup. Done means that nothing of it runs.
    pub async fn kill(&self) -> Result<(), PgError> {
        for signal in [SIGINT, SIGQUIT] {
            if !self.runs() {
                return Ok(());
            }
            self.signal(SignalTarget::Main(signal)).await?;
            if self.wait_ended(RUNG).await.is_ok() {
                return Ok(());
            }
        }
        tracing::error!("PostgreSQL did not stop, ending its whole cgroup");
        self.signal(SignalTarget::KillGroup).await?;
        self.wait_ended(KILLED).await
    }

    /// A checkpoint, a fast stop, and proof that the standby holds the shutdown record.
    pub async fn stop_clean(&self) -> Result<(), PgError> {
        self.connect().await?.execute(STOP, "checkpoint").await?;
        self.pid1.order(Call::Stop { name: SERVICE.into() }).await?;
        self.wait_ended(STOP).await?;
        let data = self.control_data().await?.filter(|data| data.clean).ok_or(PgError::NotClean)?;
        let received = self.ask_peer("select pg_catalog.pg_last_wal_receive_lsn()").await?;
        // What is received ends behind the record, which begins at this position.
        match received.trim().parse::<crate::pg::lsn::Lsn>() {
            Ok(position) if position > data.checkpoint => Ok(()),
            Ok(_) | Err(_) => {
                Err(PgError::ShutdownNotReceived { received, shutdown: data.checkpoint.to_string() })
            }
        }
    }

    /// How to reach the peer's server now.
    pub(crate) fn conninfo(&self, role: &str, application: &str) -> String {
        let stance = self.stance.borrow();
        let peer = stance.pair.as_ref().map_or(&self.pair.peer, |pair| &pair.peer);
        stance::conninfo(&self.paths, peer, role, application)
    }

    /// From now on the peer's addresses are tried in this order. A standby that receives begins anew with the first.
    pub(crate) async fn prefer(&self, addresses: &[IpAddr]) -> Result<(), PgError> {
        self.declare(|stance| {
            if let Some(pair) = &mut stance.pair {
                // Those that nobody looks at stay: who may come does not change.
                let rest = self.pair.peer.addresses.iter().filter(|address| !addresses.contains(address));
                pair.peer.addresses = addresses.iter().chain(rest).copied().collect();
            }
        })?;
        if self.receives() && self.runs() { self.reload().await } else { Ok(()) }
    }

    /// Asks the peer's server one thing.
    pub(crate) async fn ask_peer(&self, query: &str) -> Result<String, PgError> {
        let conninfo = self.conninfo(stance::REWIND, "dyad_question");
        self.write_config()?;
        let arguments = ["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", query];
        let arguments = arguments.map(str::to_owned).to_vec();
        Ok(self.tools().program("psql", arguments, LOOK).await?)
    }
}
