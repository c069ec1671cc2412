/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Fetching and verifying Release files; counted in files.
    Releases,
    /// Fetching and reading Packages indexes; counted in bytes.
    Indexes,
    /// Fetching and checking packages; counted in bytes.
    Packages,
}

/// Receives progress. Called from several threads, often: keep it cheap.
pub trait Progress: Sync {
    /// `done` of `total` (bytes, or files for `Stage::Releases`). The last call of a stage has `done == total`.
    fn report(&self, stage: Stage, done: u64, total: u64);
}

/// Ignores progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _stage: Stage, _done: u64, _total: u64) {}
}
