//! What a run says: one line a round, on the screen and in a file that a later run goes on with, and figures at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A fault as it was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub(crate) class: String,
    /// How long it lasted.
    pub(crate) ms: u64,
    /// There was something to do it to.
    pub(crate) done: bool,
}

/// A round (a seed, a failover, a rejoin) as it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) round: u64,
    pub(crate) faults: Vec<Carried>,
    pub(crate) acknowledged: usize,
    pub(crate) takeovers: u32,
    /// From the end of the last fault; `None`: not within the time that is given.
    pub(crate) protected_ms: Option<u64>,
    /// The witness had to be given back what it knew.
    pub(crate) restored: bool,
    /// From the loss of the primary to the first write that was acknowledged by the other through the virtual address.
    pub(crate) gap_ms: Option<u64>,
    /// How the lost node came back: `streamed`, `rewound`, `cloned`.
    pub(crate) came_back: Option<String>,
    /// Steps of the core that were played again.
    pub(crate) steps: usize,
    /// All of it.
    pub(crate) ms: u64,
    pub(crate) found: Vec<String>,
    /// Blocks that were not flushed when a machine lost its power, and those of them that its disk lost.
    #[serde(default)]
    pub(crate) unflushed: u64,
    #[serde(default)]
    pub(crate) lost: u64,
}

/// First line of a report.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Declared {
    declared: String,
}

/// All rounds so far, and the file that has them.
pub(crate) struct Report {
    file: Option<File>,
    told: Vec<Told>,
}

impl Report {
    /// A report of what is declared; one that is there already must have declared the same, and is gone on with.
    pub(crate) fn open(path: Option<&Path>, declared: &str) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self { file: None, told: Vec::new() }) };
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(failed)?,
        };
        let told = parse(&text, declared).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut file = File::options().create(true).append(true).open(path).map_err(failed)?;
        if text.is_empty() {
            let head = Declared { declared: declared.to_owned() };
            writeln!(file, "{}", json(&head)).map_err(failed)?;
        } else if !text.ends_with('\n') {
            // The run before was ended while it wrote.
            writeln!(file).map_err(failed)?;
        }
        Ok(Self { file: Some(file), told })
    }

    /// Rounds that need not be run again.
    pub(crate) fn done(&self) -> BTreeSet<u64> {
        self.told.iter().map(|told| told.round).collect()
    }

    /// Shows and keeps a round.
    pub(crate) fn add(&mut self, told: Told) -> io::Result<()> {
        println!("{}", line(&told));
        told.found.iter().for_each(|what| println!("  {what}"));
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", json(&told))?;
            file.sync_data()?;
        }
        self.told.push(told);
        Ok(())
    }

    /// The figures of all rounds; true when nothing was found and none is missing.
    pub(crate) fn end(&self, declared: &str, count: u64) -> bool {
        println!("\n{}", figures(&self.told));
        let bad: Vec<_> = self.told.iter().filter(|told| !told.found.is_empty()).map(|t| t.round).collect();
        println!("{declared} declared, {} of {count} run, with a violation: {bad:?}", self.told.len());
        bad.is_empty() && self.told.len() as u64 == count
    }
}

fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("numbers and strings can be written as JSON")
}

/// Whole lines; the last one may have been cut short.
fn parse(text: &str, declared: &str) -> Result<Vec<Told>, String> {
    let mut lines = text.lines();
    let Some(first) = lines.next() else { return Ok(Vec::new()) };
    let head: Declared = serde_json::from_str(first).map_err(|e| format!("line 1: {e}"))?;
    if head.declared != declared {
        return Err(format!("it declared {}, not {declared}: give a new file", head.declared));
    }
    let whole = lines.filter_map(|line| serde_json::from_str(line).ok());
    Ok(whole.collect())
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn line(told: &Told) -> String {
    let fault = |fault: &Carried| {
        let text = format!("{} {}", fault.class, seconds(fault.ms));
        if fault.done { text } else { format!("({text})") }
    };
    let faults: Vec<_> = told.faults.iter().map(fault).collect();
    let mut parts = vec![
        faults.join(", "),
        format!("{} acknowledged", told.acknowledged),
        format!("{} take-overs", told.takeovers),
    ];
    parts.extend(told.gap_ms.map(|ms| format!("written again after {}", seconds(ms))));
    parts.extend(told.came_back.clone());
    let restored = if told.restored { ", old witness put right" } else { "" };
    let protected = told.protected_ms.map_or("never".to_owned(), seconds);
    parts.push(format!("PROTECTED after {protected}{restored}"));
    parts.push(if told.found.is_empty() { "ok".to_owned() } else { "VIOLATION".to_owned() });
    format!("{}: {} | {} in all", told.round, parts.join(" | "), seconds(told.ms))
}

/// Median, 99th percentile and largest.
fn spread(mut all: Vec<u64>) -> String {
    all.sort_unstable();
    let at = |percent: usize| all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    match (at(50), at(99), all.last()) {
        (Some(half), Some(most), Some(max)) => {
            format!("p50 {}, p99 {}, max {}", seconds(half), seconds(most), seconds(*max))
        }
        _ => "none".to_owned(),
    }
}

fn figures(told: &[Told]) -> String {
    let mut classes: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for fault in told.iter().flat_map(|told| &told.faults) {
        let (done, not) = classes.entry(&fault.class).or_default();
        *if fault.done { done } else { not } += 1;
    }
    let mut ways: BTreeMap<&str, u32> = BTreeMap::new();
    for way in told.iter().filter_map(|told| told.came_back.as_deref()) {
        *ways.entry(way).or_default() += 1;
    }
    let mut text = String::from("fault classes (carried out, nothing to do it to):\n");
    for (class, (done, not)) in &classes {
        text += &format!("  {done:4} {not:4} {class}\n");
    }
    for (way, count) in &ways {
        text += &format!("came back {way}: {count}\n");
    }
    text += &format!("PROTECTED again: {}\n", spread(told.iter().filter_map(|t| t.protected_ms).collect()));
    let gaps: Vec<_> = told.iter().filter_map(|t| t.gap_ms).collect();
    if !gaps.is_empty() {
        text += &format!("loss to the next acknowledged write: {}\n", spread(gaps));
    }
    text += &format!("a round: {}\n", spread(told.iter().map(|t| t.ms).collect()));
    let acknowledged: usize = told.iter().map(|t| t.acknowledged).sum();
    let takeovers: u32 = told.iter().map(|t| t.takeovers).sum();
    let restored = told.iter().filter(|t| t.restored).count();
    let steps: usize = told.iter().map(|t| t.steps).sum();
    let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
    let (unflushed, lost) = (sum(|t| t.unflushed), sum(|t| t.lost));
    if unflushed > 0 {
        text += &format!(
            "power cuts: {unflushed} blocks of 4096 bytes were not flushed, {lost} of them were lost\n"
        );
    }
    text + &format!(
        "{acknowledged} acknowledged writes, {takeovers} take-overs, {restored} old witnesses put right, \
         {steps} steps of the core played again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(round: u64, found: &[&str]) -> Told {
        let carried = Carried { class: "Kill".into(), ms: 1_200, done: true };
        let found = found.iter().map(|&what| what.to_owned()).collect();
        Told {
            round,
            faults: vec![carried],
            acknowledged: 7,
            protected_ms: Some(900 * round),
            found,
            ..Told::default()
        }
    }

    #[test]
    fn a_run_that_was_cut_short_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        let mut first = Report::open(Some(&path), "seeds 0..3").unwrap();
        first.add(told(0, &[])).unwrap();
        first.add(told(1, &["O1: gone"])).unwrap();
        drop(first);
        let mut text = fs::read_to_string(&path).unwrap();
        text += "{\"round\":2,\"fau";
        fs::write(&path, text).unwrap();
        let mut second = Report::open(Some(&path), "seeds 0..3").unwrap();
        assert_eq!(second.done(), BTreeSet::from([0, 1]), "half a line is no round");
        second.add(told(2, &[])).unwrap();
        assert!(!second.end("seeds 0..3", 3), "a violation of the run before counts");
        let third = Report::open(Some(&path), "seeds 0..3").unwrap();
        assert_eq!(third.told, [told(0, &[]), told(1, &["O1: gone"]), told(2, &[])]);
        let other = Report::open(Some(&path), "seeds 0..4").err().unwrap();
        assert!(other.contains("it declared seeds 0..3, not seeds 0..4"), "{other}");
    }

    #[test]
    fn figures_count_everything() {
        let all: Vec<_> = (1..=100).map(|round| told(round, &[])).collect();
        let text = figures(&all);
        assert!(text.contains("   100    0 Kill"), "{text}");
        assert!(text.contains("PROTECTED again: p50 45.0 s, p99 89.1 s, max 90.0 s"), "{text}");
        assert!(text.contains("700 acknowledged writes"), "{text}");
    }
}
