//! First-boot phases: what turns a flashed image into a machine with a disk of its own.
//!
//! PID 1 runs each phase in a helper process with a deadline, in a cgroup of its own so that killing the helper also
//! ends the tools it started. Every phase may be repeated: what is right already is left alone, what was cut off by
//! a power failure is finished, and what is not ours is refused.

mod data;
mod disk;
mod durable;
mod error;
mod ext4;
mod grow;
mod kmsg;
mod lvm;
mod mounts;
mod probe;
mod run;
mod state;
mod users;

use std::path::{Path, PathBuf};

pub use error::{PhaseError, ToolError};
pub use kmsg::Log;
pub use lvm::GROUP as VOLUME_GROUP;

use error::Doing;
use lvm::Lvm;
use mounts::FileSystem;
use rustix::mount::MountFlags;

/// The phases in the order of a boot; `teardown` belongs to the shutdown.
pub const PHASES: [&str; 5] = ["grow", "state", "data", "esp", "teardown"];

/// Written by PID 1 where it is a container's.
const CONTAINER: &str = "/run/systemd/container";

/// Where the machine's parts are. [`Host::appliance`] is the real thing; a test points elsewhere.
#[derive(Debug)]
pub struct Host {
    /// The kernel command line.
    pub cmdline: String,
    /// Mount point of sysfs.
    pub sys: PathBuf,
    /// Directory of device files, filled by devtmpfs.
    pub dev: PathBuf,
    /// Prefix of every mount point and file that a phase makes.
    pub root: PathBuf,
    /// A container: the host mounted what a disk would hold, and the phases only fill it.
    pub container: bool,
    /// Where progress lines go.
    pub log: Log,
}

impl Host {
    /// The running machine.
    pub fn appliance() -> Result<Self, PhaseError> {
        let cmdline = Path::new("/proc/cmdline");
        Ok(Self {
            cmdline: std::fs::read_to_string(cmdline).doing("read", cmdline)?,
            sys: "/sys".into(),
            dev: "/dev".into(),
            root: "/".into(),
            container: Path::new(CONTAINER).exists(),
            log: Log::kernel(),
        })
    }

    /// An absolute path of the machine, below this host's root.
    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Runs one phase.
    pub fn run(&self, name: &str) -> Result<Report, PhaseError> {
        let result = match name {
            "grow" | "esp" | "teardown" if self.container => Ok(Report::default()),
            "grow" => grow::run(self),
            "state" => state::run(self),
            "data" => data::run(self),
            "esp" => esp(self),
            "teardown" => teardown(self),
            other => return Err(PhaseError::UnknownPhase(other.to_owned())),
        };
        match &result {
            Ok(report) => self.log.line(&format!("phase {name}: {report}")),
            Err(error) => self.log.line(&format!("phase {name} failed: {error}")),
        }
        result
    }
}

/// Runs one phase on the running machine: what `init --phase NAME` does.
pub fn run_phase(name: &str) -> Result<Report, PhaseError> {
    Host::appliance()?.run(name)
}

/// What a phase did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The root did not come from a disk: there was nothing to work on.
    pub live: bool,
    /// What was changed on the disk, in order; empty when everything was in place.
    pub changes: Vec<String>,
}

impl Report {
    fn live() -> Self {
        Self { live: true, changes: Vec::new() }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.live, self.changes.as_slice()) {
            (true, _) => f.write_str("live, no disk"),
            (false, []) => f.write_str("nothing to do"),
            (false, changes) => f.write_str(&changes.join("; ")),
        }
    }
}

/// A random UUID, version 4.
fn random_uuid() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // 16 bytes are given whole once the pool is ready, and the call waits for that.
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count != bytes.len() {
        return Err(std::io::Error::other(format!("getrandom gave {count} of 16 bytes")));
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

/// Phase `esp`: the boot partition, read-only. Whoever writes to it remounts it for that moment.
fn esp(host: &Host) -> Result<Report, PhaseError> {
    let Some(disk) = disk::find_root_disk(host)? else { return Ok(Report::live()) };
    let number = disk.table().partitions().iter().find(|(_, p)| p.type_guid == dyad_gpt::types::ESP);
    let Some((&number, _)) = number else {
        return Err(PhaseError::Layout {
            disk: disk.path.clone(),
            number: 1,
            found: "not there".to_owned(),
            expected: "an EFI system partition",
        });
    };
    let device = disk.partition_path(number)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let at = host.path("/efi");
    mounts::mount(
        host,
        &FileSystem { device: &device, at: &at, kind: "vfat", flags, options: "umask=0077" },
    )?;
    Ok(Report::default())
}

/// Phase `teardown`: everything that was mounted goes, then the volumes. Services have been stopped before.
fn teardown(host: &Host) -> Result<Report, PhaseError> {
    let below: Vec<_> =
        ["/data", "/var/log/journal", "/state", "/efi"].into_iter().map(|path| host.path(path)).collect();
    let mounts = mounts::unmount_below(&below)?;
    let gone = mounts.gone.iter().map(|path| format!("unmounted {}", path.display()));
    let read_only =
        mounts.read_only.iter().map(|path| format!("{} is in use; made read-only", path.display()));
    let mut report = Report { live: false, changes: gone.chain(read_only).collect() };
    if !mounts.writable.is_empty() {
        return Err(PhaseError::InUse(mounts.writable));
    }
    let Some(disk) = disk::find_root_disk(host)? else { return Ok(report) };
    let data = disk.table().partitions().get(&grow::DATA);
    // A volume that is still mounted cannot be let go; it is read-only then, and that is enough.
    if mounts.read_only.is_empty() && data.is_some_and(|partition| partition.name == "data") {
        let locks = host.path("/run/dyad/lvm");
        std::fs::create_dir_all(&locks).doing("make the directory", &locks)?;
        Lvm::new(host, &disk.partition_path(grow::DATA)?).deactivate()?;
        report.changes.push("volume group deactivated".to_owned());
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_phase_is_refused_by_name() {
        let host = Host {
            cmdline: String::new(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            root: "/".into(),
            container: false,
            log: Log::silent(),
        };
        let error = host.run("grwo").unwrap_err().to_string();
        assert_eq!(error, "unknown phase \"grwo\": grow, state, data, esp or teardown is accepted");
    }

    #[test]
    fn uuids_are_random_and_of_version_4() {
        let (one, two) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, two);
        assert_eq!((one[6] >> 4, one[8] >> 6), (4, 2));
    }

    #[test]
    fn reports_read_well() {
        assert_eq!(Report::live().to_string(), "live, no disk");
        assert_eq!(Report::default().to_string(), "nothing to do");
    }
}
