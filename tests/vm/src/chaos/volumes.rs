//! The data volume of each container: a file system of its own on a loop device, which can be full, slow or hang. As root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tempfile::TempDir;

use super::clock;
use super::inject::NODES;

/// Size of a volume; its file is sparse. What is quarantined in a long run has room.
const BYTES: u64 = 20 << 30;
/// The file that takes the room away.
const FILLER: &str = "filler";
/// What is left out when the kernel refuses the last blocks.
const STEP_BYTES: u64 = 1 << 20;
/// A slow volume stands still for the first, then goes on for the second.
const SLOW: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(40));

/// The volumes of a cluster, unmounted when dropped: after their lab.
pub(crate) struct Volumes {
    dir: TempDir,
}

impl Volumes {
    pub(crate) fn make() -> Self {
        let volumes = Self { dir: TempDir::new().expect("a temporary directory can be made") };
        for node in NODES {
            let (image, at) = (volumes.dir.path().join(format!("{node}.img")), volumes.of(node));
            File::create(&image).and_then(|file| file.set_len(BYTES)).expect("a sparse file can be made");
            fs::create_dir(&at).expect("a directory can be made");
            // Lazy tables would be written behind the test's back.
            must(
                "mkfs.ext4",
                &["-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", text(&image)],
            );
            must("mount", &["-o", "loop,discard", text(&image), text(&at)]);
        }
        volumes
    }

    /// Where the volumes are, each by its node's name.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A node's volume.
    pub(crate) fn of(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    /// Takes room away until so much of the volume is used.
    pub(crate) fn fill(&self, node: &str, percent: u64) {
        let at = self.of(node);
        let stat = statvfs(&at).expect("a mounted volume can be looked at");
        let (total, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
        let mut bytes = free.saturating_sub(total * (100 - percent) / 100);
        let file = File::create(at.join(FILLER)).expect("a file can be made");
        while bytes > 0 && fallocate(&file, FallocateFlags::empty(), 0, bytes).is_err() {
            bytes = bytes.saturating_sub(STEP_BYTES);
        }
    }

    /// Gives the room back.
    pub(crate) fn free(&self, node: &str) {
        // Only one that was filled has it.
        let _ = fs::remove_file(self.of(node).join(FILLER));
    }

    /// Lets nothing be written any more.
    pub(crate) fn freeze(&self, node: &str) {
        must("fsfreeze", &["--freeze", text(&self.of(node))]);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self, node: &str) {
        // Refused for one that is not frozen, which is as it shall be.
        crate::program("fsfreeze", &["--unfreeze", text(&self.of(node))]);
    }

    /// Freezes and thaws by turns until the returned brake is dropped.
    pub(crate) fn slow(&self, node: &'static str) -> Brake {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, at) = (Arc::clone(&stop), self.of(node));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                for (verb, time) in [("--freeze", SLOW.0), ("--unfreeze", SLOW.1)] {
                    crate::program("fsfreeze", &[verb, text(&at)]);
                    clock::pause(time);
                }
            }
        });
        Brake { stop, thread: Some(thread) }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for node in NODES {
            self.thaw(node);
            // Its loop device goes with the last mount of it.
            crate::program("umount", &["--lazy", text(&self.of(node))]);
        }
    }
}

/// A volume is slow while there is one.
pub(crate) struct Brake {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Brake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends thawed; one that panicked has been told of.
            let _ = thread.join();
        }
    }
}

fn must(name: &str, args: &[&str]) {
    crate::stdout(&format!("{name} {}", args.join(" ")), &crate::program(name, args));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
