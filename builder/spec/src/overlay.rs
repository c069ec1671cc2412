//! `overlays/NAME/overlay.toml`: what a part of an image brings along.

use crate::compiled;
use crate::decode::{At, Decode, Decoder, Entries, Int, Scalar, Value, integer, table, words};
use crate::definition::{RawModules, RawOmit, RawPathRule};
use crate::scalar::Text;
use crate::scalar::{
    AbsPath, AccountName, EnvName, Line, LinkTarget, Millis, Mode, Name, PackageName, SysctlName,
};
use crate::syscall::Syscall;

table! {
    /// An overlay.
    pub(crate) struct RawOverlay {
        /// One line about what it brings.
        description: Line,
        /// Overlays that must be there too; they are laid before this one.
        requires: Vec<At<Name>>,
        /// Packages.
        packages: Vec<At<PackageName>>,
        /// Kernel modules.
        modules: RawModules = RawModules { initrd: Vec::new(), root: Vec::new(), load: Vec::new() },
        /// Programs that PID 1 runs.
        services: Entries<Name, RawService>,
        /// Users with fixed numbers.
        users: Entries<AccountName, RawUser>,
        /// Groups with fixed numbers.
        groups: Entries<AccountName, RawGroup>,
        /// Directories made at boot on the volatile file systems (/run, /var, /tmp) or on /state.
        directories: Vec<RawDirectory>,
        /// Symbolic links: below /run, /var and /tmp made at boot, elsewhere part of the image.
        links: Vec<RawLink>,
        /// Attributes of files laid by this overlay, where not root's with 0644 or 0755 by their execute bit.
        files: Vec<RawFile>,
        /// Kernel parameters set at boot.
        sysctls: Entries<SysctlName, At<SettingText>>,
        /// Files left out of the image.
        prune: Vec<RawPathRule>,
        /// Files kept although a prune rule covers them.
        keep: Vec<RawPathRule>,
        /// Packages left out although something depends on them.
        omit: Vec<RawOmit>,
    }
}

table! {
    /// One program that PID 1 runs and looks after.
    pub(crate) struct RawService {
        /// Absolute path and arguments.
        exec: At<Vec<Line>>,
        /// Extra environment.
        env: Entries<EnvName, Line>,
        /// Working directory.
        cwd: Option<AbsPath>,
        /// User it runs as.
        user: Option<AccountName>,
        /// Primary group, where not the user's.
        group: Option<AccountName>,
        /// Supplementary groups.
        groups: Vec<AccountName>,
        /// Capabilities kept; without this key root keeps all and other users none.
        capabilities: Option<Vec<Capability>>,
        /// Start at boot; else only when the supervisor asks.
        autostart: bool = true,
        /// Services that must be ready before this one starts, and stop after it. One with sockets is not waited for: what is
        /// written to them stays there until it is up.
        after: Vec<At<Name>>,
        /// How PID 1 knows that it is up.
        readiness: ReadinessWord = ReadinessWord::Started,
        /// Longest time from start to ready; without this key there is no limit.
        start_timeout: Option<Millis>,
        /// When it is started again after it ended by itself.
        restart: RestartWord = RestartWord::OnFailure,
        /// First pause before a restart; doubles with each failure.
        restart_min: Millis = Millis::new(200),
        /// Longest pause before a restart.
        restart_max: At<Millis> = At { value: Millis::new(30_000), span: 0..0 },
        /// How many restarts within `restart_window` are too many; 0: none are.
        restart_burst: Int<0, 10000> = Int(0),
        /// The time in which `restart_burst` restarts are too many.
        restart_window: Millis = Millis::new(60_000),
        /// What happens then.
        give_up: GiveUpWord = GiveUpWord::Fail,
        /// Signals sent to stop it, in order; what is left afterwards is killed.
        stop: Vec<RawStopStep> = vec![RawStopStep { signal: Signal(15), wait: Millis::new(10_000) }],
        /// Sockets that PID 1 binds and hands over.
        sockets: Vec<RawSocket>,
        /// How many descriptors it may keep with PID 1.
        fd_store_max: Int<0, 16384> = Int(0),
        /// Limit of open files.
        nofile: Option<Int<64, 1048576>>,
        /// The kernel's out-of-memory score adjustment.
        oom_score_adj: Int<-1000, 1000> = Int(0),
        /// Never gain privileges through an executed file.
        no_new_privs: bool = true,
        /// It has a /tmp and a /var/tmp of its own, which end with it.
        private_tmp: bool = false,
        /// Directories that it can read and not write.
        read_only: Vec<AbsPath>,
        /// Directories in whose place it sees an empty one.
        hidden: Vec<AbsPath>,
        /// The only system calls that it may make, beside those that start it and end it; any other one kills it. Without
        /// this key it may make all.
        syscalls: Option<At<Vec<Syscall>>>,
        /// Output goes to the console too.
        console: bool = false,
        /// Boot phases (`state`, `data`, ...) without which it is not started.
        phases: Vec<PhaseWord>,
        /// Boot phases that must have ended, well or not, before it is started; without this key all of them.
        begins_after: Option<Vec<PhaseWord>>,
        /// Absolute path and arguments run once while the machine boots, on a processor that has nothing else to do, as the
        /// service's user: a program that was read once starts sooner. How it ends does not matter.
        warm_up: Vec<At<Line>>,
        /// Longest silence between two WATCHDOG=1 messages; without this key there is no watchdog.
        watchdog: Option<Millis>,
        /// It writes to shared data: killed when the dead-man's deadline passes.
        fence: bool = false,
    }
}

table! {
    /// One rung of a stop ladder.
    pub(crate) struct RawStopStep {
        /// Signal to the main process.
        signal: Signal,
        /// How long to wait for the service to end.
        wait: Millis,
    }
}

table! {
    /// A listening unix socket.
    pub(crate) struct RawSocket {
        /// Path below /run.
        path: At<AbsPath>,
        /// Type.
        kind: SocketWord,
        /// Permission bits.
        mode: Mode = Mode::new(0o666),
        /// Name that the service knows it by (FDNAME).
        name: Name,
        /// Receive the sender's credentials.
        pass_credentials: bool = false,
    }
}

table! {
    /// A user.
    pub(crate) struct RawUser {
        /// Number.
        uid: At<Int<1, 65533>>,
        /// Primary group; without this key the group of the same name.
        group: Option<At<AccountName>>,
        /// Supplementary groups.
        groups: Vec<At<AccountName>>,
        /// Home directory.
        home: AbsPath,
        /// Login shell.
        shell: Option<AbsPath>,
        /// Full name.
        gecos: Option<Line>,
    }
}

table! {
    /// A group.
    pub(crate) struct RawGroup {
        /// Number.
        gid: At<Int<1, 65533>>,
    }
}

table! {
    /// A directory made at boot.
    pub(crate) struct RawDirectory {
        /// Path below /run, /var, /tmp or /state.
        path: At<AbsPath>,
        /// Permission bits.
        mode: Mode = Mode::new(0o755),
        /// Owner.
        user: Option<AccountName>,
        /// Group; without this key the owner's primary group.
        group: Option<AccountName>,
    }
}

table! {
    /// A symbolic link.
    pub(crate) struct RawLink {
        /// Where the link is.
        path: At<AbsPath>,
        /// What it points to.
        target: LinkTarget,
    }
}

table! {
    /// Attributes of a laid file.
    pub(crate) struct RawFile {
        /// Path in the image of a file below `files/`.
        path: At<AbsPath>,
        /// Permission bits.
        mode: Option<Mode>,
        /// Owner.
        user: Option<AccountName>,
        /// Group; without this key the owner's primary group.
        group: Option<AccountName>,
    }
}

words! {
    /// How PID 1 knows that a service is up.
    pub(crate) enum ReadinessWord {
        /// Running means ready.
        Started = "started",
        /// READY=1 on the notify socket.
        Notify = "notify",
        /// Exit with status 0 means done.
        Exit = "exit",
    }
}

words! {
    /// The early boot phases.
    pub(crate) enum PhaseWord {
        /// Drivers of the devices that are there.
        Modules = "modules",
        /// Partitions to fit the disk.
        Grow = "grow",
        /// The state partition.
        State = "state",
        /// The volume group and PostgreSQL's volume.
        Data = "data",
        /// The boot partition, with the site file.
        Esp = "esp",
    }
}

words! {
    /// When a service is started again.
    pub(crate) enum RestartWord {
        /// Never.
        Never = "never",
        /// After a failure.
        OnFailure = "on-failure",
        /// After any end.
        Always = "always",
    }
}

words! {
    /// What happens when a service ends too often.
    pub(crate) enum GiveUpWord {
        /// It stays down and counts as failed.
        Fail = "fail",
        /// The machine reboots in order.
        Reboot = "reboot",
    }
}

words! {
    /// Type of a unix socket.
    pub(crate) enum SocketWord {
        /// SOCK_STREAM
        Stream = "stream",
        /// SOCK_DGRAM
        Datagram = "datagram",
        /// SOCK_SEQPACKET
        SeqPacket = "seqpacket",
    }
}

impl ReadinessWord {
    pub(crate) fn compiled(self) -> compiled::Readiness {
        match self {
            ReadinessWord::Started => compiled::Readiness::Started,
            ReadinessWord::Notify => compiled::Readiness::Notify,
            ReadinessWord::Exit => compiled::Readiness::Exit,
        }
    }
}

impl RestartWord {
    pub(crate) fn compiled(self) -> compiled::Restart {
        match self {
            RestartWord::Never => compiled::Restart::Never,
            RestartWord::OnFailure => compiled::Restart::OnFailure,
            RestartWord::Always => compiled::Restart::Always,
        }
    }
}

impl GiveUpWord {
    pub(crate) fn compiled(self) -> compiled::GiveUp {
        match self {
            GiveUpWord::Fail => compiled::GiveUp::Fail,
            GiveUpWord::Reboot => compiled::GiveUp::Reboot,
        }
    }
}

impl SocketWord {
    pub(crate) fn compiled(self) -> compiled::SocketKind {
        match self {
            SocketWord::Stream => compiled::SocketKind::Stream,
            SocketWord::Datagram => compiled::SocketKind::Datagram,
            SocketWord::SeqPacket => compiled::SocketKind::SeqPacket,
        }
    }
}

/// A signal by its number on Linux x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

/// Signals that make sense on a stop ladder.
const SIGNALS: [(&str, i32); 10] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGABRT", 6),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGTERM", 15),
    ("SIGCONT", 18),
    ("SIGWINCH", 28),
];

impl Scalar for Signal {
    const ACCEPTED: &'static str = "one of \"SIGTERM\" \"SIGINT\" \"SIGQUIT\" \"SIGHUP\" \"SIGKILL\" \"SIGUSR1\" \
                                    \"SIGUSR2\" \"SIGABRT\" \"SIGCONT\" \"SIGWINCH\"";
    const WORDS: &'static [&'static str] = &[
        "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGABRT", "SIGCONT",
        "SIGWINCH",
    ];
    fn parse(text: &str) -> Result<Self, String> {
        let found = SIGNALS.iter().find(|(name, _)| *name == text);
        found.map(|&(_, number)| Signal(number)).ok_or_else(String::new)
    }
}

/// A capability by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Capability(pub(crate) u8);

/// Capabilities by number (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

impl Scalar for Capability {
    const ACCEPTED: &'static str = "a capability as in capabilities(7), such as \"CAP_NET_ADMIN\"";
    const WORDS: &'static [&'static str] = &CAPABILITIES;
    fn parse(text: &str) -> Result<Self, String> {
        let found = CAPABILITIES.iter().position(|name| *name == text);
        found.map(|number| Capability(number as u8)).ok_or_else(String::new)
    }
}

/// A setting written as a string, a number or a truth value; kept as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SettingText(pub(crate) String);

impl Decode for SettingText {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        use toml::de::DeValue;
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(SettingText(if *yes { "on" } else { "off" }.into())),
            DeValue::Integer(_) if integer(value).is_some() => {
                integer(value).map(|n| SettingText(n.to_string()))
            }
            DeValue::Float(number) => Some(SettingText(number.as_str().replace('_', ""))),
            _ => Line::decode(value, d).map(|line| SettingText(line.as_str().to_owned())),
        }
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": ["string", "integer", "number", "boolean"] })
    }
}
