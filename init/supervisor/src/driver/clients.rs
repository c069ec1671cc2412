//! Whether clients can be served here: the carrier of the links with virtual addresses, then a sign of life of a gateway
//! behind them, and the services that the site file names. The core moves the database only when this node's clients are lost
//! and the other's are not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use dyad_api::control::ServiceState;
use dyad_net::{NetError, Netlink, Port};
use dyad_spec::site::{Node, Site};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::vips::Vips;
use crate::pid1::{Pid1, View};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// For a gateway to answer.
const ECHO: Duration = Duration::from_millis(300);
/// Questions in a row without an answer until a gateway counts as lost.
const MISSES: u32 = 3;

/// For a service that starts, or starts anew, to be there.
const COMING_UP: Duration = Duration::from_secs(15);

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

/// What is looked at, made from the site file. With neither virtual addresses nor services nothing is known of clients.
pub(crate) struct Clients {
    sides: Vec<Side>,
    /// Names of services that clients need.
    services: Vec<String>,
    /// Of those the ones that do not run, and since when.
    missing: BTreeMap<String, Instant>,
    /// Of those the ones that counted as down at the last look.
    down: Vec<String>,
}

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
        let sides = interfaces.into_iter().map(side).collect();
        Self { sides, services: site.client_services.clone(), missing: BTreeMap::new(), down: Vec::new() }
    }

    /// Looks for ever; tells whether any side is up, and has addresses announced again where one has come back.
    pub(crate) async fn watch(
        mut self,
        sysfs: PathBuf,
        pid1: Pid1,
        vips: Vips,
        up: watch::Sender<Option<bool>>,
    ) {
        let view = pid1.view();
        let netlink = match Netlink::open(&sysfs) {
            Ok(netlink) => netlink,
            Err(error) => return tracing::error!(%error, "watch the clients' network"),
        };
        while !(self.sides.is_empty() && self.services.is_empty()) {
            for side in &mut self.sides {
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
            let reached = self.reached();
            // Without PID 1 nothing is known of services.
            let served = self.served(&view.borrow(), Instant::now());
            let now = match (reached, served) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                (None, _) | (_, None) => None,
            };
            up.send_if_modified(|told| std::mem::replace(told, now) != now);
            sleep(LOOK).await;
        }
    }
}

impl Clients {
    /// Whether any side is up; without any there is nothing that could be lost.
    fn reached(&self) -> Option<bool> {
        let any = self.sides.is_empty() || self.sides.iter().any(|side| side.up == Some(true));
        let known = self.sides.iter().all(|side| side.up.is_some());
        if any { Some(true) } else { known.then_some(false) }
    }

    /// Whether every service that clients need is there; names in the log what begins or ceases to be down.
    fn served(&mut self, view: &View, now: Instant) -> Option<bool> {
        if self.services.is_empty() {
            return Some(true);
        }
        if !view.connected {
            return None;
        }
        let mut down = Vec::new();
        for name in &self.services {
            let since = match view.service(name).map(|it| it.state) {
                // One that the image does not have is nowhere: a misspelt name must not hide what is really lost.
                None | Some(ServiceState::Ready | ServiceState::Done) => {
                    self.missing.remove(name);
                    continue;
                }
                Some(ServiceState::Failed | ServiceState::Stopped) => {
                    down.push(name.clone());
                    continue;
                }
                Some(_) => *self.missing.entry(name.clone()).or_insert(now),
            };
            // Coming up again is PID 1's business first, as after a move that took its database away for a moment.
            if now.duration_since(since) >= COMING_UP {
                down.push(name.clone());
            }
        }
        if down != self.down {
            tracing::info!(?down, "services that clients need");
            self.down = down;
        }
        Some(self.down.is_empty())
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

#[cfg(test)]
mod tests {
    use dyad_api::control::ServiceStatus;

    use super::*;

    fn view(state: ServiceState) -> View {
        let service = ServiceStatus {
            name: "app".into(),
            state,
            pid: 0,
            since_ms: 0,
            ready_after_ms: 0,
            restarts: 0,
            last_exit: None,
            note: String::new(),
        };
        View { connected: true, services: vec![service], ..View::default() }
    }

    #[test]
    fn a_service_is_down_when_it_is_given_up_and_not_while_it_comes_back() {
        let services = vec!["app".to_owned(), "misspelt".to_owned()];
        let (sides, missing, down) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut clients = Clients { sides, services, missing, down };
        let start = Instant::now();
        let mut at = |state, seconds| clients.served(&view(state), start + Duration::from_secs(seconds));
        assert_eq!(at(ServiceState::Ready, 0), Some(true));
        assert_eq!(at(ServiceState::BackOff, 1), Some(true));
        assert_eq!(at(ServiceState::Starting, 15), Some(true));
        assert_eq!(at(ServiceState::Starting, 16), Some(false), "for too long");
        assert_eq!(at(ServiceState::Ready, 17), Some(true));
        assert_eq!(at(ServiceState::BackOff, 18), Some(true), "counted anew");
        assert_eq!(at(ServiceState::Failed, 19), Some(false));
        assert_eq!(at(ServiceState::Stopped, 20), Some(false));
        assert_eq!(clients.served(&View::default(), start), None, "PID 1 is not heard");
        assert_eq!(clients.reached(), Some(true), "there is no network to be lost");
    }
}
