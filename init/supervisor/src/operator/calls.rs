//! What each call does.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use dyad_api::control::{self, ExitStatus, Oneshot, Refusal, ServiceState};
use dyad_api::line::TooLong;
use dyad_api::operator::{
    Call, CredentialRow, Credentials, Exec, ExecResult, Failure, FailureKind, FirewallRules, LOG_LINES_MAX,
    NetworkSection, Reply, Request, Status,
};
use dyad_channel::client::Client;
use dyad_channel::operator::{Ask, Told};
use dyad_spec::site::{Pairing, Postgresql};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::credentials;
use crate::driver::{Role, Shown};
use crate::firewall::Firewall;
use crate::http::Facts;
use crate::operator::journal;
use crate::paths::Paths;
use crate::pg;
use crate::pg::manager::PgState;
use crate::pid1::{Pid1, Pid1Error};
use crate::site::Loaded;
use crate::status::{self, Identity, Sources};

/// Longest run of an `exec`.
const EXEC_DEADLINE_MS_MAX: u32 = 600_000;

/// What the site file says.
pub(crate) struct Declared {
    pub(crate) identity: Identity,
    pub(crate) postgresql: Postgresql,
    /// How it pairs; `None`: it is a node by itself.
    pub(crate) pairing: Option<Pairing>,
    /// By which clients reach the database, as far as the site file says it.
    pub(crate) reached: Vec<String>,
    /// Services that clients need beside it.
    pub(crate) client_services: Vec<String>,
}

impl Declared {
    /// Until the site file could be read.
    pub(crate) fn unknown() -> Self {
        let name = dyad_net::UNNAMED.to_owned();
        let site = "not read yet: the disk that it is on is being made ready".to_owned();
        let identity = Identity { name, cluster: None, key: None, site };
        let postgresql = Loaded::Absent.postgresql();
        Self { identity, postgresql, pairing: None, reached: Vec::new(), client_services: Vec::new() }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Root on this machine, or whoever holds its console.
    Local,
    /// Somebody with a key of the site file.
    Operator(String),
    /// The other node, for one of its own callers.
    Peer,
}

/// The other node of a pair.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) name: String,
    /// Its operator protocol.
    pub(crate) client: Rc<Client<Ask, Told>>,
    /// What must answer there: by name, where.
    pub(crate) ports: Vec<(&'static str, SocketAddr)>,
}

/// Everything that calls read or act on.
pub(crate) struct Context {
    pub(crate) paths: Rc<Paths>,
    pub(crate) pid1: Pid1,
    pub(crate) declared: RefCell<Declared>,
    pub(crate) pg: watch::Receiver<PgState>,
    /// Whether PostgreSQL is wanted; an operator's stop holds until the next start or boot.
    pub(crate) pg_wanted: watch::Sender<bool>,
    pub(crate) network: watch::Receiver<NetworkSection>,
    pub(crate) firewall: watch::Receiver<Firewall>,
    /// `None`: this node is not paired.
    pub(crate) pair: watch::Receiver<Option<Shown>>,
    /// The other node, once this one is paired.
    pub(crate) peer: RefCell<Option<Rc<Other>>>,
    /// Numbers the one-shots of `exec`, so that several can run.
    pub(crate) execs: Cell<u32>,
}

fn failure(error: &Pid1Error) -> Failure {
    let kind = match error {
        Pid1Error::Disconnected | Pid1Error::Timeout => FailureKind::Unavailable,
        Pid1Error::Refused(Refusal::UnknownService(_) | Refusal::Invalid(_)) => FailureKind::Usage,
        Pid1Error::Refused(Refusal::NotRunning(_) | Refusal::Busy(_) | Refusal::ShuttingDown) => {
            FailureKind::Refused
        }
        Pid1Error::Refused(Refusal::Failed(_)) | Pid1Error::Encode(_) | Pid1Error::Strange(_) => {
            FailureKind::Failed
        }
    };
    Failure::new(kind, error.to_string())
}

pub(super) fn value(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("answers hold only types that JSON can write")
}

impl Context {
    /// Answers one line.
    pub(crate) async fn answer(&self, line: Result<Vec<u8>, TooLong>, caller: Caller) -> Reply {
        let request = match line {
            Ok(line) => Request::parse(&line),
            Err(error) => Err((0, Failure::new(FailureKind::Usage, error.to_string()))),
        };
        match request {
            Err((id, failure)) => Reply::error(id, failure),
            Ok(Request { id, call }) => match self.call(call, &caller).await {
                Ok(answer) => Reply { id, ok: Some(answer), error: None },
                Err(failure) => Reply::error(id, failure),
            },
        }
    }

    async fn call(&self, call: Call, caller: &Caller) -> Result<Value, Failure> {
        match caller {
            Caller::Local => {}
            Caller::Operator(name) => tracing::info!(%name, ?call, "asked from another machine"),
            Caller::Peer
                if matches!(
                    call,
                    Call::SwitchOver(_)
                        | Call::Drain(_)
                        | Call::Undrain(_)
                        | Call::Check
                        | Call::RoundTrip(_)
                        | Call::Enroll(_)
                        | Call::Certificate(_)
                ) => {}
            Caller::Peer => {
                return Err(Failure::new(FailureKind::Refused, "the other node does not ask this"));
            }
        }
        match call {
            Call::Status => Ok(value(&self.status().await)),
            Call::Services => {
                let view = self.pid1.view();
                let view = view.borrow();
                if !view.connected {
                    return Err(failure(&Pid1Error::Disconnected));
                }
                Ok(value(&view.services.iter().map(status::service_row).collect::<Vec<_>>()))
            }
            Call::Credentials => self.credentials(),
            Call::Start(service) => {
                self.want(&service.name, true)?;
                self.order(control::Call::Start { name: service.name }).await
            }
            Call::Stop(service) => {
                self.want(&service.name, false)?;
                self.order(control::Call::Stop { name: service.name }).await
            }
            Call::Restart(service) => {
                self.want(&service.name, true)?;
                self.order(control::Call::Restart { name: service.name }).await
            }
            Call::Logs(logs) if logs.lines == 0 || logs.lines > LOG_LINES_MAX => Err(Failure::new(
                FailureKind::Usage,
                format!("lines: {} is out of bounds; 1 to {LOG_LINES_MAX} are accepted", logs.lines),
            )),
            Call::Logs(logs) => journal::tail(&self.pid1, logs.lines, logs.service.as_deref())
                .await
                .map(|lines| value(&lines)),
            Call::PowerOff => self.shutdown(control::Shutdown::PowerOff).await,
            Call::Reboot => self.shutdown(control::Shutdown::Reboot).await,
            Call::Firewall => Ok(self.firewall_rules()),
            Call::Policy => self.policy(),
            Call::Check => Ok(value(&self.check(caller).await)),
            Call::RoundTrip(part) => self.round_trip(part, caller).await,
            Call::Why(of) => self.why(&of).await,
            Call::SwitchOver(how) => self.switch_over(how, caller).await,
            Call::Drain(node) => self.drain(node, true, caller).await,
            Call::Undrain(node) => self.drain(node, false, caller).await,
            Call::Freeze(freeze) => self.freeze(freeze).await,
            Call::TakeOver(how) => self.take_over(how).await,
            Call::Events(which) => self.events(which).await,
            Call::Pair(code) => self.pair_by(code).await,
            Call::Enroll(code) => self.enroll(code, caller).await,
            Call::Certificate(shown) => self.certificate(shown, caller).await,
            Call::Exec(exec) => self.exec(exec).await.map(|result| value(&result)),
        }
    }

    /// An operator's wish about a service; PostgreSQL of a pair is nobody's to start or stop but the pair's.
    fn want(&self, service: &str, wanted: bool) -> Result<(), Failure> {
        if service != pg::SERVICE {
            return Ok(());
        }
        if self.peer.borrow().is_some() {
            let message = "PostgreSQL of a paired node is started and stopped by the pair alone, or it would act against a \
                 node that was stopped by hand: `dyadctl switchover` moves the database, `dyadctl drain` hands it over and \
                 keeps this node from taking it, `dyadctl poweroff` and `dyadctl reboot` do that first by themselves";
            return Err(Failure::new(FailureKind::Refused, message));
        }
        self.pg_wanted.send_replace(wanted);
        Ok(())
    }

    pub(super) async fn order(&self, call: control::Call) -> Result<Value, Failure> {
        tracing::info!(?call, "the operator's order");
        self.pid1.order(call).await.map_err(|error| failure(&error))?;
        Ok(json!({}))
    }

    async fn shutdown(&self, how: control::Shutdown) -> Result<Value, Failure> {
        self.hand_over_first().await;
        self.order(control::Call::Shutdown { how, reason: "asked for by the operator".into() }).await
    }

    pub(super) async fn status(&self) -> Status {
        let boot = self.pid1.boot().await;
        let view = self.pid1.view().borrow().clone();
        let pg = self.pg.borrow().clone();
        let pair = self.pair.borrow().clone();
        status::status(Sources {
            identity: &self.declared.borrow().identity,
            view: &view,
            boot,
            pg: &pg,
            pair: pair.as_ref(),
            network: self.network.borrow().clone(),
            storage: status::storage(&self.paths),
        })
    }

    /// What HTTP answers from.
    pub(crate) async fn facts(&self) -> Facts {
        let status = self.status().await;
        let serving = self.pg.borrow().serving;
        let pair = self.pair.borrow();
        let replication = pair.as_ref().map(|pair| pair.replication).unwrap_or_default();
        let primary = pair.as_ref().map_or(serving, Shown::serves);
        // Of a server that does not run no position is known.
        let standby =
            pair.as_ref().is_some_and(|pair| pair.role() == Role::Standby) && replication.position.is_some();
        let services = &self.declared.borrow().client_services;
        let view = self.pid1.view();
        let up = |name: &String| {
            let state = view.borrow().service(name).map(|service| service.state);
            matches!(state, Some(ServiceState::Ready | ServiceState::Done))
        };
        Facts {
            status,
            primary,
            standby,
            application: if services.is_empty() { primary || standby } else { services.iter().all(up) },
            synchronous: pair.as_ref().is_some_and(Shown::is_synchronous),
            streams: replication.streams,
            lag_bytes: replication.lag_bytes,
            position: replication.position,
            held_back: replication.held_back,
        }
    }

    fn firewall_rules(&self) -> Value {
        let Firewall { rules, state } = self.firewall.borrow().clone();
        value(&FirewallRules { state, rules })
    }

    fn credentials(&self) -> Result<Value, Failure> {
        let known = credentials::load(&self.paths.credentials())
            .map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
        let postgresql = &self.declared.borrow().postgresql;
        let roles = postgresql.roles.iter().filter_map(|role| {
            let owned = postgresql.databases.iter().filter(|database| database.owner == role.name);
            Some(CredentialRow {
                role: role.name.clone(),
                password: known.as_ref()?.roles.get(&role.name)?.password.clone(),
                databases: owned.map(|database| database.name.clone()).collect(),
            })
        });
        let pair = self.pair.borrow();
        let vips = pair.iter().flat_map(|pair| &pair.vips).filter_map(|(vip, _)| vip.split_once('/'));
        let vips: Vec<String> = vips.map(|(address, _)| address.to_owned()).collect();
        let network = self.network.borrow();
        let addresses = network.links.iter().flat_map(|link| &link.addresses);
        let addresses = addresses.filter_map(|address| Some(address.split_once('/')?.0.to_owned()));
        Ok(value(&Credentials {
            // Those that lead to the writer come first.
            addresses: vips
                .iter()
                .cloned()
                .chain(addresses.filter(|own| !own.starts_with("fe80:") && !vips.contains(own)))
                .collect(),
            port: postgresql.port,
            roles: roles.collect(),
            authority: known
                .filter(|known| known.own.is_none())
                .map(|known| known.authority.certificate)
                .unwrap_or_default(),
        }))
    }

    async fn exec(&self, exec: Exec) -> Result<ExecResult, Failure> {
        let refused = |message: &str| Err(Failure::new(FailureKind::Refused, message));
        if !self.paths.test_agent().exists() {
            return refused("exec: this image runs nothing for others (it lacks the overlay test-agent)");
        }
        if exec.deadline_ms == 0 || exec.deadline_ms > EXEC_DEADLINE_MS_MAX {
            let message =
                format!("exec: deadline_ms {}; 1 to {EXEC_DEADLINE_MS_MAX} are accepted", exec.deadline_ms);
            return Err(Failure::new(FailureKind::Usage, message));
        }
        let number = self.execs.get();
        self.execs.set(number.wrapping_add(1));
        let oneshot = Oneshot::as_root(format!("exec-{number}"), exec.argv, exec.deadline_ms);
        let finished = self.pid1.run(oneshot).await.map_err(|error| failure(&error))?;
        let status = match finished.status {
            ExitStatus::Exited(status) => Some(status),
            ExitStatus::Signaled(_) | ExitStatus::DeadlinePassed | ExitStatus::NotStarted(_) => None,
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(ExecResult {
            status,
            end: status::exit_text(&finished.status),
            stdout: text(&finished.stdout),
            stderr: text(&finished.stderr),
        })
    }
}
