//! Stories: a directory each, with what happens in `events.toml` and what is seen in `expect.log`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dyad_cluster::Voting;
use serde::Deserialize;

use crate::sim::{self, Fault, Plan, Planned, Run};

/// `tests/scenarios`.
pub const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    covers: String,
    #[serde(default)]
    voting: Vote,
    #[serde(default = "three")]
    lease_s: u64,
    #[serde(default = "one")]
    volumes: u16,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    blank: bool,
    #[serde(default)]
    event: Vec<Line>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Vote {
    #[default]
    Arbiter,
    Strict,
    PrimaryBiased,
    FenceDevice,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_s: f64,
    #[serde(default)]
    for_s: f64,
    fault: String,
}

fn three() -> u64 {
    3
}

fn one() -> u16 {
    1
}

/// One story.
#[derive(Debug)]
pub struct Scenario {
    /// Name of its directory.
    pub name: String,
    /// Row of the requirements (`S1-29`) or fault that it tells.
    pub covers: String,
    /// What happens.
    pub plan: Plan,
}

impl Scenario {
    /// Reads `events.toml`.
    pub fn parse(name: &str, text: &str) -> Result<Scenario> {
        let file: File = toml::from_str(text).with_context(|| format!("{name}/events.toml"))?;
        let mut plan = Plan::quiet(file.seed);
        plan.voting = match file.voting {
            Vote::Arbiter => Voting::Arbiter,
            Vote::Strict => Voting::Strict,
            Vote::PrimaryBiased => Voting::PrimaryBiased,
            Vote::FenceDevice => Voting::FenceDevice,
        };
        (plan.lease_ms, plan.volumes, plan.blank) = (file.lease_s * 1_000, file.volumes, file.blank);
        for line in &file.event {
            let fault: Fault = line
                .fault
                .parse()
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("{name}/events.toml"))?;
            ensure!(line.at_s >= 0.0 && line.for_s >= 0.0, "{name}/events.toml: times are 0 or more");
            let at_ms = (line.at_s * 1_000.0) as u64;
            let until_ms = at_ms + (line.for_s * 1_000.0) as u64;
            plan.events.push(Planned { at_ms, until_ms, fault });
            plan.peace_ms = plan.peace_ms.max(until_ms + 1_000);
        }
        Ok(Scenario { name: name.to_owned(), covers: file.covers, plan })
    }

    /// The story of this name.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn named(name: &str) -> Result<Scenario> {
        let text = read(&Path::new(DIRECTORY).join(name).join("events.toml"))?;
        Scenario::parse(name, &text)
    }

    /// What is compared with `expect.log`.
    pub fn tell(&self) -> (String, Run) {
        let run = sim::play(&self.plan, &[], true);
        let seen = run.log.iter().filter(|line| !line.contains(" -> "));
        let mut text: String = seen.map(|line| format!("{line}\n")).collect();
        text.push_str(&format!(
            "{} acknowledged writes kept, {} given up, {}\n",
            run.acknowledged,
            run.given_up,
            run.violation.as_deref().unwrap_or("nothing violated")
        ));
        (text, run)
    }
}

/// All stories, by name.
pub fn all() -> Result<Vec<(PathBuf, Scenario)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(DIRECTORY).context(DIRECTORY)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = read(&path.join("events.toml"))?;
        found.push((path, Scenario::parse(&name, &text)?));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
