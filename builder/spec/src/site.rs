//! `site.toml`: one cluster's names, addresses, storage and databases. No secret ever stands in it.
//!
//! The builder, the flasher and the appliance read the same file with the same checks; nothing of a host is needed.

mod check;
mod network;
mod postgresql;
mod raw;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::decode::{Scalar, document, words};
use crate::diagnostic::{Diagnostics, Source};
use crate::scalar::{ByteSize, IpNet, Mac};

pub use postgresql::managed_setting;

#[cfg(feature = "schema")]
pub(crate) use raw::RawSite;

/// A checked site file: every name in it refers to something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Name of the cluster.
    pub cluster: String,
    /// How long a silence means loss.
    pub profile: Profile,
    /// How two blank nodes prove that they belong together.
    pub pairing: Pairing,
    /// What a pair that has no witness does when one of the two is lost.
    pub without_witness: WithoutWitness,
    /// The third vote.
    pub witness: Option<SocketAddr>,
    /// Resolvers.
    pub dns: Vec<IpAddr>,
    /// Time servers.
    pub ntp: Vec<IpAddr>,
    /// One or two nodes, by name.
    pub nodes: Vec<Node>,
    /// Bonds, by name, the same on every node.
    pub bonds: Vec<Bond>,
    /// Tagged networks, by name, the same on every node.
    pub vlans: Vec<Vlan>,
    /// Bridges, by name, the same on every node.
    pub bridges: Vec<Bridge>,
    /// Static routes, the same on every node.
    pub routes: Vec<Route>,
    /// Addresses that follow the writer.
    pub vips: Vec<Vip>,
    /// Services of the image that clients need beside PostgreSQL.
    pub client_services: Vec<String>,
    /// PostgreSQL.
    pub postgresql: Postgresql,
    /// Replicated volumes, by name.
    pub volumes: Vec<Volume>,
    /// Virtual machines, by name.
    pub vms: Vec<Vm>,
    /// Who may operate the cluster from afar.
    pub operators: Vec<Operator>,
}

impl Site {
    /// Reads and checks a site file.
    pub fn parse(source: Source) -> Result<Site, Diagnostics> {
        let source = Arc::new(source);
        let raw = document(&source)?;
        check::site(&source, raw)
    }

    /// The node that a machine with these permanent MAC addresses is: the one of which a link is named by one of
    /// them, or the only node of a site that names no MAC address of it. `None`: pairing decides.
    pub fn identify(&self, permanent: &[Mac]) -> Option<&Node> {
        let macs = |node: &Node| -> Vec<Mac> {
            let of = |l: &Link| match l.matches {
                LinkMatch::Mac(mac) => Some(mac),
                LinkMatch::Pci(_) => None,
            };
            node.links.iter().filter_map(of).collect()
        };
        if let Some(node) = self.nodes.iter().find(|n| macs(n).iter().any(|m| permanent.contains(m))) {
            return Some(node);
        }
        match &self.nodes[..] {
            [only] if macs(only).is_empty() => Some(only),
            _ => None,
        }
    }
}

words! {
    /// How long a silence means loss (T).
    pub enum Profile {
        /// One room: 3 s.
        Lan = "lan",
        /// One campus, or machines that are often busy: 5 s.
        Medium = "medium",
        /// Between towns, or guests under emulation: 15 s.
        Wan = "wan",
    }
}

impl Profile {
    /// T in milliseconds.
    pub const fn t_ms(self) -> u32 {
        match self {
            Profile::Lan => 3_000,
            Profile::Medium => 5_000,
            Profile::Wan => 15_000,
        }
    }
}

words! {
    /// How two blank nodes prove that they belong together.
    pub enum Pairing {
        /// By a site key laid beside the site file.
        Key = "key",
        /// By a code typed once.
        Code = "code",
    }
}

words! {
    /// What a pair that has no witness does when one of the two is lost.
    pub enum WithoutWitness {
        /// The writer goes on alone; the other never takes over by itself.
        PrimaryBiased = "primary-biased",
        /// Nothing is acknowledged but by both: writes wait until the other is back, or an operator decides.
        Strict = "strict",
    }
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name; also its host name.
    pub name: String,
    /// Physical links, by role.
    pub links: Vec<Link>,
    /// Static addresses, by interface, in the order of the file.
    pub addresses: Vec<Address>,
}

/// A physical link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its interface name from before it is up (`lan0`, `repl1`, ...).
    pub role: String,
    /// How it is found.
    pub matches: LinkMatch,
}

/// How a physical link is found; kernel names are not stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkMatch {
    /// By its permanent MAC address, never by the one it has as a bond's member.
    Mac(Mac),
    /// By its PCI address (`0000:00:04.0`).
    Pci(String),
}

/// A static address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A link's role, a bond, a VLAN or a bridge.
    pub interface: String,
    /// Address and prefix length.
    pub address: IpNet,
}

/// Several links as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bond {
    /// Interface name.
    pub name: String,
    /// How the members work together.
    pub mode: BondMode,
    /// Roles of the members; never empty.
    pub members: Vec<String>,
    /// Milliseconds between two looks at the carrier.
    pub miimon_ms: u32,
}

/// How the members of a bond work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BondMode {
    /// All at once, agreed with the other end by LACP; one at a time while no partner answers.
    Lacp {
        /// How often the ends hear of each other.
        rate: LacpRate,
        /// What spreads the traffic.
        hash: HashPolicy,
    },
    /// One at a time.
    ActiveBackup,
}

words! {
    /// Bonding mode.
    pub(crate) enum BondModeWord {
        /// LACP.
        Lacp = "802.3ad",
        /// One at a time.
        ActiveBackup = "active-backup",
    }
}

words! {
    /// How often the ends of an LACP bond hear of each other.
    pub enum LacpRate {
        /// Every 30 s.
        Slow = "slow",
        /// Every second.
        Fast = "fast",
    }
}

words! {
    /// What decides which member carries a packet.
    pub enum HashPolicy {
        /// MAC addresses.
        Layer2 = "layer2",
        /// MAC and IP addresses.
        Layer23 = "layer2+3",
        /// IP addresses and ports.
        Layer34 = "layer3+4",
    }
}

/// One tagged network of those that a cable carries (802.1Q).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Interface name.
    pub name: String,
    /// The link or bond whose frames carry its tag.
    pub link: String,
    /// Its number, 1 to 4094.
    pub id: u16,
}

/// A bridge that virtual machines are attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// Links, bonds and VLANs in it.
    pub members: Vec<String>,
}

/// A static route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Network; prefix length 0 is the default route.
    pub to: IpNet,
    /// Gateway, in a network of every node.
    pub via: IpAddr,
}

/// An address that follows the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// Name.
    pub name: String,
    /// Interface that it is on.
    pub interface: String,
    /// Address and prefix length, in a network of that interface.
    pub address: IpNet,
}

/// PostgreSQL as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgresql {
    /// Port.
    pub port: u16,
    /// Most KiB a second that a copy of the whole data takes from the primary.
    pub copy_rate_kib: Option<u32>,
    /// Settings by name, in PostgreSQL's words; never one that the appliance decides itself.
    pub settings: Vec<(String, String)>,
    /// Roles that may log in, by name.
    pub roles: Vec<SqlRole>,
    /// Databases, by name.
    pub databases: Vec<Database>,
    /// Who may connect from where, in order; empty: from the networks of the node.
    pub access: Vec<Access>,
}

/// A role that may log in; its password is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlRole {
    /// Name.
    pub name: String,
    /// May make databases.
    pub create_db: bool,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Name.
    pub name: String,
    /// One of the roles.
    pub owner: String,
}

/// One line of host-based authentication; always with a password (SCRAM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// A database of the site, or `all`.
    pub database: String,
    /// A role of the site, or `all`.
    pub role: String,
    /// From where.
    pub network: IpNet,
    /// Over TLS only.
    pub tls: bool,
}

/// A replicated block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Size.
    pub size: ByteSize,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Name.
    pub name: String,
    /// Main memory.
    pub memory: ByteSize,
    /// Virtual processors.
    pub cpus: u8,
    /// Its disk; no other machine has it.
    pub volume: String,
    /// Bridge that it is attached to.
    pub bridge: Option<String>,
    /// MAC address of its card; without one it is made from its name.
    pub mac: Option<Mac>,
    /// Higher starts first.
    pub priority: u16,
}

/// Somebody who may operate the cluster from afar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Name, for the event log.
    pub name: String,
    /// Ed25519 public key.
    pub key: [u8; 32],
}

/// An Ed25519 public key as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey(pub(crate) [u8; 32]);

impl Scalar for PublicKey {
    const ACCEPTED: &'static str = "an Ed25519 public key: \"ed25519:\" and 64 hexadecimal digits";
    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("ed25519:").ok_or_else(String::new)?;
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(String::new());
        }
        let mut key = [0; 32];
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|e| e.to_string())?;
        }
        Ok(PublicKey(key))
    }
}
