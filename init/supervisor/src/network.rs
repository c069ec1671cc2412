//! Applies the network of the site file, puts back what changes, shows what there is.
//!
//! An LACP bond whose other end is silent needs no change of mode: the kernel then uses one member at a time.

use std::rc::Rc;
use std::time::Duration;

use dyad_api::operator::{LinkRow, NetworkSection};
use dyad_net::{BondStatus, Kernel, LinkStatus, MemberStatus, Names, NetError, Netlink, Network, converge};
use dyad_spec::site::{Node, Site};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::paths::Paths;

/// Between two looks while something is missing or failing, and when all is well.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// So many looks for a link by which the site knows this machine; drivers are loaded before the supervisor starts.
const IDENTIFY_LOOKS: u32 = 20;

/// Which node of the site this machine is; `None`: none of its links is named there.
pub(crate) async fn identify(paths: &Paths, site: &Site) -> Result<Option<Node>, NetError> {
    if let Some(node) = site.identify(&[]) {
        return Ok(Some(node.clone()));
    }
    let netlink = Netlink::open(&paths.at("/sys"))?;
    for _ in 0..IDENTIFY_LOOKS {
        let links = netlink.observe().await?.links;
        let macs: Vec<_> = links.iter().filter_map(|link| link.identity()).collect();
        if let Some(node) = site.identify(&macs) {
            return Ok(Some(node.clone()));
        }
        sleep(INTERVAL.0).await;
    }
    Ok(None)
}

/// Names and network of this machine.
pub(crate) fn of(site: Option<(&Site, &Node)>) -> (Names, Network) {
    match site {
        Some((site, node)) => (Names::of(site, node), Network::of(site, node)),
        None => (Names::unnamed(), Network::unconfigured()),
    }
}

/// Keeps the network as declared, for ever.
pub(crate) async fn keep(paths: Rc<Paths>, network: Network, state: watch::Sender<NetworkSection>) {
    let mut netlink = None;
    loop {
        let section = match look(&paths, &mut netlink, &network).await {
            Ok(section) => section,
            Err(error) => {
                let links = state.borrow().links.clone();
                NetworkSection { state: "failed".into(), note: error.to_string(), links }
            }
        };
        let pause = if section.state == "applied" { INTERVAL.1 } else { INTERVAL.0 };
        state.send_if_modified(|shown| {
            if (&shown.state, &shown.note) != (&section.state, &section.note) {
                tracing::info!(state = %section.state, note = %section.note, "network");
            }
            let changed = *shown != section;
            *shown = section;
            changed
        });
        sleep(pause).await;
    }
}

async fn look(
    paths: &Paths,
    netlink: &mut Option<Netlink>,
    network: &Network,
) -> Result<NetworkSection, NetError> {
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::open(&paths.at("/sys"))?),
    };
    let converged = converge(netlink, network).await?;
    for step in &converged.done {
        tracing::info!(%step, "network changed");
    }
    let links = netlink.status().await?.into_iter().map(row).collect();
    let (state, note) = match &converged.missing[..] {
        [] => ("applied", String::new()),
        missing => ("incomplete", format!("no link is there for {}", missing.join(", "))),
    };
    Ok(NetworkSection { state: state.into(), note, links })
}

fn row(link: LinkStatus) -> LinkRow {
    let mut words = Vec::new();
    if link.up && !link.carrier {
        words.push("no carrier".to_owned());
    }
    words.extend(link.mac.map(|mac| format!("mac {mac}")));
    words.extend(link.speed_mbps.map(|speed| format!("{speed} Mbit/s")));
    words.extend(link.controller.map(|controller| format!("in {controller}")));
    words.extend(link.bond.map(bond));
    words.extend(link.member.map(member));
    LinkRow {
        name: link.name,
        up: link.up && link.carrier,
        addresses: link.addresses,
        note: words.join(", "),
    }
}

fn bond(bond: BondStatus) -> String {
    let mut text = bond.mode.clone();
    if let Some(active) = bond.active {
        text += &format!(" on {active}");
    }
    match (bond.partner, bond.aggregated) {
        (Some(partner), count) => text += &format!(", partner {partner}, {} aggregated", count.unwrap_or(0)),
        (None, Some(_)) => text += ", no LACP partner",
        (None, None) => {}
    }
    text
}

fn member(member: MemberStatus) -> String {
    let sync = match member.in_sync {
        Some(true) => ", LACP in sync",
        Some(false) => ", LACP not in sync",
        None => "",
    };
    format!("member {}{sync}, {} failures", if member.mii_up { "up" } else { "down" }, member.failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_told_in_words() {
        let bond = BondStatus { mode: "802.3ad".into(), active: None, partner: None, aggregated: Some(1) };
        let member = MemberStatus { mii_up: true, failures: 2, aggregator: Some(1), in_sync: Some(true) };
        let link = LinkStatus {
            name: "bond1".into(),
            mac: Some("02:00:00:00:00:01".into()),
            up: true,
            carrier: false,
            speed_mbps: Some(10_000),
            addresses: vec!["10.0.1.1/24".into()],
            controller: None,
            bond: Some(bond),
            member: Some(member),
        };
        let row = row(link);
        assert!(!row.up, "no carrier is not up");
        let note = "no carrier, mac 02:00:00:00:00:01, 10000 Mbit/s, 802.3ad, no LACP partner, \
                    member up, LACP in sync, 2 failures";
        assert_eq!(row.note, note);
    }
}
