//! Whether clients can reach this node: the carrier of the links with virtual addresses, then a sign of life of a gateway
//! behind them. The core moves the database only when this node's clients are lost and the other's are not.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use dyad_net::{NetError, Netlink, Port};
use dyad_spec::site::{Node, Site};
use tokio::sync::watch;
use tokio::time::sleep;

use super::vips::Vips;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// For a gateway to answer.
const ECHO: Duration = Duration::from_millis(300);
/// Questions in a row without an answer until a gateway counts as lost.
const MISSES: u32 = 3;

/// A link on which clients come.
struct Side {
    interface: String,
    /// This node's own addresses there.
    own: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    /// `None`: no gateway has ever answered, so that silence says nothing.
    misses: Option<u32>,
    up: Option<bool>,
}

/// What is looked at, made from the site file. Empty without virtual addresses: nothing is known of clients then.
pub(crate) struct Clients(Vec<Side>);

impl Clients {
    pub(crate) fn of(site: &Site, node: &Node) -> Self {
        let mut interfaces: Vec<&str> = site.vips.iter().map(|vip| &*vip.interface).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        let side = |interface: &str| {
            let here: Vec<_> =
                node.addresses.iter().filter(|address| address.interface == interface).collect();
            let reached = |via: &IpAddr| here.iter().any(|address| address.address.contains(*via));
            Side {
                interface: interface.to_owned(),
                own: here.iter().map(|address| address.address.address).collect(),
                gateways: site.routes.iter().map(|route| route.via).filter(reached).collect(),
                misses: None,
                up: None,
            }
        };
        Self(interfaces.into_iter().map(side).collect())
    }

    /// Looks for ever; tells whether any side is up, and has addresses announced again where one has come back.
    pub(crate) async fn watch(mut self, sysfs: PathBuf, vips: Vips, up: watch::Sender<Option<bool>>) {
        let netlink = match Netlink::open(&sysfs) {
            Ok(netlink) => netlink,
            Err(error) => return tracing::error!(%error, "watch the clients' network"),
        };
        while !self.0.is_empty() {
            for side in &mut self.0 {
                match side.look(&netlink).await {
                    Ok(now) => {
                        if side.up != Some(now) {
                            tracing::info!(interface = %side.interface, up = now, "the clients' network");
                        }
                        if side.up == Some(false) && now {
                            vips.healed();
                        }
                        side.up = Some(now);
                    }
                    Err(error) => tracing::warn!(%error, "look at the clients' network"),
                }
            }
            let any = self.0.iter().any(|side| side.up == Some(true));
            let known = self.0.iter().all(|side| side.up.is_some());
            let now = if any { Some(true) } else { known.then_some(false) };
            up.send_if_modified(|told| std::mem::replace(told, now) != now);
            sleep(LOOK).await;
        }
    }
}

impl Side {
    async fn look(&mut self, netlink: &Netlink) -> Result<bool, NetError> {
        match netlink.port(&self.interface).await? {
            Some(port) if port.carrier => Ok(self.echo(port).await),
            Some(_) | None => Ok(false),
        }
    }

    async fn echo(&mut self, port: Port) -> bool {
        if self.gateways.is_empty() {
            return true;
        }
        match dyad_net::heard(port, &self.own, &self.gateways, ECHO).await {
            Ok(true) => self.misses = Some(0),
            Ok(false) => self.misses = self.misses.map(|misses| misses.saturating_add(1)),
            Err(error) => tracing::warn!(%error, interface = %self.interface, "ask the gateway"),
        }
        self.misses.is_none_or(|misses| misses < MISSES)
    }
}
