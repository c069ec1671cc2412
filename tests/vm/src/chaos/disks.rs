//! The disks of machines: what was not flushed is lost in part when a machine loses its power.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dyad_nbd_tests::forgetful::{Forgetful, Losses};
use dyad_nbd_tests::server;
use tempfile::TempDir;

use super::inject::NODES;

/// Servers of the disks of one lab; they end with the process.
pub(crate) struct Disks {
    sockets: TempDir,
    losses: Vec<Arc<Losses>>,
}

impl Disks {
    /// Serves the disks that a lab with this state will have.
    pub(crate) fn serve(state: &Path) -> Self {
        let sockets = TempDir::new().expect("a temporary directory can be made");
        let serve = |(seed, node): (u64, &str)| {
            let disk = Forgetful::new(state.join("nodes").join(node).join("disk.raw"), seed);
            let losses = disk.losses();
            server::start(disk, &sockets.path().join(node)).expect("a socket can be made");
            losses
        };
        let losses = (0..).zip(NODES).map(serve).collect();
        Self { sockets, losses }
    }

    /// Where they listen, each on a socket of its node's name.
    pub(crate) fn dir(&self) -> &Path {
        self.sockets.path()
    }

    /// Blocks that were not flushed at the power cuts since the last call, and those of them that were lost.
    pub(crate) fn take_losses(&self) -> (u64, u64) {
        let take = |of: fn(&Losses) -> &std::sync::atomic::AtomicU64| {
            self.losses.iter().map(|losses| of(losses).swap(0, Ordering::Relaxed)).sum()
        };
        (take(|losses| &losses.unflushed), take(|losses| &losses.lost))
    }
}
