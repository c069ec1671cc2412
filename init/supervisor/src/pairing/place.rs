//! Who of the pair is which node of the site, and where the two meet.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use dyad_cluster::types::{ClusterId, Node as Role};
use dyad_pairing::Key;
use dyad_spec::site::{Node, Site};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::driver::{self, Member, Membership};

/// What a node says of itself once it is paired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    /// Of what its site file says.
    pub(crate) site: [u8; 32],
    /// Its name, where its links tell it.
    pub(crate) name: Option<String>,
}

/// Why two paired nodes have no place in their site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("the site files of the two nodes say different things: lay the same one on both")]
    Sites,
    #[error(
        "both nodes are {0:?} by their links: one of them was named in the other's place in the site file"
    )]
    SameName(String),
    #[error("the other node calls itself {0:?}, and the site file names no such node")]
    Unknown(String),
    #[error(
        "the site file gives {0:?} and {1:?} no addresses in one network: the two cannot reach each other"
    )]
    Apart(String, String),
}

/// What a site file means, as a number: two nodes go by the same one.
pub(crate) fn digest(site: &Site) -> [u8; 32] {
    Sha256::digest(format!("{site:?}")).into()
}

/// The names of this node and the other one: by their links, else by the order of their keys.
fn names<'a>(
    site: &'a Site,
    role: Role,
    own: Option<&str>,
    peer: Option<&str>,
) -> Result<[&'a Node; 2], PlaceError> {
    let named = |name: &str| {
        let node = site.nodes.iter().find(|node| node.name == name);
        node.ok_or_else(|| PlaceError::Unknown(name.to_owned()))
    };
    let other = |name: &str| {
        let node = site.nodes.iter().find(|node| node.name != name);
        node.ok_or_else(|| PlaceError::SameName(name.to_owned()))
    };
    match (own, peer) {
        (Some(own), Some(peer)) if own == peer => Err(PlaceError::SameName(own.to_owned())),
        (Some(own), Some(peer)) => Ok([named(own)?, named(peer)?]),
        (Some(own), None) => Ok([named(own)?, other(own)?]),
        (None, Some(peer)) => Ok([other(peer)?, named(peer)?]),
        (None, None) => {
            let (Some(first), Some(last)) = (site.nodes.first(), site.nodes.last()) else {
                return Err(PlaceError::Sites);
            };
            Ok(if role == Role::A { [first, last] } else { [last, first] })
        }
    }
}

/// Whether an interface, or what it is made of, is there for replication alone.
fn replicates(site: &Site, interface: &str) -> bool {
    let made_of = site.bonds.iter().map(|bond| (&bond.name, &bond.members));
    let made_of = made_of.chain(site.bridges.iter().map(|bridge| (&bridge.name, &bridge.members)));
    let mut members = made_of.filter(|(name, _)| *name == interface).flat_map(|(_, members)| members);
    interface.starts_with("repl") || members.any(|member| replicates(site, member))
}

/// The other node's addresses in networks of both: those on replication links first, in the order of the site file.
fn addresses(site: &Site, own: &Node, peer: &Node) -> Result<Vec<IpAddr>, PlaceError> {
    let shared = |interface: &str, address: IpAddr| {
        let mut own = own.addresses.iter().filter(|a| a.interface == interface);
        own.any(|a| a.address.contains(address))
    };
    let reachable = peer.addresses.iter().filter(|a| shared(&a.interface, a.address.address));
    let (mut best, rest): (Vec<_>, Vec<_>) = reachable.partition(|a| replicates(site, &a.interface));
    best.extend(rest);
    if best.is_empty() {
        return Err(PlaceError::Apart(own.name.clone(), peer.name.clone()));
    }
    Ok(best.iter().map(|a| a.address.address).collect())
}

/// The membership that follows from what both say.
pub(crate) fn membership(
    site: &Site,
    cluster: ClusterId,
    role: Role,
    own: &Card,
    peer: (Key, &Card),
) -> Result<Membership, PlaceError> {
    let (key, card) = peer;
    if own.site != card.site {
        return Err(PlaceError::Sites);
    }
    let [me, other] = names(site, role, own.name.as_deref(), card.name.as_deref())?;
    Ok(Membership {
        cluster,
        name: me.name.clone(),
        listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), driver::PORT),
        peer: Member {
            name: other.name.clone(),
            key: key.0,
            addresses: addresses(site, me, other)?,
            port: driver::PORT,
            postgresql: site.postgresql.port,
        },
        witness: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_spec::Source;

    const SITE: &str = r#"
cluster = "c"
[nodes.left.addresses]
lan0 = ["192.0.2.1/24"]
bond1 = ["198.51.100.1/24"]
[nodes.left.links]
lan0 = { mac = "02:00:00:00:00:01" }
repl0 = { mac = "02:00:00:00:00:02" }
[nodes.right.addresses]
lan0 = ["192.0.2.2/24"]
bond1 = ["198.51.100.2/24"]
[nodes.right.links]
lan0 = { mac = "02:00:00:00:00:03" }
repl0 = { mac = "02:00:00:00:00:04" }
[bonds.bond1]
mode = "802.3ad"
members = ["repl0"]
"#;

    fn site(text: &str) -> Site {
        Site::parse(Source::new("site.toml", text.to_owned()))
            .unwrap_or_else(|e| panic!("{}", e.render(false)))
    }

    fn card(site: &Site, name: Option<&str>) -> Card {
        Card { site: digest(site), name: name.map(str::to_owned) }
    }

    fn place(site: &Site, role: Role, own: &Card, peer: &Card) -> Result<Membership, PlaceError> {
        membership(site, ClusterId(1), role, own, (Key([5; 32]), peer))
    }

    #[test]
    fn names_come_from_links_and_else_from_the_keys() {
        let site = site(SITE);
        let (left, right, nobody) =
            (card(&site, Some("left")), card(&site, Some("right")), card(&site, None));
        let names = |role, own: &Card, peer: &Card| {
            let member = place(&site, role, own, peer).unwrap();
            (member.name, member.peer.name)
        };
        let (l, r) = (|| "left".to_owned(), || "right".to_owned());
        assert_eq!(names(Role::A, &right, &left), (r(), l()));
        assert_eq!(names(Role::A, &right, &nobody), (r(), l()));
        assert_eq!(names(Role::A, &nobody, &left), (r(), l()));
        assert_eq!(names(Role::A, &nobody, &nobody), (l(), r()));
        assert_eq!(names(Role::B, &nobody, &nobody), (r(), l()));
        assert_eq!(place(&site, Role::A, &left, &left), Err(PlaceError::SameName("left".into())));
        let third = card(&site, Some("third"));
        assert_eq!(place(&site, Role::A, &left, &third), Err(PlaceError::Unknown("third".into())));
    }

    #[test]
    fn the_pair_meets_on_its_replication_links() {
        let site = site(SITE);
        let member = place(&site, Role::A, &card(&site, Some("left")), &card(&site, None)).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(member.peer.addresses, [ip("198.51.100.2"), ip("192.0.2.2")], "replication first");
        assert_eq!((member.peer.port, member.peer.postgresql), (7401, 5432));
        assert_eq!((member.listen, member.peer.key), ("[::]:7401".parse().unwrap(), [5; 32]));
        let lan = self::site(&SITE.replace("bond1 = [\"198.51.100.2/24\"]", ""));
        let member = place(&lan, Role::A, &card(&lan, Some("left")), &card(&lan, None)).unwrap();
        assert_eq!(member.peer.addresses, [ip("192.0.2.2")]);
    }

    #[test]
    fn what_cannot_be_a_pair_is_refused_by_name() {
        let site = site(SITE);
        let other = self::site(&SITE.replace("cluster = \"c\"", "cluster = \"d\""));
        let (own, peer) = (card(&site, Some("left")), card(&other, Some("right")));
        assert_eq!(place(&site, Role::A, &own, &peer), Err(PlaceError::Sites));
        let apart = self::site("cluster = \"c\"\n[nodes.left]\n[nodes.right]\n");
        let told = place(&apart, Role::A, &card(&apart, None), &card(&apart, None)).unwrap_err();
        assert_eq!(told, PlaceError::Apart("left".into(), "right".into()));
        let spaced = self::site(&SITE.replace("cluster", "# a comment\n\ncluster"));
        assert_eq!(digest(&spaced), digest(&site), "comments mean nothing");
    }
}
