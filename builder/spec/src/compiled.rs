//! The tables that the builder compiles and PID 1 reads: no TOML, no strings to interpret, everything resolved.
//!
//! A table file is `magic (8) | format (u16 LE) | length (u32 LE) | crc32 of the body (u32 LE) | postcard body`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Everything PID 1 must know about its image (`/usr/lib/dyad/image.bin`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTable {
    /// Image name (`lab`, `appliance`).
    pub name: String,
    /// Image version (`1.0.0`).
    pub version: String,
    /// Services in an order in which every dependency stands before its dependents.
    pub services: Vec<Service>,
    /// Directories made on the volatile file systems before any service starts, parents first.
    pub directories: Vec<Directory>,
    /// Links made on the volatile file systems after the directories.
    pub links: Vec<Link>,
    /// (`net.ipv4.ip_forward`, `0`) pairs.
    pub sysctls: Vec<(String, String)>,
    /// Kernel modules loaded by name at boot, in this order; parameters may follow the name (`bonding max_bonds=0`).
    pub modules: Vec<String>,
}

/// A directory on a volatile file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Absolute path below `/run`, `/var`, `/tmp` or `/state`.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A symbolic link on a volatile file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Absolute path below `/run`, `/var` or `/tmp`; its parent is among the directories or a mount point.
    pub path: String,
    /// What it points to, verbatim.
    pub target: String,
}

/// How PID 1 knows that a service is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// Running means ready.
    Started,
    /// `READY=1` on the notify socket.
    Notify,
    /// Exit with status 0 means done.
    Exit,
}

/// When PID 1 starts a service again after it ended without having been asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Never.
    Never,
    /// After a non-zero status or a signal.
    OnFailure,
    /// After any end.
    Always,
}

/// What happens when a service ends too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GiveUp {
    /// It stays down.
    Fail,
    /// The machine reboots in order.
    Reboot,
}

/// One rung of a stop ladder: send the signal to the main process, wait, go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopStep {
    /// Signal number.
    pub signal: i32,
    /// How long to wait for the cgroup to empty, milliseconds.
    pub wait_ms: u32,
}

/// A listening socket that PID 1 binds and hands over (LISTEN_FDS), so that its peers never see it gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// File system path of the unix socket.
    pub path: String,
    /// `stream`, `datagram` or `seqpacket`.
    pub kind: SocketKind,
    /// Permission bits.
    pub mode: u16,
    /// FileDescriptorName given to the service.
    pub name: String,
    /// Set SO_PASSCRED (and SO_PASSSEC) on it.
    pub pass_credentials: bool,
}

/// Socket type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketKind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_DGRAM
    Datagram,
    /// SOCK_SEQPACKET
    SeqPacket,
}

/// One supervised program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Unique name; its cgroup is `/system.slice/NAME.service`.
    pub name: String,
    /// Absolute path and arguments.
    pub exec: Vec<String>,
    /// Extra environment; PID 1 gives PATH, LANG=C.UTF-8 and what the protocols need.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// User, by number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability numbers kept (bounding and, for a user that is not root, ambient); `None`: all for root, none else.
    pub capabilities: Option<Vec<u8>>,
    /// Start at boot; else only when the supervisor asks.
    pub autostart: bool,
    /// Indices into `services`: wait until these are ready; for those with sockets, which are bound before anything starts,
    /// nobody waits. Stops go the other way round.
    pub after: Vec<u16>,
    /// Readiness protocol.
    pub readiness: Readiness,
    /// Start deadline, milliseconds (0: none).
    pub start_timeout_ms: u32,
    /// Restart policy.
    pub restart: Restart,
    /// First back-off, milliseconds; doubles up to `restart_max_ms`.
    pub restart_min_ms: u32,
    /// Longest back-off, milliseconds.
    pub restart_max_ms: u32,
    /// Restarts within `restart_window_ms` after which PID 1 gives it up (0: never).
    pub restart_burst: u16,
    /// See `restart_burst`.
    pub restart_window_ms: u32,
    /// What giving up means.
    pub give_up: GiveUp,
    /// Stop ladder, in order; afterwards `cgroup.kill`.
    pub stop: Vec<StopStep>,
    /// Sockets bound by PID 1.
    pub sockets: Vec<Socket>,
    /// Descriptors that the service may keep with PID 1 (FDSTORE=1).
    pub fd_store_max: u16,
    /// RLIMIT_NOFILE (0: default).
    pub nofile: u64,
    /// oom_score_adj.
    pub oom_score_adj: i16,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// `/tmp` and `/var/tmp` of its own.
    pub private_tmp: bool,
    /// Absolute paths that it sees read-only.
    pub read_only: Vec<String>,
    /// Absolute paths of directories that it sees empty.
    pub hidden: Vec<String>,
    /// Numbers of the system calls that it may make beside execve, exit_group and rt_sigreturn; `None`: all.
    pub syscalls: Option<Vec<u16>>,
    /// Standard output and error: the journal, or the console too.
    pub console: bool,
    /// Early boot phases (`state`, `data`, ...) without which this service is not started.
    pub phases: Vec<String>,
    /// Early boot phases that end before it is started, well or not; `None`: all of them.
    pub begins_after: Option<Vec<String>>,
    /// Absolute path and arguments run once while the machine boots, on a processor that has nothing else to do, so that the
    /// service's program is in memory when it starts; empty: nothing.
    pub warm_up: Vec<String>,
    /// Longest silence between two `WATCHDOG=1` messages, milliseconds (0: no watchdog).
    pub watchdog_ms: u32,
    /// A writer: its cgroup is killed when the dead-man's deadline passes.
    pub fence: bool,
}

/// One kernel module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name with underscores (`virtio_blk`).
    pub name: String,
    /// Absolute path of the `.ko` file.
    pub path: String,
    /// Indices of modules loaded before this one: dependencies and soft `pre` dependencies, already in load order.
    pub needs: Vec<u16>,
    /// Modalias patterns (shell wildcards).
    pub aliases: Vec<String>,
}

/// The modules of an image (`/usr/lib/dyad/modules.bin`); the initrd carries the subset it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleIndex {
    /// Kernel release (`6.1.0-40-amd64`).
    pub kernel: String,
    /// All modules present, sorted by name.
    pub modules: Vec<Module>,
    /// Names loaded first thing in the initrd, in order (`dm_verity`, `squashfs`, ...).
    pub initrd: Vec<String>,
}

/// Magic of an [`ImageTable`] file.
pub const IMAGE_MAGIC: [u8; 8] = *b"DYADIMG\0";
/// Magic of a [`ModuleIndex`] file.
pub const MODULES_MAGIC: [u8; 8] = *b"DYADMOD\0";
/// Format number of both; raised with any change of the structures above.
pub const FORMAT: u16 = 3;

/// Why a table file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Too short or another kind of file.
    #[error("not a {0} table")]
    Magic(&'static str),
    /// Written by another version of the builder.
    #[error("table format {found}, this program reads {FORMAT}")]
    Format {
        /// What the file says.
        found: u16,
    },
    /// Damaged.
    #[error("table is damaged: {0}")]
    Damaged(&'static str),
}

const HEADER: usize = 18;

fn encode<T: Serialize>(magic: [u8; 8], table: &T) -> Vec<u8> {
    let body = postcard::to_allocvec(table).expect("tables hold only types that postcard can write");
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

fn decode<T: DeserializeOwned>(magic: [u8; 8], what: &'static str, bytes: &[u8]) -> Result<T, TableError> {
    if bytes.len() < HEADER || bytes[..8] != magic {
        return Err(TableError::Magic(what));
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != FORMAT {
        return Err(TableError::Format { found });
    }
    let body = &bytes[HEADER..];
    if body.len() != word(10) as usize {
        return Err(TableError::Damaged("length differs"));
    }
    if crc32fast::hash(body) != word(14) {
        return Err(TableError::Damaged("checksum differs"));
    }
    postcard::from_bytes(body).map_err(|_| TableError::Damaged("body does not decode"))
}

impl ImageTable {
    /// The bytes of `image.bin`.
    pub fn encode(&self) -> Vec<u8> {
        encode(IMAGE_MAGIC, self)
    }

    /// Reads `image.bin`.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        decode(IMAGE_MAGIC, "image", bytes)
    }
}

impl ModuleIndex {
    /// The bytes of `modules.bin`.
    pub fn encode(&self) -> Vec<u8> {
        encode(MODULES_MAGIC, self)
    }

    /// Reads `modules.bin`.
    pub fn decode(bytes: &[u8]) -> Result<Self, TableError> {
        decode(MODULES_MAGIC, "module", bytes)
    }
}
