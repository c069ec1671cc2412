//! Replication, clients, PID 1's dead-man's switch, and the oracles' look at every moment.

use dyad_cluster::event::{Event, Link};
use dyad_cluster::register::Register;
use dyad_cluster::types::{Node, ResourceId};

use super::cluster::{Cluster, Happening};
use super::database::{Kind, Service, Written};
use super::faults::Fault;
use super::oracles;

/// wal_sender_timeout and wal_receiver_timeout.
const STREAM_TIMEOUT_MS: u64 = 2_000;
/// A client writes once in so many looks; in a burst, with every look.
const WRITE_ONE_IN: u64 = 20;
const BURST_MS: u64 = 2_000;
/// Three probes of 500 ms.
const SICK_MS: u64 = 1_500;
/// A flapping link is down for every other one of these.
const FLAP_MS: u64 = 700;
/// A killed service that still lives after this takes its machine down with it.
pub(crate) const UNKILLABLE_MS: u64 = 3_000;

impl Cluster {
    /// Both directions between the nodes work and nobody stands still.
    pub(crate) fn connected(&self) -> bool {
        let flapped = self.has(Fault::Flaps) && (self.now / FLAP_MS) % 2 == 1;
        !flapped
            && Node::BOTH.iter().all(|n| {
                self.passes(super::faults::Wire::ToPeer(*n))
                    && self.machines[n.index()].powered
                    && self.stalled(*n).is_none()
            })
    }

    fn streams(&self, holder: Node, index: usize) -> bool {
        let (h, s) = (
            &self.machines[holder.index()].databases[index],
            &self.machines[holder.peer().index()].databases[index],
        );
        let disks = !Node::BOTH.iter().any(|n| self.has(Fault::HungDisk(*n)));
        self.connected() && disks && !self.has(Fault::Stream) && s.may_stream_from(h)
    }

    pub(crate) fn at_head(&self, holder: Node, index: usize) -> bool {
        self.streams(holder, index)
            && self.machines[0].databases[index].log.len() == self.machines[1].databases[index].log.len()
    }

    pub(crate) fn look(&mut self) {
        for index in 0..self.resources() {
            for node in Node::BOTH {
                self.stream(node, index);
            }
            for node in Node::BOTH {
                self.client(node, index);
                self.watch_link(node, index);
                self.watch_health(node, index);
            }
        }
        for node in Node::BOTH {
            self.pid1(node);
        }
        self.operator();
        let (unmarked, now) = (oracles::unmarked(self), self.now);
        self.untrue_since.retain(|at, _| unmarked.contains(at));
        unmarked.into_iter().for_each(|at| _ = self.untrue_since.entry(at).or_insert(now));
        let complaint = oracles::at_every_moment(self);
        self.complain(complaint);
        if self.peaceful_since.is_some() {
            let best = oracles::is_best(self);
            self.best_since = if best { self.best_since.or(Some(self.now)) } else { None };
        }
    }

    /// What the holder has reaches the standby's disk; what waited for it is acknowledged.
    fn stream(&mut self, holder: Node, index: usize) {
        let now = self.now;
        let [a, b] = &self.machines;
        let (own, peer) = if holder == Node::A { (a, b) } else { (b, a) };
        if own.databases[index].service != Service::Serving
            || peer.databases[index].service != Service::Following
        {
            return;
        }
        if self.streams(holder, index) {
            let [a, b] = &mut self.machines;
            let (own, peer) = if holder == Node::A { (a, b) } else { (b, a) };
            let (h, s) = (&mut own.databases[index], &mut peer.databases[index]);
            let flushed = s.stream_from(h);
            s.checkpoint();
            (h.streamed, s.streamed) = (Some(now), Some(now));
            flushed.into_iter().for_each(|at| self.acknowledge(holder, index, at));
        } else if self.connected() {
            let (s, h) = (&peer.databases[index], &own.databases[index]);
            if !s.may_stream_from(h) {
                let peer = holder.peer();
                self.machines[peer.index()].databases[index].stop();
                let run = self.machines[peer.index()].run;
                self.put(now, Happening::Event(peer, run, Event::Ended(ResourceId(index as u16))));
            }
        }
    }

    pub(crate) fn acknowledge(&mut self, node: Node, index: usize, at: usize) {
        if self.forced_from[index] == Some(node) {
            // The operator said that this machine is off. What it still says to clients is the price, until it takes
            // part again under a register of its own.
            let r = ResourceId(index as u16);
            let later = |register: &&Register| register.epoch > self.forced_at[index];
            let register = self.arbiter_disk.registers.get(&r).filter(later);
            let holds = register.is_some_and(|register| register.holder == node);
            if !holds {
                self.given_up += 1;
                return;
            }
            self.forced_from[index] = None;
        }
        let machine = &self.machines[node.index()];
        let write = machine.databases[index].log[at];
        let timeline = machine.databases[index].timeline;
        let registers = machine.mirror.iter().flat_map(|m| &m.registers);
        let epoch =
            registers.filter(|(r, _)| usize::from(r.0) == index).map(|(_, r)| r.epoch.0).next().unwrap_or(0);
        let volume = machine.databases[index].kind == Kind::Volume;
        let complaint = oracles::o2_one_acknowledges(&self.acknowledged[index], node, epoch).or_else(|| {
            if volume { None } else { oracles::o4_own_timeline(&mut self.timelines, index, timeline, node) }
        });
        self.acknowledged[index].push((write, node, epoch));
        self.complain(complaint);
    }

    /// A client beside each node writes to whatever lets it in.
    fn client(&mut self, node: Node, index: usize) {
        let burst = self.plan.bursts && (self.now / BURST_MS) % 2 == 1;
        let machine = &self.machines[node.index()];
        let database = &machine.databases[index];
        if database.service != Service::Serving || !database.admitted {
            return;
        }
        let guest = database.kind == Kind::Postgres
            || machine.vms.contains(&dyad_cluster::action::VmId(index as u16));
        let idle = !burst && self.random.between(1, WRITE_ONE_IN) != 1;
        if idle || !guest || self.stalled(node).is_some() || self.has(Fault::HungDisk(node)) {
            return;
        }
        let fresh = self.random.permille(500);
        let write = self.written + 1;
        let database = &mut self.machines[node.index()].databases[index];
        let written = database.write(write, fresh);
        let cancelled = if self.has(Fault::Cancels) {
            self.machines[node.index()].databases[index].cancel()
        } else {
            Vec::new()
        };
        match written {
            Written::Refused => {}
            Written::Waits => self.written = write,
            Written::Acknowledged(at) => {
                self.written = write;
                self.acknowledge(node, index, at);
            }
        }
        cancelled.into_iter().for_each(|at| self.acknowledge(node, index, at));
    }

    fn watch_link(&mut self, node: Node, index: usize) {
        let now = self.now;
        let service = self.machines[node.index()].databases[index].service;
        let up = match service {
            Service::Stopped => return,
            Service::Following => self.streams(node.peer(), index),
            Service::Serving => self.streams(node, index),
        };
        let run = self.machines[node.index()].run;
        let database = &mut self.machines[node.index()].databases[index];
        if !up && database.streamed.is_some_and(|at| now - at < STREAM_TIMEOUT_MS) {
            return;
        }
        if database.link_told != Some(up) {
            database.link_told = Some(up);
            let link = if up { Link::AtHead } else { Link::Down };
            self.put(now, Happening::Event(node, run, Event::Link(ResourceId(index as u16), link)));
        }
    }

    /// Probes: a write on a kept connection, a new connection, a write to the disk.
    fn watch_health(&mut self, node: Node, index: usize) {
        let now = self.now;
        let hung = self.has(Fault::HungDisk(node));
        let machine = &mut self.machines[node.index()];
        let run = machine.run;
        let database = &mut machine.databases[index];
        let well = database.checkpointer_runs && database.postmaster_runs && !hung;
        if well || database.service != Service::Serving || !database.admitted {
            database.sick_since = None;
        } else if now >= *database.sick_since.get_or_insert(now) + SICK_MS {
            database.sick_since = Some(now);
            self.put(now, Happening::Event(node, run, Event::Unhealthy(ResourceId(index as u16))));
        }
    }

    /// PID 1: past the deadline it closes the gate and kills, whether or not the supervisor lives; what does not die
    /// takes the machine with it.
    fn pid1(&mut self, node: Node) {
        let now = self.now;
        let hung = self.has(Fault::HungDisk(node));
        let machine = &mut self.machines[node.index()];
        if !machine.powered || machine.stalled_until > now {
            return;
        }
        if machine.clock.read(now) > machine.deadman {
            machine.gates.clear();
            machine.deadman = dyad_cluster::types::Tick(u64::MAX);
            let running = machine.databases.iter_mut().filter(|d| d.service != Service::Stopped);
            running.for_each(|d| d.killing_since = d.killing_since.or(Some(now)));
            self.note(|| format!("{node:?} dead-man's switch"));
            if !hung {
                self.end_services(node);
                self.moved("the dead-man's switch killed");
            }
        }
        let machine = &self.machines[node.index()];
        if machine.killing_since().is_some_and(|since| now >= since + UNKILLABLE_MS) {
            self.reset(node);
        }
    }
}
