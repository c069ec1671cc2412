//! Small scripts with which the model of PostgreSQL is held against PostgreSQL: `calibration/postgres.txt` has the
//! scripts, `calibration/postgres.expect` what the real server did.

use std::collections::BTreeMap;

use crate::sim::{Database, Kind, Rewound, Written};

/// The scripts.
pub const SCRIPTS: &str = include_str!("../calibration/postgres.txt");
/// Where the outcomes are.
pub const EXPECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/calibration/postgres.expect");

/// One script: what it shows, and its lines, each an operation on server `p` or `s`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// What it shows.
    pub title: String,
    /// Operations.
    pub lines: Vec<String>,
}

/// All scripts of a text.
pub fn scripts(text: &str) -> Vec<Script> {
    let lines = |body: &str| body.lines().skip(1).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    let bodies = text.split("## ").skip(1);
    bodies.map(|b| Script { title: b.lines().next().unwrap_or("").to_owned(), lines: lines(b) }).collect()
}

/// Runs a script on a world and writes every outcome beside its operation.
pub fn run(script: &Script, mut operate: impl FnMut(&str) -> String) -> String {
    let lines = script.lines.iter().map(|line| format!("{line} = {}\n", operate(line)));
    format!("## {}\n{}", script.title, lines.collect::<String>())
}

/// Every script of a text on a model of its own, as records have it; at least `least` of them.
pub fn all<M: Default>(text: &str, least: usize, operate: fn(&mut M, &str) -> String) -> String {
    let all = scripts(text);
    assert!(all.len() >= least, "only {} scripts", all.len());
    let one = |script: &Script| {
        let mut model = M::default();
        run(script, |line| operate(&mut model, line))
    };
    all.iter().map(one).collect::<Vec<String>>().join("\n")
}

/// The model's two servers: `p` serves, `s` follows.
#[derive(Debug)]
pub struct Model {
    servers: [Database; 2],
    /// By write: on which server, and how it ended.
    writes: BTreeMap<u64, (usize, &'static str)>,
    receiver_runs: bool,
    kept: bool,
}

impl Default for Model {
    fn default() -> Self {
        let mut servers = [1, 2].map(|generation| Database::new(Kind::Postgres, generation));
        for server in &mut servers {
            server.guarded = false;
        }
        servers[0].serve(false);
        servers[1].follow();
        Model { servers, writes: BTreeMap::new(), receiver_runs: true, kept: false }
    }
}

impl Model {
    /// One operation and what comes of it.
    pub fn operate(&mut self, line: &str) -> String {
        let mut words = line.split(' ');
        let (op, server, last) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next());
        let own = usize::from(server == "s");
        let number = || last.unwrap_or(server).parse().unwrap_or(0);
        match op {
            "write" | "write-kept" => return self.write(own, number(), op == "write"),
            "outcome" => return self.writes.get(&number()).map_or("never", |(_, how)| how).to_owned(),
            "read" => return self.read(own),
            "follow" => return self.follow(own),
            "rewind" => return self.rewind(own),
            "control" => return format!("timeline {}", self.servers[own].control_timeline),
            "promote" => {
                self.servers[own].serve(false);
                self.servers[own].checkpoint();
                return format!("timeline {}", self.servers[own].timeline);
            }
            "start" if self.servers[own].in_recovery => self.servers[own].follow(),
            "start" => {
                let armed = self.servers[own].armed;
                self.servers[own].serve(armed);
                self.servers[own].admitted = true;
                self.servers[own].armed = armed;
            }
            "stop" => self.stop(own, last == Some("fast")),
            "clone" => {
                let (p, s) = self.pair(own);
                s.clone_of(p, 9);
                s.follow();
            }
            "arm" | "disarm" => {
                self.servers[own].armed = op == "arm";
                self.publish(own);
            }
            "checkpoint" => {
                self.publish(own);
                self.servers[own].checkpoint();
            }
            "cancel" | "terminate" => {
                let how = if op == "cancel" { "acknowledged" } else { "lost" };
                let waiting = self.servers[own].cancel();
                self.end(own, &waiting, how);
            }
            "keep" => self.kept = true,
            "hang-checkpointer" => self.servers[own].checkpointer_runs = false,
            "wake-checkpointer" => {
                self.servers[own].checkpointer_runs = true;
                self.publish(own);
            }
            "hang-postmaster" | "wake-postmaster" => {
                self.servers[own].postmaster_runs = op == "wake-postmaster"
            }
            "hang-receiver" | "wake-receiver" => self.receiver_runs = op == "wake-receiver",
            // They come again by themselves.
            "kill-sender" | "kill-receiver" => {}
            other => return format!("no operation {other:?}"),
        }
        self.stream();
        "done".to_owned()
    }

    /// The other server, and this one.
    fn pair(&mut self, own: usize) -> (&mut Database, &mut Database) {
        let [p, s] = &mut self.servers;
        if own == 1 { (p, s) } else { (s, p) }
    }

    fn end(&mut self, own: usize, at: &[usize], how: &'static str) {
        for at in at {
            self.writes.insert(self.servers[own].log[*at], (own, how));
        }
    }

    fn publish(&mut self, own: usize) {
        let let_go = self.servers[own].publish();
        self.end(own, &let_go, "acknowledged");
    }

    fn stream(&mut self) {
        for own in [0, 1] {
            let running = self.receiver_runs;
            let (holder, standby) = self.pair(own);
            if running && standby.may_stream_from(holder) {
                let flushed = standby.stream_from(holder);
                self.end(1 - own, &flushed, "acknowledged");
            }
        }
    }

    fn write(&mut self, own: usize, write: u64, fresh: bool) -> String {
        let written =
            if fresh || self.kept { self.servers[own].write(write, fresh) } else { Written::Refused };
        let how = match written {
            Written::Refused => return "refused".to_owned(),
            Written::Waits => "waits",
            Written::Acknowledged(_) => "acknowledged",
        };
        self.writes.insert(write, (own, how));
        self.stream();
        self.writes[&write].1.to_owned()
    }

    fn read(&self, own: usize) -> String {
        let server = &self.servers[own];
        let seen = server.log.iter().enumerate().filter(|(at, _)| !server.waiting.contains(at));
        seen.map(|(_, write)| write.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn stop(&mut self, own: usize, clean: bool) {
        let waiting = self.servers[own].waiting.clone();
        self.end(own, &waiting, "lost");
        let armed = self.servers[own].armed;
        if clean {
            self.servers[own].stop_clean()
        } else {
            self.servers[own].stop()
        }
        self.servers[own].armed = armed;
    }

    fn follow(&mut self, own: usize) -> String {
        self.servers[own].follow();
        let (holder, standby) = self.pair(own);
        let streams = standby.may_stream_from(holder);
        self.stream();
        if streams { "streams" } else { "refused" }.to_owned()
    }

    fn rewind(&mut self, own: usize) -> String {
        let (holder, target) = self.pair(own);
        // A target that crashed is recovered first, which ends with a checkpoint.
        target.checkpoint();
        match target.rewind_to(&holder.clone(), 9) {
            Rewound::NotRequired => "no rewind required".to_owned(),
            Rewound::Done(_) => "rewound".to_owned(),
        }
    }
}
