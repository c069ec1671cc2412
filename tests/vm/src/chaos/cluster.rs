//! One cluster for many rounds, with its clients and all that is known of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::disks::Disks;
use super::inject::{ADDRESSES, Injector, Knowledge, NODES};
use super::judge::Judge;
use super::ledger::{Access, Ack, Ledger};
use super::report::Told;
use super::volumes::Volumes;
use super::watch::{self, Watch};
use super::{Backend, clock};
use crate::{Lab, secrets};

/// How long the best protection may take when nothing is wrong any more.
pub(crate) const PROTECTED: Duration = Duration::from_secs(240);
/// When that has lasted so long, something may have been left off.
const SWEEP: Duration = Duration::from_secs(10);
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// Writes that a client must get through at the end of each round.
const WRITES: usize = 20;
/// What an address that moved cannot do in less.
const TENURE: Duration = Duration::from_secs(1);
/// What a node says of a witness that was restored from an old copy: an operator must act.
const OLD_WITNESS: &str = "the witness knows less than the nodes";

/// The image of all clusters of a run: a tree that is edited meanwhile changes none of them.
pub(crate) struct Image {
    _dir: TempDir,
    pub(crate) raw: PathBuf,
}

impl Image {
    /// Machines are reached from inside through the test agent; of containers all is seen from outside.
    pub(crate) fn build(backend: Backend) -> Self {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let definition = match backend {
            Backend::Container => crate::root().join("images/lab.toml"),
            Backend::Vm => crate::with_test_agent("lab", dir.path()),
        };
        let out = dir.path().join("out");
        let [definition, out] =
            [&definition, &out].map(|path| path.to_str().expect("test paths are UTF-8").to_owned());
        crate::stdout("dyad build", &crate::run(&["build", &definition, "--out", &out], &[]));
        let raw = secrets::files(out.as_ref())
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "raw"));
        Self { raw: raw.expect("a build leaves a raw image"), _dir: dir }
    }
}

/// Fields are dropped in this order: clients end before their lab, and that before its volumes and disks.
pub(crate) struct Cluster {
    ledger: Ledger,
    access: Access,
    watch: Watch,
    pub(crate) judge: Judge,
    /// The last node that was known to take writes.
    pub(crate) holder: usize,
    /// What was acknowledged in the last round.
    last: Vec<Ack>,
    pub(crate) lab: Lab,
    pub(crate) volumes: Option<Volumes>,
    /// Of machines.
    disks: Option<Disks>,
}

impl Cluster {
    pub(crate) fn up(image: &Image, backend: Backend) -> Self {
        let volumes = (backend == Backend::Container).then(Volumes::make);
        let mut options = backend.options().to_vec();
        let place = volumes.as_ref().map(|volumes| volumes.dir().to_str().expect("test paths are UTF-8"));
        options.extend(place.iter().flat_map(|place| ["--data-in", place]));
        let state = TempDir::new().expect("a temporary directory can be made");
        let disks = (backend == Backend::Vm).then(|| Disks::serve(state.path()));
        let place = disks.as_ref().map(|disks| disks.dir().to_str().expect("test paths are UTF-8"));
        options.extend(place.iter().flat_map(|place| ["--disks-at", place]));
        let lab = Lab::in_place(state, &image.raw, 2, &options);
        lab.sql("create table ledger (id bigint primary key)");
        lab.sql("create table tail (id bigint primary key, words text)");
        let access = Access::of(&lab);
        let hosts = [("10.77.0.100", None), (ADDRESSES[0], Some(NODES[0])), (ADDRESSES[1], Some(NODES[1]))];
        let ledger = Ledger::start(&access, &hosts);
        let watch = Watch::start(&lab);
        Self {
            ledger,
            access,
            watch,
            judge: Judge::default(),
            holder: 0,
            last: Vec::new(),
            lab,
            volumes,
            disks,
        }
    }

    pub(crate) fn hands(&self) -> Injector<'_> {
        Injector::with(&self.lab, self.volumes.as_ref(), self.access.clone())
    }

    /// The node that takes writes, by its own word; the last one that did, if none says so.
    pub(crate) fn find_holder(&mut self) -> usize {
        self.holder = holder(&self.lab).unwrap_or(self.holder);
        self.holder
    }

    /// Waits until a write on a timeline after this one was acknowledged through the virtual address; false: in vain.
    pub(crate) fn wait_written_after(&self, timeline: u32, limit: Duration) -> bool {
        let begun = clock::now();
        while self.ledger.first_after(timeline).is_none() {
            if clock::now() - begun > limit {
                return false;
            }
            clock::pause(POLL);
        }
        true
    }

    /// When the first write on a timeline after this one was acknowledged through the virtual address.
    pub(crate) fn written_after(&self, timeline: u32) -> Option<Instant> {
        self.ledger.first_after(timeline)
    }

    /// Heals what is left, waits for the best protection, and judges all that was written since the last time.
    pub(crate) fn settle(&mut self, told: &mut Told) {
        let before = (self.judge.timeline(), self.judge.steps());
        let hands = self.hands();
        hands.heal();
        let (protected, restored) = wait_protected(&hands);
        told.protected_ms = protected.map(millis);
        told.restored = restored;
        self.last = self.written(protected.is_some(), &mut told.found);
        told.acknowledged = self.last.len();
        self.judged(protected.is_some(), &mut told.found);
        told.takeovers = self.judge.timeline().saturating_sub(before.0.max(1));
        told.steps = self.judge.steps() - before.1;
        if let Some(disks) = &self.disks {
            (told.unflushed, told.lost) = disks.take_losses();
        }
    }

    /// What was written in this round, and some more if clients get through.
    fn written(&self, protected: bool, found: &mut Vec<String>) -> Vec<Ack> {
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
        self.ledger.take()
    }

    fn judged(&mut self, protected: bool, found: &mut Vec<String>) {
        self.judge.writes(&self.last, found);
        found.extend(watch::overlap(&self.watch.take(), TENURE).map(|line| format!("O6: {line}")));
        if protected {
            self.judge.kept(&self.lab, found);
            let epochs = NODES.map(|node| epoch(&status(&self.lab, node)));
            let highest = epochs.into_iter().flatten().max().unwrap_or_default();
            self.judge.epoch(highest, found);
        }
        self.judge.replay(&self.lab, found);
    }
}

impl Cluster {
    /// Logs of both nodes and the witness, and the last round's writes.
    pub(crate) fn keep(&self, name: &str) -> PathBuf {
        let kept = keep(&self.lab, name);
        let line = |ack: &Ack| {
            let Ack { id, timeline, server, node, sent, returned } = ack;
            let (ago, took) = (millis(sent.elapsed()), millis(*returned - *sent));
            format!(
                "{ago} ms ago, {took} ms: {id} by server {server} on timeline {timeline}, asked for {node:?}\n"
            )
        };
        let text: String = self.last.iter().map(line).collect();
        fs::write(kept.join("acknowledged.txt"), text).expect("a list can be kept");
        kept
    }
}

/// Logs of both nodes and the witness, kept.
pub(crate) fn keep(lab: &Lab, name: &str) -> PathBuf {
    let target = crate::dyad().ancestors().nth(2).expect("dyad is in target/release").to_owned();
    let kept = target.join("chaos").join(name);
    let nodes = lab.state().join("nodes");
    let wanted = ["serial.log", "/state/supervisor/", "/state/journal/"];
    for path in secrets::files(&nodes) {
        let text = path.to_string_lossy();
        if wanted.iter().any(|part| text.contains(part)) && !text.contains("credentials") {
            keep_file(&path, &kept.join(path.strip_prefix(&nodes).expect("it was found there")));
        }
    }
    fs::create_dir_all(&kept).expect("a directory is made");
    for node in NODES {
        let said = lab.run(&["ctl", node, "--", "logs", "-n", "1000"]);
        fs::write(kept.join(format!("{node}.journal.txt")), said.stdout).expect("a log can be kept");
        let said = status(lab, node).map_or_else(String::new, |status| format!("{status:#}"));
        fs::write(kept.join(format!("{node}.status.json")), said).expect("a status can be kept");
    }
    kept
}

fn keep_file(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("it is below a directory")).expect("a directory is made");
    // Journals grow and are rotated meanwhile.
    let _ = fs::copy(from, to);
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
    let (begun, mut restored, mut swept) = (clock::now(), false, false);
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
        if !swept && clock::now() - begun > SWEEP {
            hands.sweep();
            swept = true;
        }
        clock::pause(POLL);
    }
    (None, restored)
}
