//! The lab's interfaces: veth pairs between namespaces, and bridges. The lab's own port on its LAN is a pair too, one end
//! with the host's addresses, the other read by the switch through a packet socket or plugged into the LAN's bridge.
//!
//! Requests go out one by one and are waited for; there is no other netlink user in this process.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily as Family, SockFlag, SockProtocol, SockType, bind, socket};
use nix::unistd::Pid;

use crate::error::{AtPath, Doing, Result, refuse};
use crate::topology::{HOST_MAC, HOST_V4, HOST_V6, LAN_PREFIX_V4, LAN_PREFIX_V6};

/// The interface that carries the host's addresses.
pub(crate) const HOST_IF: &str = "lab0";
/// Its other end, which only the switch uses.
const SWITCH_IF: &str = "lab0-switch";
/// What is asked for must not be there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Frames that may wait in a socket towards QEMU; the default of 10 loses frames in every TCP burst.
const DATAGRAM_QUEUE: u32 = 1024;

/// The far end of a veth pair: in the network namespace of a process, or in this one.
pub(crate) struct Far<'a> {
    /// Its name there.
    pub(crate) name: &'a str,
    /// Its MAC address.
    pub(crate) mac: [u8; 6],
    /// Whose network namespace gets it; this one's without.
    pub(crate) pid: Option<Pid>,
    /// One segment a frame: nobody behind the near end can cut a large TCP packet into pieces.
    pub(crate) one_segment: bool,
}

impl Far<'_> {
    fn host(one_segment: bool) -> Self {
        Far { name: HOST_IF, mac: HOST_MAC, pid: None, one_segment }
    }
}

/// Makes the namespace ready (loopback, addresses) and returns the packet socket of the host's port.
/// Must run inside a fresh network namespace that this process owns, before NIC sockets are made.
pub(crate) fn switch_port() -> Result<OwnedFd> {
    set("/proc/sys/net/unix/max_dgram_qlen", DATAGRAM_QUEUE)?;
    let netlink = Netlink::open()?;
    netlink.veth(SWITCH_IF, &Far::host(true))?;
    let socket = cable(&netlink, SWITCH_IF)?;
    host_addresses(&netlink)?;
    Ok(socket)
}

/// Makes the namespace ready, with the host's interface on a bridge.
pub(crate) fn bridge_port(netlink: &Netlink, near: &str, bridge: &str) -> Result<()> {
    netlink.veth(near, &Far::host(false))?;
    netlink.port(near, bridge)?;
    host_addresses(netlink)
}

fn host_addresses(netlink: &Netlink) -> Result<()> {
    let addresses = [(IpAddr::V4(HOST_V4), LAN_PREFIX_V4), (IpAddr::V6(HOST_V6), LAN_PREFIX_V6)];
    configure(netlink, HOST_IF, &addresses)
}

/// Brings the loopback and an interface with its static addresses up, in the calling thread's network namespace.
pub(crate) fn configure(netlink: &Netlink, interface: &str, addresses: &[(IpAddr, u8)]) -> Result<()> {
    netlink.up("lo", LinkFlags::empty())?;
    let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    if ipv6 {
        // Duplicate address detection would keep the address unusable for a second; nobody else can have it.
        set(&format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"), 0)?;
    }
    for (address, prefix) in addresses.iter().filter(|(a, _)| ipv6 || a.is_ipv4()) {
        netlink.address(interface, *address, *prefix)?;
    }
    netlink.up(interface, LinkFlags::empty())
}

/// A packet socket on an interface that is a cable to the switch, not a neighbour: it must not answer ARP, nor speak IPv6.
pub(crate) fn cable(netlink: &Netlink, interface: &str) -> Result<OwnedFd> {
    no_ipv6(interface)?;
    netlink.up(interface, LinkFlags::Noarp)?;
    packet_socket(interface)
}

fn no_ipv6(interface: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if Path::new(&path).exists() { set(&path, 1) } else { Ok(()) }
}

fn set(path: &str, value: u32) -> Result<()> {
    fs::write(path, format!("{value}\n")).at("write", Path::new(path))
}

/// A packet socket that sees and sends every frame of one interface.
fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let fd = socket(Family::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .doing("open a packet socket (the kernel needs CONFIG_PACKET)")?;
    // The kernel's own list of link-layer addresses is where a bindable address comes from without unsafe code.
    let address = getifaddrs()
        .doing("list the interfaces")?
        .filter(|i| i.interface_name == interface)
        .find_map(|i| i.address.and_then(|a| a.as_link_addr().copied()));
    let Some(address) = address else {
        return refuse(format!("interface {interface} has no link-layer address"));
    };
    bind(fd.as_raw_fd(), &address).doing("bind the packet socket to the switch's end of the veth pair")?;
    Ok(fd)
}

/// A connection to the kernel's network of the namespace in which it was opened.
pub(crate) struct Netlink(Socket);

impl Netlink {
    /// Opens it.
    pub(crate) fn open() -> Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE).doing("open a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).doing("connect a netlink socket")?;
        Ok(Netlink(socket))
    }

    /// Sends one request and waits for its acknowledgement.
    fn request(&self, what: &'static str, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.0.send(&buffer, 0).doing(what)?;
        let (reply, _) = self.0.recv_from_full().doing(what)?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply) {
            Ok(NetlinkMessage { payload: NetlinkPayload::Error(e), .. }) if e.code.is_none() => Ok(()),
            Ok(NetlinkMessage { payload: NetlinkPayload::Error(e), .. }) => Err(e.to_io()).doing(what),
            Ok(_) => Err(io::Error::other("the kernel's answer is no acknowledgement")).doing(what),
            Err(e) => Err(io::Error::other(e)).doing(what),
        }
    }

    /// Makes a veth pair.
    pub(crate) fn veth(&self, near: &str, far: &Far<'_>) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes =
            vec![LinkAttribute::IfName(far.name.into()), LinkAttribute::Address(far.mac.to_vec())];
        peer.attributes.extend(far.pid.map(|pid| LinkAttribute::NetNsPid(pid.as_raw().unsigned_abs())));
        if far.one_segment {
            peer.attributes.push(LinkAttribute::GsoMaxSegs(1));
        }
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(near.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.request("create a veth pair of the lab", RouteNetlinkMessage::NewLink(link), NEW)
    }

    /// Makes a bridge that forwards at once and floods what it does not know, as the cheapest switch does.
    pub(crate) fn bridge(&self, name: &str) -> Result<()> {
        let mut link = LinkMessage::default();
        let options = vec![InfoBridge::ForwardDelay(0), InfoBridge::MulticastSnooping(false)];
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(options)),
            ]),
        ];
        self.request("create a bridge of the lab", RouteNetlinkMessage::NewLink(link), NEW)?;
        no_ipv6(name)?;
        self.up(name, LinkFlags::empty())
    }

    /// Makes an interface a port of a bridge.
    pub(crate) fn port(&self, interface: &str, bridge: &str) -> Result<()> {
        no_ipv6(interface)?;
        let mut link = LinkMessage::default();
        link.header.index = index(interface)?;
        link.attributes = vec![LinkAttribute::Controller(index(bridge)?)];
        self.request("plug an interface into a bridge of the lab", RouteNetlinkMessage::SetLink(link), 0)?;
        self.up(interface, LinkFlags::empty())
    }

    /// Removes an interface, if it is there.
    pub(crate) fn remove(&self, interface: &str) -> Result<()> {
        let Ok(index) = if_nametoindex(interface) else { return Ok(()) };
        let mut link = LinkMessage::default();
        link.header.index = index;
        match self.request("remove an interface of the lab", RouteNetlinkMessage::DelLink(link), 0) {
            // The kernel was faster.
            Err(_) if if_nametoindex(interface).is_err() => Ok(()),
            result => result,
        }
    }

    /// Sets an interface up or down; the other end of its pair has a carrier or none.
    pub(crate) fn carrier(&self, interface: &str, up: bool) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index(interface)?;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        link.header.change_mask = LinkFlags::Up;
        self.request("plug a cable of the lab in or out", RouteNetlinkMessage::SetLink(link), 0)
    }

    fn up(&self, interface: &str, extra: LinkFlags) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index(interface)?;
        link.header.flags = LinkFlags::Up | extra;
        link.header.change_mask = LinkFlags::Up | extra;
        self.request("bring an interface of the lab up", RouteNetlinkMessage::SetLink(link), 0)
    }

    fn address(&self, interface: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix;
        message.header.index = index(interface)?;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        let message = RouteNetlinkMessage::NewAddress(message);
        self.request("give an interface of the lab its address", message, NEW)
    }
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).doing("find an interface of the lab")
}
