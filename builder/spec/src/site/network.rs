//! Checks of the network part of a site file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::check::Found;
use super::raw::{RawBond, RawLink, RawNode, RawSite, RouteTo};
use super::{
    Address, Bond, BondMode, BondModeWord, Bridge, HashPolicy, LacpRate, Link, LinkMatch, Node, Route, Vip,
    Vlan,
};
use crate::decode::{At, Entries};
use crate::scalar::Text;
use crate::scalar::{IpNet, Mac, Role};

/// A pair, or one node by itself.
const NODES_MAX: usize = 2;
/// Interface names that belong to the kernel or to the roles of links.
const TAKEN: [&str; 4] = ["lo", "lan", "repl", "eth"];

/// The checked network.
pub(super) struct Network {
    pub(super) nodes: Vec<Node>,
    pub(super) bonds: Vec<Bond>,
    pub(super) vlans: Vec<Vlan>,
    pub(super) bridges: Vec<Bridge>,
    pub(super) routes: Vec<Route>,
    pub(super) vips: Vec<Vip>,
}

pub(super) fn check(raw: &RawSite, found: &mut Found) -> Network {
    let nodes = nodes(raw, found);
    let masters = masters(raw, &nodes, found);
    let network = Network {
        bonds: raw.bonds.iter().map(|(name, bond)| make_bond(name.as_str(), bond, found)).collect(),
        vlans: vlans(raw, &nodes, &masters, found),
        bridges: raw
            .bridges
            .iter()
            .map(|(name, bridge)| Bridge {
                name: name.to_string(),
                members: bridge.members.iter().map(|m| m.to_string()).collect(),
            })
            .collect(),
        routes: routes(raw, &nodes, found),
        vips: vips(raw, &nodes, &masters, found),
        nodes,
    };
    interfaces(raw, &network.nodes, &masters, found);
    addresses(raw, found);
    network
}

fn nodes(raw: &RawSite, found: &mut Found) -> Vec<Node> {
    let count = raw.nodes.value.0.len();
    if count == 0 || count > NODES_MAX {
        let title = format!("a site has one node or two, not {count}");
        found.at(&raw.nodes.span, title, "expected one or two tables `[nodes.NAME]`");
    }
    for (role, link) in raw.links.iter() {
        if let Some(mac) = &link.mac {
            let title = format!("`links.{role}`: a MAC address belongs to one node");
            found.at(&mac.span, title, format!("write it under `[nodes.NAME.links.{role}]`"));
        }
    }
    let mut macs: Vec<&At<Mac>> = Vec::new();
    for (_, node) in raw.nodes.value.iter() {
        for mac in node.links.iter().filter_map(|(_, l)| l.mac.as_ref()) {
            if let Some(first) = macs.iter().find(|m| m.value == mac.value) {
                found.twice(&mac.span, &first.span, format!("{mac} is used twice"), "every link has its own");
            }
            macs.push(mac);
        }
    }
    raw.nodes
        .value
        .iter()
        .map(|(name, node)| Node {
            name: name.to_string(),
            links: links(&raw.links, node, found),
            addresses: node
                .addresses
                .iter()
                .flat_map(|(interface, all)| {
                    let of = |a: &At<IpNet>| Address { interface: interface.to_string(), address: a.value };
                    all.iter().map(of)
                })
                .collect(),
        })
        .collect()
}

/// A node's own links, and the shared ones that it does not name itself.
fn links(shared: &Entries<Role, RawLink>, node: &RawNode, found: &mut Found) -> Vec<Link> {
    let mut all: BTreeMap<&Role, (&At<Role>, &RawLink)> = BTreeMap::new();
    for (role, link) in shared.iter().chain(node.links.iter()) {
        all.insert(&role.value, (role, link));
    }
    let mut slots: BTreeMap<&str, Range<usize>> = BTreeMap::new();
    let mut links = Vec::new();
    for (role, link) in all.into_values() {
        let matches = match (&link.mac, &link.pci) {
            (Some(mac), None) => LinkMatch::Mac(mac.value),
            (None, Some(pci)) => {
                if let Some(first) = slots.insert(pci.as_str(), pci.span.clone()) {
                    let title = format!("{pci} is two links of one node");
                    found.twice(&pci.span, &first, title, "every link has its own");
                }
                LinkMatch::Pci(pci.to_string())
            }
            _ => {
                let title = format!("link `{role}` is not found by one thing");
                found.at(&role.span, title, "expected either `mac` or `pci`");
                continue;
            }
        };
        links.push(Link { role: role.to_string(), matches });
    }
    links
}

/// Which bond or bridge an interface is a member of.
fn masters(raw: &RawSite, nodes: &[Node], found: &mut Found) -> BTreeMap<String, String> {
    let mut masters: BTreeMap<String, (String, Range<usize>)> = BTreeMap::new();
    let mut join = |member: &str, span: &Range<usize>, master: &str, found: &mut Found| {
        if let Some((other, first)) = masters.get(member) {
            let title = format!("`{member}` is in `{other}` already");
            found.twice(span, first, title, "an interface is a member of one bond or bridge");
            return;
        }
        masters.insert(member.to_owned(), (master.to_owned(), span.clone()));
    };
    for (name, bond) in raw.bonds.iter() {
        own_name(name.as_str(), &name.span, found);
        if bond.members.is_empty() {
            found.at(&bond.members.span, format!("bond `{name}` has no members"), "expected roles of links");
        }
        for member in bond.members.iter() {
            let roles = common_links(nodes);
            if !roles.contains(&member.as_str()) {
                found.unknown_at("link", " on every node", member, &roles);
            }
            join(member.as_str(), &member.span, name.as_str(), found);
        }
    }
    for (name, bridge) in raw.bridges.iter() {
        own_name(name.as_str(), &name.span, found);
        let others = raw.bonds.iter().map(|(other, _)| (other, "bond"));
        let others = others.chain(raw.vlans.iter().map(|(other, _)| (other, "VLAN")));
        for (other, kind) in others.filter(|(other, _)| other.value == name.value) {
            let title = format!("`{name}` is a {kind} and a bridge");
            found.twice(&name.span, &other.span, title, "names of interfaces are unique");
        }
        for member in &bridge.members {
            let mut known = common_links(nodes);
            known.extend(raw.bonds.iter().map(|(bond, _)| bond.as_str()));
            known.extend(raw.vlans.iter().map(|(vlan, _)| vlan.as_str()));
            if !known.contains(&member.as_str()) {
                found.unknown_at("link, bond or VLAN", " on every node", member, &known);
            }
            join(member.as_str(), &member.span, name.as_str(), found);
        }
    }
    masters.into_iter().map(|(member, (master, _))| (member, master)).collect()
}

fn own_name(name: &str, span: &Range<usize>, found: &mut Found) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if TAKEN.contains(&stem) {
        let title = format!("`{name}` cannot be the name of a bond, VLAN or bridge");
        found.at(span, title, "expected a name such as \"bond0\", \"vlan20\" or \"br0\"");
    }
}

/// Roles that every node has.
fn common_links(nodes: &[Node]) -> Vec<&str> {
    let Some((first, rest)) = nodes.split_first() else { return Vec::new() };
    let everywhere = |role: &str| rest.iter().all(|n| n.links.iter().any(|l| l.role == role));
    first.links.iter().map(|l| l.role.as_str()).filter(|role| everywhere(role)).collect()
}

fn make_bond(name: &str, raw: &RawBond, found: &mut Found) -> Bond {
    if !(10..=10_000).contains(&raw.miimon.get()) {
        let title = format!("`bonds.{name}.miimon` is out of range");
        found.at(&raw.miimon.span, title, "expected 10ms to 10s");
    }
    let mode = match raw.mode {
        BondModeWord::Lacp => BondMode::Lacp {
            rate: raw.lacp_rate.as_ref().map_or(LacpRate::Fast, |r| r.value),
            hash: raw.hash_policy.as_ref().map_or(HashPolicy::Layer34, |h| h.value),
        },
        BondModeWord::ActiveBackup => {
            let spans = [
                ("lacp_rate", raw.lacp_rate.as_ref().map(|v| &v.span)),
                ("hash_policy", raw.hash_policy.as_ref().map(|v| &v.span)),
            ];
            for (key, span) in spans {
                if let Some(span) = span {
                    let title = format!("`bonds.{name}.{key}` has no meaning in active-backup mode");
                    found.at(span, title, "remove it, or use mode \"802.3ad\"");
                }
            }
            BondMode::ActiveBackup
        }
    };
    Bond {
        name: name.to_owned(),
        mode,
        members: raw.members.iter().map(|m| m.to_string()).collect(),
        miimon_ms: raw.miimon.get(),
    }
}

fn vlans(raw: &RawSite, nodes: &[Node], masters: &BTreeMap<String, String>, found: &mut Found) -> Vec<Vlan> {
    let mut vlans: Vec<(Vlan, Range<usize>)> = Vec::new();
    for (name, vlan) in raw.vlans.iter() {
        own_name(name.as_str(), &name.span, found);
        if let Some((bond, _)) = raw.bonds.iter().find(|(bond, _)| bond.value == name.value) {
            let title = format!("`{name}` is a bond and a VLAN");
            found.twice(&name.span, &bond.span, title, "names of interfaces are unique");
        }
        let mut known = common_links(nodes);
        known.extend(raw.bonds.iter().map(|(bond, _)| bond.as_str()));
        let (link, span) = (vlan.link.as_str(), &vlan.link.span);
        if !known.contains(&link) {
            found.unknown_at("link or bond", " on every node", &vlan.link, &known);
        } else if let Some(master) = masters.get(link) {
            let title = format!("`{link}` is a member of `{master}` and carries no VLAN of its own");
            found.at(span, title, "expected a link or bond that is in nothing else");
        }
        let vlan = Vlan { name: name.to_string(), link: link.to_owned(), id: vlan.id.0 as u16 };
        let same = |other: &&(Vlan, Range<usize>)| (&other.0.link, other.0.id) == (&vlan.link, vlan.id);
        if let Some((other, first)) = vlans.iter().find(same) {
            let title = format!("`{name}` and `{}` are both VLAN {} of `{link}`", other.name, vlan.id);
            found.twice(span, first, title, "a number is one network of a link");
        }
        vlans.push((vlan, span.clone()));
    }
    vlans.into_iter().map(|(vlan, _)| vlan).collect()
}

/// Interfaces of a node that can have an address: those that are no member of another.
fn addressable<'a>(raw: &'a RawSite, node: &'a Node, masters: &BTreeMap<String, String>) -> Vec<&'a str> {
    let links = node.links.iter().map(|l| l.role.as_str());
    let bonds = raw.bonds.iter().map(|(name, _)| name.as_str());
    let vlans = raw.vlans.iter().map(|(name, _)| name.as_str());
    let bridges = raw.bridges.iter().map(|(name, _)| name.as_str());
    links.chain(bonds).chain(vlans).chain(bridges).filter(|i| !masters.contains_key(*i)).collect()
}

/// Every address is on an interface that exists and can have one.
fn interfaces(raw: &RawSite, nodes: &[Node], masters: &BTreeMap<String, String>, found: &mut Found) {
    for (node, (_, raw_node)) in nodes.iter().zip(raw.nodes.value.iter()) {
        let known = addressable(raw, node, masters);
        for (interface, _) in raw_node.addresses.iter() {
            if let Some(master) = masters.get(interface.as_str()) {
                let title = format!("`{interface}` is a member of `{master}` and has no address of its own");
                found.at(&interface.span, title, format!("write the address under `{master}`"));
            } else if !known.contains(&interface.as_str()) {
                found.unknown("interface", interface, &known);
            }
        }
    }
}

/// No address twice, and none that an interface cannot have.
fn addresses(raw: &RawSite, found: &mut Found) {
    let mut seen: BTreeMap<IpAddr, (Range<usize>, &str)> = BTreeMap::new();
    let mut once = |ip: IpAddr, span: &Range<usize>, what: &'static str, found: &mut Found| {
        if let Some((first, other)) = seen.get(&ip) {
            let title = format!("{ip} is {what} and {other}");
            found.twice(span, first, title, "an address has one owner");
            return;
        }
        seen.insert(ip, (span.clone(), what));
    };
    for (_, node) in raw.nodes.value.iter() {
        for address in node.addresses.iter().flat_map(|(_, all)| all) {
            usable(address, found);
            once(address.address, &address.span, "an address of a node", found);
        }
    }
    for (_, vip) in raw.vips.iter() {
        usable(&vip.address, found);
        once(vip.address.address, &vip.address.span, "a virtual address", found);
    }
    if let Some(witness) = &raw.witness {
        // A vote that dies with the machine it watches is none.
        once(witness.ip(), &witness.span, "the witness", found);
    }
}

fn usable(net: &At<IpNet>, found: &mut Found) {
    let ip = net.address;
    let full = if ip.is_ipv4() { 32 } else { 128 };
    let why = if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        "it can belong to no interface here"
    } else if matches!(ip, IpAddr::V4(v4) if net.prefix < 31 && u32::from(v4) | u32::MAX << (32 - net.prefix.max(1)) == u32::MAX)
    {
        "it is the network's broadcast address"
    } else if net.prefix < full.min(127) && net.is_network() && !(ip.is_ipv4() && net.prefix >= 31) {
        "it is the network's own address, without a host part"
    } else if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        "link-local addresses are there by themselves"
    } else {
        return;
    };
    found.at(&net.span, format!("{net} cannot be the address of an interface"), why);
}

fn routes(raw: &RawSite, nodes: &[Node], found: &mut Found) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for route in &raw.routes {
        let via = route.via.value;
        let everywhere = match via {
            IpAddr::V4(_) => IpNet { address: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 },
            IpAddr::V6(_) => IpNet { address: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 },
        };
        let to = match &route.to.value {
            RouteTo::Default => everywhere,
            RouteTo::Net(net) => *net,
        };
        if to.address.is_ipv4() != via.is_ipv4() {
            let title = format!("a route to {to} cannot go over {via}");
            found.at(&route.via.span, title, "expected a gateway of the same family");
        } else if !to.is_network() {
            let title = format!("`to`: {to} has bits set behind its prefix");
            found.at(&route.to.span, title, "expected a network, such as \"198.51.100.0/24\"");
        }
        if let Some(node) = nodes
            .iter()
            .find(|n| !n.addresses.iter().any(|a| a.address.prefix > 0 && a.address.contains(via)))
        {
            let title = format!("gateway {via} is in no network of node `{}`", node.name);
            found.at(&route.via.span, title, "expected an address in a network that every node is in");
        }
        if routes.iter().any(|r| r.to == to) {
            found.at(&route.to.span, format!("there are two routes to {to}"), "one network, one gateway");
        }
        routes.push(Route { to, via });
    }
    routes
}

fn vips(raw: &RawSite, nodes: &[Node], masters: &BTreeMap<String, String>, found: &mut Found) -> Vec<Vip> {
    let mut vips = Vec::new();
    for (name, vip) in raw.vips.iter() {
        for node in nodes {
            let known = addressable(raw, node, masters);
            if !known.contains(&vip.interface.as_str()) {
                found.unknown("interface", &vip.interface, &known);
                break;
            }
            let on = |a: &&Address| a.interface == vip.interface.as_str();
            let inside = |a: &Address| {
                a.address.contains(vip.address.address) && a.address.prefix == vip.address.prefix
            };
            if !node.addresses.iter().filter(on).any(inside) {
                let title = format!(
                    "virtual address {} is in no network of `{}` on node `{}`",
                    vip.address, vip.interface, node.name
                );
                let label = "expected an address and prefix length of a network that the interface is in";
                found.at(&vip.address.span, title, label);
                break;
            }
        }
        vips.push(Vip {
            name: name.to_string(),
            interface: vip.interface.to_string(),
            address: vip.address.value,
        });
    }
    vips
}
