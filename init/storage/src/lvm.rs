//! LVM on one physical volume, without udev and without files of its own: every setting is on the command line.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Host;
use crate::error::{Doing, PhaseError};
use crate::run::Tool;

/// Name of the volume group.
pub const GROUP: &str = "dyad";
/// Extent size of the group.
pub(crate) const EXTENT_BYTES: u64 = 4 << 20;

const LVM: &str = "/usr/sbin/lvm";
/// The label is in one of the first sectors.
const LABEL_SECTORS: usize = 4;
const SECTOR_BYTES: usize = 512;
/// LVM waits only for the disk.
const DEADLINE: Duration = Duration::from_secs(60);

/// The volume group's tool, bound to its physical volume.
pub(crate) struct Lvm<'a> {
    host: &'a Host,
    volume: PathBuf,
}

/// Sizes of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupSize {
    pub(crate) extents: u64,
    pub(crate) free_extents: u64,
}

impl<'a> Lvm<'a> {
    pub(crate) fn new(host: &'a Host, volume: &Path) -> Self {
        Self { host, volume: volume.to_owned() }
    }

    /// Runs one LVM command.
    ///
    /// - No udev: LVM makes and removes the nodes in /dev/mapper itself and waits for nobody.
    /// - Only our partition is looked at: a group of the same name on another disk, or inside a guest's volume, does
    ///   not exist for us.
    /// - No archive, backup, hints or daemons: the root is read-only, and the metadata on the disk is the truth.
    fn run(&self, command: &str, args: &[&str]) -> Result<String, PhaseError> {
        let config = format!(
            "devices{{use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" \
             hints=\"none\" scan_lvs=0 scan=[\"{}\"] filter=[\"a|^{}$|\",\"r|.*|\"]}} \
             activation{{udev_sync=0 udev_rules=0 monitoring=0}} backup{{backup=0 archive=0}} \
             global{{locking_dir=\"{}\" use_lvmpolld=0 event_activation=0}}",
            self.host.dev.display(),
            self.volume.display(),
            self.host.path("/run/dyad/lvm").display(),
        );
        Ok(Tool::new(LVM, DEADLINE)
            // Empty: read no configuration file, whatever the image has.
            .env("LVM_SYSTEM_DIR", "")
            .arg(command)
            .args(["--config".to_owned(), config])
            .args(args.iter().copied())
            .run(&self.host.log)?)
    }

    /// Makes physical volume and group over whatever the device holds.
    pub(crate) fn create_group(&self) -> Result<(), PhaseError> {
        let volume = self.volume.to_string_lossy();
        self.run("pvcreate", &["-y", "-ff", "--dataalignment", "1m", &volume])?;
        let extent = format!("{EXTENT_BYTES}b");
        self.run("vgcreate", &["-y", "--physicalextentsize", &extent, GROUP, &volume]).map(drop)
    }

    /// Makes all volumes of the group usable.
    pub(crate) fn activate(&self) -> Result<(), PhaseError> {
        self.run("vgchange", &["-ay", GROUP]).map(drop)
    }

    /// Lets go of all volumes of the group.
    pub(crate) fn deactivate(&self) -> Result<(), PhaseError> {
        self.run("vgchange", &["-an", GROUP]).map(drop)
    }

    /// Names of the logical volumes.
    pub(crate) fn volumes(&self) -> Result<Vec<String>, PhaseError> {
        let text = self.run("lvs", &["--noheadings", "-o", "lv_name", GROUP])?;
        Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
    }

    pub(crate) fn size(&self) -> Result<GroupSize, PhaseError> {
        let text = self.run("vgs", &["--noheadings", "-o", "vg_extent_count,vg_free_count", GROUP])?;
        let [extents, free_extents] = numbers(&text)?;
        Ok(GroupSize { extents, free_extents })
    }

    /// Whether the partition is larger than what the group has of it.
    pub(crate) fn grown(&self) -> Result<bool, PhaseError> {
        let volume = self.volume.to_string_lossy();
        let columns = "dev_size,pv_size,pe_start";
        let text =
            self.run("pvs", &["--noheadings", "--nosuffix", "--units", "b", "-o", columns, &volume])?;
        let [device, used, start] = numbers(&text)?;
        // Less than an extent is rounding, not growth.
        Ok(device >= start + used + EXTENT_BYTES)
    }

    /// Takes the partition's growth into the group.
    pub(crate) fn take_growth(&self) -> Result<(), PhaseError> {
        self.run("pvresize", &["-y", &self.volume.to_string_lossy()]).map(drop)
    }

    /// Writes what the group is made of into a file.
    pub(crate) fn backup(&self, file: &Path) -> Result<(), PhaseError> {
        self.run("vgcfgbackup", &["-f", &file.to_string_lossy(), GROUP]).map(drop)
    }

    /// Makes the group what such a file says, on a device without any.
    pub(crate) fn restore(&self, file: &Path) -> Result<(), PhaseError> {
        let text = fs::read_to_string(file).doing("read", file)?;
        let id = physical_volume(&text).ok_or_else(|| {
            PhaseError::Volumes(format!("{} names no physical volume with an id", file.display()))
        })?;
        let (file, volume) = (file.to_string_lossy(), self.volume.to_string_lossy());
        self.run("pvcreate", &["-y", "-ff", "--uuid", id, "--restorefile", &file, &volume])?;
        self.run("vgcfgrestore", &["-y", "-f", &file, GROUP]).map(drop)
    }

    /// Makes and activates a logical volume. Its old content is not cleared: the caller makes a file system.
    pub(crate) fn create(&self, name: &str, extents: u64) -> Result<(), PhaseError> {
        self.run("lvcreate", &["-y", "-Wn", "-Zn", "-n", name, "-l", &extents.to_string(), GROUP]).map(drop)
    }
}

/// Whether the label of a physical volume tells another size than its partition has now, or cannot be read: then LVM is to be
/// asked.
pub(crate) fn label_differs(device: &Path) -> Result<bool, PhaseError> {
    let file = File::open(device).doing("open", device)?;
    let size = dyad_sys::block::size_bytes(&file).doing("ask the size of", device)?;
    let mut start = [0; LABEL_SECTORS * SECTOR_BYTES];
    file.read_exact_at(&mut start, 0).doing("read the start of", device)?;
    // Less than an extent is rounding, as in `grown`.
    Ok(labelled_size(&start).is_none_or(|labelled| labelled.abs_diff(size) >= EXTENT_BYTES))
}

/// The size of the device, bytes, as the label says: `LABELONE`, sector (8), checksum (4), offset of the header (4),
/// `LVM2 001`; there an id (32) and the size (8), little-endian.
fn labelled_size(start: &[u8]) -> Option<u64> {
    let label = start.chunks_exact(SECTOR_BYTES).find(|sector| sector.starts_with(b"LABELONE"))?;
    if label.get(24..32)? != b"LVM2 001" {
        return None;
    }
    let header = u32::from_le_bytes(label.get(20..24)?.try_into().ok()?) as usize;
    let size = label.get(header.checked_add(32)?..header.checked_add(40)?)?;
    Some(u64::from_le_bytes(size.try_into().ok()?))
}

/// The id of the one physical volume of a backup.
fn physical_volume(backup: &str) -> Option<&str> {
    let (_, volumes) = backup.split_once("physical_volumes {")?;
    let (_, id) = volumes.split_once("id = \"")?;
    id.split_once('"').map(|(id, _)| id)
}

/// Numbers in a report line of LVM.
fn numbers<const N: usize>(text: &str) -> Result<[u64; N], PhaseError> {
    let fields: Vec<u64> = text.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    fields.try_into().map_err(|_| PhaseError::Volumes(format!("expected {N} numbers in {text:?}")))
}

/// The name that device-mapper knows a volume of the group by: dashes in names are doubled.
pub(crate) fn mapped_name(volume: &str) -> String {
    format!("{GROUP}-{}", volume.replace('-', "--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lines_are_parsed() {
        assert_eq!(numbers::<2>("  255 12\n").unwrap(), [255, 12]);
        assert!(numbers::<2>("255").unwrap_err().to_string().contains("expected 2 numbers in \"255\""));
    }

    #[test]
    fn the_physical_volume_of_a_backup_is_found() {
        let backup = "dyad {\n\tid = \"group\"\n\tphysical_volumes {\n\n\t\tpv0 {\n\t\t\tid = \"one-two\"\n";
        assert_eq!(physical_volume(backup), Some("one-two"));
        assert_eq!(physical_volume("dyad {\n\tid = \"group\"\n"), None);
    }

    #[test]
    fn a_label_is_read_and_nonsense_is_none() {
        let mut start = [0; LABEL_SECTORS * SECTOR_BYTES];
        assert_eq!(labelled_size(&start), None);
        start[512..520].copy_from_slice(b"LABELONE");
        start[512 + 20] = 32;
        start[512 + 64..512 + 72].copy_from_slice(&(5u64 << 30).to_le_bytes());
        assert_eq!(labelled_size(&start), None, "of another kind");
        start[512 + 24..512 + 32].copy_from_slice(b"LVM2 001");
        assert_eq!(labelled_size(&start), Some(5 << 30));
        for offset in [u32::MAX, 500, 4096] {
            start[512 + 20..512 + 24].copy_from_slice(&offset.to_le_bytes());
            assert_eq!(labelled_size(&start), None, "{offset}");
        }
    }

    #[test]
    fn mapped_names_double_dashes() {
        assert_eq!(mapped_name("pg"), "dyad-pg");
        assert_eq!(mapped_name("vm-1"), "dyad-vm--1");
    }
}
