//! What this node did, read out of its event log by playing it again.

use std::fs;
use std::path::Path;

use dyad_api::operator::EventRow;
use dyad_cluster::eventlog::{self, Entry};
use dyad_cluster::phase::EDGES;

use super::{journal, words};

/// The last `lines` steps of phases, oldest first. What cannot be read is left out. Blocks: files are read.
pub(crate) fn history(dir: &Path, lines: usize) -> std::io::Result<Vec<EventRow>> {
    let mut rows = Vec::new();
    for path in journal::all(dir)?.iter().rev() {
        let mut of_file = play(&eventlog::decode(&fs::read(path)?).unwrap_or_default());
        of_file.append(&mut rows);
        rows = of_file;
        if rows.len() >= lines {
            break;
        }
    }
    Ok(rows.split_off(rows.len().saturating_sub(lines)))
}

fn play(entries: &[Entry]) -> Vec<EventRow> {
    let mut rows = Vec::new();
    eventlog::walk(entries, |state, at| {
        let boot = state.boot().count;
        rows.extend(state.edges().iter().map(|(_, from, to)| EventRow {
            at_ms: at.0,
            boot,
            from: words::phase(*from).to_owned(),
            to: words::phase(*to).to_owned(),
            cause: cause(*from, *to),
        }));
    });
    rows
}

fn cause(from: dyad_cluster::phase::Phase, to: dyad_cluster::phase::Phase) -> String {
    let edge = EDGES.iter().find(|(a, b, _)| (*a, *b) == (from, to));
    edge.map_or_else(String::new, |(_, _, cause)| (*cause).to_owned())
}
