//! The operator protocol: one JSON object a line, `{"id", "call", "args"}` answered by `{"id", "ok"}` or
//! `{"id", "error": {"kind", "message"}}`, in order. Spoken on [`SOCKET`] and on the virtio-serial port [`PORT`].

mod check;
mod credentials;
pub use check::{CheckRow, PolicyRow, RoundTrip, RoundTripRow, Verdict};
pub use credentials::{Certificate, CredentialRow, Credentials, Signed};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the supervisor listens (root only).
pub const SOCKET: &str = "/run/dyad/supervisor.sock";
/// Name of the virtio-serial port with the same protocol.
pub const PORT: &str = "org.dyad.operator";
/// Most lines that [`Call::Logs`] gives back.
pub const LOG_LINES_MAX: u32 = 1000;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in the reply.
    pub id: u64,
    /// `call` and, where it has any, `args`.
    #[serde(flatten)]
    pub call: Call,
}

/// The calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", content = "args", rename_all = "lowercase")]
pub enum Call {
    /// Answered by [`Status`].
    Status,
    /// Answered by a list of [`ServiceRow`].
    Services,
    /// Answered by [`Credentials`].
    Credentials,
    /// Start a service; answered by `{}` once PID 1 took the order.
    Start(ServiceName),
    /// Stop a service.
    Stop(ServiceName),
    /// Restart a service.
    Restart(ServiceName),
    /// The end of the journal; answered by a list of [`LogLine`], oldest first.
    Logs(Logs),
    /// Ordered shutdown and power off.
    PowerOff,
    /// Ordered shutdown and restart.
    Reboot,
    /// Why the database is not better protected: lines, the nearest cause first.
    Why(ResourceName),
    /// Hand the database to the other node; answered by `{}` once its holder has taken the order.
    SwitchOver(SwitchOver),
    /// A node hands over what it holds and takes nothing, until [`Call::Undrain`] or its supervisor's next start.
    Drain(NodeName),
    /// The end of a drain; nothing moves back.
    Undrain(NodeName),
    /// No automatic moves for a while.
    Freeze(Freeze),
    /// Take the database from the other node by force.
    TakeOver(TakeOver),
    /// What a node did for the database, oldest first; answered by a list of [`EventRow`].
    Events(Events),
    /// The packet filter of this node; answered by [`FirewallRules`].
    Firewall,
    /// Everything that must be true of a node, and of the other one of a pair; answered by a list of [`CheckRow`].
    Check,
    /// A row is written on the primary and read on the standby, and is gone again; answered by [`RoundTripRow`].
    RoundTrip(RoundTrip),
    /// What the pair does by itself, and when; answered by a list of [`PolicyRow`].
    Policy,
    /// The code with which two blank nodes know each other, where the site says `pairing = "code"`; answered by [`Code`].
    Pair(Code),
    /// Bring both nodes to a witness that was replaced, restored, or passed over by [`Call::TakeOver`]; answered by `{}`.
    Enroll(Code),
    /// Have both nodes show a certificate of one's own, or that of the cluster's authority again; answered by a list of the names
    /// and addresses of the site that it is not for.
    Certificate(Certificate),
    /// Run a program as root: only on images with the overlay `test-agent`; answered by [`ExecResult`].
    Exec(Exec),
}

/// A one-time code: of two nodes that pair, or of a witness.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// As the other node made it; asked without, this node makes one, or tells the one that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Not shown: orders are logged.
impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(..)")
    }
}

/// Names a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceName {
    /// As in `services`.
    pub name: String,
}

/// Which log lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// How many, at most [`LOG_LINES_MAX`].
    pub lines: u32,
    /// Of this service only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// Names a replicated thing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceName {
    /// As in `status`; `None`: `pg/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
}

/// Names a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeName {
    /// As in `status`; `None`: the one that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A planned move.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchOver {
    /// What moves; `None`: `pg/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Where to; `None`: to the node that does not hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// For how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// At most [`FREEZE_SECONDS_MAX`]; 0 ends it.
    pub seconds: u32,
}

/// Longest [`Call::Freeze`]: a day.
pub const FREEZE_SECONDS_MAX: u32 = 86_400;

/// A take-over by force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeOver {
    /// What is taken; `None`: `pg/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The operator has made sure that the other node is off; without it the answer is what the take-over may cost.
    pub peer_is_off: bool,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// The last so many, at most [`LOG_LINES_MAX`].
    pub lines: u32,
    /// Of this node; `None`: the one that is asked. Of the other one there is a copy, also while it is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A step of a node for the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// CLOCK_BOOTTIME milliseconds of its boot.
    pub at_ms: u64,
    /// Which boot of the node, counted.
    pub boot: u64,
    /// What it was doing.
    pub from: String,
    /// What it did from then on.
    pub to: String,
    /// Why.
    pub cause: String,
}

/// What may come in over the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRules {
    /// `applied`, or why not.
    pub state: String,
    /// In the words of nft, as they were loaded.
    pub rules: String,
}

/// A program to run (test images only).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Absolute path and arguments.
    pub argv: Vec<String>,
    /// Milliseconds until it is killed.
    pub deadline_ms: u32,
}

/// How the program of an `exec` ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    /// Exit status; `None` when a signal or the deadline ended it.
    pub status: Option<i32>,
    /// How it ended, in words.
    pub end: String,
    /// The end of standard output.
    pub stdout: String,
    /// The end of standard error.
    pub stderr: String,
}

/// A reply: exactly one of `ok` and `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Id of the request; 0 when the line was no request.
    pub id: u64,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Value>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What a program may branch on.
    pub kind: FailureKind,
    /// What was wrong, where, and what is accepted.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The line or an argument is not what is accepted.
    Usage,
    /// This image or state does not allow it.
    Refused,
    /// It was tried and did not work.
    Failed,
    /// PID 1 cannot be reached now; try again.
    Unavailable,
}

/// What losing a node would cost now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protection {
    /// Losing any one node loses nothing and needs no human.
    Protected,
    /// Losing any one node loses nothing, but take-over needs a human.
    Synced,
    /// Losing a certain node loses data or service.
    Exposed,
    /// One node by design.
    Single,
    /// Not serving.
    Down,
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Level.
    pub protection: Protection,
    /// Why, in words.
    pub reason: String,
    /// All nodes known.
    pub nodes: Vec<NodeRow>,
    /// All replicated things.
    pub resources: Vec<ResourceRow>,
    /// Virtual addresses.
    pub vips: Vec<VipRow>,
    /// The node that answers.
    pub node: NodeSection,
}

/// A node as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Name.
    pub name: String,
    /// `primary`, `standby` or `none`.
    pub role: String,
    /// Whether it serves its role.
    pub up: bool,
    /// PostgreSQL timeline.
    pub timeline: Option<u32>,
    /// Bytes of WAL behind the primary.
    pub lag_bytes: Option<u64>,
}

/// A replicated thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRow {
    /// `pg/main`, `vol/NAME`.
    pub name: String,
    /// Epoch of its authority register; 0 without one.
    pub epoch: u64,
    /// `Sync` or `Solo`.
    pub mode: String,
    /// Name of the node that may write.
    pub holder: String,
}

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    /// Address with prefix length.
    pub address: String,
    /// Name of the node that has it; `None`: nobody.
    pub holder: Option<String>,
    /// Why the node that should have it does not; empty when all is well.
    #[serde(default)]
    pub note: String,
}

/// What the answering node knows about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSection {
    /// Name.
    pub name: String,
    /// Cluster name from the site file.
    pub cluster: Option<String>,
    /// Its key, by which operators on other machines know it (`ed25519:` and hexadecimal digits).
    #[serde(default)]
    pub key: Option<String>,
    /// What the site file is, or that there is none.
    pub site: String,
    /// What PID 1 booted; `None` until it has said so.
    pub image: Option<ImageSection>,
    /// Early boot phases.
    pub phases: Vec<PhaseRow>,
    /// Services.
    pub services: Vec<ServiceRow>,
    /// File systems.
    pub storage: Vec<StorageRow>,
    /// Network.
    pub network: NetworkSection,
    /// Ways to the other node, the preferred one first.
    #[serde(default)]
    pub ways: Vec<WayRow>,
    /// PostgreSQL.
    pub postgresql: PostgresqlSection,
}

/// What was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSection {
    /// Image name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// `A`, `B`, `network` or `other`.
    pub slot: String,
    /// dm-verity root hash in hexadecimal.
    pub root_hash: Option<String>,
    /// Kernel release.
    pub kernel: String,
    /// Boot id in hexadecimal.
    pub boot_id: String,
    /// Ends of the stages of boot.
    pub boot: Vec<BootMark>,
    /// How the boot before this one ended; empty as long as that is not known.
    pub previous: String,
    /// PID 1's own health.
    pub init: InitSection,
}

/// PID 1's own health; counters since it last executed itself, except where something else is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitSection {
    /// How often it executed itself again since boot.
    pub reexecs: u32,
    /// The longest time from a fault to a whole turn of its loop since boot, microseconds.
    pub recovery_us_max: u32,
    /// Half of its loop's turns were shorter, microseconds.
    pub turn_us_half: u64,
    /// 99 of 100 of its loop's turns were shorter, microseconds.
    pub turn_us_99: u64,
    /// The longest turn, microseconds.
    pub turn_us_max: u32,
    /// Allocations of memory; stands still once the machine is up.
    pub allocations: u64,
}

/// The end of a stage of boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootMark {
    /// Stage.
    pub name: String,
    /// CLOCK_BOOTTIME milliseconds.
    pub at_ms: u64,
}

/// An early boot phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRow {
    /// Name.
    pub name: String,
    /// `waiting`, `running`, `unchanged`, `changed`, `failed`.
    pub state: String,
    /// Milliseconds it took.
    pub took_ms: u32,
    /// What it did, or why it failed.
    pub note: String,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Name.
    pub name: String,
    /// `stopped`, `waiting`, `starting`, `ready`, `done`, `stopping`, `backoff`, `failed`.
    pub state: String,
    /// Main process; 0 without one.
    pub pid: u32,
    /// Milliseconds from start to ready.
    pub ready_after_ms: u32,
    /// Restarts that nobody asked for.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
    /// What it says about itself.
    pub note: String,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageRow {
    /// Mount point.
    pub path: String,
    /// Size, without what the file system keeps back for root.
    pub total_bytes: u64,
    /// Free for services.
    pub free_bytes: u64,
}

/// Network as it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSection {
    /// `waiting`, `applied` or `failed`.
    pub state: String,
    /// Why, or what is odd.
    pub note: String,
    /// Links.
    pub links: Vec<LinkRow>,
}

/// A way to the other node: one for each address that it has in a network of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayRow {
    /// The other node's address.
    pub address: String,
    /// This node's link.
    pub interface: String,
    /// Whether the other node answers there; `None`: not looked at yet.
    pub up: Option<bool>,
}

/// A network link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// Name.
    pub name: String,
    /// Whether it carries a signal.
    pub up: bool,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Bond state, driver and the like, in words.
    pub note: String,
}

/// PostgreSQL on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlSection {
    /// Step of bring-up, or `serving`.
    pub state: String,
    /// What it waits for, or what is wrong.
    pub note: String,
    /// Server version.
    pub version: Option<String>,
    /// System identifier, decimal.
    pub system_identifier: Option<String>,
    /// Timeline.
    pub timeline: Option<u32>,
    /// The last health probe.
    pub probe: Option<ProbeRow>,
    /// What was found other than declared and put right, newest last.
    pub repaired: Vec<String>,
    /// Restarts by the supervisor since it started.
    pub restarts: u32,
}

/// One health probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Write on the kept connection: `ok` or what failed.
    pub write: String,
    /// A new connection: `ok` or what failed.
    pub connect: String,
    /// Milliseconds that the slower of both took.
    pub took_ms: u32,
    /// Probes missed in a row.
    pub misses: u32,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Microseconds since 1970.
    pub realtime_us: u64,
    /// Syslog priority, 0 to 7.
    pub priority: u8,
    /// Service or program.
    pub source: String,
    /// The message.
    pub message: String,
}

impl Reply {
    /// A reply with an answer.
    pub fn ok(id: u64, answer: &impl Serialize) -> Self {
        let ok = serde_json::to_value(answer).expect("answers hold only types that JSON can write");
        Self { id, ok: Some(ok), error: None }
    }

    /// A reply with a failure.
    pub fn error(id: u64, error: Failure) -> Self {
        Self { id, ok: None, error: Some(error) }
    }

    /// The line with its end.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }
}

impl Request {
    /// The line with its end.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }

    /// Reads a line; the failure says what was wrong with it and comes with the id if there was one.
    pub fn parse(line: &[u8]) -> Result<Self, (u64, Failure)> {
        let usage = |message: String| Failure { kind: FailureKind::Usage, message };
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| (0, usage(format!("request is not a JSON object: {error}"))))?;
        let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
        serde_json::from_value(value).map_err(|error| {
            (
                id,
                usage(format!(
                    "request {id}: {error}; accepted: {{\"id\": NUMBER, \"call\": NAME, \"args\": {{...}}}}"
                )),
            )
        })
    }
}

fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages hold only types that JSON can write");
    line.push(b'\n');
    line
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
