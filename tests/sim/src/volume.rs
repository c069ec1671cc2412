//! The model of a volume held against DRBD: `calibration/drbd.txt` has the scripts, `calibration/drbd.expect` what two
//! machines with the kernel's own DRBD did. There is `resource-and-stonith` and a helper that answers when it is told to.

use std::collections::BTreeMap;

use crate::sim::{Database, Kind, Rewound, Service, Written};

/// The scripts.
pub const SCRIPTS: &str = include_str!("../calibration/drbd.txt");
/// Where the outcomes are.
pub const EXPECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/calibration/drbd.expect");

/// The helper's answer that the peer is outdated: the only one that a machine goes on alone with.
const PROOF: &str = "4";

/// The model's two machines: `p` is primary, `s` secondary, and they are connected.
#[derive(Debug)]
pub struct Model {
    disks: [Database; 2],
    /// What each machine's helper answers.
    answers: [Option<String>; 2],
    /// Primary by proof: a new generation, which DRBD does not give up by itself.
    alone: [bool; 2],
    /// By write: how it ended.
    writes: BTreeMap<u64, &'static str>,
    connected: bool,
    promotes: bool,
}

impl Default for Model {
    fn default() -> Self {
        let mut disks = [1, 2].map(|generation| Database::new(Kind::Volume, generation));
        disks[0].serve(true);
        disks[0].admitted = true;
        disks[1].follow();
        Model {
            disks,
            answers: [None, None],
            alone: [false; 2],
            writes: BTreeMap::new(),
            connected: true,
            promotes: false,
        }
    }
}

impl Model {
    /// One operation and what comes of it.
    pub fn operate(&mut self, line: &str) -> String {
        let mut words = line.split(' ');
        let (op, node, last) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next());
        let own = usize::from(node == "s");
        let number = || last.and_then(|word| word.parse().ok()).unwrap_or(0);
        match op {
            "write" => return self.write(own, number()),
            "outcome" => return self.writes.get(&number()).copied().unwrap_or("never").to_owned(),
            "disk" => {
                let all = self.disks[own].log.iter().map(u64::to_string);
                return all.collect::<Vec<_>>().join(" ");
            }
            "cut" | "silence" => self.connected = false,
            "mend" | "return" => return self.meet(own),
            "promote" => {
                self.promotes = true;
                return self.promotion(own).to_owned();
            }
            "promotion" => return self.promotion(own).to_owned(),
            "answer" => {
                self.answers[own] = last.map(str::to_owned);
                self.proven(own);
            }
            "demote" => self.disks[own].follow(),
            "leave" => {
                for at in self.disks[own].waiting.clone() {
                    self.writes.insert(self.disks[own].log[at], "lost");
                }
                self.disks[own].stop();
            }
            "discard" => {
                let holder = self.disks[1 - own].clone();
                let Rewound::Done(_) = self.disks[own].rewind_to(&holder, 9) else {
                    return "no resync".to_owned();
                };
                self.alone[own] = false;
                return self.meet(own);
            }
            other => return format!("no operation {other:?}"),
        }
        "done".to_owned()
    }

    fn has_proof(&self, own: usize) -> bool {
        self.answers[own].as_deref() == Some(PROOF)
    }

    /// What a primary that lost its peer does with its helper's answer.
    fn proven(&mut self, own: usize) {
        if self.connected || self.disks[own].service != Service::Serving || !self.has_proof(own) {
            return;
        }
        self.alone[own] = true;
        self.disks[own].armed = false;
        let let_go = self.disks[own].publish();
        self.end(own, &let_go);
    }

    fn end(&mut self, own: usize, acknowledged: &[usize]) {
        for at in acknowledged {
            self.writes.insert(self.disks[own].log[*at], "acknowledged");
        }
    }

    fn write(&mut self, own: usize, write: u64) -> String {
        let how = match self.disks[own].write(write, true) {
            Written::Refused => return "refused".to_owned(),
            Written::Waits => "waits",
            Written::Acknowledged(_) => "acknowledged",
        };
        self.writes.insert(write, how);
        self.stream();
        self.writes[&write].to_owned()
    }

    /// The primary's machine, and its peer's.
    fn pair(&mut self, primary: usize) -> (&mut Database, &mut Database) {
        let [p, s] = &mut self.disks;
        if primary == 0 { (p, s) } else { (s, p) }
    }

    /// False: no disk of the two is a primary's whose peer may go on from where it is.
    fn stream(&mut self) -> bool {
        let connected = self.connected;
        for primary in [0, 1] {
            let (holder, secondary) = self.pair(primary);
            if connected && secondary.may_stream_from(holder) {
                let flushed = secondary.stream_from(holder);
                self.end(primary, &flushed);
                return true;
            }
        }
        false
    }

    /// A promotion needs the peer or the proof that it is outdated.
    fn promotion(&mut self, own: usize) -> &'static str {
        let proven = !self.connected && self.has_proof(own);
        if self.promotes && (proven || self.connected) {
            self.promotes = false;
            self.alone[own] = proven;
            self.disks[own].serve(!proven);
            self.disks[own].admitted = true;
        }
        match &self.answers[own] {
            _ if !self.promotes => "promoted",
            None => "waits",
            Some(_) => "refused",
        }
    }

    /// The link is there again. What a machine wrote that nobody was told, and that did not go on alone, DRBD drops when it
    /// connects; the core asks for the same with `Rewind`.
    fn meet(&mut self, own: usize) -> String {
        self.connected = true;
        if self.disks[own].service == Service::Stopped {
            self.disks[own].follow();
        }
        for node in [own, 1 - own] {
            let holder = self.disks[1 - node].clone();
            let tail = !self.disks[node].is_prefix_of(&holder) && !holder.is_prefix_of(&self.disks[node]);
            if tail && !self.alone[node] {
                self.disks[node].rewind_to(&holder, 9);
            }
        }
        if self.stream() { "streams" } else { "refused" }.to_owned()
    }
}
