//! Phase `state`: the small file system that makes a machine itself (identity, machine id, journal).
//!
//! Its content is decided by the partition's name, which is written with the table and therefore atomically:
//! `PND#state` must be blank, or nobody touches it; `PRT#state` was blank and is being made, so an interrupted
//! attempt is simply made again; `state` is finished and is never made anew.

use std::fs;
use std::path::Path;

use crate::disk::{self, Disk};
use crate::error::{Doing, PhaseError};
use crate::ext4::{self, Shape};
use crate::grow::{PARTIAL, PENDING, STATE};
use crate::mounts;
use crate::probe::{self, Content};
use crate::{Host, Report, durable, users};

const SHAPE: Shape = Shape { label: "state", inode_ratio_bytes: 16_384, lazy: false };
/// Enough for identity and a session's journal when there is no disk.
const LIVE_OPTIONS: &str = "mode=0755,size=64m";

pub(crate) fn run(host: &Host) -> Result<Report, PhaseError> {
    let at = host.path("/state");
    let mut report = Report::default();
    if host.container {
        fill(host, &at, &mut report)?;
        return Ok(report);
    }
    match disk::find_root_disk(host)? {
        Some(mut disk) => {
            let device =
                finish(host, &mut disk, STATE, "state", &mut report, &Content::Ext4, |host, device| {
                    ext4::make(host, device, &SHAPE)
                })?;
            ext4::mount(host, &device, &at)?;
        }
        // Without a disk the same paths exist for as long as the machine runs.
        None => {
            report = Report::live();
            mounts::tmpfs(&at, LIVE_OPTIONS)?;
        }
    }
    fill(host, &at, &mut report)?;
    Ok(report)
}

/// Brings a partition through its names to the finished one and returns its device.
///
/// Every step is either a read, or a write that the name already allows, or the rename that records it:
/// 1. `PND#x`: read; not blank -> refuse. Rename to `PRT#x`: from now on the content is ours.
/// 2. `PRT#x`: make the content, flush it. Cut here: step 2 again, over whatever half of it is there.
/// 3. Rename to `x`. The content was flushed before, so the name never promises what is not there.
pub(crate) fn finish(
    host: &Host,
    disk: &mut Disk,
    number: u32,
    name: &'static str,
    report: &mut Report,
    finished: &Content,
    make: impl FnOnce(&Host, &Path) -> Result<(), PhaseError>,
) -> Result<std::path::PathBuf, PhaseError> {
    let device = disk.partition_path(number)?;
    let label = disk.table().partitions().get(&number).map(|partition| partition.name.clone());
    let label = label.ok_or_else(|| PhaseError::NotShown { disk: disk.path.clone(), number })?;
    if label == name {
        let found = probe::content(&device)?;
        if found != *finished {
            return Err(PhaseError::Lost { device, expected: name, found: found.to_string() });
        }
        return Ok(device);
    }
    if label.strip_prefix(PENDING) == Some(name) {
        let found = probe::content(&device)?;
        if found != Content::Blank {
            return Err(PhaseError::Foreign { device, what: found.to_string() });
        }
        disk.relabel(number, &format!("{PARTIAL}{name}"))?;
    } else if label.strip_prefix(PARTIAL) != Some(name) {
        return Err(PhaseError::Layout {
            disk: disk.path.clone(),
            number,
            found: format!("named {label:?}"),
            expected: name,
        });
    }
    make(host, &device)?;
    disk.relabel(number, name)?;
    report.changes.push(format!("made {name} on {}", device.display()));
    Ok(device)
}

/// Directories, machine id and the journal's place.
fn fill(host: &Host, state: &Path, report: &mut Report) -> Result<(), PhaseError> {
    let journal_gid = users::group(&host.path("/etc/group"), "systemd-journal")?.unwrap_or(0);
    for (name, mode, gid) in
        [("identity", 0o700, 0), ("journal", 0o2755, journal_gid), ("supervisor", 0o700, 0)]
    {
        if durable::directory(&state.join(name), mode, 0, gid)? {
            report.changes.push(format!("directory {name}"));
        }
    }
    let id = machine_id(host, &state.join("machine-id"), report)?;
    let volatile = host.path("/run/dyad/etc");
    fs::create_dir_all(&volatile).doing("make the directory", &volatile)?;
    let copy = volatile.join("machine-id");
    if fs::read_to_string(&copy).ok().as_deref() != Some(&id) {
        durable::write(&copy, id.as_bytes(), 0o444)?;
    }
    let log = host.path("/var/log/journal");
    fs::create_dir_all(&log).doing("make the directory", &log)?;
    mounts::bind(&state.join("journal"), &log)?;
    Ok(())
}

/// The machine id, made once. One that is not 32 lower-case hexadecimal digits was never written by us whole.
fn machine_id(host: &Host, path: &Path, report: &mut Report) -> Result<String, PhaseError> {
    match fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
        Ok(text) if is_machine_id(&text) => return Ok(text),
        Ok(_) => host.log.line(&format!("{} is damaged and is made anew", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).doing("read", path),
    }
    let bytes = crate::random_uuid().doing("read random bytes for", path)?;
    let id = format!("{:032x}\n", u128::from_be_bytes(bytes));
    durable::write(path, id.as_bytes(), 0o444)?;
    report.changes.push("machine-id".to_owned());
    Ok(id)
}

fn is_machine_id(text: &str) -> bool {
    let id = text.trim_end_matches('\n');
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && id != "0".repeat(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_are_judged() {
        assert!(is_machine_id("0123456789abcdef0123456789abcdef\n"));
        for bad in ["", "\n", "uninitialized\n", "0123456789ABCDEF0123456789abcdef", &"0".repeat(32)] {
            assert!(!is_machine_id(bad), "{bad:?}");
        }
    }
}
