//! What every seed is checked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dyad_cluster::eventlog;

use super::clock;
use super::events::Events;
use super::inject::NODES;
use super::ledger::Ack;
use crate::Lab;
use crate::secrets::Secrets;

/// How long a standby may take to replay what it has.
const REPLAY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

/// All that was seen so far in the life of one cluster.
#[derive(Default)]
pub(crate) struct Judge {
    acknowledged: BTreeSet<u64>,
    /// Timeline -> when something written on it was first acknowledged.
    first_on: BTreeMap<u32, Instant>,
    /// Which node a server ran on, as clients that asked for a node know.
    servers: BTreeMap<String, &'static str>,
    /// Timeline -> servers that wrote on it.
    writers: BTreeMap<u32, BTreeSet<String>>,
    epoch: u64,
    events: Events,
    /// Event logs that were played, with their length then and their steps.
    played: BTreeMap<PathBuf, (usize, usize)>,
}

impl Judge {
    /// The timeline of the newest write.
    pub(crate) fn timeline(&self) -> u32 {
        self.first_on.keys().next_back().copied().unwrap_or_default()
    }

    /// Steps of the core that were played again.
    pub(crate) fn steps(&self) -> usize {
        self.played.values().map(|(_, steps)| steps).sum()
    }

    /// O2 and O4: whoever acknowledges on a timeline has not been replaced yet, and nobody else uses that timeline.
    pub(crate) fn writes(&mut self, acks: &[Ack], found: &mut Vec<String>) {
        for ack in acks {
            self.acknowledged.insert(ack.id);
            let first = self.first_on.entry(ack.timeline).or_insert(ack.returned);
            *first = (*first).min(ack.returned);
            self.writers.entry(ack.timeline).or_default().insert(ack.server.clone());
            if let Some(node) = ack.node {
                self.servers.insert(ack.server.clone(), node);
            }
        }
        for ack in acks {
            let mut later = self.first_on.range(ack.timeline + 1..);
            if let Some((newer, _)) = later.find(|(_, first)| **first < ack.sent) {
                found.push(format!(
                    "O2: {} was sent after timeline {newer} had a writer, and acknowledged on timeline {}",
                    ack.id, ack.timeline
                ));
            }
        }
        for (timeline, servers) in &self.writers {
            let nodes: BTreeSet<_> = servers.iter().filter_map(|server| self.servers.get(server)).collect();
            if nodes.len() > 1 {
                found.push(format!("O4: timeline {timeline} has writes of {nodes:?}"));
            }
        }
    }

    /// O1: every number that was ever acknowledged is in the table of both nodes.
    pub(crate) fn kept(&self, lab: &Lab, found: &mut Vec<String>) {
        for node in NODES {
            let begun = clock::now();
            let missing = loop {
                let missing = self.missing(lab, node);
                if missing.is_empty() || clock::now() - begun > REPLAY {
                    break missing;
                }
                clock::pause(POLL);
            };
            if !missing.is_empty() {
                let some: Vec<_> = missing.iter().take(10).collect();
                found.push(format!("O1: acknowledged and not on {node}: {} ids, {some:?}", missing.len()));
            }
        }
    }

    fn missing(&self, lab: &Lab, node: &str) -> Vec<u64> {
        let answer = lab.run(&["psql", "--node", node, "--", "-XAtqc", "select id from ledger"]);
        let text = String::from_utf8_lossy(&answer.stdout);
        let there: BTreeSet<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        self.acknowledged.difference(&there).copied().collect()
    }

    /// O3: epochs only rise.
    pub(crate) fn epoch(&mut self, epoch: u64, found: &mut Vec<String>) {
        if epoch < self.epoch {
            found.push(format!("O3: epoch {epoch} after {}", self.epoch));
        }
        self.epoch = epoch;
    }

    /// Whatever a node was told, the core answers it again as it did then.
    pub(crate) fn replay(&mut self, lab: &Lab, found: &mut Vec<String>) {
        for node in NODES {
            for (path, bytes) in self.events.of(lab, node) {
                if self.played.get(&path).is_some_and(|(length, _)| *length == bytes.len()) {
                    continue;
                }
                match eventlog::decode(&bytes).and_then(|entries| eventlog::replay(&entries)) {
                    Ok(steps) => drop(self.played.insert(path, (bytes.len(), steps))),
                    Err(error) => found.push(format!("replay: {}: {error}", path.display())),
                }
            }
        }
    }
}

/// O12: no password or key in what a node tells the world.
pub(crate) fn secrets(lab: &Lab, found: &mut Vec<String>) {
    found.extend(Secrets::of(lab).told(lab).into_iter().map(|line| format!("O12: {line}")));
}

pub(crate) fn state_of(lab: &Lab, node: &str) -> PathBuf {
    lab.state().join("nodes").join(node).join("state")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(id: u64, timeline: u32, server: &str, sent: Instant) -> Ack {
        let returned = sent + Duration::from_millis(1);
        let node = match server {
            "one" => Some("node-a"),
            "two" => Some("node-b"),
            _ => None,
        };
        Ack { id, timeline, server: server.to_owned(), node, sent, returned }
    }

    fn told(acks: &[Ack]) -> Vec<String> {
        let (mut judge, mut found) = (Judge::default(), Vec::new());
        judge.writes(acks, &mut found);
        found
    }

    #[test]
    fn a_replaced_writer_and_a_shared_timeline_are_found() {
        let at = |ms| clock::now() + Duration::from_millis(ms);
        let good = [ack(0, 1, "one", at(0)), ack(1, 1, "?", at(100)), ack(2, 2, "two", at(200))];
        assert!(told(&good).is_empty());
        let late = [ack(0, 1, "one", at(0)), ack(1, 2, "two", at(100)), ack(2, 1, "one", at(200))];
        assert!(told(&late)[0].starts_with("O2: 2 was sent"), "{:?}", told(&late));
        let shared = [ack(0, 1, "one", at(0)), ack(1, 1, "two", at(100))];
        assert!(told(&shared)[0].starts_with("O4: timeline 1"));
    }

    #[test]
    fn an_epoch_that_falls_is_found() {
        let (mut judge, mut found) = (Judge::default(), Vec::new());
        [3, 3, 5].into_iter().for_each(|epoch| judge.epoch(epoch, &mut found));
        assert!(found.is_empty());
        judge.epoch(4, &mut found);
        assert_eq!(found, ["O3: epoch 4 after 5"]);
    }
}
