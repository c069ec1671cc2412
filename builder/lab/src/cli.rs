//! The `dyad lab` command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::machine::Accel;

/// Name of the hidden command that is the daemon.
pub(crate) const DAEMON: &str = "daemon";
/// Name of the hidden command that binds a child to its parent's life.
pub(crate) const LAUNCH: &str = "launch";
/// Name of the hidden command that keeps a container.
pub(crate) const KEEP: &str = "keep";
/// Name of the hidden command that becomes a container's PID 1.
pub(crate) const INSIDE: &str = "inside";
/// Name of the hidden command that becomes the witness.
pub(crate) const STATION: &str = "station";

/// `dyad lab`: a cluster on this machine. Without a command: `up`.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Where disks, logs and the control socket are [default: $XDG_STATE_HOME/dyad/lab]
    #[arg(long, value_name = "DIR", global = true)]
    pub state: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<LabCommand>,
}

/// How nodes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Virtual machines in QEMU, booted through UEFI firmware from the built disk image
    Vm,
    /// The image's root with its real PID 1 in namespaces of its own: no verified boot, bonds or volumes, but up in seconds
    Container,
}

/// Options of `lab up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Image definition to build and boot
    #[arg(value_name = "DEF")]
    pub definition: Option<PathBuf>,
    /// Boot this raw disk image instead of building one
    #[arg(long, value_name = "FILE", conflicts_with = "definition")]
    pub image: Option<PathBuf>,
    /// How nodes are made
    #[arg(long, value_enum, default_value = "vm")]
    pub backend: Backend,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub nodes: u8,
    /// Start no witness
    #[arg(long)]
    pub no_witness: bool,
    /// Run this program as the witness [default: the image's own]
    #[arg(long, value_name = "FILE", conflicts_with = "no_witness")]
    pub witness: Option<PathBuf>,
    /// How processors run (vm backend) [default: kvm where a probe guest really starts, else tcg]
    #[arg(long, value_enum)]
    pub accel: Option<Accel>,
    /// Memory of a node in MiB (vm backend)
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..))]
    pub memory: u32,
    /// Processors of a node (vm backend)
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,
    /// Size of a node's disk in GiB (vm backend); the file is sparse
    #[arg(long, value_name = "GIB", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub disk: u32,
    /// Reach a node's disk through the NBD server on the unix socket DIR/NAME; the file it serves is nodes/NAME/disk.raw of
    /// the lab's state (vm backend)
    #[arg(long, value_name = "DIR")]
    pub disks_at: Option<PathBuf>,
    /// Keep a node's data in DIR/NAME, which may be a file system of its own (container backend)
    #[arg(long, value_name = "DIR")]
    pub data_in: Option<PathBuf>,
    /// Lay this site file on the nodes instead of the lab's own
    #[arg(long, value_name = "FILE")]
    pub site: Option<PathBuf>,
    /// Lay no site file on the disks: for images that are not Dyad's
    #[arg(long, conflicts_with = "site")]
    pub no_site: bool,
    /// Return when the machines run, without waiting for anything more
    #[arg(long)]
    pub no_wait: bool,
    /// Print the status as JSON at the end
    #[arg(long)]
    pub json: bool,
}

impl Default for UpArgs {
    fn default() -> Self {
        UpArgs {
            definition: None,
            image: None,
            backend: Backend::Vm,
            nodes: 2,
            no_witness: false,
            witness: None,
            accel: None,
            memory: 1024,
            cpus: 2,
            disk: 8,
            disks_at: None,
            data_in: None,
            site: None,
            no_site: false,
            no_wait: false,
            json: false,
        }
    }
}

/// The lab's commands. Exit codes: 0 done; 1 refused or failed, the reason on standard error; 2 usage.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Build the image, boot the nodes and wait until they are as well protected as they can be
    Up(UpArgs),
    /// Show how the lab is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show on one screen what the lab does, until interrupted
    Watch,
    /// Run a command inside the lab's network
    Exec {
        /// Command and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run psql against the node that takes writes, or another one
    Psql {
        /// Which node [default: the one that takes writes]
        #[arg(long)]
        node: Option<String>,
        /// Arguments of psql
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Open a node's serial console; Ctrl-] leaves
    Console {
        /// Node name
        node: String,
    },
    /// Print what a node's serial console has said
    Logs {
        /// Node name, or `witness`
        node: String,
    },
    /// Pull a node's plug
    Kill {
        /// Node name, or `witness`
        node: String,
    },
    /// Power a node on
    Start {
        /// Node name, or `witness`
        node: String,
    },
    /// Stall a node while time passes
    Pause {
        /// Node name, or `witness`
        node: String,
        /// Stop the guest's clock as well
        #[arg(long)]
        stop_clock: bool,
    },
    /// Let a paused node run on
    Resume {
        /// Node name, or `witness`
        node: String,
    },
    /// Shut a node down in order
    Stop {
        /// Node name, or `witness`
        node: String,
    },
    /// Cut every path between two members: nodes, `witness`, `host`
    Cut {
        /// One
        a: String,
        /// The other
        b: String,
        /// Drop only what goes from A to B
        #[arg(long)]
        one_way: bool,
    },
    /// Undo the cuts between two members, or all
    Heal {
        /// One
        #[arg(requires = "b")]
        a: Option<String>,
        /// The other
        b: Option<String>,
    },
    /// Pull a cable out of a node, until it is plugged in again or the node started
    Unplug {
        /// Node name
        node: String,
        /// `lan0`, `lan1`, `repl0` or `repl1`
        nic: String,
        /// Leave the carrier and lose every frame: what a bond's partner looks like that has stopped to speak LACP
        #[arg(long)]
        silent: bool,
    },
    /// Plug a cable in again
    Plug {
        /// Node name
        node: String,
        /// `lan0`, `lan1`, `repl0` or `repl1`
        nic: String,
    },
    /// Ask a node's supervisor: status, services, credentials, logs
    Ctl {
        /// Node name
        node: String,
        /// What to ask
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// End the lab and remove its disks
    Down {
        /// Shut the nodes down in order and keep their disks for the next `up`
        #[arg(long)]
        keep: bool,
    },
    /// The daemon
    #[command(name = DAEMON, hide = true)]
    Daemon,
    /// Keep a container
    #[command(name = KEEP, hide = true)]
    Keep {
        /// What PID 1 finds, as JSON
        spec: String,
    },
    /// Become a container's PID 1
    #[command(name = INSIDE, hide = true)]
    Inside {
        /// What it finds, as JSON
        spec: String,
    },
    /// Become the witness
    #[command(name = STATION, hide = true)]
    Station {
        /// What it finds, as JSON
        spec: String,
    },
    /// Bind to the parent's life, then become a program
    #[command(name = LAUNCH, hide = true)]
    Launch {
        /// Process id of the parent
        parent: i32,
        /// Program and arguments
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}
