//! Blank nodes that pair while processes of theirs are killed, each time that something new was written.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::cluster::{self, Image, PROTECTED, millis, status};
use super::inject::NODES;
use super::report::{Carried, Told};
use super::{Backend, clock};
use crate::processes::Process;
use crate::{Lab, processes};

/// What a node writes on its way from blank to member: every new file is a step.
const WATCHED: [&str; 3] = ["state/identity", "state/supervisor", "data/pg"];
const POLL: Duration = Duration::from_millis(5);
/// Statuses are asked for less often than files are looked at.
const ASK_EVERY: u32 = 40;
/// The third end of a server within five minutes rightly waits for an operator.
const SERVER_KILLS: usize = 2;
/// How many steps apart the first kills of a server are, from round to round.
const SERVER_STRIDE: usize = 2;

/// Which processes of a node are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// PID 1, and everything with it.
    Init,
    Supervisor,
    /// PostgreSQL's server and its tools.
    Server,
    /// Whatever else runs, one after another.
    Other,
    Witness,
}

const KINDS: [Kind; 5] = [Kind::Init, Kind::Supervisor, Kind::Server, Kind::Other, Kind::Witness];

impl Kind {
    fn is(self, process: &Process) -> bool {
        let Process { words, first, .. } = process;
        let server = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"];
        let server = server.iter().any(|name| words.contains(name));
        let supervisor = words.contains("dyad/supervisor");
        match self {
            Kind::Supervisor => supervisor,
            Kind::Server => server,
            Kind::Other => !supervisor && !server && !first,
            Kind::Init | Kind::Witness => false,
        }
    }
}

/// What a round is called.
pub(crate) fn name(round: u64) -> String {
    format!("pairing-{round}")
}

/// Two new nodes become one protected cluster; the number of the round says what is killed, and where.
pub(crate) fn pairing(image: &Image, round: u64) -> Told {
    let at = usize::try_from(round).unwrap_or(0);
    let (kind, node) = (KINDS[at % KINDS.len()], NODES[at / KINDS.len() % NODES.len()]);
    let mut told = Told::default();
    let options = [Backend::Container.options(), &["--no-wait"]].concat();
    let lab = Lab::of_image(&image.raw, 2, &options);
    let (begun, mut looks, mut kills) = (clock::now(), 0_u32, Vec::new());
    let first = at / (KINDS.len() * NODES.len()) * SERVER_STRIDE;
    let (mut seen, mut steps) = (BTreeSet::new(), 0);
    while clock::now() - begun < PROTECTED {
        let now = written(&lab, node);
        if !now.is_subset(&seen) {
            seen.extend(now);
            steps += 1;
            let spared = kind == Kind::Server && (kills.len() == SERVER_KILLS || steps <= first);
            kills.extend((!spared).then(|| kill(&lab, kind, node, kills.len())).flatten());
        }
        looks += 1;
        if looks % ASK_EVERY == 0 && protected(&lab) {
            told.protected_ms = Some(millis(clock::now() - begun));
            break;
        }
        clock::pause(POLL);
    }
    for victim in &kills {
        told.faults.push(Carried { class: format!("{kind:?}: {victim}"), ms: 0, done: true });
    }
    if told.protected_ms.is_none() {
        told.found.push(format!("{kind:?} of {node} killed {} times: not PROTECTED", kills.len()));
        println!("  kept in {}", cluster::keep(&lab, &name(round)).display());
        return told;
    }
    if kills.is_empty() {
        told.found.push(format!("nothing was killed in {steps} steps"));
    }
    lab.sql("create table ledger (id int); insert into ledger values (1)");
    told.acknowledged = 1;
    for node in NODES {
        let begun = clock::now();
        let there = || lab.run(&["psql", "--node", node, "--", "-XAtqc", "select id from ledger"]).stdout;
        while there().trim_ascii() != b"1" {
            if clock::now() - begun > PROTECTED {
                told.found.push(format!("O1: the row is not on {node}"));
                break;
            }
        }
    }
    told
}

/// Everything that a node has written so far: paths, and for the files that say how far it is their content.
fn written(lab: &Lab, node: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for dir in WATCHED {
        let dir = lab.state().join("nodes").join(node).join(dir);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let told = ["pairing.json", "membership.json"].contains(&name.as_str());
            let content =
                if told { fs::read_to_string(entry.path()).unwrap_or_default() } else { String::new() };
            all.insert(format!("{name} {content}"));
        }
    }
    all
}

/// Kills one process, another one each time; its name.
fn kill(lab: &Lab, kind: Kind, node: &'static str, number: usize) -> Option<String> {
    let again = |member: &str| {
        // Refused while it is still on its way up, and then it was not killed.
        let killed = lab.run(&["kill", member]).status.success();
        lab.run(&["start", member]);
        killed.then(|| member.to_owned())
    };
    match kind {
        Kind::Init => return again(node),
        Kind::Witness => return again("witness"),
        Kind::Supervisor | Kind::Server | Kind::Other => {}
    }
    let group = processes::group(lab)?;
    let all: Vec<_> = processes::of(&group, node).into_iter().filter(|process| kind.is(process)).collect();
    let victim = all.get(number % all.len().max(1))?;
    kill_process(victim.pid, Signal::KILL).ok()?;
    let name = victim.words.split(' ').next().unwrap_or_default();
    Some(name.rsplit('/').next().unwrap_or(name).to_owned())
}

fn protected(lab: &Lab) -> bool {
    NODES.iter().all(|node| status(lab, node).is_some_and(|status| status["protection"] == "PROTECTED"))
}
