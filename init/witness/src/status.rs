//! What the witness says about itself.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use dyad_channel::server::Counters;
use dyad_cluster::register::Mode;
use dyad_cluster::types::{Node, ResourceId};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::witness::{Entry, Witness};

/// `dyad-witness status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Id of the witness's key.
    pub identity: String,
    /// Where it listens.
    pub listen: String,
    /// `durable`: the owner asserts that the disk is never restored from a snapshot. `restorable`: it may be.
    pub storage: String,
    /// Milliseconds since its start.
    pub up_ms: u64,
    /// One-time codes that nobody has used yet.
    pub codes_open: usize,
    /// Clusters, by id.
    pub clusters: Vec<ClusterStatus>,
    /// What happened since the start.
    pub counters: CounterStatus,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// 32 hexadecimal digits.
    pub id: String,
    /// `grants`, `waits`, `amnesia`, `enrolling`, `storage`, `damaged` or `writing`.
    pub state: String,
    /// The same in words: what a loss now would cost, and what to do.
    pub meaning: String,
    /// The two members, the lower key first; none while they are not known.
    pub members: Vec<MemberStatus>,
    /// Its registers.
    pub resources: Vec<ResourceStatus>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Id of its key.
    pub id: String,
    /// Its mirror was heard since this witness started.
    pub heard: bool,
    /// Milliseconds since its last renewal; none: it has not come since this witness started.
    pub silent_ms: Option<u64>,
}

/// One register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Number of the resource.
    pub resource: u16,
    /// Rises with every change of authority.
    pub epoch: u64,
    /// `Sync` or `Solo`.
    pub mode: String,
    /// Id of the holder's key.
    pub holder: String,
}

/// What happened since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Questions answered.
    pub calls: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Durable writes.
    pub writes: u64,
    /// Of these, failed.
    pub writes_failed: u64,
    /// The longest one, in microseconds.
    pub write_us_max: u64,
    /// Connections without a handshake: other programs, wrong keys, too slow.
    pub handshakes_failed: u64,
    /// Connections that gave way to newer ones.
    pub displaced: u64,
    /// Connections closed for a message that was slow, too large or refused.
    pub closed: u64,
}

/// What a status needs beside the witness itself.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) identity: String,
    pub(crate) listen: String,
    pub(crate) started_ms: u64,
}

pub(crate) async fn status<D: Disk>(witness: &Witness<D>, about: &About, counters: &Counters) -> Status {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let figures = &witness.figures;
    let mut clusters = Vec::new();
    for (id, entry) in witness.entries() {
        let id = format!("{:032x}", id.0);
        clusters.push(match entry {
            Entry::Damaged(why) => named(id, "damaged", format!("{why}; enrol it again with a new code")),
            // Not waited for: a status must come while a disk hangs.
            Entry::Served { cluster, .. } => match cluster.try_lock() {
                Ok(cluster) => cluster_status(id, &cluster, witness.now().0),
                Err(_) => named(id, "writing", "its state is being written".to_owned()),
            },
        });
    }
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: about.identity.clone(),
        listen: about.listen.clone(),
        storage: if witness.storage_is_durable() { "durable" } else { "restorable" }.to_owned(),
        up_ms: witness.now().0.saturating_sub(about.started_ms),
        codes_open: witness.open_codes().await,
        clusters,
        counters: CounterStatus {
            calls: read(&figures.calls),
            refused: read(&figures.refused),
            writes: read(&figures.writes),
            writes_failed: read(&figures.writes_failed),
            write_us_max: read(&figures.write_us_max),
            handshakes_failed: read(&counters.handshakes_failed),
            displaced: read(&counters.displaced),
            closed: read(&counters.closed),
        },
    }
}

fn named(id: String, state: &str, meaning: String) -> ClusterStatus {
    ClusterStatus { id, state: state.to_owned(), meaning, members: Vec::new(), resources: Vec::new() }
}

fn cluster_status(id: String, cluster: &Cluster, now_ms: u64) -> ClusterStatus {
    let (Some(arbiter), Some(standing)) = (cluster.arbiter(), &cluster.record().standing) else {
        let waits = "one node has enrolled; the other must bring the same code before anything is granted";
        return named(id, "enrolling", waits.to_owned());
    };
    let memory = arbiter.memory();
    let members = Node::BOTH.map(|node| MemberStatus {
        id: standing.members[node.index()].id().to_string(),
        heard: memory.heard[node.index()],
        silent_ms: memory.sessions[node.index()].map(|(_, renewed)| now_ms.saturating_sub(renewed.0)),
    });
    let (state, meaning) = if cluster.uncertain() {
        (
            "storage",
            "the last write failed; nothing is answered until one succeeds. Look at the disk".to_owned(),
        )
    } else if memory.amnesia {
        let text = "this disk is older than what the nodes know: nothing is granted. Run `dyad-witness enroll` and \
                    enrol both nodes again";
        ("amnesia", text.to_owned())
    } else if arbiter.grants() {
        let text = "changes of authority are granted: a protected resource survives the loss of one node";
        ("grants", text.to_owned())
    } else {
        let missing: Vec<&str> = members.iter().filter(|m| !m.heard).map(|m| m.id.as_str()).collect();
        let suspect =
            if cluster.suspect() { " (a write was cut off, so one node is not enough)" } else { "" };
        let text = format!(
            "not yet heard since the start: {}{suspect}. Until then a lost node is not replaced",
            missing.join(", ")
        );
        ("waits", text)
    };
    let resources =
        arbiter.durable().registers.iter().map(|(ResourceId(resource), register)| ResourceStatus {
            resource: *resource,
            epoch: register.epoch.0,
            mode: match register.mode {
                Mode::Sync(_) => "Sync",
                Mode::Solo => "Solo",
            }
            .to_owned(),
            holder: members[register.holder.index()].id.clone(),
        });
    ClusterStatus { resources: resources.collect(), members: members.to_vec(), ..named(id, state, meaning) }
}

impl Status {
    /// One screen for people.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let waiting = self.clusters.iter().filter(|c| c.state != "grants").count();
        let _ = match (self.clusters.len(), waiting) {
            (0, _) => writeln!(text, "No cluster has enrolled here. `dyad-witness enroll` makes a code."),
            (all, 0) => writeln!(text, "All {all} clusters are arbitrated."),
            (all, some) => writeln!(text, "{some} of {all} clusters are NOT arbitrated."),
        };
        let _ = writeln!(
            text,
            "witness {} on {}, version {}, up {} s, storage {}, codes open: {}",
            self.identity,
            self.listen,
            self.version,
            self.up_ms / 1000,
            self.storage,
            self.codes_open
        );
        let counters = &self.counters;
        let _ = writeln!(
            text,
            "{} questions ({} refused), {} writes ({} failed, longest {} us)",
            counters.calls, counters.refused, counters.writes, counters.writes_failed, counters.write_us_max
        );
        for cluster in &self.clusters {
            let _ = writeln!(text, "\ncluster {}: {}\n  {}", cluster.id, cluster.state, cluster.meaning);
            for member in &cluster.members {
                let seen = match member.silent_ms {
                    Some(ms) => format!("last heard {ms} ms ago"),
                    None => "not heard since the start".to_owned(),
                };
                let _ = writeln!(text, "  node {}: {seen}", member.id);
            }
            for r in &cluster.resources {
                let _ =
                    writeln!(text, "  resource {}: {} {} epoch {}", r.resource, r.mode, r.holder, r.epoch);
            }
        }
        text
    }
}
