//! The disk that the running root came from: found through sysfs and the partition tables themselves, without udev.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dyad_gpt::{Found, Guid, Table};
use dyad_sys::block::{self, PartitionChange};

use crate::error::{Doing, PhaseError};
use crate::{Host, Log};

/// Kernel names of block devices that never are the appliance's disk.
const NOT_DISKS: [&str; 5] = ["ram", "zram", "dm-", "sr", "fd"];

/// A partitioned disk, opened.
pub(crate) struct Disk {
    /// Kernel name (`vda`).
    pub(crate) name: String,
    /// Device file.
    pub(crate) path: PathBuf,
    file: File,
    /// The table as it was read, or as it was last written.
    pub(crate) found: Found,
    sysfs: PathBuf,
    dev: PathBuf,
}

/// First half of the verity root hash on the kernel command line: the PARTUUID of the root partition.
pub(crate) fn root_guid(cmdline: &str) -> Result<Guid, PhaseError> {
    let mut values = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix("dyad.root="));
    let bad = |text: &str| PhaseError::CommandLine(text.to_owned());
    let hash = values.next().ok_or_else(|| bad("no dyad.root="))?;
    if values.any(|other| other != hash) {
        return Err(bad("two different dyad.root="));
    }
    if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(PhaseError::CommandLine(format!("dyad.root={hash}")));
    }
    let half = u128::from_str_radix(&hash[..32], 16).map_err(|_| bad("dyad.root"))?;
    Ok(Guid::from_u128(half))
}

fn names(directory: &Path) -> Result<Vec<String>, PhaseError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).doing("list", directory)? {
        names.push(entry.doing("list", directory)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A sysfs attribute without its newline; `None` when it is not there.
pub(crate) fn attribute(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// Finds the disk whose table has the root partition. `None`: the root is not on a disk (network, live).
pub(crate) fn find_root_disk(host: &Host) -> Result<Option<Disk>, PhaseError> {
    let guid = root_guid(&host.cmdline)?;
    let all = host.sys.join("block");
    let mut candidates = Vec::new();
    for name in names(&all)? {
        if NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        // A device without a medium has size 0; one that cannot be read is not the one we run from.
        if attribute(&all.join(&name).join("size")).is_none_or(|size| size == "0") {
            continue;
        }
        let Ok(disk) = Disk::open(host, &name, false) else { continue };
        if disk.found.table.partitions().values().any(|partition| partition.guid == guid) {
            candidates.push(name);
        }
    }
    if let Some(slaves) = root_slaves(host)? {
        // The open verity device knows best: a second disk with the same image, or a root from the network beside
        // an installed disk, is told apart by what device-mapper really uses.
        candidates.retain(|disk| slaves.iter().any(|part| all.join(disk).join(part).is_dir()));
    }
    match candidates.as_slice() {
        [] => Ok(None),
        [one] => Disk::open(host, one, true).map(Some),
        _ => Err(PhaseError::Ambiguous { guid, disks: candidates }),
    }
}

/// What the device-mapper device `root` stands on; `None` when there is no such device.
fn root_slaves(host: &Host) -> Result<Option<Vec<String>>, PhaseError> {
    match mapped_device(host, "root")? {
        Some(name) => names(&host.sys.join("block").join(name).join("slaves")).map(Some),
        None => Ok(None),
    }
}

/// Kernel name (`dm-3`) of a device-mapper device.
pub(crate) fn mapped_device(host: &Host, mapped: &str) -> Result<Option<String>, PhaseError> {
    let all = host.sys.join("block");
    Ok(names(&all)?
        .into_iter()
        .filter(|name| name.starts_with("dm-"))
        .find(|name| attribute(&all.join(name).join("dm/name")).as_deref() == Some(mapped)))
}

impl Disk {
    fn open(host: &Host, name: &str, write: bool) -> Result<Self, PhaseError> {
        let path = host.dev.join(name);
        let mut file = File::options().read(true).write(write).open(&path).doing("open", &path)?;
        let bytes = block::size_bytes(&file).doing("ask the size of", &path)?;
        let sector = block::sector_bytes(&file).doing("ask the sector size of", &path)?;
        let found = dyad_gpt::read(&mut file, sector, bytes)
            .map_err(|source| PhaseError::Table { disk: path.clone(), source })?;
        let sysfs = host.sys.join("block").join(name);
        Ok(Self { name: name.to_owned(), path, file, found, sysfs, dev: host.dev.clone() })
    }

    /// The partition table.
    pub(crate) fn table(&self) -> &Table {
        &self.found.table
    }

    /// Writes both copies of the table, so that a power cut at any point leaves a sound one.
    ///
    /// The backup copy goes first and is flushed: until the primary copy changes, readers see the old table, whose
    /// own backup is either the old one elsewhere or a "different" one that does not count. Then the primary copy:
    /// torn, it fails its checksum and the new backup counts.
    pub(crate) fn write_table(&mut self, table: Table) -> Result<(), PhaseError> {
        let encoded = table.encode();
        self.file
            .write_all_at(&encoded.tail, encoded.tail_offset)
            .doing("write the backup table of", &self.path)?;
        self.file.sync_all().doing("flush the backup table of", &self.path)?;
        self.file.write_all_at(&encoded.head, 0).doing("write the primary table of", &self.path)?;
        self.file.sync_all().doing("flush the primary table of", &self.path)?;
        self.found = Found { table, primary: dyad_gpt::Copy::Good, backup: dyad_gpt::Copy::Good };
        Ok(())
    }

    /// Renames a partition on disk: the commit record of what was done to its content.
    pub(crate) fn relabel(&mut self, number: u32, name: &str) -> Result<(), PhaseError> {
        let mut table = self.table().clone();
        table
            .relabel(number, |partition| name.clone_into(&mut partition.name))
            .map_err(|source| PhaseError::Table { disk: self.path.clone(), source })?;
        self.write_table(table)
    }

    /// Makes the kernel show what the table says. The disk is in use, so each difference is told by itself; what
    /// the kernel shows already is left alone.
    pub(crate) fn tell_kernel(&self, log: &Log) -> Result<(), PhaseError> {
        for &number in self.table().partitions().keys() {
            let Some((start, length)) = self.table().byte_range(number) else { continue };
            let change = match self.shown(number)? {
                Some((_, shown_start, shown_length)) if (shown_start, shown_length) == (start, length) => {
                    continue;
                }
                Some((_, shown_start, _)) if shown_start == start => PartitionChange::Resize,
                Some((name, ..)) => {
                    return Err(PhaseError::Layout {
                        disk: self.path.clone(),
                        number,
                        found: format!(
                            "shown by the kernel as {name} at another place than the table has it"
                        ),
                        expected: "the same start (reboot)",
                    });
                }
                None => PartitionChange::Add,
            };
            block::change_partition(&self.file, change, number, start, length)
                .doing("tell the kernel of a partition of", &self.path)?;
            log.line(&format!("{}: kernel told to {change:?} partition {number}", self.path.display()));
        }
        Ok(())
    }

    /// Name, start and length in bytes of a partition as the kernel shows it.
    fn shown(&self, number: u32) -> Result<Option<(String, u64, u64)>, PhaseError> {
        for name in names(&self.sysfs)? {
            let directory = self.sysfs.join(&name);
            if attribute(&directory.join("partition")) != Some(number.to_string()) {
                continue;
            }
            // sysfs counts in units of 512 bytes whatever the sector size is.
            let bytes = |file| attribute(&directory.join(file)).and_then(|text| text.parse::<u64>().ok());
            if let (Some(start), Some(length)) = (bytes("start"), bytes("size")) {
                return Ok(Some((name, start * 512, length * 512)));
            }
        }
        Ok(None)
    }

    /// The device file of a partition.
    pub(crate) fn partition_path(&self, number: u32) -> Result<PathBuf, PhaseError> {
        match self.shown(number)? {
            Some((name, ..)) => Ok(self.dev.join(name)),
            None => Err(PhaseError::NotShown { disk: self.path.clone(), number }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_guid_is_the_first_half_of_the_hash() {
        let hash = "00112233445566778899aabbccddeeff".to_owned() + &"0".repeat(32);
        let guid = root_guid(&format!("quiet dyad.root={hash} console=ttyS0\n")).unwrap();
        assert_eq!(guid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_command_line_without_a_sound_root_is_refused() {
        let two = format!("dyad.root={} dyad.root={}", "0".repeat(64), "1".repeat(64));
        for cmdline in ["", "dyad.root=", "dyad.root=12", &format!("dyad.root={}", "g".repeat(64)), &two] {
            let error = root_guid(cmdline).unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits is accepted"), "{cmdline}: {error}");
        }
    }
}
