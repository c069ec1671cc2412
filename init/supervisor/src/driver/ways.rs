//! The ways to the other node, one for each address that it has in a network of both: whether each works, asked of its own link,
//! and which one replication shall take. Nothing is decided by it: the core goes by what it hears.

use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use dyad_net::{NetError, Netlink};
use dyad_spec::site::Node;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::postgres::Postgres;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// For the other node's answer.
const ECHO: Duration = Duration::from_millis(300);
/// Questions in a row without an answer until a way counts as down.
const MISSES: u32 = 3;
/// A way that was down is preferred again once it has worked for this long: replication does not follow a loose cable.
const STEADY: Duration = Duration::from_secs(20);

/// A way, as operators are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The other node's address.
    pub(crate) address: IpAddr,
    /// This node's link.
    pub(crate) interface: String,
    /// `None`: not looked at yet.
    pub(crate) up: Option<bool>,
}

/// One that is looked at.
struct Watched {
    way: Way,
    /// This node's own addresses there.
    own: Vec<IpAddr>,
    misses: u32,
    /// Since when it works, if it was down before.
    back: Option<Instant>,
}

/// All of them, the preferred one first.
pub(crate) struct Ways(Vec<Watched>);

impl Ways {
    /// To these addresses, from this node's links.
    pub(crate) fn of(node: &Node, addresses: &[IpAddr]) -> Self {
        let way = |address: &IpAddr| {
            let mut reach = node.addresses.iter().filter(|own| own.address.contains(*address));
            let interface = reach.next()?.interface.clone();
            let own = node.addresses.iter().filter(|own| own.interface == interface);
            let own = own.map(|own| own.address.address).collect();
            let way = Way { address: *address, interface, up: None };
            Some(Watched { way, own, misses: 0, back: None })
        };
        Self(addresses.iter().filter_map(way).collect())
    }

    /// Looks for ever; tells what works, and has replication take the best way that does.
    pub(crate) async fn watch(mut self, sysfs: PathBuf, pg: Rc<Postgres>, shown: watch::Sender<Vec<Way>>) {
        let netlink = match Netlink::open(&sysfs) {
            Ok(netlink) => netlink,
            Err(error) => return tracing::error!(%error, "watch the ways to the other node"),
        };
        let mut taken = self.order(Instant::now());
        loop {
            for way in &mut self.0 {
                if let Err(error) = way.look(&netlink).await {
                    tracing::warn!(%error, interface = %way.way.interface, "look at a way to the other node");
                }
            }
            let now: Vec<Way> = self.0.iter().map(|watched| watched.way.clone()).collect();
            shown.send_if_modified(|shown| {
                let changed = *shown != now;
                if changed {
                    *shown = now;
                }
                changed
            });
            let order = self.order(Instant::now());
            if order != taken {
                match pg.server.prefer(&order).await {
                    Ok(()) => {
                        tracing::info!(?order, "ways to the other node");
                        taken = order;
                    }
                    // Again with the next look, whatever the order is then: this one may have been declared.
                    Err(error) => {
                        tracing::info!(%error, "have replication take another way");
                        taken.clear();
                    }
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Those that work before those that came back a moment ago, and those before the ones that are down; among equals as they
    /// are preferred.
    fn order(&self, now: Instant) -> Vec<IpAddr> {
        let rank = |watched: &&Watched| match (watched.way.up, watched.back) {
            (Some(false), _) => 2,
            (_, Some(since)) if now.duration_since(since) < STEADY => 1,
            _ => 0,
        };
        let mut order: Vec<&Watched> = self.0.iter().collect();
        order.sort_by_key(rank);
        order.into_iter().map(|watched| watched.way.address).collect()
    }
}

impl Watched {
    async fn look(&mut self, netlink: &Netlink) -> Result<(), NetError> {
        let Way { address, interface, .. } = &self.way;
        let heard = match netlink.port(interface).await? {
            Some(port) if port.carrier => match dyad_net::heard(port, &self.own, &[*address], ECHO).await {
                Ok(heard) => heard,
                Err(error) => {
                    tracing::warn!(%error, %interface, "ask the other node for a sign of life");
                    false
                }
            },
            Some(_) | None => {
                // Without a carrier nothing has to be waited for.
                self.misses = MISSES;
                false
            }
        };
        self.judge(heard, Instant::now());
        Ok(())
    }

    fn judge(&mut self, heard: bool, now: Instant) {
        self.misses = if heard { 0 } else { self.misses.saturating_add(1) };
        let up = match self.way.up {
            _ if heard => Some(true),
            _ if self.misses >= MISSES => Some(false),
            unchanged => unchanged,
        };
        if up == self.way.up {
            return;
        }
        let Way { address, interface, .. } = &self.way;
        match up {
            Some(false) => tracing::warn!(%address, %interface, "a way to the other node is down"),
            Some(true) => tracing::info!(%address, %interface, "a way to the other node works"),
            None => {}
        }
        if self.way.up == Some(false) {
            self.back = Some(now);
        }
        self.way.up = up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dyad_spec::Source;
    use dyad_spec::site::Site;

    const SITE: &str = r#"
cluster = "c"
[nodes.left.links]
lan0 = { mac = "02:00:00:00:00:01" }
repl0 = { mac = "02:00:00:00:00:02" }
[nodes.right.links]
lan0 = { mac = "02:00:00:00:00:03" }
repl0 = { mac = "02:00:00:00:00:04" }
[nodes.left.addresses]
lan0 = ["192.0.2.1/24", "fd00::1/64"]
repl0 = ["198.51.100.1/24"]
[nodes.right.addresses]
lan0 = ["192.0.2.2/24", "fd00::2/64"]
repl0 = ["198.51.100.2/24"]
"#;

    #[test]
    fn the_best_way_that_works_is_taken_and_a_loose_cable_is_not_followed() {
        let site = Site::parse(Source::new("site.toml", SITE.to_owned()))
            .unwrap_or_else(|found| panic!("{}", found.render(false)));
        let [repl, lan, six]: [IpAddr; 3] =
            ["198.51.100.2", "192.0.2.2", "fd00::2"].map(|text| text.parse().unwrap());
        let stranger = "203.0.113.9".parse().unwrap();
        let mut ways = Ways::of(&site.nodes[0], &[repl, lan, six, stranger]);
        let links: Vec<_> =
            ways.0.iter().map(|watched| (&*watched.way.interface, watched.own.len())).collect();
        assert_eq!(links, [("repl0", 1), ("lan0", 2), ("lan0", 2)]);

        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(ways.order(start), [repl, lan, six], "nothing is known yet");
        for _ in 1..MISSES {
            ways.0[0].judge(false, at(1));
        }
        assert_eq!(
            (ways.0[0].way.up, ways.order(at(1))),
            (None, vec![repl, lan, six]),
            "a question may be lost"
        );
        ways.0[0].judge(false, at(2));
        assert_eq!((ways.0[0].way.up, ways.order(at(2))), (Some(false), vec![lan, six, repl]));
        ways.0[0].judge(true, at(3));
        assert_eq!(
            (ways.0[0].way.up, ways.order(at(22))),
            (Some(true), vec![lan, six, repl]),
            "not steady yet"
        );
        assert_eq!(ways.order(at(23)), [repl, lan, six]);
        for way in &mut ways.0 {
            (0..MISSES).for_each(|_| way.judge(false, at(30)));
        }
        assert_eq!(ways.order(at(30)), [repl, lan, six], "all are down");
    }
}
