//! `lab up`, the end of it: waits until every node answers SQL, and tells how far each is.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use crate::clock::{self, Deadline};
use crate::commands::{credentials, machines};
use crate::control::{Power, Row};
use crate::error::{LabError, Result, refuse};
use crate::process::Program;
use crate::state::StateDir;
use crate::topology::WITNESS;
use crate::up::Progress;

/// How long nodes may take to answer SQL: a first boot under TCG on a busy host makes file systems and a database.
const SQL_WAIT: Duration = Duration::from_secs(600);
const SQL_POLL: Duration = Duration::from_millis(100);
/// How long the test query may take.
const QUERY_WAIT: Duration = Duration::from_secs(30);
/// How much of a console is shown when its machine ended.
const TAIL_LINES: usize = 15;

/// Waits until every node of the lab answers SQL.
pub(crate) fn wait_for_sql(state: &StateDir, progress: &Progress) -> Result<()> {
    let deadline = Deadline::after(SQL_WAIT);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut serving: Vec<String> = Vec::new();
    let mut last = String::from("no supervisor has answered");
    loop {
        let mut rows = machines(state)?;
        if let Some(off) = rows.iter().find(|row| row.power == Power::Off) {
            return ended(state, off);
        }
        rows.retain(|row| row.name != WITNESS);
        for row in &rows {
            tell_phases(row, &mut seen, progress);
            if !row.agent || serving.contains(&row.name) {
                continue;
            }
            match answers_sql(state, &row.name) {
                Ok(answer) => {
                    progress.say(&format!("{}: `select 1` answers {answer}", row.name));
                    serving.push(row.name.clone());
                }
                Err(e) => last = e.to_string(),
            }
        }
        if serving.len() == rows.len() {
            return Ok(());
        }
        if deadline.left().is_none() {
            let silent: Vec<_> =
                rows.iter().filter(|r| !serving.contains(&r.name)).map(|r| r.name.as_str()).collect();
            return Err(LabError::Deadline {
                what: format!("{} did not answer SQL ({last})", silent.join(" and ")),
                seconds: SQL_WAIT.as_secs(),
                next: "the lab was ended; `dyad lab up --no-wait` and `dyad lab console` show the boot"
                    .into(),
            });
        }
        clock::pause(SQL_POLL);
    }
}

fn tell_phases(row: &Row, seen: &mut HashMap<String, usize>, progress: &Progress) {
    let told = seen.entry(row.name.clone()).or_default();
    // Fewer than before: the machine was reset and boots anew.
    if row.phases.len() < *told {
        progress.say(&format!("{}: boots again", row.name));
        *told = 0;
    }
    for phase in &row.phases[*told..] {
        progress.say(&format!("{}: {} after {:.1} s", row.name, phase.name, phase.seconds));
    }
    *told = row.phases.len();
}

fn ended(state: &StateDir, row: &Row) -> Result<()> {
    let why = row.end.as_deref().unwrap_or("it was killed");
    let log = fs::read(state.member(&row.name).join("serial.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    refuse(format!("{} went off before the lab was up: {why}. Its console ended with:\n{tail}", row.name))
}

/// Asks as a user would, through `lab psql`: a process of its own, because entering namespaces is for one thread only.
fn answers_sql(state: &StateDir, node: &str) -> Result<String> {
    // Cheaper than a process for as long as the database is not there.
    credentials(state, node)?;
    let root = state.root().to_string_lossy().into_owned();
    let args = ["lab", "--state", &root, "psql", "--node", node, "--", "-X", "-A", "-t", "-c", "select 1"];
    let answer = Program::itself().output(&args, &[], QUERY_WAIT)?;
    match answer.trim() {
        "1" => Ok("1".into()),
        other => refuse(format!("`select 1` answered {other:?}")),
    }
}
