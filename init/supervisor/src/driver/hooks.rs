//! Programs that an overlay lays for what follows a take-over: `/usr/lib/dyad/hooks/primary/NAME`.
//!
//! Whenever this node has become primary, and lets clients in, each runs once, in the order of their names, as root, with
//! `DYAD_NODE` and `DYAD_TIMELINE` in its environment; again after a pause until it ends with 0. What is done is written down for
//! the timeline, which is another one after each promotion, and only then. A kill at a bad moment runs one again, so a hook does
//! no harm when it runs twice. No client waits for any of them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::control::{ExitStatus, Oneshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;

use super::shown::Facts;
use crate::files::{self, Access, At, FileError};
use crate::paths::Paths;
use crate::pid1::Pid1;

/// Where they are.
const DIRECTORY: &str = "/usr/lib/dyad/hooks/primary";
/// Longest time for one.
const DEADLINE_MS: u32 = 600_000;
/// After one that failed; doubles up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// Of what a failed one wrote.
const SAID_BYTES_MAX: usize = 200;

/// What runs them.
pub(crate) struct Hooks {
    pub(crate) paths: Rc<Paths>,
    pub(crate) pid1: Pid1,
    /// Of this node.
    pub(crate) name: String,
    pub(crate) facts: Facts,
    /// The one that fails, and why.
    pub(crate) failing: watch::Sender<Option<String>>,
}

/// On which timeline each was done last.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    primary: BTreeMap<String, u32>,
}

impl Hooks {
    /// For ever.
    pub(crate) async fn run(mut self) {
        let (mut pause, mut settled) = (PAUSE.0, None);
        loop {
            let timeline = self.timeline();
            if let Some(timeline) = timeline.filter(|_| timeline != settled)
                && let Err(why) = self.run_all(timeline).await
            {
                tracing::warn!(%why, pause_s = pause.as_secs(), "a hook is tried again");
                self.tell(Some(why));
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
                continue;
            }
            // Nobody's primary any more, or all of them done.
            settled = timeline;
            pause = PAUSE.0;
            self.tell(None);
            if self.timeline() == settled && self.facts.changed().await.is_err() {
                return;
            }
        }
    }

    fn tell(&self, failing: Option<String>) {
        self.failing.send_if_modified(|told| std::mem::replace(told, failing.clone()) != failing);
    }

    /// That this node writes as primary, and lets clients write.
    fn timeline(&mut self) -> Option<u32> {
        let (view, _, replication) = self.facts.now();
        replication.timeline.filter(|_| view.phase.admits())
    }

    async fn run_all(&mut self, timeline: u32) -> Result<(), String> {
        let hooks = self.hooks().map_err(|error| error.to_string())?;
        let path = self.paths.at("/state/supervisor/hooks.json");
        for (name, program) in hooks {
            // Unreadable is never done: running one twice does no harm.
            let known = files::read(&path).map_err(|error| error.to_string())?;
            let mut done: Done =
                known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
            if done.primary.get(&name) == Some(&timeline) {
                continue;
            }
            if self.timeline() != Some(timeline) {
                return Ok(());
            }
            self.run_one(&name, program, timeline).await?;
            tracing::info!(%name, timeline, "a hook is done");
            done.primary.insert(name, timeline);
            let text = serde_json::to_vec_pretty(&done).expect("names and numbers can be written as JSON");
            files::write(&path, &text, Access::own(0o600)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn run_one(&self, name: &str, program: PathBuf, timeline: u32) -> Result<(), String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let oneshot = Oneshot {
            env: vec![
                ("DYAD_NODE".into(), self.name.clone()),
                ("DYAD_TIMELINE".into(), timeline.to_string()),
            ],
            ..Oneshot::as_root(
                format!("hook-{}", name.chars().take(50).map(plain).collect::<String>()),
                vec![program.display().to_string()],
                DEADLINE_MS,
            )
        };
        let finished = self.pid1.run(oneshot).await.map_err(|error| format!("{name}: {error}"))?;
        let how = match finished.status {
            ExitStatus::Exited(0) => return Ok(()),
            ExitStatus::Exited(status) => format!("ended with status {status}"),
            ExitStatus::Signaled(signal) => format!("was ended by signal {signal}"),
            ExitStatus::DeadlinePassed => format!("took longer than {} s", DEADLINE_MS / 1000),
            ExitStatus::NotStarted(why) => format!("could not be started ({why})"),
        };
        let said = String::from_utf8_lossy(&finished.stderr);
        let said: String = said.trim().chars().take(SAID_BYTES_MAX).collect();
        Err(if said.is_empty() { format!("{name} {how}") } else { format!("{name} {how}: {said}") })
    }

    /// Names and paths of what can be executed, in order.
    fn hooks(&self) -> Result<Vec<(String, PathBuf)>, FileError> {
        let directory = self.paths.at(DIRECTORY);
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).at("list", &directory),
        };
        let mut hooks = Vec::new();
        for entry in entries {
            let path = entry.at("list", &directory)?.path();
            let found = std::fs::metadata(&path).at("look at", &path)?;
            if found.is_file() && found.permissions().mode() & 0o111 != 0 {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                hooks.push((name, path));
            }
        }
        hooks.sort_unstable();
        Ok(hooks)
    }
}
