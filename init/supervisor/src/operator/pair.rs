//! Questions and orders about a pair.

use std::time::Duration;

use dyad_api::control;
use dyad_api::operator::{
    Call, Certificate, Code, Events, FREEZE_SECONDS_MAX, Failure, FailureKind, Freeze, LOG_LINES_MAX,
    LinkRow, NodeName, Reply, Request, ResourceName, SwitchOver, TakeOver,
};
use dyad_channel::operator::{Ask, Told};
use dyad_channel::secret;
use dyad_cluster::event::{Command, Event};
use dyad_cluster::phase::Phase;
use dyad_cluster::report::Word;
use dyad_spec::site::Pairing;
use serde_json::{Value, json};

use super::calls::{Caller, Context, value};
use crate::clock;
use crate::credentials;
use crate::driver::{self, DATABASE, Membership, Shown};
use crate::pairing::{self, Taken};
use crate::pg::certificate::Signed;
use crate::pg::foreign;

const NOT_PAIRED: &str = "this node is not a member of a pair";
/// The one replicated thing.
const RESOURCE: &str = "pg/main";
/// For an answer to reach who asked.
const ANSWERED: Duration = Duration::from_millis(500);
/// For the other node to take over before a machine goes down.
const HAND_OVER: Duration = Duration::from_secs(30);

impl Shown {
    /// A resource is the database or an address that follows it, as the status shows that or without its prefix length.
    fn has(&self, resource: Option<&str>) -> Result<(), Failure> {
        let Some(asked) = resource else { return Ok(()) };
        let addresses = || self.vips.iter().map(|(address, _)| &**address);
        let is = |known: &str| known == asked || known.split('/').next() == Some(asked);
        if asked == RESOURCE || addresses().any(is) {
            return Ok(());
        }
        let accepted: Vec<String> =
            std::iter::once(RESOURCE).chain(addresses()).map(|known| format!("{known:?}")).collect();
        let accepted = accepted.join(", ");
        let message = format!("there is no resource {asked:?}; accepted: {accepted}");
        Err(Failure::new(FailureKind::Usage, message))
    }

    /// One of the two.
    fn knows(&self, name: &str) -> Result<(), Failure> {
        if self.names.iter().any(|known| known == name) {
            return Ok(());
        }
        let [a, b] = &self.names;
        Err(Failure::new(
            FailureKind::Usage,
            format!("there is no node {name:?}; {a:?} and {b:?} are accepted"),
        ))
    }

    fn own_name(&self) -> &str {
        &self.names[self.me.index()]
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Refused, message)
}

impl Context {
    pub(super) fn member(&self) -> Result<Shown, Failure> {
        self.pair.borrow().clone().ok_or_else(|| refused(NOT_PAIRED))
    }

    async fn command(&self, command: Command) -> Result<Value, Failure> {
        let member = self.member()?;
        tracing::info!(?command, "the operator's order");
        let taken = member.orders.send(Event::Command(command)).await;
        taken.map_err(|_| Failure::new(FailureKind::Unavailable, "the supervisor is ending"))?;
        Ok(json!({}))
    }

    /// Takes the code that was typed, or makes one.
    pub(super) async fn pair_by(&self, Code { code }: Code) -> Result<Value, Failure> {
        match self.declared.borrow().pairing {
            Some(Pairing::Code) => {}
            Some(Pairing::Key) => {
                return Err(refused("this site pairs by its site key; nothing is to be typed"));
            }
            None => return Err(refused("the site file names one node: there is nobody to pair with")),
        }
        if self.pair.borrow().is_some() {
            return Err(refused("this node is a member of a pair already"));
        }
        let taken = pairing::take_code(&self.paths, code.as_deref());
        let Taken { code, replaced } =
            taken.map_err(|error| Failure::new(FailureKind::Usage, error.to_string()))?;
        if replaced {
            // Whoever went by the old one begins anew.
            self.order(control::Call::Restart { name: "supervisor".to_owned() }).await?;
        }
        Ok(value(&Code { code: Some(code) }))
    }

    /// Both nodes go to the witness with this code, one after the other; it grants again once both have come.
    pub(super) async fn enroll(&self, Code { code }: Code, caller: &Caller) -> Result<Value, Failure> {
        let Some(enroller) = self.member()?.enroller else {
            return Err(refused("the site file names no witness"));
        };
        let usage = |why: String| Failure::new(FailureKind::Usage, why);
        let text = code.ok_or_else(|| usage("a code is needed: `dyad-witness enroll` makes one".into()))?;
        let secret = secret::Code::parse(text.trim()).map_err(|error| usage(error.to_string()))?.secret();
        let failed = |why: String| Failure::new(FailureKind::Failed, why);
        let key = enroller.bring(&secret).await.map_err(|why| failed(format!("the witness: {why}")))?;
        let known = Membership::load(&self.paths).map_err(|error| failed(error.to_string()))?;
        let mut membership = known.ok_or_else(|| refused(NOT_PAIRED))?;
        let other = membership.witness != Some(key);
        tracing::info!(witness = %key.id(), other, "enrolled at the witness again");
        // Before its key is kept here: an order that reached one node only is given again, and must not find itself done.
        if *caller != Caller::Peer {
            self.forward(Call::Enroll(Code { code: Some(text) }), caller).await?;
        }
        if other {
            membership.witness = Some(key);
            membership.store(&self.paths).map_err(|error| failed(error.to_string()))?;
            self.begin_anew();
        }
        Ok(json!({}))
    }

    /// The witness is asked under its own key from the next start on, which comes once this call has been answered.
    fn begin_anew(&self) {
        let pid1 = self.pid1.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(ANSWERED).await;
            if let Err(error) = pid1.order(control::Call::Restart { name: "supervisor".to_owned() }).await {
                tracing::warn!(%error, "the new witness is asked from the next start on, which PID 1 refuses");
            }
        });
    }

    /// Of both nodes: one that takes over must be believed by the same clients.
    pub(super) async fn certificate(&self, shown: Certificate, caller: &Caller) -> Result<Value, Failure> {
        let missing = match &shown.own {
            Some(own) => foreign::check(&own.certificate, &own.key, &self.declared.borrow().reached)
                .map_err(|error| Failure::new(FailureKind::Usage, error.to_string()))?,
            None => Vec::new(),
        };
        // First there: an order that reached one node only is given again, and this one shows what it showed.
        if *caller != Caller::Peer && self.peer.borrow().is_some() {
            self.forward(Call::Certificate(shown.clone()), caller).await?;
        }
        let own = shown.own.map(|own| Signed { key: own.key, certificate: own.certificate });
        tracing::info!(own = own.is_some(), ?missing, "another certificate");
        // Whoever keeps the server lays it with the next look for drift.
        credentials::set_own(&self.paths.credentials(), own)
            .map_err(|error| Failure::new(FailureKind::Failed, error.to_string()))?;
        Ok(value(&missing))
    }

    /// The nearest cause first. Of a node that has not found the other one: what each of its links has.
    pub(super) async fn why(&self, of: &ResourceName) -> Result<Value, Failure> {
        let member = self.pair.borrow().clone();
        if let Some(member) = member {
            member.has(of.resource.as_deref())?;
            return Ok(value(&member.why()));
        }
        let status = self.status().await;
        let link = |link: &LinkRow| {
            let up = if link.up { "up" } else { "down" };
            [&[&*link.name, up], &*link.addresses.iter().map(|it| &**it).collect::<Vec<_>>(), &[&*link.note]]
                .concat()
                .join(" ")
        };
        let lines = std::iter::once(status.reason).chain(status.node.network.links.iter().map(link));
        Ok(value(&lines.collect::<Vec<_>>()))
    }

    pub(super) fn policy(&self) -> Result<Value, Failure> {
        Ok(value(&self.member()?.policy.to_vec()))
    }

    pub(super) async fn switch_over(&self, how: SwitchOver, caller: &Caller) -> Result<Value, Failure> {
        let member = self.member()?;
        member.has(how.resource.as_deref())?;
        let Some(holder) = member.holder() else { return Err(refused("nobody holds the database yet")) };
        if let Some(to) = how.to.as_deref() {
            member.knows(to)?;
            if to == holder {
                return Err(refused(format!("{to} holds the database already")));
            }
        }
        if !member.holds() {
            return self.forward(Call::SwitchOver(how), caller).await;
        }
        if member.view.phase != Phase::Sync {
            let why = member.why().join("; ");
            return Err(refused(format!(
                "the database can be handed over only while it is synchronous: {why}"
            )));
        }
        self.command(Command::SwitchOver(DATABASE)).await
    }

    pub(super) async fn drain(&self, of: NodeName, drained: bool, caller: &Caller) -> Result<Value, Failure> {
        let member = self.member()?;
        match of.node.as_deref() {
            Some(name) if name != member.own_name() => {
                member.knows(name)?;
                let call = if drained { Call::Drain(of) } else { Call::Undrain(of) };
                self.forward(call, caller).await
            }
            Some(_) | None => self.command(if drained { Command::Drain } else { Command::Undrain }).await,
        }
    }

    /// Asks the other node, which is the one to do it.
    pub(super) async fn forward(&self, call: Call, caller: &Caller) -> Result<Value, Failure> {
        if *caller == Caller::Peer {
            return Err(refused(
                "the other node asked for what only it can do; what it knows is old, try again",
            ));
        }
        let Some(peer) = self.peer.borrow().clone() else { return Err(refused(NOT_PAIRED)) };
        let line = Request { id: 1, call }.to_line();
        let unavailable = |why: String| Failure::new(FailureKind::Unavailable, why);
        let told = peer.client.call(&Ask::Line(line)).await;
        let Ok(Told::Line(reply)) = told else {
            return Err(unavailable(format!(
                "the other node, whose order this is, does not answer: {told:?}"
            )));
        };
        let reply: Reply = serde_json::from_slice(&reply)
            .map_err(|error| unavailable(format!("the other node's reply: {error}")))?;
        match reply.error {
            Some(failure) => Err(failure),
            None => Ok(reply.ok.unwrap_or_default()),
        }
    }

    /// Before this machine goes down: what it holds is handed over, as long as somebody can take it.
    pub(super) async fn hand_over_first(&self) {
        let Ok(member) = self.member() else { return };
        if !member.holds() || member.view.phase != Phase::Sync || self.command(Command::Drain).await.is_err()
        {
            return;
        }
        let mut pair = self.pair.clone();
        let gone = pair.wait_for(|pair| pair.as_ref().is_none_or(|member| !member.holds()));
        if tokio::time::timeout(HAND_OVER, gone).await.is_err() {
            tracing::warn!(
                "the other node did not take the database over; this machine goes down all the same"
            );
        }
    }

    pub(super) async fn freeze(&self, Freeze { seconds }: Freeze) -> Result<Value, Failure> {
        if seconds > FREEZE_SECONDS_MAX {
            let message =
                format!("seconds: {seconds} is out of bounds; 0 to {FREEZE_SECONDS_MAX} are accepted");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        self.command(Command::Freeze(u64::from(seconds) * 1_000)).await
    }

    pub(super) async fn take_over(&self, how: TakeOver) -> Result<Value, Failure> {
        let TakeOver { resource, peer_is_off } = how;
        let member = self.member()?;
        member.has(resource.as_deref())?;
        match member.view.word {
            Word::Counts => {}
            Word::Holds => return Err(refused("this node holds the database already")),
            Word::Asked => {
                return Err(refused(
                    "the witness is asked who goes on, and waited for until it has been silent for a minute",
                ));
            }
            Word::NotNow => {
                return Err(refused(format!(
                    "nothing can be taken over now: this node is {}",
                    member.phase()
                )));
            }
        }
        if !peer_is_off {
            let price = member.price();
            return Err(refused(format!(
                "a take-over by force may lose {price}. Switch the other machine off, make sure that it is, and say so; let it be \
                 off until it can reach this one, and a witness that knows nothing of this until it was enrolled again"
            )));
        }
        self.command(Command::Force(DATABASE, clock::wall_s())).await
    }

    pub(super) async fn events(&self, Events { lines, node }: Events) -> Result<Value, Failure> {
        let member = self.member()?;
        let other = match node.as_deref() {
            Some(name) => {
                member.knows(name)?;
                name != member.own_name()
            }
            None => false,
        };
        if lines == 0 || lines > LOG_LINES_MAX {
            let message = format!("lines: {lines} is out of bounds; 1 to {LOG_LINES_MAX} are accepted");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        let dir = if other { driver::copies_dir(&self.paths) } else { driver::events_dir(&self.paths) };
        let read = tokio::task::spawn_blocking(move || driver::history(&dir, lines as usize)).await;
        match read {
            Ok(Ok(rows)) => Ok(value(&rows)),
            Ok(Err(error)) => Err(Failure::new(FailureKind::Failed, format!("read the event log: {error}"))),
            Err(error) => Err(Failure::new(FailureKind::Failed, format!("read the event log: {error}"))),
        }
    }
}
