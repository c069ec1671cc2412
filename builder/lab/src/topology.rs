//! The lab's fixed plan: node names, MAC and IP addresses, and which port is wired to what.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::switch::fabric::Link;

/// The most nodes a lab may have.
pub(crate) const NODES_MAX: u8 = 8;
/// Owner name of the port that the lab's own network namespace has on the LAN.
pub(crate) const HOST: &str = "host";
/// The host's address on the lab's LAN.
pub(crate) const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The host's IPv6 address on the lab's LAN.
pub(crate) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Prefix length of the LAN's IPv4 network.
pub(crate) const LAN_PREFIX_V4: u8 = 24;
/// Prefix length of the LAN's IPv6 network.
pub(crate) const LAN_PREFIX_V6: u8 = 64;
/// Name of the witness.
pub(crate) const WITNESS: &str = "witness";
/// The witness' address on the LAN.
pub(crate) const WITNESS_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The witness' IPv6 address on the LAN.
pub(crate) const WITNESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The witness' MAC address.
pub(crate) const WITNESS_MAC: [u8; 6] = [0x02, 0x64, 0x79, 0xff, 0x00, 0x02];
/// The host port's MAC address.
pub(crate) const HOST_MAC: [u8; 6] = [0x02, 0x64, 0x79, 0xff, 0x00, 0x01];

/// What a NIC of a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// First member of the client bond.
    Lan0,
    /// Second member of the client bond, on the same switch.
    Lan1,
    /// First replication link, back to back with the peer.
    Repl0,
    /// Second replication link, back to back with the peer.
    Repl1,
}

impl Role {
    /// All NICs of a node, in PCI order.
    pub(crate) const ALL: [Role; 4] = [Role::Lan0, Role::Lan1, Role::Repl0, Role::Repl1];

    /// The interface name that the site file gives it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Lan0 => "lan0",
            Role::Lan1 => "lan1",
            Role::Repl0 => "repl0",
            Role::Repl1 => "repl1",
        }
    }

    /// The bond that the site file makes of it and its twin.
    pub(crate) fn bond(self) -> &'static str {
        match self {
            Role::Lan0 | Role::Lan1 => "bond0",
            Role::Repl0 | Role::Repl1 => "bond1",
        }
    }

    fn number(self) -> u8 {
        match self {
            Role::Lan0 => 0,
            Role::Lan1 => 1,
            Role::Repl0 => 2,
            Role::Repl1 => 3,
        }
    }
}

/// One node by its number, 0-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(pub(crate) u8);

impl Node {
    /// The first `count` nodes.
    pub(crate) fn first(count: u8) -> impl Iterator<Item = Node> {
        (0..count.min(NODES_MAX)).map(Node)
    }

    /// `node-a`, `node-b`, ...
    pub(crate) fn name(self) -> String {
        format!("node-{}", char::from(b'a' + self.0))
    }

    /// The fixed MAC address of a NIC: locally administered, `dy` in ASCII, then node and role.
    pub(crate) fn mac(self, role: Role) -> [u8; 6] {
        [0x02, 0x64, 0x79, 0x00, self.0 + 0x0a, role.number()]
    }

    /// The address on the LAN.
    pub(crate) fn lan_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 11 + self.0)
    }

    /// The IPv6 address on the LAN: the same number written in hexadecimal digits (`fd77::11`).
    pub(crate) fn lan_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11 + u16::from(self.0))
    }

    /// The address that follows the writer of this node's pair.
    pub(crate) fn vip_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 100 + self.0 / 2 * 2)
    }

    /// Its IPv6 twin: the same number written in hexadecimal digits.
    pub(crate) fn vip_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100 + u16::from(self.0 / 2 * 2))
    }

    /// What a NIC hangs on.
    pub(crate) fn link(self, role: Role) -> Link {
        self.wire(role).map_or(Link::Lan, Link::Wire)
    }

    /// The wire a replication NIC hangs on. Nodes are wired in pairs (a-b, c-d), `repl0` to `repl0`, `repl1` to `repl1`.
    fn wire(self, role: Role) -> Option<u32> {
        let pair = u32::from(self.0 / 2) * 2;
        match role {
            Role::Lan0 | Role::Lan1 => None,
            Role::Repl0 => Some(pair),
            Role::Repl1 => Some(pair + 1),
        }
    }
}

/// The lab's own interface behind a member's NIC. The longest (`node-a-repl0`) fits the kernel's 15 characters.
pub(crate) fn port_name(owner: &str, nic: &str) -> String {
    format!("{owner}-{nic}")
}

/// A MAC address in its usual form.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_wires_are_distinct_where_they_must_be() {
        let mut macs: Vec<_> =
            Node::first(NODES_MAX).flat_map(|n| Role::ALL.map(|r| n.mac(r))).chain([HOST_MAC]).collect();
        macs.sort_unstable();
        macs.dedup();
        assert_eq!(macs.len(), usize::from(NODES_MAX) * 4 + 1);
        assert!(macs.iter().all(|m| m[0] & 3 == 2), "locally administered, not multicast");
        assert_eq!(Node(0).wire(Role::Repl1), Node(1).wire(Role::Repl1));
        assert_ne!(Node(0).wire(Role::Repl0), Node(0).wire(Role::Repl1));
        assert_ne!(Node(1).wire(Role::Repl0), Node(2).wire(Role::Repl0));
        assert_eq!(Node(1).name(), "node-b");
        assert_eq!(Node(1).lan_v4().to_string(), "10.77.0.12");
        assert_eq!(Node(1).lan_v6().to_string(), "fd77::12");
        assert_eq!(mac_text(Node(1).mac(Role::Repl0)), "02:64:79:00:0b:02");
    }
}
