//! The lab's own port on its LAN: a veth pair in the lab's network namespace, one end with the host's addresses, the
//! other read by the switch through a packet socket.
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
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily as Family, SockFlag, SockProtocol, SockType, bind, socket};

use crate::error::{AtPath, Doing, Result, refuse};
use crate::topology::{HOST_MAC, HOST_V4, HOST_V6, LAN_PREFIX_V4, LAN_PREFIX_V6};

/// The interface that carries the host's addresses.
pub(crate) const HOST_IF: &str = "lab0";
/// Its other end, which only the switch uses.
const SWITCH_IF: &str = "lab0-switch";
/// Frames that may wait in a socket towards QEMU; the default of 10 loses frames in every TCP burst.
const DATAGRAM_QUEUE: u32 = 1024;

/// Makes the namespace ready (loopback, addresses) and returns the packet socket of the host's port.
/// Must run inside a fresh network namespace that this process owns, before NIC sockets are made.
pub(crate) fn host_port() -> Result<OwnedFd> {
    set("/proc/sys/net/unix/max_dgram_qlen", DATAGRAM_QUEUE)?;
    let netlink = Netlink::open()?;
    netlink.up("lo", LinkFlags::empty())?;
    netlink.veth()?;
    // The switch's end is a cable, not a neighbour: it must not answer ARP, nor speak IPv6.
    if Path::new("/proc/sys/net/ipv6").exists() {
        set(&format!("/proc/sys/net/ipv6/conf/{SWITCH_IF}/disable_ipv6"), 1)?;
        // Duplicate address detection would keep the address unusable for a second; nobody else can have it.
        set(&format!("/proc/sys/net/ipv6/conf/{HOST_IF}/accept_dad"), 0)?;
        netlink.address(HOST_IF, IpAddr::V6(HOST_V6), LAN_PREFIX_V6)?;
    }
    netlink.address(HOST_IF, IpAddr::V4(HOST_V4), LAN_PREFIX_V4)?;
    netlink.up(SWITCH_IF, LinkFlags::Noarp)?;
    netlink.up(HOST_IF, LinkFlags::empty())?;
    packet_socket(SWITCH_IF)
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

struct Netlink(Socket);

impl Netlink {
    fn open() -> Result<Self> {
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

    fn veth(&self) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(SWITCH_IF.into()));
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(HOST_IF.into()),
            LinkAttribute::Address(HOST_MAC.to_vec()),
            // One segment a frame: nobody behind this port can cut a large TCP packet into pieces.
            LinkAttribute::GsoMaxSegs(1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let message = RouteNetlinkMessage::NewLink(link);
        self.request("create the lab's veth pair", message, NLM_F_CREATE | NLM_F_EXCL)
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
        self.request("give the lab's host port its address", message, NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).doing("find an interface of the lab")
}
