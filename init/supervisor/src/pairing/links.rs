//! Beacons over IPv6 link-local multicast, on every link that has such an address: no address has to be configured.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use dyad_pairing::beacon::BYTES_MAX;
use tokio::net::UdpSocket;

/// UDP for beacons, TCP for channels.
pub const PORT: u16 = 7402;
/// A group of this program's own (transient, link-local scope).
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0xdad, 0x7402);
/// Addresses of this network namespace: address, index, prefix, scope, flags, name.
const ADDRESSES: &str = "/proc/self/net/if_inet6";
const SCOPE_LINK: &str = "20";
/// Not usable: still being probed for a duplicate, or found to be one.
const FLAGS_UNUSABLE: u8 = 0x40 | 0x08;

/// The socket for beacons.
pub(crate) struct Links {
    socket: UdpSocket,
    joined: BTreeSet<u32>,
}

impl Links {
    /// Binds the port; no link is joined yet.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, joined: BTreeSet::new() })
    }

    /// Sends a beacon on every link; their names. A link that cannot send now is one that a later beacon goes over.
    pub(crate) async fn announce(&mut self, beacon: &[u8]) -> io::Result<Vec<String>> {
        let links = with_address(&std::fs::read_to_string(ADDRESSES)?);
        self.joined.retain(|index| links.contains_key(index));
        let mut sent = Vec::new();
        for (index, name) in links {
            // A link that went and came back is another one to the kernel: joining twice says so, and is no failure.
            if !self.joined.contains(&index) {
                match self.socket.join_multicast_v6(&GROUP, index) {
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => continue,
                    Ok(()) | Err(_) => self.joined.insert(index),
                };
            }
            let to = SocketAddrV6::new(GROUP, PORT, 0, index);
            if self.socket.send_to(beacon, to).await.is_ok() {
                sent.push(name);
            }
        }
        Ok(sent)
    }

    /// The next datagram that a neighbour sent.
    pub(crate) async fn hear(&self) -> io::Result<(Vec<u8>, SocketAddrV6)> {
        // One more byte than a beacon has: what is larger is seen to be.
        let mut buffer = [0; BYTES_MAX + 1];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await?;
            if let SocketAddr::V6(from) = from
                && is_neighbour(&from)
            {
                return Ok((buffer[..length].to_vec(), from));
            }
        }
    }
}

/// Whether an address is on a link of this machine and nowhere else.
pub(crate) fn is_neighbour(address: &SocketAddrV6) -> bool {
    address.ip().is_unicast_link_local() && address.scope_id() != 0
}

/// Where a node listens for channels, by where its beacon came from.
pub(crate) fn at_port(beacon: SocketAddrV6) -> SocketAddrV6 {
    SocketAddrV6::new(*beacon.ip(), PORT, 0, beacon.scope_id())
}

/// Indexes and names of the links with a usable link-local address.
fn with_address(table: &str) -> BTreeMap<u32, String> {
    let link = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, index, _, SCOPE_LINK, flags, name] = fields[..] else { return None };
        let usable = u8::from_str_radix(flags, 16).ok()? & FLAGS_UNUSABLE == 0;
        u32::from_str_radix(index, 16).ok().filter(|_| usable).map(|index| (index, name.to_owned()))
    };
    table.lines().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_those_with_a_usable_link_local_address() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe800000000000000000000000000001 02 40 20 80     lan0\n\
            fd770000000000000000000000000011 02 40 00 80     lan0\n\
            fe800000000000000000000000000002 0b 40 20 c0    repl0\n\
            fe800000000000000000000000000003 10 40 20 80    repl1\n";
        assert_eq!(with_address(table), BTreeMap::from([(2, "lan0".to_owned()), (16, "repl1".to_owned())]));
    }

    #[test]
    fn only_neighbours_are_heard() {
        for (address, yes) in [
            ("[fe80::1%3]:7402", true),
            ("[fe80::1]:7402", false),
            ("[fd77::1%3]:7402", false),
            ("[::1]:1", false),
        ] {
            assert_eq!(is_neighbour(&address.parse().unwrap()), yes, "{address}");
        }
    }
}
