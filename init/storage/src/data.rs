//! Phase `data`: the volume group and PostgreSQL's volume.
//!
//! The partition goes through the same names as `state` does, and is finished only when group, volume and file system are
//! flushed: LVM writes its metadata without flushing in between, so a power cut may leave a group that it cannot read.
//! Later changes of the group are made with a copy of what was there before at hand, for the same reason.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::{Doing, PhaseError};
use crate::ext4::{self, Shape};
use crate::grow::DATA;
use crate::lvm::{self, GroupSize, Lvm};
use crate::mounts;
use crate::probe::{self, Content};
use crate::{Host, Report, durable, state, users};

const VOLUME: &str = "pg";
/// On the state partition while the group is changed: how it was before.
const BEFORE: &str = "/state/lvm-before";
const SHAPE: Shape = Shape { label: "pg", inode_ratio_bytes: 65_536, lazy: true };

/// Share of the group that PostgreSQL's volume gets at first boot; the rest is for replicated volumes. It can be
/// grown later, never shrunk, so it starts small.
const PG_PERCENT: u64 = 60;
/// More than this is given only when somebody asks for it.
const PG_BYTES_MAX: u64 = 256 << 30;

/// Extents of PostgreSQL's volume in a fresh group.
fn pg_extents(size: GroupSize) -> u64 {
    (size.extents * PG_PERCENT / 100).min(PG_BYTES_MAX / lvm::EXTENT_BYTES).min(size.free_extents)
}

pub(crate) fn run(host: &Host) -> Result<Report, PhaseError> {
    let mut report = Report::default();
    if host.container {
        owned(host, &host.path("/data").join(VOLUME), &mut report)?;
        return Ok(report);
    }
    let Some(mut disk) = disk::find_root_disk(host)? else { return Ok(Report::live()) };
    let locks = host.path("/run/dyad/lvm");
    fs::create_dir_all(&locks).doing("make the directory", &locks)?;

    let before = host.path(BEFORE);
    if before.exists() {
        put_back(host, &disk.partition_path(DATA)?, &before, &mut report)?;
    }
    let device = state::finish(host, &mut disk, DATA, "data", &mut report, &Content::Lvm, make)?;
    let lvm = Lvm::new(host, &device);
    if before.exists() {
        // Whatever was changed then can be read now.
        lvm.volumes()?;
        durable::remove(&before)?;
    }
    // LVM takes its time to be read at a boot, so it is asked only when the label says that something is to be done.
    if lvm::label_differs(&device)? && lvm.grown()? {
        lvm.backup(&before)?;
        durable::sync(&before)?;
        durable::sync(&host.path("/state"))?;
        lvm.take_growth()?;
        durable::sync(&device)?;
        durable::remove(&before)?;
        report.changes.push("volume group grown".to_owned());
    }
    lvm.activate()?;
    let Some(volume) = mapped(host, VOLUME)? else {
        let found = format!("a volume group with {:?}", lvm.volumes()?);
        return Err(PhaseError::Lost { device, expected: "the volume pg", found });
    };
    mount(host, &volume, &mut report)?;
    Ok(report)
}

/// Group, volume and file system, over whatever an earlier attempt has left.
fn make(host: &Host, device: &Path) -> Result<(), PhaseError> {
    clear_start(device)?;
    let lvm = Lvm::new(host, device);
    lvm.create_group()?;
    lvm.create(VOLUME, pg_extents(lvm.size()?))?;
    let volume = mapped(host, VOLUME)?.ok_or_else(|| {
        PhaseError::Volumes(format!("volume {VOLUME} was made but device-mapper has none of this name"))
    })?;
    ext4::make(host, &volume, &SHAPE)?;
    durable::sync(device)
}

/// A change of the group was cut off: what cannot be read any more becomes what it was before. Volumes lie behind what is
/// cleared, where no change of the group touches them.
fn put_back(host: &Host, device: &Path, before: &Path, report: &mut Report) -> Result<(), PhaseError> {
    let lvm = Lvm::new(host, device);
    let Err(error) = lvm.volumes() else { return Ok(()) };
    host.log.line(&format!("{error}; the volume group is put back as it was before it was changed"));
    clear_start(device)?;
    lvm.restore(before)?;
    durable::sync(device)?;
    report.changes.push("volume group put back as it was".to_owned());
    Ok(())
}

fn clear_start(device: &Path) -> Result<(), PhaseError> {
    let file = File::options().write(true).open(device).doing("open", device)?;
    dyad_sys::block::zero_out(&file, 0, probe::EDGE_BYTES).doing("clear the start of", device)?;
    file.sync_all().doing("flush", device)
}

/// The device file of an active volume. devtmpfs names it by number; no udev is there to make nicer links.
fn mapped(host: &Host, volume: &str) -> Result<Option<PathBuf>, PhaseError> {
    let device = disk::mapped_device(host, &lvm::mapped_name(volume))?;
    Ok(device.map(|device| host.dev.join(device)))
}

fn mount(host: &Host, device: &Path, report: &mut Report) -> Result<(), PhaseError> {
    // The root is read-only and has only `/data` itself.
    let data = host.path("/data");
    mounts::tmpfs(&data, "mode=0755,size=64k")?;
    let at = data.join(VOLUME);
    fs::create_dir_all(&at).doing("make the directory", &at)?;
    if !mounts::is_mounted(device, &at)? {
        let found = probe::content(device)?;
        if found != Content::Ext4 {
            return Err(PhaseError::Lost {
                device: device.to_owned(),
                expected: "PostgreSQL's ext4 volume",
                found: found.to_string(),
            });
        }
    }
    ext4::mount(host, device, &at)?;
    owned(host, &at, report)
}

/// The volume's directory belongs to PostgreSQL.
fn owned(host: &Host, at: &Path, report: &mut Report) -> Result<(), PhaseError> {
    // An image without PostgreSQL has no such user: the volume is then root's.
    let (uid, gid) = users::user(&host.path("/etc/passwd"), "postgres")?.unwrap_or((0, 0));
    if durable::directory(at, 0o700, uid, gid)? {
        report.changes.push(format!("owner of {} is {uid}:{gid}", at.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pg_gets_its_share_and_no_more_than_its_cap() {
        let fresh = |gib: u64| GroupSize { extents: gib * 256, free_extents: gib * 256 };
        assert_eq!(pg_extents(fresh(10)), 10 * 256 * 60 / 100);
        assert_eq!(pg_extents(fresh(4000)), 256 * 256);
        assert_eq!(pg_extents(GroupSize { extents: 1000, free_extents: 100 }), 100);
    }
}
