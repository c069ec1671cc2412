//! Replication, clients, PID 1's dead-man's switch, and the oracles' look at every moment.

use dyad_cluster::event::{Event, Link};
use dyad_cluster::types::{Node, ResourceId};

use super::cluster::{Cluster, Happening, RESOURCES, Wire};
use super::database::Service;
use super::oracles;

/// wal_sender_timeout and wal_receiver_timeout.
const STREAM_TIMEOUT_MS: u64 = 2_000;
/// A client writes once in so many looks.
const WRITE_ONE_IN: u64 = 20;

impl Cluster {
    /// Both directions between the nodes work and nobody stands still.
    pub(crate) fn connected(&self) -> bool {
        Node::BOTH.iter().all(|n| {
            self.passes(Wire::ToPeer(*n)) && self.machines[n.index()].powered && self.stalled(*n).is_none()
        })
    }

    fn streams(&self, holder: Node, index: usize) -> bool {
        let (h, s) = (
            &self.machines[holder.index()].databases[index],
            &self.machines[holder.peer().index()].databases[index],
        );
        let pair = h.service == Service::Serving && s.service == Service::Following;
        self.connected() && pair && s.is_prefix_of(h)
    }

    pub(crate) fn at_head(&self, holder: Node, index: usize) -> bool {
        self.streams(holder, index)
            && self.machines[0].databases[index].log.len() == self.machines[1].databases[index].log.len()
    }

    pub(crate) fn look(&mut self) {
        for index in 0..RESOURCES {
            for node in Node::BOTH {
                self.stream(node, index);
            }
            for node in Node::BOTH {
                self.client(node, index);
                self.watch_link(node, index);
            }
        }
        for node in Node::BOTH {
            self.deadman(node);
        }
        let complaint = oracles::at_every_moment(self);
        self.complain(complaint);
    }

    /// What the holder has reaches the standby's disk; what waited for it is acknowledged.
    fn stream(&mut self, holder: Node, index: usize) {
        let now = self.now;
        if self.streams(holder, index) {
            let have = self.machines[holder.peer().index()].databases[index].log.len();
            let h = &self.machines[holder.index()].databases[index];
            let (news, timeline) = (h.log[have..].to_vec(), h.timeline);
            let standby = &mut self.machines[holder.peer().index()].databases[index];
            standby.log.extend(news);
            standby.timeline = timeline;
            standby.streamed = Some(now);
            let h = &mut self.machines[holder.index()].databases[index];
            h.streamed = Some(now);
            let waiting = std::mem::take(&mut h.waiting);
            for at in waiting {
                self.acknowledge(holder, index, at);
            }
        }
        let standby = &self.machines[holder.peer().index()].databases[index];
        let h = &self.machines[holder.index()].databases[index];
        let astray = self.connected()
            && h.service == Service::Serving
            && standby.service == Service::Following
            && !standby.is_prefix_of(h);
        if astray {
            let peer = holder.peer();
            self.machines[peer.index()].databases[index].stop();
            let run = self.machines[peer.index()].run;
            self.put(now, Happening::Event(peer, run, Event::Ended(ResourceId(index as u16))));
        }
    }

    fn acknowledge(&mut self, node: Node, index: usize, at: usize) {
        let machine = &self.machines[node.index()];
        let write = machine.databases[index].log[at];
        let timeline = machine.databases[index].timeline;
        let epoch = machine.mirror.registers.get(&ResourceId(index as u16)).map_or(0, |r| r.epoch.0);
        let complaint = oracles::o2_one_acknowledges(&self.acknowledged[index], node, epoch)
            .or_else(|| oracles::o4_own_timeline(&mut self.timelines, index, timeline, node));
        self.acknowledged[index].push((write, node, epoch));
        self.complain(complaint);
    }

    /// A client beside each node writes to whatever lets it in.
    fn client(&mut self, node: Node, index: usize) {
        if self.stalled(node).is_some() || self.random.between(1, WRITE_ONE_IN) != 1 {
            return;
        }
        let write = self.written + 1;
        let database = &mut self.machines[node.index()].databases[index];
        if database.service != Service::Serving || !database.admitted {
            return;
        }
        self.written = write;
        database.log.push(write);
        let at = database.log.len() - 1;
        if database.published {
            database.waiting.push(at);
        } else {
            self.acknowledge(node, index, at);
        }
    }

    fn watch_link(&mut self, node: Node, index: usize) {
        let now = self.now;
        let at_head = if self.machines[node.index()].databases[index].service == Service::Following {
            self.streams(node.peer(), index)
        } else {
            self.streams(node, index)
        };
        let run = self.machines[node.index()].run;
        let database = &mut self.machines[node.index()].databases[index];
        let fresh = database.streamed.is_some_and(|at| now - at < STREAM_TIMEOUT_MS);
        let told = database.link_told;
        let tell = match (at_head, fresh) {
            (true, _) => true,
            (false, true) => return,
            (false, false) => false,
        };
        if database.service != Service::Stopped && told != Some(tell) {
            database.link_told = Some(tell);
            let link = if tell { Link::AtHead } else { Link::Down };
            self.put(now, Happening::Event(node, run, Event::Link(ResourceId(index as u16), link)));
        }
    }

    /// PID 1: past the deadline it closes the gate and kills, whether or not the supervisor lives.
    fn deadman(&mut self, node: Node) {
        let machine = &mut self.machines[node.index()];
        if machine.powered
            && machine.stalled_until <= self.now
            && machine.clock.read(self.now) > machine.deadman
        {
            machine.gate_until = machine.gate_until.min(self.now);
            machine.deadman = dyad_cluster::types::Tick(u64::MAX);
            self.note(format!("{node:?} dead-man's switch"));
            self.end_services(node);
        }
    }
}
