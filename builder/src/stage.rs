//! The stages of a build as a person sees them: one line each, a bar where there is a terminal; and their times.
//!
//! How long the rest will take is known for downloads from their sizes, and for everything else from the build of the
//! same image before, which is what the line says.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dyad_archive::{Progress, Stage as Download};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

/// Stages that run at the same time: the longer one counts.
const SIDE_BY_SIDE: [[&str; 2]; 2] = [["packages", "payload"], ["squashfs", "initrd"]];
/// How often the line is drawn anew.
const TICK: Duration = Duration::from_millis(250);

/// Seconds of each stage of an earlier build, by its name.
pub(crate) type Times = BTreeMap<String, f64>;

/// A finished stage.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Timed {
    /// Short name.
    pub(crate) name: &'static str,
    /// Wall time.
    pub(crate) seconds: f64,
}

/// Times stages and reports them on standard error, which is not part of any output.
pub(crate) struct Stages {
    done: Mutex<Vec<Timed>>,
    last: Mutex<Times>,
    bar: ProgressBar,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds that the stages which are not done took last time; `None` when nothing is known of one of the usual ones.
fn seconds_left(last: &Times, done: &[Timed]) -> Option<f64> {
    let open = |name: &str| !done.iter().any(|timed| timed.name == name);
    let took = |name: &&str| last.get(*name).copied().filter(|_| open(name)).unwrap_or_default();
    let side = SIDE_BY_SIDE.iter().map(|names| names.iter().map(took).fold(0.0, f64::max));
    let alone = |name: &str| !SIDE_BY_SIDE.iter().flatten().any(|side| *side == name);
    let rest = last.iter().filter(|(name, _)| open(name) && alone(name)).map(|(_, seconds)| seconds);
    (!last.is_empty()).then(|| side.sum::<f64>() + rest.sum::<f64>())
}

/// What a person reads of it.
fn estimate(left: Option<f64>, elapsed: Duration) -> String {
    match left.map(|left| left - elapsed.as_secs_f64()) {
        None => "no build of this image to compare with".to_owned(),
        Some(left) if left < 0.0 => "taking longer than last time".to_owned(),
        Some(left) => format!("about {left:.0} s left if it goes as last time"),
    }
}

impl Stages {
    /// A bar only where somebody can see it.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Stages { done: Mutex::default(), last: Mutex::default(), bar }
    }

    /// What the build before took, to say how long this one will.
    pub(crate) fn compare_with(&self, last: Times) {
        *held(&self.last) = last;
    }

    /// Shows a stage whose end is known from the build before alone.
    fn show(&self, name: &'static str) {
        if self.bar.is_hidden() {
            return;
        }
        let left = seconds_left(&held(&self.last), &held(&self.done));
        let style = ProgressStyle::with_template("  {msg:<12} {elapsed} {left}")
            .expect("the template is a constant")
            .with_key("left", move |state: &ProgressState, line: &mut dyn Write| {
                let _ = line.write_str(&estimate(left, state.elapsed()));
            });
        self.bar.reset();
        self.bar.set_style(style);
        self.bar.set_message(name);
        self.bar.enable_steady_tick(TICK);
    }

    /// Runs one stage.
    #[allow(
        clippy::disallowed_methods,
        reason = "the builder's stopwatch: times are shown, nothing depends on them"
    )]
    pub(crate) fn run<T>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        self.show(name);
        let result = work();
        self.bar.disable_steady_tick();
        let result = result.inspect_err(|_| self.bar.finish_and_clear())?;
        let took: Duration = started.elapsed();
        self.bar.finish_and_clear();
        eprintln!("  {name:<12} {:6.2} s", took.as_secs_f64());
        let timed = Timed { name, seconds: took.as_secs_f64() };
        held(&self.done).push(timed);
        Ok(result)
    }

    /// What was run so far, in the order in which stages ended.
    pub(crate) fn finished(&self) -> Vec<Timed> {
        held(&self.done).clone()
    }
}

impl Progress for Stages {
    fn report(&self, stage: Download, done: u64, total: u64) {
        let name = match stage {
            Download::Releases => "releases",
            Download::Indexes => "indexes",
            Download::Packages => "packages",
        };
        if done == 0 {
            let template = "  {msg:<12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
            self.bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        }
        self.bar.set_length(total);
        self.bar.set_message(name);
        self.bar.set_position(done);
        if done == total {
            self.bar.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_the_open_stages_took() {
        let times = [("resolve", 1.0), ("packages", 5.0), ("payload", 90.0), ("tree", 2.0), ("outputs", 3.0)];
        let last: Times = times.into_iter().map(|(name, seconds)| (name.to_owned(), seconds)).collect();
        let done = |names: &[&'static str]| -> Vec<Timed> {
            names.iter().map(|&name| Timed { name, seconds: 7.0 }).collect()
        };
        assert_eq!(
            seconds_left(&last, &done(&[])),
            Some(96.0),
            "packages come while the payload is compiled"
        );
        assert_eq!(seconds_left(&last, &done(&["resolve", "payload"])), Some(10.0));
        assert_eq!(seconds_left(&last, &done(&["resolve", "payload", "packages", "tree"])), Some(3.0));
        assert_eq!(seconds_left(&Times::new(), &done(&[])), None);
    }

    #[test]
    fn an_estimate_that_was_wrong_says_so() {
        let after = |seconds| estimate(Some(4.0), Duration::from_secs(seconds));
        assert_eq!(after(1), "about 3 s left if it goes as last time");
        assert_eq!(after(5), "taking longer than last time");
    }
}
