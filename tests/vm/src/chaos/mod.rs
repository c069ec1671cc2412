//! Faults by seed on a real cluster under real clients: one cluster for many seeds, each healed and judged before the next.

pub(crate) mod clock;
pub(crate) mod inject;
pub(crate) mod judge;
pub(crate) mod ledger;
pub(crate) mod plan;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use inject::{ADDRESSES, Injector, Knowledge, NODES, Undo};
use judge::Judge;
use ledger::Ledger;
use plan::Step;
use watch::Watch;

use crate::{Lab, root};

/// How nodes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Containers: processes can be signalled one by one; T = 3 s.
    Container,
    /// Emulated machines; T = 15 s.
    Vm,
}

impl Backend {
    fn options(self) -> &'static [&'static str] {
        match self {
            Backend::Container => &["--backend", "container"],
            Backend::Vm => &["--accel", "tcg"],
        }
    }

    /// Everything lasts so much longer than a plan says.
    fn pace(self) -> u32 {
        match self {
            Backend::Container => 1,
            Backend::Vm => 4,
        }
    }
}

/// How long the best protection may take when nothing is wrong any more.
const PROTECTED: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(250);
/// Writes that a client must get through at the end of each seed.
const WRITES: usize = 20;
/// What an address that moved cannot do in less.
const TENURE: Duration = Duration::from_secs(1);
/// What a node says of a witness that was restored from an old copy: an operator must act.
const OLD_WITNESS: &str = "the witness knows less than the nodes";

/// One seed as it went.
struct Told {
    /// Class, how long, and whether there was something to do it to.
    faults: Vec<(String, Duration, bool)>,
    acknowledged: usize,
    takeovers: u32,
    /// From the end of the last fault; `None`: not within [`PROTECTED`].
    protected: Option<Duration>,
    /// The witness had to be given back what it knew.
    restored: bool,
    found: Vec<String>,
}

/// Runs these seeds and prints each; true when nothing was found.
pub fn run(seeds: Range<u64>, backend: Backend) -> bool {
    println!("seeds {}..{} declared, {backend:?}", seeds.start, seeds.end);
    let (mut classes, mut bad, mut acknowledged, mut takeovers) = (BTreeMap::new(), Vec::new(), 0, 0);
    let mut rest = seeds.clone().peekable();
    let mut steps = 0;
    while rest.peek().is_some() {
        let mut cluster = Cluster::up(backend);
        for seed in rest.by_ref() {
            let told = cluster.seed(seed, backend);
            tell(seed, &told);
            acknowledged += told.acknowledged;
            takeovers += told.takeovers;
            for (class, ..) in told.faults.iter().filter(|(.., done)| *done) {
                *classes.entry(class.clone()).or_insert(0_u32) += 1;
            }
            if !told.found.is_empty() {
                bad.push(seed);
                println!("  kept in {}", cluster.keep(seed).display());
                println!("  again: cargo xtask chaos --seeds {seed}..{}", seed + 1);
                break;
            }
        }
        steps += cluster.judge.steps();
        let mut secrets = Vec::new();
        judge::secrets(&cluster.lab, &cluster.password, &mut secrets);
        secrets.iter().for_each(|line| println!("  {line}"));
        if !secrets.is_empty() && bad.is_empty() {
            bad.push(seeds.start);
        }
    }
    println!("\nfault classes:");
    classes.iter().for_each(|(class, count)| println!("  {count:4} {class}"));
    println!(
        "{} seeds, {acknowledged} acknowledged writes, {takeovers} take-overs, {steps} steps of the core played again, \
         seeds with a violation: {bad:?}",
        seeds.end - seeds.start
    );
    bad.is_empty()
}

/// Asks within the lab's network who has the virtual address, until it is killed.
pub fn watch() -> std::io::Result<()> {
    watch::ask()
}

fn tell(seed: u64, told: &Told) {
    let fault = |(class, hold, done): &(String, Duration, bool)| {
        let text = format!("{class} {:.1} s", hold.as_secs_f64());
        if *done { text } else { format!("({text})") }
    };
    let faults: Vec<_> = told.faults.iter().map(fault).collect();
    let protected = told.protected.map_or("never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    let restored = if told.restored { ", old witness put right" } else { "" };
    let verdict = if told.found.is_empty() { "ok" } else { "VIOLATION" };
    println!(
        "seed {seed}: {} | {} acknowledged | {} take-overs | PROTECTED after {protected}{restored} | {verdict}",
        faults.join(", "),
        told.acknowledged,
        told.takeovers
    );
    told.found.iter().for_each(|line| println!("  {line}"));
}

/// One cluster and all that is known of it. Fields are dropped in this order: clients end before their lab.
struct Cluster {
    ledger: Ledger,
    watch: Watch,
    judge: Judge,
    holder: usize,
    password: String,
    lab: Lab,
}

impl Cluster {
    fn up(backend: Backend) -> Self {
        let lab = Lab::up_with(&root().join("images/lab.toml"), 2, backend.options());
        lab.sql("create table ledger (id bigint primary key)");
        let access = ledger::Access::of(&lab);
        let hosts = [("10.77.0.100", None), (ADDRESSES[0], Some(NODES[0])), (ADDRESSES[1], Some(NODES[1]))];
        let ledger = Ledger::start(&access, &hosts);
        let watch = Watch::start(&lab);
        Self { ledger, watch, judge: Judge::default(), holder: 0, password: access.password, lab }
    }

    fn seed(&mut self, seed: u64, backend: Backend) -> Told {
        let before = self.judge.timeline();
        let hands = Injector::new(&self.lab);
        hands.save_witness(&Knowledge::Old);
        let mut faults = Vec::new();
        let mut open: Vec<Undo> = Vec::new();
        for Step { gap, fault, hold, overlaps } in plan::plan(seed, backend == Backend::Container) {
            clock::pause(gap * backend.pace());
            self.holder = holder(&self.lab).unwrap_or(self.holder);
            let begun = hands.begin(fault, self.holder);
            faults.push((fault.class(), hold * backend.pace(), begun.is_some()));
            open.extend(begun);
            if !overlaps {
                clock::pause(hold * backend.pace());
                open.drain(..).for_each(|undo| undo(&hands));
            }
        }
        hands.heal();
        let (protected, restored) = wait_protected(&hands);
        let mut found = Vec::new();
        let acks = self.judged(protected.is_some(), &mut found);
        let takeovers = self.judge.timeline().saturating_sub(before.max(1));
        Told { faults, acknowledged: acks, takeovers, protected, restored, found }
    }

    /// What was written in this seed is judged; how much it was.
    fn judged(&mut self, protected: bool, found: &mut Vec<String>) -> usize {
        let waited = clock::now();
        let so_far = self.ledger.count();
        while protected && self.ledger.count() < so_far + WRITES && clock::now() - waited < PROTECTED {
            clock::pause(POLL);
        }
        if !protected {
            found.push(format!("O8: not PROTECTED {PROTECTED:?} after the last fault"));
        } else if self.ledger.count() < so_far + WRITES {
            found.push("O8: PROTECTED, and clients do not get through".to_owned());
        }
        let acks = self.ledger.take();
        self.judge.writes(&acks, found);
        found.extend(watch::overlap(&self.watch.take(), TENURE).map(|line| format!("O6: {line}")));
        if protected {
            self.judge.kept(&self.lab, found);
            let epochs = NODES.map(|node| epoch(&status(&self.lab, node)));
            let highest = epochs.into_iter().flatten().max().unwrap_or_default();
            self.judge.epoch(highest, found);
        }
        self.judge.replay(&self.lab, found);
        acks.len()
    }

    /// Logs of both nodes and the witness, kept.
    fn keep(&self, seed: u64) -> PathBuf {
        let target = crate::dyad().ancestors().nth(2).expect("dyad is in target/release").to_owned();
        let kept = target.join("chaos").join(format!("seed-{seed}"));
        let nodes = self.lab.state().join("nodes");
        let wanted = ["serial.log", "/state/supervisor/", "/state/journal/"];
        for path in judge::files(&nodes) {
            let text = path.to_string_lossy();
            if wanted.iter().any(|part| text.contains(part)) && !text.contains("credentials") {
                let to = kept.join(path.strip_prefix(&nodes).expect("it was found there"));
                fs::create_dir_all(to.parent().expect("it is below a directory"))
                    .expect("a directory is made");
                // Journals grow and are rotated meanwhile.
                let _ = fs::copy(&path, &to);
            }
        }
        for node in NODES {
            let said = self.lab.run(&["ctl", node, "--", "logs", "-n", "5000"]);
            fs::write(kept.join(format!("{node}.journal.txt")), said.stdout).expect("a log can be kept");
            let said = status(&self.lab, node).map_or_else(String::new, |status| format!("{status:#}"));
            fs::write(kept.join(format!("{node}.status.json")), said).expect("a status can be kept");
        }
        kept
    }
}

/// What a node says of itself; `None`: it says nothing.
pub(crate) fn status(lab: &Lab, node: &str) -> Option<Value> {
    serde_json::from_slice(&lab.run(&["ctl", node, "--", "status"]).stdout).ok()
}

fn epoch(status: &Option<Value>) -> Option<u64> {
    status.as_ref()?["resources"][0]["epoch"].as_u64()
}

/// The node that takes writes, by its own word.
pub(crate) fn holder(lab: &Lab) -> Option<usize> {
    let writes = |node: &str| {
        let rows = status(lab, node)?["nodes"].as_array()?.clone();
        rows.iter().find(|row| row["name"] == node && row["role"] == "primary" && row["up"] == true).map(drop)
    };
    NODES.iter().position(|node| writes(node).is_some())
}

/// Waits until both nodes are protected and name one holder: how long that took, and whether the witness had to be helped.
pub(crate) fn wait_protected(hands: &Injector<'_>) -> (Option<Duration>, bool) {
    let (begun, mut restored) = (clock::now(), false);
    while clock::now() - begun < PROTECTED {
        let said = NODES.map(|node| status(hands.lab, node).unwrap_or_default());
        let holders = said.each_ref().map(|one| one["resources"][0]["holder"].as_str());
        let best = said.iter().all(|one| one["protection"] == "PROTECTED");
        if let ([Some(one), Some(other)], true) = (holders, best)
            && one == other
        {
            return (Some(clock::now() - begun), restored);
        }
        let old = said.iter().any(|one| one.to_string().contains(OLD_WITNESS));
        if old && !restored {
            hands.restore_witness(&Knowledge::Newest);
            restored = true;
        }
        clock::pause(POLL);
    }
    (None, restored)
}
