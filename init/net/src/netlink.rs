//! The kernel behind the plan: reads links, addresses and routes, and runs one step at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use dyad_spec::site::{HashPolicy, LacpRate, Route};
use dyad_spec::{IpNet, Mac};
use futures_util::TryStreamExt;
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    BondLacpRate, BondMode, BondXmitHashPolicy, InfoBond, InfoBondPort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, Prop,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{
    Handle, LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan, RouteMessageBuilder,
};

use crate::model::{BondSettings, BondWay, LinkKind, Observed, ObservedLink, ObservedRoute};
use crate::plan::{BondChange, Step};

/// What planning needs of a kernel. One implementation talks to the real one.
pub trait Kernel {
    /// Reads everything that planning looks at.
    fn observe(&self) -> impl Future<Output = Result<Observed, NetError>> + Send;
    /// Makes one change.
    fn execute(&self, step: &Step) -> impl Future<Output = Result<(), NetError>> + Send;
}

/// Why the network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(std::io::Error),
    /// A dump failed.
    #[error("cannot read {what}: {message}")]
    Read {
        /// Links, addresses or routes.
        what: &'static str,
        /// What the kernel said.
        message: String,
    },
    /// A change failed.
    #[error("{step}: {message}")]
    Step {
        /// The step.
        step: String,
        /// What the kernel said.
        message: String,
    },
    /// The site file and the machine contradict each other.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// Something undoes what is done.
    #[error("after {passes} passes there is still to do: {left}")]
    Unstable {
        /// How often was tried.
        passes: usize,
        /// The steps left.
        left: String,
    },
}

/// Asks the kernel to do a step; the text names the module when the kernel lacks the kind of link.
fn step_error(step: &Step, error: &rtnetlink::Error) -> NetError {
    let mut message = match error {
        rtnetlink::Error::NetlinkError(error) => ErrorMessage::to_io(error).to_string(),
        other => other.to_string(),
    };
    // EOPNOTSUPP: no such kind of link, and the kernel's request for its module was answered by nobody.
    let unsupported = matches!(error, rtnetlink::Error::NetlinkError(error) if error.raw_code() == -95);
    match step {
        Step::CreateBond(..) if unsupported => {
            message.push_str(" (is the module bonding loaded, with max_bonds=0?)");
        }
        Step::CreateVlan { .. } if unsupported => message.push_str(" (is the module 8021q loaded?)"),
        Step::CreateBridge(..) if unsupported => message.push_str(" (is the module bridge loaded?)"),
        _ => {}
    }
    NetError::Step { step: step.to_string(), message }
}

/// The real kernel.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    sysfs: PathBuf,
}

impl Netlink {
    /// Opens a socket in the network namespace of this thread; `sysfs` shows the same namespace (`/sys`).
    /// Needs a tokio runtime with I/O, in which it keeps one small task.
    pub fn open(sysfs: &Path) -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, sysfs: sysfs.to_owned() })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn sysfs(&self) -> &Path {
        &self.sysfs
    }

    pub(crate) async fn links(&self) -> Result<Vec<LinkMessage>, NetError> {
        let read = |error: rtnetlink::Error| NetError::Read { what: "links", message: error.to_string() };
        self.handle.link().get().execute().try_collect().await.map_err(read)
    }

    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, NetError> {
        let read = |error: rtnetlink::Error| NetError::Read { what: "addresses", message: error.to_string() };
        let all: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(read)?;
        Ok(all.iter().filter_map(address).collect())
    }

    async fn routes(&self) -> Result<Vec<ObservedRoute>, NetError> {
        let read = |error: rtnetlink::Error| NetError::Read { what: "routes", message: error.to_string() };
        let mut routes = Vec::new();
        for request in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let all: Vec<_> = self.handle.route().get(request).execute().try_collect().await.map_err(read)?;
            routes.extend(all.iter().filter_map(route));
        }
        Ok(routes)
    }

    /// Kernel index of a name that an earlier step may just have made.
    async fn index(&self, name: &str) -> Result<u32, rtnetlink::Error> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        let all: Vec<LinkMessage> = request.try_collect().await?;
        all.first().map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
    }

    async fn change(&self, message: LinkMessage) -> Result<(), rtnetlink::Error> {
        self.handle.link().set(message).execute().await
    }

    async fn run(&self, step: &Step) -> Result<(), rtnetlink::Error> {
        let link = self.handle.link();
        match step {
            Step::Down(name) => {
                let index = self.index(name).await?;
                self.change(LinkUnspec::new_with_index(index).down().build()).await
            }
            Step::Up(name) => {
                let index = self.index(name).await?;
                self.change(LinkUnspec::new_with_index(index).up().build()).await
            }
            Step::Rename { from, to } => {
                let index = self.index(from).await?;
                self.change(LinkUnspec::new_with_index(index).name(to).build()).await
            }
            Step::AltName { link: name, name: alt } => {
                let index = self.index(name).await?;
                link.property_add(index).alt_ifname(&[alt]).execute().await
            }
            Step::CreateBond(name, settings) => {
                link.add(bond_options(LinkBond::new(name), (*settings).into()).build()).execute().await
            }
            Step::SetBond(name, change) => {
                let index = self.index(name).await?;
                // By index alone: a message that also has the name is taken as a rename, which a bond that is up refuses.
                let bond = LinkMessageBuilder::new_with_info_kind(InfoKind::Bond).index(index);
                let message = bond_options(bond, *change).build();
                // RTM_NEWLINK without "create": the settings of a kind are not reachable through RTM_SETLINK.
                link.set_port(message).execute().await
            }
            Step::CreateVlan { name, link: carrier, id } => {
                let carrier = self.index(carrier).await?;
                link.add(LinkVlan::new(name, carrier, *id).build()).execute().await
            }
            Step::Delete(name) => {
                let index = self.index(name).await?;
                link.del(index).execute().await
            }
            Step::CreateBridge(name, mac) => {
                // A guest's bridge learns at once; there is no spanning tree that would need a delay.
                let bridge = LinkBridge::new(name).forward_delay(0);
                let bridge = match mac {
                    Some(mac) => bridge.address(mac.0.to_vec()),
                    None => bridge,
                };
                link.add(bridge.build()).execute().await
            }
            Step::Join { link: name, controller } => {
                let (index, controller) = (self.index(name).await?, self.index(controller).await?);
                self.change(LinkUnspec::new_with_index(index).controller(controller).build()).await
            }
            Step::Leave(name) => {
                let index = self.index(name).await?;
                // A link must be down to join something else; one that leaves a bridge stays up.
                self.change(LinkUnspec::new_with_index(index).nocontroller().build()).await?;
                self.change(LinkUnspec::new_with_index(index).down().build()).await
            }
            Step::AddAddress(name, address) => {
                let index = self.index(name).await?;
                self.handle.address().add(index, address.address, address.prefix).execute().await
            }
            Step::SetRoute(route) => {
                let message = route_message(route)?;
                self.handle.route().add(message).replace().execute().await
            }
        }
    }
}

impl Kernel for Netlink {
    async fn observe(&self) -> Result<Observed, NetError> {
        Ok(Observed {
            links: self.links().await?.iter().map(|link| observed_link(link, &self.sysfs)).collect(),
            addresses: self.addresses().await?,
            routes: self.routes().await?,
        })
    }

    async fn execute(&self, step: &Step) -> Result<(), NetError> {
        self.run(step).await.map_err(|error| step_error(step, &error))
    }
}

fn route_message(route: &Route) -> Result<RouteMessage, rtnetlink::Error> {
    Ok(match (route.to.address, route.via) {
        (IpAddr::V4(to), IpAddr::V4(via)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, route.to.prefix)
            .gateway(via)
            .build(),
        (IpAddr::V6(to), IpAddr::V6(via)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, route.to.prefix)
            .gateway(via)
            .build(),
        _ => return Err(rtnetlink::Error::InvalidNla("gateway of the other family".to_owned())),
    })
}

fn bond_options(mut bond: LinkMessageBuilder<LinkBond>, change: BondChange) -> LinkMessageBuilder<LinkBond> {
    if let Some(mode) = change.mode {
        bond = bond.mode(match mode {
            BondWay::Lacp => BondMode::Ieee8023Ad,
            BondWay::ActiveBackup => BondMode::ActiveBackup,
            BondWay::Other(number) => BondMode::from(number),
        });
    }
    if let Some(milliseconds) = change.miimon_ms {
        bond = bond.miimon(milliseconds);
    }
    if let Some(hash) = change.hash {
        bond = bond.xmit_hash_policy(match hash {
            HashPolicy::Layer2 => BondXmitHashPolicy::Layer2,
            HashPolicy::Layer23 => BondXmitHashPolicy::Layer23,
            HashPolicy::Layer34 => BondXmitHashPolicy::Layer34,
        });
    }
    if let Some(rate) = change.lacp_rate {
        bond = bond.ad_lacp_rate(match rate {
            LacpRate::Slow => BondLacpRate::Slow,
            LacpRate::Fast => BondLacpRate::Fast,
        });
    }
    bond
}

fn bond_settings(infos: &[InfoBond]) -> BondSettings {
    let mut settings =
        BondSettings { mode: BondWay::Other(u8::MAX), miimon_ms: 0, lacp_rate: None, hash: None };
    for info in infos {
        match info {
            InfoBond::Mode(mode) => {
                settings.mode = match mode {
                    BondMode::Ieee8023Ad => BondWay::Lacp,
                    BondMode::ActiveBackup => BondWay::ActiveBackup,
                    other => BondWay::Other((*other).into()),
                }
            }
            InfoBond::MiiMon(milliseconds) => settings.miimon_ms = *milliseconds,
            InfoBond::AdLacpRate(BondLacpRate::Slow) => settings.lacp_rate = Some(LacpRate::Slow),
            InfoBond::AdLacpRate(BondLacpRate::Fast) => settings.lacp_rate = Some(LacpRate::Fast),
            InfoBond::XmitHashPolicy(BondXmitHashPolicy::Layer2) => settings.hash = Some(HashPolicy::Layer2),
            InfoBond::XmitHashPolicy(BondXmitHashPolicy::Layer23) => {
                settings.hash = Some(HashPolicy::Layer23)
            }
            InfoBond::XmitHashPolicy(BondXmitHashPolicy::Layer34) => {
                settings.hash = Some(HashPolicy::Layer34)
            }
            _ => {}
        }
    }
    // The kernel reports both in every mode; they mean something with LACP only.
    if settings.mode != BondWay::Lacp {
        (settings.lacp_rate, settings.hash) = (None, None);
    }
    settings
}

fn vlan_id(infos: &[InfoVlan]) -> Option<u16> {
    infos.iter().find_map(|info| match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

pub(crate) fn mac(bytes: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(bytes).ok().filter(|bytes| *bytes != [0; 6]).map(Mac)
}

fn observed_link(message: &LinkMessage, sysfs: &Path) -> ObservedLink {
    let mut link = ObservedLink {
        index: message.header.index,
        name: String::new(),
        altnames: Vec::new(),
        kind: LinkKind::Other,
        mac: None,
        permanent_mac: None,
        pci: None,
        up: message.header.flags.contains(LinkFlags::Up),
        controller: None,
        in_bond: false,
        bond: None,
        vlan: None,
    };
    let (mut info_kind, mut carrier, mut number) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent_mac = link.permanent_mac.or(mac(bytes)),
            LinkAttribute::Link(index) => carrier = Some(*index),
            LinkAttribute::Controller(index) if *index != 0 => link.controller = Some(*index),
            LinkAttribute::PropList(properties) => {
                link.altnames.extend(properties.iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name.clone()),
                    _ => None,
                }));
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => info_kind = Some(kind.clone()),
                        LinkInfo::Data(InfoData::Bond(infos)) => link.bond = Some(bond_settings(infos)),
                        LinkInfo::Data(InfoData::Vlan(infos)) => number = vlan_id(infos),
                        LinkInfo::PortKind(InfoPortKind::Bond) => link.in_bond = true,
                        LinkInfo::PortData(InfoPortData::BondPort(infos)) => {
                            for info in infos {
                                if let InfoBondPort::PermHwaddr(bytes) = info {
                                    link.permanent_mac = link.permanent_mac.or(mac(bytes));
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.kind = match (message.header.link_layer_type, info_kind) {
        (LinkLayerType::Loopback, _) => LinkKind::Loopback,
        // A card has no kind; a virtual cable's other end is outside, where a container gets its network from.
        (LinkLayerType::Ether, None | Some(InfoKind::Veth)) => LinkKind::Physical,
        (_, Some(InfoKind::Bond)) => LinkKind::Bond,
        (_, Some(InfoKind::Vlan)) => LinkKind::Vlan,
        (_, Some(InfoKind::Bridge)) => LinkKind::Bridge,
        _ => LinkKind::Other,
    };
    if link.kind == LinkKind::Vlan {
        link.vlan = carrier.zip(number);
    }
    if link.kind == LinkKind::Physical {
        let device = sysfs.join("class/net").join(&link.name).join("device");
        link.pci = device.canonicalize().ok().and_then(|path| pci_address(&path));
    }
    link
}

/// The PCI function in a device's path. A virtio card is a child of it, so the last such part counts.
fn pci_address(path: &Path) -> Option<String> {
    let shape = |part: &str| {
        part.len() == 12
            && part.bytes().enumerate().all(|(at, byte)| match at {
                4 | 7 => byte == b':',
                10 => byte == b'.',
                _ => byte.is_ascii_hexdigit(),
            })
    };
    path.components()
        .rev()
        .filter_map(|part| part.as_os_str().to_str())
        .find(|part| shape(part))
        .map(str::to_owned)
}

fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    // IFA_LOCAL is the address; IFA_ADDRESS is the other end on a point-to-point link, and alone for IPv6.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some((message.header.index, IpNet { address, prefix: message.header.prefix_len }))
}

fn route(message: &RouteMessage) -> Option<ObservedRoute> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let mut to = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut via = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            _ => {}
        }
    }
    Some(ObservedRoute { to: IpNet { address: to, prefix: header.destination_prefix_length }, via })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_pci_function_counts() {
        let path = "/sys/devices/pci0000:00/0000:00:1c.0/0000:02:00.1/virtio3";
        assert_eq!(pci_address(Path::new(path)).as_deref(), Some("0000:02:00.1"));
        assert_eq!(pci_address(Path::new("/sys/devices/virtual/net/dummy0")), None);
    }

    #[test]
    fn only_what_a_mode_uses_is_compared() {
        let infos = [
            InfoBond::Mode(BondMode::ActiveBackup),
            InfoBond::MiiMon(100),
            InfoBond::AdLacpRate(BondLacpRate::Slow),
            InfoBond::XmitHashPolicy(BondXmitHashPolicy::Layer2),
        ];
        let settings = bond_settings(&infos);
        assert_eq!((settings.mode, settings.lacp_rate, settings.hash), (BondWay::ActiveBackup, None, None));
    }
}
