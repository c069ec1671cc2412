//! PID 1's control protocol: SOCK_SEQPACKET at [`SOCKET`], one message a packet, root peers only (SO_PEERCRED).
//!
//! A packet is `version (1 byte) | postcard body`. The client sends [`Request`]; PID 1 sends [`Message`]: exactly one
//! reply for each request, in any order, and, once [`Call::Subscribe`] was accepted, events.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where PID 1 listens.
pub const SOCKET: &str = "/run/dyad/init.sock";
/// Version byte of every packet; raised with any change of the types below.
pub const VERSION: u8 = 2;
/// Longest packet in bytes, version byte included.
pub const PACKET_MAX: usize = 64 * 1024;
/// Most bytes of standard output, and again of standard error, that [`Call::RunOneshot`] gives back.
pub const CAPTURE_MAX: u32 = 24 * 1024;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in the reply.
    pub id: u32,
    /// The call.
    pub call: Call,
}

/// The calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// First message of a connection; answered by [`Answer::Hello`].
    Hello {
        /// Name of the client, for the log (`supervisor`).
        client: String,
    },
    /// All services; answered by [`Answer::Services`].
    ListServices,
    /// One service; answered by [`Answer::Services`] with one entry.
    Status {
        /// Service name.
        name: String,
    },
    /// Start a service (and what it needs). [`Answer::Accepted`] comes at once, also if it runs already; the outcome
    /// comes as events.
    Start {
        /// Service name.
        name: String,
    },
    /// Walk the service's stop ladder. [`Answer::Accepted`] comes at once, also if it is stopped already.
    Stop {
        /// Service name.
        name: String,
    },
    /// Stop, then start.
    Restart {
        /// Service name.
        name: String,
    },
    /// Send a signal.
    Signal {
        /// Service name.
        name: String,
        /// To whom.
        target: SignalTarget,
    },
    /// Run a program to its end in a cgroup of its own (`/system.slice/NAME.oneshot`); answered by
    /// [`Answer::Finished`]. It belongs to the connection: when that closes, the whole cgroup is killed. A name that
    /// still runs is refused with [`Refusal::Busy`].
    RunOneshot(Oneshot),
    /// Results of the early boot phases so far; answered by [`Answer::Phases`].
    Phases,
    /// What was booted; answered by [`Answer::BootInfo`].
    BootInfo,
    /// Ordered shutdown. [`Answer::Accepted`], then every service is stopped in reverse order.
    Shutdown {
        /// What comes after the last file system.
        how: Shutdown,
        /// Who wanted it and why, for the log.
        reason: String,
    },
    /// Arm, move or disarm the dead-man's switch. Past the deadline PID 1 kills the writers' cgroups by itself.
    Arm {
        /// CLOCK_BOOTTIME nanoseconds; `None` disarms.
        deadline_ns: Option<u64>,
    },
    /// PID 1's own health; answered by [`Answer::Stats`].
    Stats,
    /// The last lines that PID 1 itself logged; answered by [`Answer::Log`].
    Log,
    /// Go on as another binary: every child, descriptor and deadline is kept. [`Answer::Accepted`] comes right before the
    /// change; a binary that cannot read this one's state is refused.
    Upgrade {
        /// Absolute path of a static `init`.
        path: String,
    },
    /// For tests: make PID 1 fail. Refused on a machine whose kernel command line does not have the word `dyad.inject`.
    Inject {
        /// What happens.
        fault: Fault,
        /// At which later passage of a place where PID 1 changes what it has written down.
        after: u32,
    },
    /// From now on send [`Message::Event`]s on this connection; the reply is [`Answer::Services`], the state from
    /// which the events go on.
    Subscribe,
}

/// A way in which PID 1 can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// A panic of its own.
    Panic,
    /// `abort`.
    Abort,
    /// Recursion without end.
    StackOverflow,
    /// A store to address 0.
    NullWrite,
    /// An instruction that does not exist.
    IllegalInstruction,
    /// An allocation that fails.
    Allocation,
    /// Its loop stands still for ever: only a hardware watchdog helps.
    Freeze,
}

/// Whom a signal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalTarget {
    /// The main process, with this signal number.
    Main(i32),
    /// Every process of the cgroup, with this signal number.
    Group(i32),
    /// `cgroup.kill`: SIGKILL for the whole cgroup in one step.
    KillGroup,
}

/// A program to run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oneshot {
    /// Name, unique among those that run: letters, digits, `-`, `_`.
    pub name: String,
    /// Absolute path and arguments.
    pub exec: Vec<String>,
    /// Environment, added to PATH and LANG=C.UTF-8.
    pub env: Vec<(String, String)>,
    /// User, by number.
    pub uid: u32,
    /// Group, by number; there are no supplementary groups.
    pub gid: u32,
    /// Working directory.
    pub cwd: String,
    /// Milliseconds until the cgroup is killed and [`ExitStatus::DeadlinePassed`] is reported.
    pub deadline_ms: u32,
    /// The last bytes kept of each output, at most [`CAPTURE_MAX`].
    pub capture_max: u32,
}

impl Oneshot {
    /// As root, in `/`, with nothing more in its environment, and as much output kept as can be.
    pub fn as_root(name: impl Into<String>, exec: Vec<String>, deadline_ms: u32) -> Self {
        let (env, cwd) = (Vec::new(), "/".into());
        Self { name: name.into(), exec, env, uid: 0, gid: 0, cwd, deadline_ms, capture_max: CAPTURE_MAX }
    }
}

/// What comes after an ordered shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shutdown {
    /// Start again.
    Reboot,
    /// Switch off.
    PowerOff,
}

/// What PID 1 sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to the request with this id.
    Reply {
        /// Id of the request.
        id: u32,
        /// The answer, or why not.
        result: Result<Answer, Refusal>,
    },
    /// Something happened.
    Event(Event),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello {
        /// Minted by PID 1 at boot, kept across its re-exec.
        boot_id: [u8; 16],
        /// How often PID 1 has re-executed itself since boot.
        reexecs: u32,
    },
    /// To [`Call::ListServices`], [`Call::Status`], [`Call::Subscribe`].
    Services(Vec<ServiceStatus>),
    /// The order was taken and is being carried out.
    Accepted,
    /// To [`Call::RunOneshot`].
    Finished(Finished),
    /// To [`Call::Phases`], in the order of boot.
    Phases(Vec<Phase>),
    /// To [`Call::BootInfo`].
    BootInfo(BootInfo),
    /// To [`Call::Stats`].
    Stats(Stats),
    /// To [`Call::Log`]: lines, oldest first.
    Log(Vec<u8>),
}

/// Why a request was refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No service of this name in the image.
    #[error("there is no service {0:?} in this image")]
    UnknownService(String),
    /// The service has no process to signal.
    #[error("service {0:?} does not run")]
    NotRunning(String),
    /// A one-shot of this name has not ended (its cgroup is not empty).
    #[error("one-shot {0:?} still runs")]
    Busy(String),
    /// A value out of its bounds: which, and what is accepted.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The system call that failed, and why.
    #[error("{0}")]
    Failed(String),
    /// The machine is shutting down.
    #[error("the machine is shutting down")]
    ShuttingDown,
}

/// What happened to a service or phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A service's state changed; the whole new state.
    Service(ServiceStatus),
    /// An early boot phase ended or started.
    Phase(Phase),
    /// An ordered shutdown began.
    ShuttingDown,
    /// So many events were dropped because the client did not read; ask [`Call::ListServices`] and [`Call::Phases`].
    Missed(u32),
}

/// State of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Name as in the image table.
    pub name: String,
    /// State.
    pub state: ServiceState,
    /// Main process, 0 without one.
    pub pid: u32,
    /// CLOCK_BOOTTIME milliseconds of the last change of `state`.
    pub since_ms: u64,
    /// Milliseconds from the last start to ready; 0 before.
    pub ready_after_ms: u32,
    /// Starts after an end that nobody asked for, since boot.
    pub restarts: u32,
    /// How the main process ended last.
    pub last_exit: Option<ExitStatus>,
    /// Last `STATUS=` line of the service, or why it waits.
    pub note: String,
}

/// States of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ServiceState {
    /// Not wanted, no process.
    #[default]
    Stopped,
    /// Wanted; a dependency is not ready.
    Waiting,
    /// Has a process, is not ready.
    Starting,
    /// Up.
    Ready,
    /// A one-shot service that ended with status 0.
    Done,
    /// On the stop ladder.
    Stopping,
    /// Ended; will be started again after a pause.
    BackOff,
    /// Ended or did not become ready; will not be started again by itself.
    Failed,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// Killed because its deadline passed.
    DeadlinePassed,
    /// Never ran: the step that failed, and why.
    NotStarted(String),
}

/// The end of a one-shot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// The last bytes of standard output.
    pub stdout: Vec<u8>,
    /// The last bytes of standard error.
    pub stderr: Vec<u8>,
    /// Run time in milliseconds.
    pub took_ms: u32,
}

/// One early boot phase (`grow-gpt`, `state`, `data`, ...).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Name.
    pub name: String,
    /// Where it stands.
    pub state: PhaseState,
    /// CLOCK_BOOTTIME milliseconds at which it began; 0 before.
    pub started_ms: u64,
    /// Milliseconds it took; 0 while it runs.
    pub took_ms: u32,
    /// What it did, or why it failed.
    pub note: String,
}

/// Where a phase stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseState {
    /// Not begun.
    Waiting,
    /// Its helper runs.
    Running,
    /// Found everything as it should be.
    Unchanged,
    /// Made what was missing.
    Changed,
    /// Not done; `note` says why.
    Failed,
}

impl PhaseState {
    /// Whether what the phase provides is there.
    pub fn is_done(self) -> bool {
        matches!(self, PhaseState::Unchanged | PhaseState::Changed)
    }
}

/// What was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInfo {
    /// Image name.
    pub name: String,
    /// Image version.
    pub version: String,
    /// Minted by PID 1 at boot, kept across its re-exec.
    pub boot_id: [u8; 16],
    /// dm-verity root hash; `None` where the root is not under verity.
    pub root_hash: Option<[u8; 32]>,
    /// Where the root came from.
    pub slot: Slot,
    /// Kernel release.
    pub kernel: String,
    /// (name, CLOCK_BOOTTIME milliseconds at its end): `kernel`, `initrd`, `early`, `services`, as far as reached.
    pub marks: Vec<(String, u64)>,
    /// How the boot before this one ended, in words; empty as long as that is not known.
    pub previous: String,
    /// PID 1's health at this moment.
    pub stats: Stats,
}

/// Turns of PID 1's loop are counted by their length: bucket n holds those of less than 2^n microseconds.
pub const TURN_BUCKETS: usize = 24;

/// PID 1's own health. Counters begin anew with a re-exec, except where something else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// How often PID 1 has re-executed itself since boot.
    pub reexecs: u32,
    /// From the last fault to the end of the first whole turn of the loop, microseconds; 0 without one.
    pub recovery_us: u32,
    /// The longest such time since boot.
    pub recovery_us_max: u32,
    /// Allocations of memory. Stands still once the machine is up.
    pub allocations: u64,
    /// What epoll told, ends of processes and datagrams included.
    pub events: u64,
    /// Lengths of the loop's turns, from waking up to sleeping again.
    pub turns: [u32; TURN_BUCKETS],
    /// The longest turn, microseconds.
    pub turn_us_max: u32,
    /// Connections on the control socket, and the most there may be.
    pub clients: (u16, u16),
    /// Programs that run to their end, and the most there may be.
    pub jobs: (u16, u16),
    /// Descriptors kept for services, and the most there may be.
    pub stored: (u16, u16),
    /// Of the last expiry of the dead-man's deadline, since boot.
    pub fence: FenceTimes,
}

impl Stats {
    /// Upper bound of the turns' length in microseconds below which `share` (0 to 1) of them are.
    pub fn turn_us(&self, share: f64) -> u64 {
        let all: u64 = self.turns.iter().map(|n| u64::from(*n)).sum();
        let wanted = (all as f64 * share).ceil() as u64;
        let mut seen = 0;
        let at = self.turns.iter().position(|n| {
            seen += u64::from(*n);
            seen >= wanted
        });
        1 << at.unwrap_or(TURN_BUCKETS)
    }
}

/// What the dead-man's switch did, in CLOCK_BOOTTIME nanoseconds; 0: not yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceTimes {
    /// The deadline that passed.
    pub deadline_ns: u64,
    /// The virtual addresses were closed.
    pub gate_ns: u64,
    /// All writers' cgroups had their `cgroup.kill`.
    pub killed_ns: u64,
    /// The last of them was empty.
    pub empty_ns: u64,
}

/// Where a root file system came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// Partitions 2 and 3.
    A,
    /// Partitions 4 and 5.
    B,
    /// In the initrd, over the network.
    Network,
    /// None of these (a container).
    Other,
}

/// Why a message could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Longer than a packet may be.
    #[error("message of {bytes} bytes does not fit a control packet of {PACKET_MAX} bytes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// Why a packet was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("empty control packet")]
    Empty,
    /// Longer than a packet may be.
    #[error("control packet of {bytes} bytes, at most {PACKET_MAX} are accepted")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Another version of the protocol.
    #[error("control protocol version {found}, this program speaks {VERSION}")]
    Version {
        /// What the packet says.
        found: u8,
    },
    /// The body is no message.
    #[error("control packet does not decode: {0}")]
    Body(&'static str),
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let mut packet = vec![VERSION];
    encode_to(message, &mut packet).map(|()| packet)
}

fn encode_to<T: Serialize>(message: &T, packet: &mut Vec<u8>) -> Result<(), EncodeError> {
    *packet = postcard::to_extend(message, std::mem::take(packet))
        .expect("messages hold only types that postcard can write");
    if packet.len() > PACKET_MAX {
        return Err(EncodeError::TooLong { bytes: packet.len() });
    }
    Ok(())
}

fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, DecodeError> {
    if packet.len() > PACKET_MAX {
        return Err(DecodeError::TooLong { bytes: packet.len() });
    }
    let (&found, body) = packet.split_first().ok_or(DecodeError::Empty)?;
    if found != VERSION {
        return Err(DecodeError::Version { found });
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(DecodeError::Body("bytes after the message")),
        Err(_) => Err(DecodeError::Body("not a message of this protocol")),
    }
}

impl Request {
    /// The packet.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        encode(self)
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        decode(packet)
    }
}

impl Message {
    /// The packet.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        encode(self)
    }

    /// Writes the packet over what `packet` holds; allocates nothing while its capacity is enough.
    pub fn encode_into(&self, packet: &mut Vec<u8>) -> Result<(), EncodeError> {
        packet.clear();
        packet.push(VERSION);
        encode_to(self, packet)
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        decode(packet)
    }
}
