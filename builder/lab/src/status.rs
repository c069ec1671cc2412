//! `lab status`: what the machines do and what their supervisors say, as one.

use dyad_api::operator::{Call, NodeRow, Protection, Status};
use serde::Serialize;
use serde_json::json;

use crate::commands::{machines, pretty, print};
use crate::control::{CutRow, Power, Request, Row, ask_for};
use crate::error::Result;
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
}

/// Asks everybody.
pub(crate) fn look(state: &StateDir) -> Result<LabStatus> {
    let mut rows = machines(state)?;
    let cuts = ask_for(state, &Request::Cuts)?;
    let witness = rows.iter().position(|row| row.name == WITNESS).map(|at| rows.remove(at));
    let answers: Vec<_> = rows.iter().map(|row| observe(state, row)).collect();
    let witness = witness.map(|row| LabWitness { power: row.power, end: row.end });
    Ok(LabStatus { witness, cuts, ..combine(&rows, answers) })
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
    for cut in &status.cuts {
        text += &format!("cut: nothing that {} sends reaches {}\n", cut.from, cut.to);
    }
    print(&text)
}

/// How an enumeration's value is written in JSON.
fn word(value: &impl Serialize) -> String {
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

/// Nodes that are not paired are as good as the worst of them: each has data that no other has.
fn combine(rows: &[Row], answers: Vec<std::result::Result<Status, String>>) -> LabStatus {
    let mut status = LabStatus {
        protection: Protection::Single,
        reason: String::new(),
        nodes: Vec::new(),
        resources: Vec::new(),
        vips: Vec::new(),
        witness: None,
        cuts: Vec::new(),
    };
    let mut reasons = Vec::new();
    for (row, answer) in rows.iter().zip(answers) {
        let silent = NodeRow {
            name: row.name.clone(),
            role: "none".into(),
            up: false,
            timeline: None,
            lag_bytes: None,
        };
        let node = match answer {
            Ok(said) => {
                status.protection = worse(status.protection, said.protection);
                reasons.push(format!("{}: {}", row.name, said.reason));
                status.resources.extend(said.resources);
                status.vips.extend(said.vips);
                said.nodes.into_iter().find(|n| n.name == row.name).unwrap_or(silent)
            }
            Err(reason) => {
                status.protection = Protection::Down;
                reasons.push(reason);
                silent
            }
        };
        let phase = row.phases.last().map(|p| p.name.clone()).unwrap_or_default();
        status.nodes.push(LabNode { row: node, power: row.power, phase });
    }
    status.reason = reasons.join("; ");
    status
}

fn worse(a: Protection, b: Protection) -> Protection {
    let rank = |p: Protection| match p {
        Protection::Down => 0,
        Protection::Exposed => 1,
        Protection::Single => 2,
        Protection::Synced => 3,
        Protection::Protected => 4,
    };
    if rank(a) <= rank(b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, power: Power) -> Row {
        Row { name: name.into(), power, pid: None, agent: true, phases: Vec::new(), end: None }
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

    #[test]
    fn as_good_as_the_worst_node() {
        let rows = [row("node-a", Power::On), row("node-b", Power::On)];
        let good = combine(&rows, vec![Ok(said("node-a", "SINGLE")), Ok(said("node-b", "SINGLE"))]);
        assert_eq!(good.protection, Protection::Single);
        let object = json!(good);
        assert_eq!(object["nodes"][1]["role"], "primary");
        assert_eq!(object["nodes"][1]["power"], "on");
        assert_eq!(object["protection"], "SINGLE");

        let bad = combine(&rows, vec![Ok(said("node-a", "SINGLE")), Err("node-b is off".into())]);
        assert_eq!(bad.protection, Protection::Down);
        assert!(bad.reason.contains("node-b is off"));
        assert_eq!(json!(bad)["nodes"][1]["up"], false);
    }
}
