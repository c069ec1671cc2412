//! What is done to a cluster in one round: the plan of a seed, a failover, or a rejoin with a history of one's own.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::cluster::{Cluster, PROTECTED, millis};
use super::inject::{ADDRESSES, Knowledge, NODES, Undo};
use super::plan::{self, Process, Step};
use super::report::{Carried, Told};
use super::{Backend, Rounds, clock};

/// How long the standby hears nothing while clients write. It is less than what a primary waits for it: the power goes
/// before the primary goes on alone.
const UNHEARD: Duration = Duration::from_millis(400);
/// A primary that went on alone is not replaced; then the attempt is made again.
const TAKEN: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
/// What nobody acknowledged, some segments of it.
const TAIL: &str = "insert into tail select g, repeat('x', 900) from generate_series(1, 4000) g;";

impl Cluster {
    /// One of these rounds.
    pub(crate) fn round(&mut self, rounds: &Rounds, round: u64, backend: Backend) -> Told {
        match rounds {
            Rounds::Seeds(_) => self.seed(round, backend),
            Rounds::Failovers(_) => self.failover(),
            Rounds::Rejoins(_) => self.rejoin(),
            Rounds::Pairings(_) => unreachable!("blank nodes are no cluster yet"),
        }
    }

    /// The plan of a seed.
    fn seed(&mut self, seed: u64, backend: Backend) -> Told {
        let mut told = Told::default();
        self.hands().save_witness(&Knowledge::Old);
        let mut open: Vec<Undo> = Vec::new();
        for Step { gap, fault, hold, overlaps } in plan::plan(seed, backend == Backend::Container) {
            clock::pause(gap * backend.pace());
            let holder = self.find_holder();
            let hands = self.hands();
            let begun = hands.begin(fault, holder);
            let hold = hold * backend.pace();
            told.faults.push(Carried { class: fault.class(), ms: millis(hold), done: begun.is_some() });
            // What was not done to anything lasts no time.
            let lasts = begun.is_some() || !open.is_empty();
            open.extend(begun);
            if !overlaps && lasts {
                clock::pause(hold);
                open.drain(..).for_each(|undo| undo(&hands));
            }
        }
        self.settle(&mut told);
        told
    }

    /// The primary loses power, the other takes over, the lost one comes back.
    fn failover(&mut self) -> Told {
        let mut told = Told::default();
        let (timeline, lost) = (self.judge.timeline().max(1), self.find_holder());
        let before = self.quarantines(lost);
        let begun = clock::now();
        self.lab.ok(&["kill", NODES[lost]]);
        self.taken_over(timeline, begun, PROTECTED, &mut told);
        let off = clock::now() - begun;
        told.faults.push(Carried { class: "Kill".into(), ms: millis(off), done: true });
        self.lab.ok(&["start", NODES[lost]]);
        self.settle(&mut told);
        told.came_back = Some(self.way(lost, &before).to_owned());
        if self.find_holder() == lost {
            told.found.push(format!("{} was lost and takes the writes again", NODES[lost]));
        }
        told
    }

    /// The primary loses power while its log has what the standby never got.
    fn rejoin(&mut self) -> Told {
        let mut told = Told::default();
        for _ in 0..ATTEMPTS {
            let (timeline, lost) = (self.judge.timeline().max(1), self.find_holder());
            let before = self.quarantines(lost);
            let begun = clock::now();
            let Some(ahead) = self.part(lost) else { continue };
            let killed = clock::now();
            let taken = self.taken_over(timeline, killed, TAKEN, &mut told);
            told.faults.push(Carried {
                class: "Diverges".into(),
                ms: millis(clock::now() - begun),
                done: taken,
            });
            self.lab.ok(&["start", NODES[lost]]);
            self.settle(&mut told);
            if taken {
                let way = self.way(lost, &before);
                told.came_back = Some(way.to_owned());
                told.found.extend(self.kept_apart(lost, &before, way, ahead));
                return told;
            }
        }
        told.found.push(format!("{ATTEMPTS} times the primary was not replaced: no history parted"));
        told
    }

    fn taken_over(&self, timeline: u32, begun: Instant, limit: Duration, told: &mut Told) -> bool {
        let taken = self.wait_written_after(timeline, limit);
        match self.written_after(timeline) {
            Some(at) => told.gap_ms = Some(millis(at - begun)),
            None if limit == PROTECTED => told.found.push("O8: nobody takes over".to_owned()),
            None => {}
        }
        taken
    }

    /// Lets the primary write what its standby does not get, and cuts its power: how far its log was on its disk then.
    fn part(&self, holder: usize) -> Option<u64> {
        let hands = self.hands();
        let mut psql = hands.access.psql(ADDRESSES[holder], &[]);
        let mut client =
            psql.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("dyad can be started");
        let mut input = client.stdin.take().expect("standard input is a pipe");
        // It is connected by the time that it is asked for more.
        let asked = writeln!(input, "select 1;");
        clock::pause(UNHEARD);
        let deaf = hands.signal(NODES[holder], Process::WalSender, Signal::STOP);
        // Its COMMIT never returns.
        let asked = asked.and_then(|()| writeln!(input, "{TAIL}")).and_then(|()| input.flush());
        clock::pause(UNHEARD);
        let question = ["psql", "--node", NODES[holder], "--", "-XAtqc", "select pg_current_wal_flush_lsn()"];
        let ahead = lsn(String::from_utf8_lossy(&self.lab.run(&question).stdout).trim());
        self.lab.ok(&["kill", NODES[holder]]);
        let _ = client.kill();
        let _ = client.wait();
        if deaf.is_some() && asked.is_ok() && ahead.is_some() {
            return ahead;
        }
        self.lab.ok(&["start", NODES[holder]]);
        hands.heal();
        None
    }

    /// What a node has in quarantine.
    fn quarantines(&self, at: usize) -> BTreeSet<String> {
        let Some(volumes) = &self.volumes else { return BTreeSet::new() };
        let entries = fs::read_dir(volumes.of(NODES[at]).join("pg")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with("quarantine-")).collect()
    }

    /// How a node came back, by what it keeps since then.
    fn way(&self, at: usize, before: &BTreeSet<String>) -> &'static str {
        let Some(volumes) = &self.volumes else { return "not told by a machine" };
        let now = self.quarantines(at);
        let whole =
            |name: &&String| volumes.of(NODES[at]).join("pg").join(name.as_str()).join("PG_VERSION").exists();
        match now.difference(before).find(whole) {
            Some(_) => "cloned",
            None if now.len() > before.len() => "rewound",
            None => "streamed",
        }
    }

    /// O10: what parted is kept, and nobody sees it.
    fn kept_apart(&self, at: usize, before: &BTreeSet<String>, way: &str, ahead: u64) -> Option<String> {
        let seen = self.lab.sql("select count(*) from tail");
        if seen != "0" {
            return Some(format!("O10: {seen} rows that nobody acknowledged are served"));
        }
        let now = self.quarantines(at);
        let volumes = self.volumes.as_ref()?;
        match (way, now.difference(before).next()) {
            ("rewound", Some(name)) => {
                let text = fs::read(volumes.of(NODES[at]).join("pg").join(name).join("tail.json"));
                let tail: Value = serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
                let from = tail["from"].as_str().and_then(lsn);
                let files = tail["files"].as_array().map_or(0, Vec::len);
                (from.is_none_or(|from| from >= ahead) || files == 0)
                    .then(|| format!("O10: {name} does not begin before {ahead:X}, or is empty: {tail}"))
            }
            ("cloned", Some(_)) => None,
            _ => {
                Some(format!("O10: the log was at {ahead:X} on one node alone and nothing is in quarantine"))
            }
        }
    }
}

/// `16/B374D848` as a number.
fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some((u64::from_str_radix(high, 16).ok()? << 32) | u64::from_str_radix(low, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_in_the_log_are_numbers() {
        assert_eq!(lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(lsn("0/0"), Some(0));
        assert_eq!(lsn(""), None);
    }
}
