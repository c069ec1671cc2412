//! Where a frame goes: a learning switch for the LAN, wires for the back-to-back links, and the cuts of the operator.
//!
//! Pure: time is an argument, frames are slices, the answer is a list of ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How long a switch remembers behind which port an address was last seen (the usual default of IEEE 802.1D).
const MAC_AGE_MAX: Duration = Duration::from_secs(300);
/// The most addresses that are remembered; beyond it the table starts anew and frames are flooded, as in a real switch.
const MAC_TABLE_MAX: usize = 4096;
/// Addresses that a bridge must not forward (IEEE 802.1Q table 8-1): LACPDUs, spanning tree, pause frames.
const LINK_LOCAL: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];

/// A port of the fabric.
pub(crate) type PortId = u64;

/// What a port is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The one LAN switch.
    Lan,
    /// A wire with two ends; it carries everything, LACPDUs too.
    Wire(u32),
}

struct Port {
    owner: Arc<str>,
    link: Link,
}

/// Ports, learned addresses and cuts.
#[derive(Default)]
pub(crate) struct Fabric {
    ports: BTreeMap<PortId, Port>,
    table: HashMap<[u8; 6], (PortId, Duration)>,
    cuts: BTreeSet<(Arc<str>, Arc<str>)>,
    silent: BTreeSet<Arc<str>>,
    mute: BTreeSet<PortId>,
    next: PortId,
}

impl Fabric {
    /// Plugs a port in. Cuts name owners, so every port of an owner is cut with it.
    pub(crate) fn add(&mut self, owner: &str, link: Link) -> PortId {
        self.next += 1;
        self.ports.insert(self.next, Port { owner: Arc::from(owner), link });
        self.next
    }

    /// Unplugs a port and forgets what was learned behind it.
    pub(crate) fn remove(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.mute.remove(&port);
        self.table.retain(|_, (p, _)| *p != port);
    }

    /// Replaces all cuts. A cut drops every frame from the first owner to the second, on all links.
    pub(crate) fn set_cuts<'a>(&mut self, cuts: impl Iterator<Item = (&'a str, &'a str)>) {
        self.cuts = cuts.map(|(from, to)| (Arc::from(from), Arc::from(to))).collect();
    }

    /// Drops every frame from and to an owner, or no longer.
    pub(crate) fn silence(&mut self, owner: &str, silent: bool) {
        self.silent.remove(owner);
        self.silent.extend(silent.then(|| Arc::from(owner)));
    }

    /// Drops every frame from and to a port, or no longer.
    pub(crate) fn mute(&mut self, port: PortId, mute: bool) {
        self.mute.remove(&port);
        self.mute.extend(mute.then_some(port));
    }

    /// The cuts in force as (from, to).
    pub(crate) fn cuts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cuts.iter().map(|(a, b)| (&**a, &**b))
    }

    /// Fills `out` with the ports that get a frame which came in at `from`. `now` counts from any fixed point.
    pub(crate) fn forward(&mut self, from: PortId, frame: &[u8], now: Duration, out: &mut Vec<PortId>) {
        out.clear();
        let (Some(port), Some((to, source))) = (self.ports.get(&from), addresses(frame)) else { return };
        match port.link {
            Link::Wire(_) => {
                let wire = port.link;
                out.extend(
                    self.ports.iter().filter(|(id, p)| **id != from && p.link == wire).map(|(id, _)| *id),
                );
            }
            Link::Lan => {
                if to[..5] == LINK_LOCAL && to[5] < 0x10 {
                    return;
                }
                self.learn(source, from, now);
                self.lan_targets(from, to, now, out);
            }
        }
        if !self.mute.is_empty() {
            out.retain(|id| ![&from, id].iter().any(|port| self.mute.contains(*port)));
        }
        let owner = &self.ports[&from].owner;
        if !self.silent.is_empty() {
            out.retain(|id| ![owner, &self.ports[id].owner].iter().any(|o| self.silent.contains(*o)));
        }
        if !self.cuts.is_empty() {
            out.retain(|id| !self.cuts.contains(&(owner.clone(), self.ports[id].owner.clone())));
        }
    }

    fn learn(&mut self, source: [u8; 6], port: PortId, now: Duration) {
        if is_group(source) {
            return;
        }
        if self.table.len() >= MAC_TABLE_MAX && !self.table.contains_key(&source) {
            self.table.clear();
        }
        self.table.insert(source, (port, now));
    }

    fn lan_targets(&self, from: PortId, to: [u8; 6], now: Duration, out: &mut Vec<PortId>) {
        if !is_group(to) {
            match self.table.get(&to) {
                Some((port, seen)) if now.saturating_sub(*seen) <= MAC_AGE_MAX => {
                    if *port != from {
                        out.push(*port);
                    }
                    return;
                }
                Some(_) | None => {}
            }
        }
        out.extend(
            self.ports.iter().filter(|(id, p)| **id != from && p.link == Link::Lan).map(|(id, _)| *id),
        );
    }
}

fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 1
}

fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let to = frame.get(..6)?.try_into().ok()?;
    let from = frame.get(6..12)?.try_into().ok()?;
    Some((to, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A0: [u8; 6] = [2, 0, 0, 0, 0, 0xa0];
    const B0: [u8; 6] = [2, 0, 0, 0, 0, 0xb0];
    const ALL: [u8; 6] = [0xff; 6];
    const LACP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 2];

    fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to[..], &from[..], &[0x08, 0x00], &[0; 46]].concat()
    }

    struct Lab {
        fabric: Fabric,
        a: [PortId; 2],
        b: PortId,
        host: PortId,
        wire: [PortId; 2],
    }

    fn lab() -> Lab {
        let mut fabric = Fabric::default();
        let a = [fabric.add("node-a", Link::Lan), fabric.add("node-a", Link::Lan)];
        let b = fabric.add("node-b", Link::Lan);
        let host = fabric.add("host", Link::Lan);
        let wire = [fabric.add("node-a", Link::Wire(0)), fabric.add("node-b", Link::Wire(0))];
        fabric.add("node-a", Link::Wire(1));
        Lab { fabric, a, b, host, wire }
    }

    const NOBODY: [PortId; 0] = [];

    impl Lab {
        fn sent(&mut self, from: PortId, frame: &[u8], at: u64) -> Vec<PortId> {
            let mut out = Vec::new();
            self.fabric.forward(from, frame, Duration::from_secs(at), &mut out);
            out
        }
    }

    #[test]
    fn broadcast_floods_the_lan_only_and_never_returns() {
        let mut l = lab();
        assert_eq!(l.sent(l.a[0], &frame(ALL, A0), 0), [l.a[1], l.b, l.host]);
        assert_eq!(l.sent(l.wire[0], &frame(ALL, A0), 0), [l.wire[1]]);
    }

    #[test]
    fn learns_and_follows_an_address_that_moves_between_ports() {
        let mut l = lab();
        assert_eq!(l.sent(l.host, &frame(A0, B0), 0).len(), 3, "unknown: flooded");
        l.sent(l.a[0], &frame(ALL, A0), 1);
        assert_eq!(l.sent(l.host, &frame(A0, B0), 2), [l.a[0]]);
        l.sent(l.a[1], &frame(ALL, A0), 3);
        assert_eq!(l.sent(l.host, &frame(A0, B0), 4), [l.a[1]], "the bond failed over");
        assert_eq!(l.sent(l.host, &frame(A0, B0), 304).len(), 3, "aged out");
        l.sent(l.a[1], &frame(ALL, A0), 305);
        let gone = l.a[1];
        l.fabric.remove(gone);
        assert_eq!(l.sent(l.host, &frame(A0, B0), 306), [l.a[0], l.b], "port gone: flooded to the rest");
        assert_eq!(l.sent(gone, &frame(ALL, A0), 306), NOBODY, "an unplugged port sends nothing");
    }

    #[test]
    fn a_frame_to_an_address_behind_its_own_port_stays_there() {
        let mut l = lab();
        l.sent(l.a[0], &frame(ALL, A0), 0);
        assert_eq!(l.sent(l.a[0], &frame(A0, B0), 1), NOBODY);
    }

    #[test]
    fn lacp_passes_wires_and_never_the_switch() {
        let mut l = lab();
        assert_eq!(l.sent(l.a[0], &frame(LACP, A0), 0), NOBODY);
        assert_eq!(l.sent(l.wire[0], &frame(LACP, A0), 0), [l.wire[1]]);
    }

    #[test]
    fn cuts_are_directed_and_cover_every_link() {
        let mut l = lab();
        l.fabric.set_cuts([("node-a", "node-b")].into_iter());
        assert_eq!(l.sent(l.a[0], &frame(ALL, A0), 0), [l.a[1], l.host]);
        assert_eq!(l.sent(l.wire[0], &frame(ALL, A0), 0), NOBODY);
        assert_eq!(l.sent(l.wire[1], &frame(ALL, B0), 0), [l.wire[0]], "the other direction is open");
        assert_eq!(l.sent(l.b, &frame(A0, B0), 0), [l.a[0]]);
        assert_eq!(l.fabric.cuts().collect::<Vec<_>>(), [("node-a", "node-b")]);
        l.fabric.set_cuts([].into_iter());
        assert_eq!(l.sent(l.wire[0], &frame(ALL, A0), 0), [l.wire[1]]);
    }

    #[test]
    fn a_silent_owner_neither_speaks_nor_hears() {
        let mut l = lab();
        l.fabric.silence("node-a", true);
        assert_eq!(l.sent(l.a[0], &frame(ALL, A0), 0), NOBODY);
        assert_eq!(l.sent(l.host, &frame(ALL, B0), 0), [l.b]);
        l.fabric.silence("node-a", false);
        assert_eq!(l.sent(l.wire[0], &frame(ALL, A0), 0), [l.wire[1]]);
    }

    #[test]
    fn a_mute_port_neither_speaks_nor_hears() {
        let mut l = lab();
        l.fabric.mute(l.wire[0], true);
        assert_eq!(l.sent(l.wire[0], &frame(LACP, A0), 0), NOBODY);
        assert_eq!(l.sent(l.wire[1], &frame(LACP, B0), 0), NOBODY);
        assert_eq!(l.sent(l.a[0], &frame(ALL, A0), 0), [l.a[1], l.b, l.host], "its owner's other ports do");
        l.fabric.mute(l.wire[0], false);
        assert_eq!(l.sent(l.wire[1], &frame(LACP, B0), 0), [l.wire[0]]);
    }

    #[test]
    fn runts_are_dropped_and_the_table_stays_bounded() {
        let mut l = lab();
        assert_eq!(l.sent(l.a[0], &[0xff; 11], 0), NOBODY);
        for i in 0..(MAC_TABLE_MAX as u32 + 10) {
            let [a, b, c, d] = i.to_be_bytes();
            l.sent(l.a[0], &frame(ALL, [2, 0, a, b, c, d]), 0);
        }
        assert!(l.fabric.table.len() <= MAC_TABLE_MAX);
    }
}
