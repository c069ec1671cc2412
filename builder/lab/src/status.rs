//! `lab status`: what the machines do and what their supervisors say, as one.

use dyad_api::operator::{Call, NodeRow, Protection, Status};
use serde::Serialize;
use serde_json::json;

use crate::commands::{machines, pretty, print};
use crate::control::{CableRow, CutRow, Power, Request, Row, ask_for};
use crate::error::{LabError, Result};
use crate::state::StateDir;
use crate::topology::WITNESS;

/// The lab's status: the nodes' own fields and how their machines are.
#[derive(Debug, Serialize)]
pub(crate) struct LabStatus {
    protection: Protection,
    reason: String,
    nodes: Vec<LabNode>,
    resources: Vec<dyad_api::operator::ResourceRow>,
    vips: Vec<dyad_api::operator::VipRow>,
    /// The witness; absent in a lab without.
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<LabWitness>,
    cuts: Vec<CutRow>,
}

#[derive(Debug, Serialize)]
struct LabWitness {
    power: Power,
    /// Why it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
}

#[derive(Debug, Serialize)]
struct LabNode {
    #[serde(flatten)]
    row: NodeRow,
    /// `off`, `on`, `paused` or `clock-stopped`.
    power: Power,
    /// How far its boot is, as its console showed.
    phase: String,
    /// Its cables that are pulled or carry nothing.
    cables: Vec<CableRow>,
}

/// What was learnt of a node.
pub(crate) struct Seen {
    pub(crate) name: String,
    /// What it says of itself, or why it says nothing.
    pub(crate) said: std::result::Result<Status, String>,
}

/// Nodes that share a database, or one by itself.
pub(crate) struct Group<'a> {
    seen: &'a [Seen],
    best: Protection,
}

impl<'a> Group<'a> {
    fn answers(&self) -> impl Iterator<Item = &'a Status> + use<'a> {
        self.seen.iter().filter_map(|seen| seen.said.as_ref().ok())
    }

    /// Whether all say that they are as well protected as they can be.
    pub(crate) fn is_at_best(&self) -> bool {
        self.seen.iter().all(|s| s.said.as_ref().is_ok_and(|said| rank(said.protection) >= rank(self.best)))
    }

    /// The node that takes writes.
    pub(crate) fn writer(&self) -> Option<&'a str> {
        self.seen.iter().find_map(|seen| {
            let rows = &seen.said.as_ref().ok()?.nodes;
            rows.iter().find(|row| row.name == seen.name && row.role == "primary" && row.up)?;
            Some(&*seen.name)
        })
    }

    /// How well the database is protected, and why. One that is not reached may say worse of it than its holder, who
    /// knows.
    fn level(&self) -> (Protection, String) {
        let best = self.answers().max_by_key(|said| rank(said.protection));
        let silent = self.seen.iter().filter_map(|seen| seen.said.as_ref().err());
        let level = best.map_or(Protection::Down, |said| said.protection);
        let reasons = best.map(|said| said.reason.clone()).into_iter().chain(silent.cloned());
        (level, reasons.collect::<Vec<_>>().join("; "))
    }
}

/// Asks the nodes among the members.
pub(crate) fn ask_all(state: &StateDir, rows: &[Row]) -> Vec<Seen> {
    let nodes = rows.iter().filter(|row| row.name != WITNESS);
    nodes.map(|row| Seen { name: row.name.clone(), said: observe(state, row) }).collect()
}

/// The nodes as they share databases. `pair`: the best that two come to; nodes without a site stand alone.
pub(crate) fn groups(seen: &[Seen], pair: Protection) -> Vec<Group<'_>> {
    let size = if pair == Protection::Single { 1 } else { 2 };
    let best = |nodes: usize| if nodes == 1 { Protection::Single } else { pair };
    seen.chunks(size).map(|seen| Group { seen, best: best(seen.len()) }).collect()
}

/// Asks everybody.
pub(crate) fn look(state: &StateDir) -> Result<LabStatus> {
    let mut rows = machines(state)?;
    let Some(lab) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    let cuts = ask_for(state, &Request::Cuts)?;
    let seen = ask_all(state, &rows);
    let witness = rows.iter().position(|row| row.name == WITNESS).map(|at| rows.remove(at));
    let witness = witness.map(|row| LabWitness { power: row.power, end: row.end });
    Ok(LabStatus { witness, cuts, ..combine(&rows, &groups(&seen, lab.pair)) })
}

/// The node to which a question of SQL goes: the one that takes writes.
pub(crate) fn writer(state: &StateDir) -> Result<Option<String>> {
    let Some(lab) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    let seen = ask_all(state, &machines(state)?);
    Ok(groups(&seen, lab.pair).iter().find_map(Group::writer).map(str::to_owned))
}

/// Prints the status.
pub(crate) fn show(state: &StateDir, as_json: bool) -> Result<()> {
    let status = look(state)?;
    if as_json {
        return print(&pretty(&json!(status)));
    }
    let mut text = format!("{}: {}\n", word(&status.protection), status.reason);
    for node in &status.nodes {
        let up = if node.row.up { "up" } else { "not up" };
        let (name, role) = (&node.row.name, &node.row.role);
        text += &format!("{name:8} {:14} {role:8} {up:7} {}\n", word(&node.power), node.phase);
    }
    if let Some(witness) = &status.witness {
        text += &format!("{WITNESS:8} {}\n", word(&witness.power));
    }
    for node in &status.nodes {
        for CableRow { nic, cable } in &node.cables {
            text += &format!("cable: {nic} of {} is {}\n", node.row.name, word(cable));
        }
    }
    for cut in &status.cuts {
        text += &format!("cut: nothing that {} sends reaches {}\n", cut.from, cut.to);
    }
    print(&text)
}

/// How an enumeration's value is written in JSON.
pub(crate) fn word(value: &impl Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

/// What a node says of itself, or why it says nothing.
fn observe(state: &StateDir, row: &Row) -> std::result::Result<Status, String> {
    match row.power {
        Power::Off => Err(match &row.end {
            Some(end) => format!("{} is off: {end}", row.name),
            None => format!("{} is off", row.name),
        }),
        Power::Paused | Power::ClockStopped => Err(format!("{} is paused", row.name)),
        Power::On if !row.agent => Err(format!("{} is booting", row.name)),
        Power::On => ask_for(state, &Request::Operator { node: row.name.clone(), call: Call::Status })
            .map_err(|e| e.to_string()),
    }
}

/// A lab is as good as the worst of its databases.
fn combine(rows: &[Row], groups: &[Group<'_>]) -> LabStatus {
    let mut status = LabStatus {
        protection: Protection::Protected,
        reason: String::new(),
        nodes: Vec::new(),
        resources: Vec::new(),
        vips: Vec::new(),
        witness: None,
        cuts: Vec::new(),
    };
    let mut reasons = Vec::new();
    for group in groups {
        let (level, reason) = group.level();
        if rank(level) < rank(status.protection) {
            status.protection = level;
        }
        reasons.push(reason);
        // Whoever takes writes knows best who holds what.
        let knows = group.seen.iter().find(|seen| Some(&*seen.name) == group.writer());
        if let Some(said) = knows.and_then(|seen| seen.said.as_ref().ok()).or(group.answers().next()) {
            status.resources.extend(said.resources.iter().cloned());
            status.vips.extend(said.vips.iter().cloned());
        }
    }
    for (row, seen) in rows.iter().zip(groups.iter().flat_map(|group| group.seen)) {
        let silent = NodeRow {
            name: row.name.clone(),
            role: "none".into(),
            up: false,
            timeline: None,
            lag_bytes: None,
        };
        let own = |said: &Status| said.nodes.iter().find(|n| n.name == row.name).cloned();
        let node = seen.said.as_ref().ok().and_then(own).unwrap_or(silent);
        let phase = row.phases.last().map(|p| p.name.clone()).unwrap_or_default();
        status.nodes.push(LabNode { row: node, power: row.power, phase, cables: row.cables.clone() });
    }
    status.reason = reasons.join("; ");
    status
}

fn rank(p: Protection) -> u8 {
    match p {
        Protection::Down => 0,
        Protection::Exposed => 1,
        Protection::Single => 2,
        Protection::Synced => 3,
        Protection::Protected => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, power: Power) -> Row {
        Row {
            name: name.into(),
            power,
            pid: None,
            agent: true,
            phases: Vec::new(),
            cables: Vec::new(),
            end: None,
        }
    }

    fn said(name: &str, protection: &str) -> Status {
        let node = json!({
            "name": name, "cluster": null, "site": "", "image": null, "phases": [], "services": [], "storage": [],
            "network": {"state": "applied", "note": "", "links": []},
            "postgresql": {"state": "serving", "note": "", "version": null, "system_identifier": null,
                "timeline": 1, "probe": null, "repaired": [], "restarts": 0},
        });
        serde_json::from_value(json!({
            "protection": protection, "reason": "one node by design", "resources": [], "vips": [], "node": node,
            "nodes": [{"name": name, "role": "primary", "up": true, "timeline": 1, "lag_bytes": null}],
        }))
        .unwrap()
    }

    fn seen(name: &str, said: std::result::Result<Status, String>) -> Seen {
        Seen { name: name.into(), said }
    }

    #[test]
    fn as_good_as_the_worst_database() {
        let rows = [row("node-a", Power::On), row("node-b", Power::On)];
        let all =
            [seen("node-a", Ok(said("node-a", "SINGLE"))), seen("node-b", Ok(said("node-b", "SINGLE")))];
        let good = combine(&rows, &groups(&all, Protection::Single));
        assert_eq!(good.protection, Protection::Single);
        let object = json!(good);
        assert_eq!(object["nodes"][1]["role"], "primary");
        assert_eq!(object["nodes"][1]["power"], "on");
        assert_eq!(object["protection"], "SINGLE");

        let all = [seen("node-a", Ok(said("node-a", "SINGLE"))), seen("node-b", Err("node-b is off".into()))];
        let bad = combine(&rows, &groups(&all, Protection::Single));
        assert_eq!(bad.protection, Protection::Down);
        assert!(bad.reason.contains("node-b is off"));
        assert_eq!(json!(bad)["nodes"][1]["up"], false);
    }

    #[test]
    fn a_pair_is_what_its_holder_says_and_at_its_best_when_both_say_so() {
        let both = |a: &str, b: &str| {
            let (mut first, second) = (said("node-a", a), said("node-b", b));
            first.nodes[0].role = "standby".into();
            [seen("node-a", Ok(first)), seen("node-b", Ok(second))]
        };
        let all = both("PROTECTED", "PROTECTED");
        let found = groups(&all, Protection::Protected);
        assert_eq!((found.len(), found[0].writer(), found[0].is_at_best()), (1, Some("node-b"), true));
        let all = both("DOWN", "EXPOSED");
        let found = groups(&all, Protection::Protected);
        assert!(!found[0].is_at_best() && found[0].level().0 == Protection::Exposed);
        let all =
            [seen("node-a", Err("node-a is off".into())), seen("node-b", Ok(said("node-b", "EXPOSED")))];
        let found = groups(&all, Protection::Protected);
        let (level, reason) = found[0].level();
        assert!(level == Protection::Exposed && reason.contains("node-a is off"), "{reason}");
        let three = ["node-a", "node-b", "node-c"].map(|name| seen(name, Ok(said(name, "SINGLE"))));
        let found = groups(&three, Protection::Protected);
        assert_eq!(found.iter().map(Group::is_at_best).collect::<Vec<_>>(), [false, true]);
    }
}
