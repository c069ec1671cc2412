//! The site file that the lab lays on its nodes: names, MAC addresses, bonds, addresses, one database.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::topology::{LAN_PREFIX_V4, LAN_PREFIX_V6, Node, Role, WITNESS_V4, mac_text};
use crate::witness::PORT;

/// The database and its owner that the lab declares.
const DATABASE: &str = "lab";

/// How a node's links are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Two by two in bonds. Emulated machines on a busy host fall silent for seconds: T = 15 s.
    Bonded,
    /// Each by itself, where the kernel is the host's and may know no bonds; `lan0` has the addresses.
    Plain,
}

/// The site file of `node` in a lab of `count` nodes, with or without a witness. Nodes go in pairs, because a site has one or two: a and b, c and d.
pub(crate) fn text(node: Node, count: u8, shape: Shape, witness: bool) -> String {
    let first = node.0 / 2 * 2;
    let members: Vec<_> = Node::first(count).filter(|n| n.0 / 2 * 2 == first).collect();
    let pair = members.len() > 1;
    let profile = match shape {
        Shape::Bonded => "wan",
        Shape::Plain => "lan",
    };
    let mut out = format!(
        "# Written by `dyad lab up`.\n\
         cluster = \"{DATABASE}-{}\"\n\
         profile = \"{profile}\"\n",
        first / 2 + 1
    );
    if witness && pair {
        out += &format!("witness = \"{WITNESS_V4}:{PORT}\"\n");
    }
    for member in members {
        node_tables(&mut out, member, shape).expect("writing to a String does not fail");
    }
    if shape == Shape::Bonded {
        let lan = [Role::Lan0.name(), Role::Lan1.name()];
        let wires = [Role::Repl0.name(), Role::Repl1.name()];
        out += &format!(
            "\n[bonds.bond0]\nmode = \"active-backup\"\nmembers = {lan:?}\n\
             \n[bonds.bond1]\nmode = \"802.3ad\"\nmembers = {wires:?}\n"
        );
    }
    if pair {
        let (four, six) = (node.vip_v4(), node.vip_v6());
        let lan = lan(shape);
        out += &format!(
            "\n[vips.four]\naddress = \"{four}/{LAN_PREFIX_V4}\"\ninterface = {lan:?}\n\
             \n[vips.six]\naddress = \"{six}/{LAN_PREFIX_V6}\"\ninterface = {lan:?}\n"
        );
    }
    out += &format!(
        "\n[postgresql.roles.{DATABASE}]\ncreate_db = true\n\
         \n[postgresql.databases.{DATABASE}]\nowner = {DATABASE:?}\n"
    );
    out
}

/// The interface that clients are on.
fn lan(shape: Shape) -> &'static str {
    match shape {
        Shape::Bonded => Role::Lan0.bond(),
        Shape::Plain => Role::Lan0.name(),
    }
}

fn node_tables(out: &mut String, node: Node, shape: Shape) -> std::fmt::Result {
    let name = node.name();
    writeln!(out, "\n[nodes.{name}.links]")?;
    for role in Role::ALL {
        writeln!(out, "{} = {{ mac = \"{}\" }}", role.name(), mac_text(node.mac(role)))?;
    }
    writeln!(out, "\n[nodes.{name}.addresses]")?;
    let lan = lan(shape);
    let wires = match shape {
        Shape::Bonded => vec![Role::Repl0.bond()],
        Shape::Plain => vec![Role::Repl0.name(), Role::Repl1.name()],
    };
    writeln!(out, "{lan} = [\"{}/{LAN_PREFIX_V4}\", \"{}/{LAN_PREFIX_V6}\"]", node.lan_v4(), node.lan_v6())?;
    for (network, wire) in (1..).zip(wires) {
        writeln!(out, "{wire} = [\"{}/24\"]", replication(node, network))?;
    }
    Ok(())
}

/// The address on a back-to-back link: the LAN's number in a network of its own.
fn replication(node: Node, network: u8) -> Ipv4Addr {
    let [a, b, _, d] = node.lan_v4().octets();
    Ipv4Addr::new(a, b, network, d)
}

#[cfg(test)]
mod tests {
    use dyad_spec::site::{Profile, Site};
    use dyad_spec::{Mac, Source};

    use super::*;

    fn parse(node: u8, count: u8, shape: Shape) -> Site {
        Site::parse(Source::new("site.toml", text(Node(node), count, shape, true)))
            .unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn every_node_of_every_lab_gets_a_site_that_the_appliance_accepts() {
        for count in 1..=8 {
            for node in Node::first(count) {
                let plain = parse(node.0, count, Shape::Plain);
                assert_eq!((plain.profile, plain.bonds.len()), (Profile::Lan, 0));
                let site = parse(node.0, count, Shape::Bonded);
                assert_eq!(site.profile, Profile::Wan);
                assert!(site.nodes.iter().any(|n| n.name == node.name()));
                let mac = Mac(node.mac(Role::Repl1));
                assert_eq!(
                    site.identify(&[mac]).unwrap().name,
                    node.name(),
                    "the MAC addresses tell nodes apart"
                );
            }
        }
    }

    #[test]
    fn a_pair_shares_one_site_and_a_third_node_stands_alone() {
        for shape in [Shape::Bonded, Shape::Plain] {
            assert_eq!(text(Node(0), 3, shape, true), text(Node(1), 3, shape, true));
            assert_eq!(parse(0, 3, shape).nodes.len(), 2);
            assert_eq!(parse(2, 3, shape).nodes.len(), 1);
            let vips = |node, count| {
                let vips = parse(node, count, shape).vips.into_iter();
                vips.map(|vip| vip.address.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(vips(0, 3), ["10.77.0.100/24", "fd77::100/64"]);
            assert!(vips(2, 3).is_empty(), "nothing moves between one node and nobody");
            assert_eq!(vips(2, 4), ["10.77.0.102/24", "fd77::102/64"]);
            assert_eq!(parse(0, 3, shape).witness, Some("10.77.0.2:7400".parse().unwrap()));
            assert_eq!(parse(2, 3, shape).witness, None, "nobody votes about a single node");
            assert!(!text(Node(0), 3, shape, false).contains("witness"));
            assert_ne!(parse(0, 4, shape).cluster, parse(2, 4, shape).cluster);
        }
        assert!(
            text(Node(1), 2, Shape::Bonded, true).contains("bond0 = [\"10.77.0.12/24\", \"fd77::12/64\"]")
        );
        assert!(text(Node(1), 2, Shape::Plain, true).contains("repl1 = [\"10.77.2.12/24\"]"));
    }
}
