//! The packet filter: what may come in, made from the site file, and the gate of the virtual addresses.
//!
//! The gate's chains drop every packet to and from a virtual address, and every ARP question and answer about it, whose
//! element is not in the gate's sets. Elements have limited lives (`dyad_net::Gate`); loading these rules again touches none.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::control::{ExitStatus, Oneshot};
use dyad_channel::operator::PORT as OPERATORS;
use dyad_spec::IpNet;
use dyad_spec::site::{Node, Site};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::files::{self, Access, FileError};
use crate::paths::Paths;
use crate::pid1::{Pid1, Pid1Error};

/// The program that loads the rules.
const NFT: &str = "/usr/sbin/nft";
/// For loading them; it waits for modules at most.
const DEADLINE_MS: u32 = 10_000;
/// Between two tries, and between two looks at rules that are in place.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Ports on which members and pairing nodes speak to each other over link-local addresses.
const MEMBERS: &str = "7400-7409";
/// Ports on which DRBD volumes of the two members replicate: from the one that DRBD's own examples begin with.
const VOLUMES: &str = "7788-7799";
/// Where operators and balancers ask how a node is.
pub(crate) const HTTP: u16 = 8008;

/// What became of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firewall {
    /// In the words of nft.
    pub(crate) rules: String,
    /// `applied`, or why not.
    pub(crate) state: String,
}

impl Firewall {
    /// Until the site file is known.
    pub(crate) fn none() -> Self {
        Self { rules: String::new(), state: "waiting for the site file".into() }
    }
}

const APPLIED: &str = "applied";

#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("run {NFT}: {0}")]
    Run(#[from] Pid1Error),
    #[error("{NFT} refuses the rules: {0}")]
    Refused(String),
    #[error(
        "this image has no {NFT} (overlay nftables): nothing is filtered, and no virtual address can be used"
    )]
    Missing,
}

/// The rules of a node, as `nft -f` takes them: one transaction, which can be loaded again at any time.
pub(crate) fn rules(site: &Site, node: &Node) -> String {
    let mut out = String::from("# Made from the site file by the supervisor; loaded as one transaction.\n");
    let vips: Vec<IpAddr> = site.vips.iter().map(|vip| vip.address.address).collect();
    gate(&mut out, &vips);
    filter(&mut out, site, node);
    out
}

fn gate(out: &mut String, vips: &[IpAddr]) {
    out.push_str(
        "table inet dyad_gate {\n\
         \tset vip4 { type ipv4_addr; flags timeout; }\n\
         \tset vip6 { type ipv6_addr; flags timeout; }\n\
         \tchain in { type filter hook input priority -300; policy accept; }\n\
         \tchain out { type filter hook output priority -300; policy accept; }\n\
         }\n\
         table arp dyad_gate {\n\
         \tset vip4 { type ipv4_addr; flags timeout; }\n\
         \tchain in { type filter hook input priority 0; policy accept; }\n\
         \tchain out { type filter hook output priority 0; policy accept; }\n\
         }\n\
         flush chain inet dyad_gate in\n\
         flush chain inet dyad_gate out\n\
         flush chain arp dyad_gate in\n\
         flush chain arp dyad_gate out\n",
    );
    for vip in vips {
        let rules = match vip {
            IpAddr::V4(vip) => format!(
                "add rule inet dyad_gate in ip daddr {vip} ip daddr != @vip4 drop\n\
                 add rule inet dyad_gate out ip saddr {vip} ip saddr != @vip4 drop\n\
                 add rule arp dyad_gate in arp daddr ip {vip} arp daddr ip != @vip4 drop\n\
                 add rule arp dyad_gate out arp saddr ip {vip} arp saddr ip != @vip4 drop\n"
            ),
            // A neighbour's question comes to a group address, and the answer goes out from the address itself.
            IpAddr::V6(vip) => format!(
                "add rule inet dyad_gate in ip6 daddr {vip} ip6 daddr != @vip6 drop\n\
                 add rule inet dyad_gate out ip6 saddr {vip} ip6 saddr != @vip6 drop\n"
            ),
        };
        out.push_str(&rules);
    }
}

fn filter(out: &mut String, site: &Site, node: &Node) {
    let own: Vec<IpNet> = node.addresses.iter().map(|address| address.address).collect();
    let others = site.nodes.iter().filter(|other| other.name != node.name);
    let peers: Vec<IpNet> = others
        .flat_map(|other| &other.addresses)
        .map(|address| IpNet {
            prefix: if address.address.address.is_ipv4() { 32 } else { 128 },
            ..address.address
        })
        .collect();
    let declared: Vec<IpNet> = site.postgresql.access.iter().map(|access| access.network).collect();
    let clients = if declared.is_empty() { &own } else { &declared };
    out.push_str(
        "table inet dyad_firewall\n\
         delete table inet dyad_firewall\n\
         table inet dyad_firewall {\n\
         \tchain in {\n\
         \t\ttype filter hook input priority 0; policy drop;\n\
         \t\tct state established,related accept\n\
         \t\tiif lo accept\n\
         \t\tmeta l4proto { icmp, icmpv6 } accept\n",
    );
    let mut from = |networks: &[IpNet], port: &str| {
        for (family, four) in [("ip", true), ("ip6", false)] {
            let of: Vec<String> =
                networks.iter().filter(|net| net.address.is_ipv4() == four).map(IpNet::to_string).collect();
            if !of.is_empty() {
                // Overlapping networks of a list are merged.
                writeln!(out, "\t\t{family} saddr {{ {} }} tcp dport {port} accept", of.join(", "))
                    .expect("writing to a String does not fail");
            }
        }
    };
    let database = site.postgresql.port.to_string();
    from(&peers, &format!("{{ {}, {OPERATORS}, {database}, {VOLUMES} }}", crate::driver::PORT));
    from(clients, &database);
    from(clients, &HTTP.to_string());
    from(&own, &HTTP.to_string());
    if !site.operators.is_empty() {
        // Whoever comes must show a key of the site file.
        writeln!(out, "\t\ttcp dport {OPERATORS} accept").expect("writing to a String does not fail");
    }
    write!(
        out,
        "\t\tip6 saddr fe80::/10 tcp dport {MEMBERS} accept\n\
         \t\tip6 saddr fe80::/10 udp dport {MEMBERS} accept\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority 0; policy drop;\n\
         \t}}\n\
         }}\n"
    )
    .expect("writing to a String does not fail");
}

/// Keeps the rules in the kernel, for ever: what somebody removed is put back within a minute.
pub(crate) async fn keep(paths: Rc<Paths>, pid1: Pid1, rules: String, state: watch::Sender<Firewall>) {
    loop {
        let text = match apply(&paths, &pid1, &rules).await {
            Ok(()) => APPLIED.to_owned(),
            Err(error) => error.to_string(),
        };
        let pause = if text == APPLIED { PAUSE.1 } else { PAUSE.0 };
        let now = Firewall { rules: rules.clone(), state: text };
        state.send_if_modified(|shown| {
            let changed = *shown != now;
            if changed {
                tracing::info!(state = %now.state, "packet filter");
            }
            *shown = now;
            changed
        });
        if !paths.at(NFT).exists() {
            return;
        }
        sleep(pause).await;
    }
}

async fn apply(paths: &Paths, pid1: &Pid1, rules: &str) -> Result<(), ApplyError> {
    if !paths.at(NFT).exists() {
        return Err(ApplyError::Missing);
    }
    let file = paths.at("/run/dyad/firewall.nft");
    files::write(&file, rules.as_bytes(), Access::own(0o600))?;
    let exec = vec![NFT.into(), "-f".into(), file.display().to_string()];
    let finished = pid1.run(Oneshot::as_root("firewall", exec, DEADLINE_MS)).await?;
    match finished.status {
        ExitStatus::Exited(0) => Ok(()),
        status => {
            let said = String::from_utf8_lossy(&finished.stderr);
            let first = said.lines().next().unwrap_or_default();
            Err(ApplyError::Refused(format!("{} ({first})", crate::status::exit_text(&status))))
        }
    }
}

#[cfg(test)]
mod tests {
    use dyad_spec::Source;

    use super::*;

    #[test]
    fn a_site_comes_to_these_rules() {
        let text = include_str!("../tests/golden/firewall.toml");
        let site = Site::parse(Source::new("site.toml", text.to_owned()))
            .unwrap_or_else(|found| panic!("{}", found.render(false)));
        assert_eq!(rules(&site, &site.nodes[0]), include_str!("../tests/golden/firewall.nft"));
    }
}
