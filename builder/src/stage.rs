//! The stages of a build as a person sees them: one line each, a bar where there is a terminal; and their times.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use dyad_archive::{Progress, Stage as Download};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

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
    bar: ProgressBar,
}

impl Stages {
    /// A bar only where somebody can see it.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(
                "  {msg:<12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
            )
            .expect("the template is a constant"),
        );
        Stages { done: Mutex::new(Vec::new()), bar }
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
        let result = work()?;
        let took: Duration = started.elapsed();
        self.bar.finish_and_clear();
        eprintln!("  {name:<12} {:6.2} s", took.as_secs_f64());
        let timed = Timed { name, seconds: took.as_secs_f64() };
        self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(timed);
        Ok(result)
    }

    /// What was run so far, in the order in which stages ended.
    pub(crate) fn finished(&self) -> Vec<Timed> {
        self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Progress for Stages {
    fn report(&self, stage: Download, done: u64, total: u64) {
        let name = match stage {
            Download::Releases => "releases",
            Download::Indexes => "indexes",
            Download::Packages => "packages",
        };
        self.bar.set_length(total);
        self.bar.set_message(name);
        self.bar.set_position(done);
        if done == total {
            self.bar.reset();
        }
    }
}
