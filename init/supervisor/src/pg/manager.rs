//! Keeps the server as declared: one pass goes from whatever is found to a serving server and stays there; whatever
//! ends a pass, the next one begins from what is found then. Nothing is remembered that a killed supervisor would miss.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::control::{Call, PhaseState, Refusal, ServiceState, SignalTarget};
use dyad_api::operator::{PostgresqlSection, ProbeRow};
use dyad_spec::site::Postgresql;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::credentials::{self, Credential, CredentialsError, Secrets};
use crate::files::FileError;
use crate::paths::Paths;
use crate::pg::certificate::{self, CertificateError};
use crate::pg::cluster::{ClusterError, Tools};
use crate::pg::config::Config;
use crate::pg::crashes::Crashes;
use crate::pg::probe::{self, Misses, Probe, Prober, Verdict};
use crate::pg::session::{Address, Session, SqlError};
use crate::pg::settings::Machine;
use crate::pg::stance::Stance;
use crate::pg::{Owner, SERVICE, roles};
use crate::pid1::{Pid1, Pid1Error, View, is_alive};

/// Pause after a failed pass; doubles up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Statements that look.
const SQL_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks for drift.
const DRIFT_INTERVAL: Duration = Duration::from_secs(30);
/// For PID 1 to show that an order changed the service's state.
const STATE_DEADLINE: Duration = Duration::from_secs(10);
/// For the stop ladder of the service.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// Between two tries to connect to a server that starts.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Repairs shown in the status at most.
pub(crate) const REPAIRS_MAX: usize = 20;
/// Signal of an immediate stop.
const SIGQUIT: i32 = 3;

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    /// Phases and services that the pass rests on.
    #[error("boot phase {name} failed: {note}")]
    Phase { name: &'static str, note: String },
    /// PID 1 took the order, and nothing happened.
    #[error("PID 1 took the order and the service did not change within {} s", STATE_DEADLINE.as_secs())]
    NoChange,
    /// The new configuration has errors; the server goes on with the old one.
    #[error("the declared configuration is refused by the server: {0}")]
    Configuration(String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Pid1(#[from] Pid1Error),
    #[error("PostgreSQL: {0}")]
    Sql(#[from] SqlError),
}

/// How a pass ended without an error.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The operator wants it stopped, or the machine goes down.
    NotWanted,
    /// The server ended by itself.
    Crashed(String),
    /// It did not answer and was killed.
    Hung,
}

/// What the rest of the supervisor sees.
#[derive(Debug, Clone)]
pub(crate) struct PgState {
    /// Takes writes.
    pub(crate) serving: bool,
    /// For the status.
    pub(crate) section: PostgresqlSection,
}

impl Default for PgState {
    fn default() -> Self {
        let section = PostgresqlSection {
            state: "waiting".into(),
            note: "bring-up has not begun".into(),
            version: None,
            system_identifier: None,
            timeline: None,
            probe: None,
            repaired: Vec::new(),
            restarts: 0,
        };
        Self { serving: false, section }
    }
}

/// Brings the server up and keeps it up.
pub(crate) struct Manager {
    pub(crate) paths: Rc<Paths>,
    pub(crate) pid1: Pid1,
    pub(crate) site: Postgresql,
    /// How long one half of a probe may take.
    pub(crate) probe_deadline: Duration,
    pub(crate) owner: Owner,
    /// What the server's certificate is for.
    pub(crate) names: Vec<String>,
    /// False: an operator has stopped the service.
    pub(crate) wanted: watch::Receiver<bool>,
    pub(crate) state: watch::Sender<PgState>,
    pub(crate) crashes: Crashes,
}

impl Manager {
    /// Runs until the supervisor ends.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            let ended = self.pass().await;
            let was_serving = self.state.borrow().serving;
            self.state.send_modify(|state| {
                state.serving = false;
                state.section.probe = None;
            });
            if was_serving {
                pause = PAUSE.0;
            }
            match ended {
                Ok(Ended::NotWanted) => continue,
                Ok(Ended::Hung) => self.after_crash("it did not answer and was killed").await,
                Ok(Ended::Crashed(how)) => self.after_crash(&how).await,
                Err(error) => {
                    tracing::error!(%error, pause_ms = pause.as_millis() as u64, "PostgreSQL is not up");
                    self.say("failed", error.to_string());
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn after_crash(&mut self, how: &str) {
        let hold_ms = self.crashes.note(clock::boottime_ms());
        tracing::error!(how, hold_ms, "PostgreSQL ended");
        self.state.send_modify(|state| state.section.restarts += 1);
        if hold_ms == 0 {
            return;
        }
        self.say(
            "held",
            format!(
                "it ended three times within five minutes, last: {how}; next try in {} s",
                hold_ms / 1000
            ),
        );
        let mut wanted = self.wanted.clone();
        wanted.mark_unchanged();
        // An operator's start or stop ends the hold.
        let _ = timeout(Duration::from_millis(hold_ms), wanted.changed()).await;
    }

    fn say(&self, step: &str, note: impl Into<String>) {
        let note = note.into();
        self.state.send_modify(|state| {
            state.section.state = step.to_owned();
            state.section.note = note;
        });
    }

    fn repaired(&self, what: &[String]) {
        for text in what {
            tracing::warn!(what = %text, "put right");
        }
        self.state.send_modify(|state| {
            let all = &mut state.section.repaired;
            all.extend_from_slice(what);
            let surplus = all.len().saturating_sub(REPAIRS_MAX);
            all.drain(..surplus);
        });
    }

    async fn pass(&mut self) -> Result<Ended, PassError> {
        self.wait_until_wanted().await;
        self.wait_phase("state").await?;
        self.wait_phase("data").await?;
        let tools = Tools { pid1: &self.pid1, paths: &self.paths, owner: self.owner };
        self.say("initdb", "looking at the database cluster");
        if tools.ensure_cluster().await? {
            tracing::info!("the database cluster is made");
        }
        let config = Config::declared(Machine::of(&self.paths), &self.paths, &self.site, &Stance::alone());
        let was_running = self.alive();
        let secrets = self.secrets()?;
        let written = self.lay(&config, &secrets)?;
        let credentials = secrets.roles;
        if !was_running {
            self.say("starting", "asked PID 1 to start it");
            self.start().await?;
        }
        let address = Address::local(&self.paths, self.site.port);
        let session = match self.connect(&address).await? {
            Ok(session) => session,
            Err(ended) => {
                // Its own words for what it does not accept are better than a status.
                if matches!(ended, Ended::Crashed(_)) {
                    tools.check_config().await?;
                }
                return Ok(ended);
            }
        };
        if was_running {
            self.repaired(&written);
        }
        // A supervisor that was killed between writing and reloading left no trace of it: a reload costs nothing.
        if was_running && self.reload(&session).await? {
            drop(session);
            tracing::warn!("restarting PostgreSQL for settings that need it");
            self.stop().await?;
            return Ok(Ended::NotWanted);
        }
        self.say("roles", "making roles and databases");
        let done = roles::ensure(&session, &self.site.roles, &self.site.databases, &credentials).await?;
        tracing::info!(?done, "roles and databases are as declared");
        // Making what was never there is no repair.
        let repaired: Vec<String> = done.into_iter().filter(|what| !what.starts_with("create ")).collect();
        self.repaired(&repaired);
        self.facts(&session).await?;
        self.watch(&address, session, &config, &credentials).await
    }

    fn secrets(&self) -> Result<Secrets, CredentialsError> {
        credentials::ensure(&self.paths.credentials(), self.site.roles.iter().map(|role| &*role.name))
    }

    /// Waits for PID 1, for the operator's wish, and for a service of this name.
    async fn wait_until_wanted(&mut self) {
        let mut view = self.pid1.view();
        loop {
            let note = {
                let view = view.borrow_and_update();
                match () {
                    () if !view.connected => "waiting for PID 1",
                    () if view.shutting_down => "the machine is shutting down",
                    () if !*self.wanted.borrow_and_update() => "stopped by the operator",
                    () if view.service(SERVICE).is_none() => "this image has no service postgresql",
                    () => return,
                }
            };
            self.say("waiting", note);
            tokio::select! {
                _ = view.changed() => {}
                _ = self.wanted.changed() => {}
            }
        }
    }

    fn unwanted(&self) -> bool {
        !*self.wanted.borrow() || self.pid1.view().borrow().shutting_down
    }

    /// Every file that the server reads; what had to be written, in words.
    fn lay(&self, config: &Config, secrets: &Secrets) -> Result<Vec<String>, PassError> {
        let mut written = config.apply(&self.paths, self.owner)?;
        written.extend(certificate::lay(&self.paths, self.owner, secrets, &self.names)?);
        Ok(written)
    }

    async fn wait_phase(&self, name: &'static str) -> Result<(), PassError> {
        let mut view = self.pid1.view();
        loop {
            let phase = view.borrow_and_update().phase(name).cloned();
            match phase {
                Some(phase) if phase.state.is_done() => return Ok(()),
                Some(phase) if phase.state == PhaseState::Failed => {
                    return Err(PassError::Phase { name, note: phase.note });
                }
                Some(_) | None => self.say("waiting", format!("waiting for boot phase {name}")),
            }
            if view.changed().await.is_err() {
                return Err(Pid1Error::Disconnected.into());
            }
        }
    }

    fn alive(&self) -> bool {
        let view = self.pid1.view();
        let view = view.borrow();
        view.service(SERVICE).is_some_and(|service| is_alive(service.state))
    }

    /// Asks for a start and waits until PID 1 shows that something came of it.
    async fn start(&self) -> Result<(), PassError> {
        let mut view = self.pid1.view();
        let key = |view: &View| {
            view.service(SERVICE).map(|service| (service.state, service.since_ms, service.restarts))
        };
        let before = key(&view.borrow());
        self.pid1.order(Call::Start { name: SERVICE.into() }).await?;
        let changed = view.wait_for(|view| {
            let now = key(view);
            now != before && now.is_some_and(|(state, ..)| state != ServiceState::Waiting)
        });
        match timeout(STATE_DEADLINE, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Pid1Error::Disconnected.into()),
            Err(_) => Err(PassError::NoChange),
        }
    }

    async fn stop(&self) -> Result<(), PassError> {
        self.pid1.order(Call::Stop { name: SERVICE.into() }).await?;
        self.wait_ended(STOP_DEADLINE).await
    }

    async fn wait_ended(&self, deadline: Duration) -> Result<(), PassError> {
        let mut view = self.pid1.view();
        let ended =
            view.wait_for(|view| view.service(SERVICE).is_none_or(|service| !is_alive(service.state)));
        match timeout(deadline, ended).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Pid1Error::Disconnected.into()),
            Err(_) => Err(PassError::NoChange),
        }
    }

    /// Waits for a server that starts or recovers, for as long as it lives: recovery has no deadline.
    async fn connect(&self, address: &Address) -> Result<Result<Session, Ended>, PassError> {
        loop {
            let error = match address.connect(self.probe_deadline).await {
                Ok(session) => return Ok(Ok(session)),
                Err(error) => error,
            };
            if self.unwanted() {
                return Ok(Err(Ended::NotWanted));
            }
            if let Some(how) = self.how_it_ended() {
                return Ok(Err(Ended::Crashed(how)));
            }
            self.say("starting", error.to_string());
            sleep(CONNECT_INTERVAL).await;
        }
    }

    /// `None` while it runs, or while PID 1 cannot be asked.
    fn how_it_ended(&self) -> Option<String> {
        let view = self.pid1.view();
        let view = view.borrow();
        let service = view.service(SERVICE).filter(|_| view.connected)?;
        if is_alive(service.state) {
            return None;
        }
        let exit =
            service.last_exit.as_ref().map_or("it has no process".to_owned(), crate::status::exit_text);
        Some(if service.note.is_empty() { exit } else { format!("{exit}: {}", service.note) })
    }

    /// Has the server read its files. True if settings changed that only a restart brings into force.
    async fn reload(&self, session: &Session) -> Result<bool, PassError> {
        // Settings that need a restart are listed here as errors too: they are none.
        let errors = "select f.name || ': ' || f.error from pg_catalog.pg_file_settings f \
             left join pg_catalog.pg_settings s on s.name = f.name \
             where f.error is not null and s.context is distinct from 'postmaster' \
             union all select 'pg_hba.conf line ' || line_number || ': ' || error from pg_catalog.pg_hba_file_rules \
             where error is not null";
        let errors = session.rows(SQL_DEADLINE, errors).await?;
        if !errors.is_empty() {
            let texts: Vec<String> = errors.into_iter().flatten().flatten().collect();
            return Err(PassError::Configuration(texts.join("; ")));
        }
        session.reload(SQL_DEADLINE).await?;
        let pending = "select name from pg_catalog.pg_settings where pending_restart order by name";
        let pending: Vec<String> =
            session.rows(SQL_DEADLINE, pending).await?.into_iter().flatten().flatten().collect();
        if !pending.is_empty() {
            self.repaired(&[format!("restart for {}", pending.join(", "))]);
        }
        Ok(!pending.is_empty())
    }

    async fn facts(&self, session: &Session) -> Result<(), PassError> {
        let query = "select current_setting('server_version'), system_identifier, timeline_id \
             from pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint()";
        let mut values = session.rows(SQL_DEADLINE, query).await?.into_iter().flatten();
        let (version, system, timeline) = (values.next(), values.next(), values.next());
        self.state.send_modify(|state| {
            state.section.version = version.flatten();
            state.section.system_identifier = system.flatten();
            state.section.timeline = timeline.flatten().and_then(|text| text.parse().ok());
        });
        Ok(())
    }

    /// Probes and looks for drift until the server ends or must be ended.
    async fn watch(
        &mut self,
        address: &Address,
        session: Session,
        config: &Config,
        credentials: &BTreeMap<String, Credential>,
    ) -> Result<Ended, PassError> {
        // The session made roles with its own settings; probes use their own.
        drop(session);
        let mut prober = Prober::new(address.clone(), self.probe_deadline);
        let mut misses = Misses::default();
        let mut drift_at = Instant::now() + DRIFT_INTERVAL;
        loop {
            if self.unwanted() {
                return Ok(Ended::NotWanted);
            }
            if let Some(how) = self.how_it_ended() {
                return Ok(Ended::Crashed(how));
            }
            let probe = prober.probe().await;
            let verdict = misses.judge(&probe);
            self.publish(&probe, &misses, verdict);
            match verdict {
                // Its death is news from PID 1, and told as such: wait for that instead of calling it hung.
                Verdict::Dead if self.how_it_ended().is_none() && !self.unwanted() => {
                    self.kill().await?;
                    return Ok(Ended::Hung);
                }
                Verdict::Dead | Verdict::NotServing => {}
                Verdict::Serving if Instant::now() >= drift_at => {
                    if self.repair(address, config, credentials).await? {
                        self.stop().await?;
                        return Ok(Ended::NotWanted);
                    }
                    drift_at = Instant::now() + DRIFT_INTERVAL;
                }
                Verdict::Serving => {}
            }
            // News from PID 1 cut the pause short.
            let mut view = self.pid1.view();
            view.mark_unchanged();
            let _ = timeout(probe::INTERVAL, view.changed()).await;
        }
    }

    fn publish(&self, probe: &Probe, misses: &Misses, verdict: Verdict) {
        let row = ProbeRow {
            write: probe.write.text(),
            connect: probe.connect.text(),
            took_ms: probe.took_ms,
            misses: misses.count(),
        };
        let serving = verdict == Verdict::Serving;
        if serving != self.state.borrow().serving {
            tracing::info!(serving, write = %row.write, connect = %row.connect, "PostgreSQL's health changed");
        }
        self.state.send_modify(|state| {
            let (step, note) = match serving {
                true => ("serving", String::new()),
                false => ("not serving", format!("write: {}; new connection: {}", row.write, row.connect)),
            };
            state.serving = serving;
            state.section.state = step.to_owned();
            state.section.note = note;
            state.section.probe = Some(row);
        });
    }

    /// Puts back what differs from what is declared. True if a restart must follow.
    async fn repair(
        &self,
        address: &Address,
        config: &Config,
        credentials: &BTreeMap<String, Credential>,
    ) -> Result<bool, PassError> {
        let written = self.lay(config, &self.secrets()?)?;
        let session = address.connect(SQL_DEADLINE).await?;
        self.repaired(&written);
        let restart = !written.is_empty() && self.reload(&session).await?;
        let done = roles::ensure(&session, &self.site.roles, &self.site.databases, credentials).await?;
        self.repaired(&done);
        Ok(restart)
    }

    /// Ends a server that does not answer: an immediate stop, then the whole cgroup.
    async fn kill(&self) -> Result<(), PassError> {
        tracing::error!("PostgreSQL does not answer, ending it");
        self.signal(SignalTarget::Main(SIGQUIT)).await?;
        // As long as it would have had for an answer.
        if self.wait_ended(self.probe_deadline).await.is_err() {
            self.signal(SignalTarget::KillGroup).await?;
            self.wait_ended(STATE_DEADLINE).await?;
        }
        Ok(())
    }

    async fn signal(&self, target: SignalTarget) -> Result<(), PassError> {
        match self.pid1.order(Call::Signal { name: SERVICE.into(), target }).await {
            // It ended by itself meanwhile: that is what was wanted.
            Ok(()) | Err(Pid1Error::Refused(Refusal::NotRunning(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
