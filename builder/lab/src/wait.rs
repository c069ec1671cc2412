//! `lab up`, the end of it: waits until the lab is as well protected as it can be, and tells how far each node is.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Duration;

use crate::clock::{self, Deadline};
use crate::commands::{credentials, machines};
use crate::control::{Power, Row};
use crate::error::{LabError, Result, refuse};
use crate::process::Program;
use crate::state::StateDir;
use crate::status::{self, Seen};
use crate::up::Progress;

/// How long that may take: a first boot under TCG on a busy host makes file systems, a database, and a copy of it.
const BEST_WAIT: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(250);
/// How long the test query may take.
const QUERY_WAIT: Duration = Duration::from_secs(30);
/// How much of a console is shown when its machine ended.
const TAIL_LINES: usize = 15;

/// Waits until every pair is at its best and every database answers.
pub(crate) fn wait_for_best(state: &StateDir, progress: &Progress) -> Result<()> {
    let Some(lab) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    let deadline = Deadline::after(BEST_WAIT);
    let mut told = Told::default();
    let mut serving: Vec<String> = Vec::new();
    loop {
        let rows = machines(state)?;
        if let Some(off) = rows.iter().find(|row| row.power == Power::Off) {
            return ended(state, off);
        }
        rows.iter().for_each(|row| told.phases(row, progress));
        let seen = status::ask_all(state, &rows);
        seen.iter().for_each(|seen| told.says(seen, progress));
        let groups = status::groups(&seen, lab.pair);
        let mut last = String::from("not every node has come to its best");
        for group in &groups {
            let Some(writer) = group.writer().filter(|_| group.is_at_best()) else { continue };
            if serving.iter().any(|name| name == writer) {
                continue;
            }
            match answers_sql(state, writer) {
                Ok(answer) => {
                    progress.say(&format!("{writer}: `select 1` answers {answer}"));
                    serving.push(writer.to_owned());
                }
                Err(e) => last = e.to_string(),
            }
        }
        if groups.iter().all(|group| {
            group.is_at_best()
                && group.writer().is_some_and(|writer| serving.iter().any(|name| name == writer))
        }) {
            return Ok(());
        }
        if deadline.left().is_none() {
            return Err(LabError::Deadline {
                what: format!("the lab did not become what it can be ({last}; {})", told.last()),
                seconds: BEST_WAIT.as_secs(),
                next: "the lab was ended; `dyad lab up --no-wait` and `dyad lab console` show the boot"
                    .into(),
            });
        }
        clock::pause(POLL);
    }
}

/// What was told of each node.
#[derive(Default)]
struct Told {
    phases: HashMap<String, usize>,
    says: BTreeMap<String, String>,
}

impl Told {
    fn says(&mut self, seen: &Seen, progress: &Progress) {
        // A node without a supervisor tells by its console how far it is.
        let Ok(status) = &seen.said else { return };
        let text = format!("{}: {}", status::word(&status.protection), status.reason);
        if self.says.get(&seen.name) != Some(&text) {
            progress.say(&format!("{}: {text}", seen.name));
            self.says.insert(seen.name.clone(), text);
        }
    }

    fn last(&self) -> String {
        self.says.iter().map(|(name, text)| format!("{name}: {text}")).collect::<Vec<_>>().join("; ")
    }

    fn phases(&mut self, row: &Row, progress: &Progress) {
        let told = self.phases.entry(row.name.clone()).or_default();
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
