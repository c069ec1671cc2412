//! What is wanted and what is there, in the same words.

use std::net::IpAddr;

use dyad_spec::site::{self, Bond, BondMode, Bridge, HashPolicy, LacpRate, Route, Site, Vlan};
use dyad_spec::{IpNet, Mac};

/// The network of one node, as its site file wants it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Physical links by role. Empty: every physical link is brought up under its kernel name.
    pub links: Vec<site::Link>,
    /// Bonds.
    pub bonds: Vec<Bond>,
    /// Tagged networks.
    pub vlans: Vec<Vlan>,
    /// Bridges.
    pub bridges: Vec<Bridge>,
    /// Static addresses.
    pub addresses: Vec<site::Address>,
    /// Static routes.
    pub routes: Vec<Route>,
}

impl Network {
    /// Without a site file, or before it is known which of its nodes this is: every physical link up, link-local
    /// addresses only.
    pub fn unconfigured() -> Self {
        Self::default()
    }

    /// The part of a site that is one node's.
    pub fn of(site: &Site, node: &site::Node) -> Self {
        Self {
            links: node.links.clone(),
            bonds: site.bonds.clone(),
            vlans: site.vlans.clone(),
            bridges: site.bridges.clone(),
            addresses: node.addresses.clone(),
            routes: site.routes.clone(),
        }
    }
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLink {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Further names.
    pub altnames: Vec<String>,
    /// What it is.
    pub kind: LinkKind,
    /// Present MAC address: a bond's members share one.
    pub mac: Option<Mac>,
    /// The address that the hardware came with, if its driver says so; for a member of a bond also what it had
    /// before it joined.
    pub permanent_mac: Option<Mac>,
    /// Address of the PCI function behind it (`0000:00:04.0`).
    pub pci: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// Index of the bond or bridge that it belongs to.
    pub controller: Option<u32>,
    /// That is a bond, which gives all its members one address.
    pub in_bond: bool,
    /// Settings, when it is a bond.
    pub bond: Option<BondSettings>,
    /// Index of the link that carries it and its number, when it is a VLAN.
    pub vlan: Option<(u32, u16)>,
}

impl ObservedLink {
    /// The address by which a site file names this link: the permanent one. A virtual link has none; then the
    /// present one counts, unless the link has it from a bond.
    pub fn identity(&self) -> Option<Mac> {
        let own = self.kind == LinkKind::Physical && !self.in_bond;
        self.permanent_mac.or(if own { self.mac } else { None })
    }
}

/// What a link is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`
    Loopback,
    /// A network card, or the inner end of a virtual cable whose other end is outside.
    Physical,
    /// A bond.
    Bond,
    /// A VLAN.
    Vlan,
    /// A bridge.
    Bridge,
    /// Anything else; it is left alone.
    Other,
}

/// The settings of a bond that a site can state, in the form in which they can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BondSettings {
    /// How the members work together.
    pub mode: BondWay,
    /// Milliseconds between two looks at the carrier.
    pub miimon_ms: u32,
    /// Only with LACP; `None` for a value that a site cannot state.
    pub lacp_rate: Option<LacpRate>,
    /// Only with LACP; `None` for a value that a site cannot state.
    pub hash: Option<HashPolicy>,
}

/// Mode of a bond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BondWay {
    /// 802.3ad
    Lacp,
    /// active-backup
    ActiveBackup,
    /// A mode that a site cannot state, by the kernel's number.
    Other(u8),
}

impl From<&Bond> for BondSettings {
    fn from(bond: &Bond) -> Self {
        let miimon_ms = bond.miimon_ms;
        match bond.mode {
            BondMode::Lacp { rate, hash } => {
                Self { mode: BondWay::Lacp, miimon_ms, lacp_rate: Some(rate), hash: Some(hash) }
            }
            BondMode::ActiveBackup => {
                Self { mode: BondWay::ActiveBackup, miimon_ms, lacp_rate: None, hash: None }
            }
        }
    }
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedRoute {
    /// Destination.
    pub to: IpNet,
    /// Gateway; `None` for a network on the link.
    pub via: Option<IpAddr>,
}

/// Everything that planning looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Links, in the kernel's order.
    pub links: Vec<ObservedLink>,
    /// (link index, address).
    pub addresses: Vec<(u32, IpNet)>,
    /// Routes.
    pub routes: Vec<ObservedRoute>,
}

impl Observed {
    /// The addresses by which a site file can name this machine's links: what [`Site::identify`] wants.
    pub fn identities(&self) -> Vec<Mac> {
        self.links.iter().filter_map(ObservedLink::identity).collect()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&ObservedLink> {
        self.links.iter().find(|link| link.name == name)
    }
}
