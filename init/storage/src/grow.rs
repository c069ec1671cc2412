//! Phase `grow`: the partition table of a freshly flashed image becomes that of a whole disk.
//!
//! All of it is one write of the table: slot B, state and data appear together or not at all. The new partitions
//! are named `PND#...` (nothing written yet); the phases that fill them rename them.

use dyad_gpt::{ATTRIBUTE_READ_ONLY, Found, Guid, Partition, Table, types};

use crate::disk::{self, Disk};
use crate::error::{Doing, PhaseError};
use crate::{Host, Report};

/// Partition numbers, as ARCHITECTURE.md gives them.
pub(crate) const ROOT_A: u32 = 2;
const VERITY_A: u32 = 3;
const ROOT_B: u32 = 4;
const VERITY_B: u32 = 5;
pub(crate) const STATE: u32 = 6;
pub(crate) const DATA: u32 = 7;

const MIB: u64 = 1 << 20;
/// Size of the state partition.
pub(crate) const STATE_BYTES: u64 = 512 * MIB;
/// Smallest data partition that a first boot accepts: PostgreSQL's empty cluster, its first WAL and room to work.
pub(crate) const DATA_BYTES_MIN: u64 = 1024 * MIB;
/// Free space behind the data partition that is worth a new table; less is left by rounding.
const DATA_GROWTH_BYTES_MIN: u64 = 64 * MIB;

/// Name prefix of a partition that nothing was written to yet.
pub(crate) const PENDING: &str = "PND#";
/// Name prefix of a partition that was found blank and is being filled: its content is ours to overwrite.
pub(crate) const PARTIAL: &str = "PRT#";
/// Name of a slot without an image.
const EMPTY: &str = "_empty";

pub(crate) fn run(host: &Host) -> Result<Report, PhaseError> {
    let Some(mut disk) = disk::find_root_disk(host)? else { return Ok(Report::live()) };
    let mut report = Report::default();
    if let Some(table) = plan(&disk.found, &mut random_guid).map_err(|refusal| refusal.on(&disk))? {
        host.log.line(&format!(
            "{}: writing a table for {} sectors (primary copy {}, backup copy {})",
            disk.path.display(),
            table.disk_sectors(),
            disk.found.primary,
            disk.found.backup
        ));
        let fresh: Vec<_> = table
            .partitions()
            .keys()
            .filter(|number| !disk.table().partitions().contains_key(number))
            .collect();
        report.changes.push(format!("partition table of {} written, new partitions {fresh:?}", disk.name));
        disk.write_table(table)?;
    }
    // Also when the table was complete: a run that ended between table and kernel is made good here.
    disk.tell_kernel(&host.log)?;
    Ok(report)
}

fn random_guid() -> Result<Guid, PhaseError> {
    Ok(Guid::from_disk(crate::random_uuid().doing("read random bytes for", "a partition GUID".as_ref())?))
}

/// Why a table cannot become the one we want.
#[derive(Debug)]
pub(crate) enum Refusal {
    TooSmall { have_bytes: u64, need_bytes: u64 },
    Layout { number: u32, found: String, expected: &'static str },
    Table(dyad_gpt::Error),
    Random(PhaseError),
}

impl Refusal {
    fn on(self, disk: &Disk) -> PhaseError {
        let disk = disk.path.clone();
        match self {
            Self::TooSmall { have_bytes, need_bytes } => {
                PhaseError::TooSmall { disk, have_bytes, need_bytes, data_min: DATA_BYTES_MIN }
            }
            Self::Layout { number, found, expected } => PhaseError::Layout { disk, number, found, expected },
            Self::Table(source) => PhaseError::Table { disk, source },
            Self::Random(error) => error,
        }
    }
}

/// What one partition number is for.
struct Role {
    number: u32,
    what: &'static str,
    type_guid: Guid,
    name: &'static str,
    attributes: u64,
}

const ROLES: [Role; 6] = [
    role(ROOT_A, "a root file system", types::ROOT_X86_64, EMPTY, ATTRIBUTE_READ_ONLY),
    role(VERITY_A, "verity hashes", types::ROOT_X86_64_VERITY, EMPTY, ATTRIBUTE_READ_ONLY),
    role(ROOT_B, "a root file system", types::ROOT_X86_64, EMPTY, ATTRIBUTE_READ_ONLY),
    role(VERITY_B, "verity hashes", types::ROOT_X86_64_VERITY, EMPTY, ATTRIBUTE_READ_ONLY),
    role(STATE, "the state partition", types::LINUX, "PND#state", 0),
    role(DATA, "the data partition", types::LVM, "PND#data", 0),
];

const fn role(number: u32, what: &'static str, type_guid: Guid, name: &'static str, attributes: u64) -> Role {
    Role { number, what, type_guid, name, attributes }
}

/// The table that the disk should have, or `None` when it has it. Pure: `guids` gives identities.
pub(crate) fn plan(
    found: &Found,
    guids: &mut dyn FnMut() -> Result<Guid, PhaseError>,
) -> Result<Option<Table>, Refusal> {
    let mut table = found.table.clone();
    let bytes_of = |number| found.table.byte_range(number).map(|(_, bytes)| bytes);
    let absent = |number: u32, expected| Refusal::Layout { number, found: "absent".to_owned(), expected };
    let root_bytes = bytes_of(ROOT_A).ok_or_else(|| absent(ROOT_A, "a root file system"))?;
    let verity_bytes = bytes_of(VERITY_A).ok_or_else(|| absent(VERITY_A, "verity hashes"))?;
    for role in &ROLES {
        if let Some(there) = table.partitions().get(&role.number) {
            if there.type_guid != role.type_guid {
                let found = format!("of type {} (named {:?})", there.type_guid, there.name);
                return Err(Refusal::Layout { number: role.number, found, expected: role.what });
            }
            continue;
        }
        let bytes = match role.number {
            ROOT_B => Some(root_bytes),
            VERITY_B => Some(verity_bytes),
            STATE => Some(STATE_BYTES),
            _ => None,
        };
        let partition = Partition {
            type_guid: role.type_guid,
            guid: guids().map_err(Refusal::Random)?,
            first_lba: 0,
            last_lba: 0,
            attributes: role.attributes,
            name: role.name.to_owned(),
        };
        let added = table.add(role.number, bytes, partition);
        let small = match (&added, bytes) {
            (Err(dyad_gpt::Error::NoSpace { .. }), _) => true,
            (Ok(span), None) => span.sectors * u64::from(table.sector_size()) < DATA_BYTES_MIN,
            _ => false,
        };
        if small {
            return Err(too_small(&found.table, root_bytes, verity_bytes));
        }
        added.map_err(Refusal::Table)?;
    }
    extend_data(&mut table)?;
    Ok((table != found.table || !found.is_good()).then_some(table))
}

/// The smallest disk on which everything that is missing fits behind what is there.
fn too_small(table: &Table, root_bytes: u64, verity_bytes: u64) -> Refusal {
    let sector = u64::from(table.sector_size());
    let used =
        table.partitions().values().map(|partition| (partition.last_lba + 1) * sector).max().unwrap_or(0);
    let mut need_bytes = used.next_multiple_of(MIB);
    for (number, bytes) in
        [(ROOT_B, root_bytes), (VERITY_B, verity_bytes), (STATE, STATE_BYTES), (DATA, DATA_BYTES_MIN)]
    {
        if !table.partitions().contains_key(&number) {
            need_bytes += bytes.next_multiple_of(MIB);
        }
    }
    // The backup table lies behind the last partition.
    Refusal::TooSmall { have_bytes: table.disk_sectors() * sector, need_bytes: need_bytes + MIB }
}

/// A disk that has grown since the first boot gives its new space to the data partition.
fn extend_data(table: &mut Table) -> Result<(), Refusal> {
    let sector = u64::from(table.sector_size());
    let Some(data) = table.partitions().get(&DATA).cloned() else { return Ok(()) };
    let Some(gap) = table.free().into_iter().find(|gap| gap.first_lba == data.last_lba + 1) else {
        return Ok(());
    };
    if gap.sectors * sector < DATA_GROWTH_BYTES_MIN {
        return Ok(());
    }
    table.remove(DATA);
    let last_lba = data.last_lba + gap.sectors;
    table.insert(DATA, Partition { last_lba, ..data }).map_err(Refusal::Table)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// An image as the builder makes it: ESP and slot A, with the disk cut right behind them.
    fn image(sector: u32) -> (Vec<u8>, u64) {
        let bytes = 40 * MIB;
        let mut table = Table::new(sector, bytes / u64::from(sector), Guid::from_u128(1)).unwrap();
        for (number, type_guid, size) in [
            (1, types::ESP, 8 * MIB),
            (2, types::ROOT_X86_64, 20 * MIB),
            (3, types::ROOT_X86_64_VERITY, 2 * MIB),
        ] {
            let partition = Partition {
                type_guid,
                guid: Guid::from_u128(0x100 + u128::from(number)),
                first_lba: 0,
                last_lba: 0,
                attributes: 0,
                name: format!("p{number}"),
            };
            table.add(number, Some(size), partition).unwrap();
        }
        let encoded = table.encode();
        let mut disk = vec![0; bytes as usize];
        disk[..encoded.head.len()].copy_from_slice(&encoded.head);
        disk[encoded.tail_offset as usize..].copy_from_slice(&encoded.tail);
        (disk, bytes)
    }

    /// The image seen on a disk of another size: the bytes behind it read as nothing.
    fn on_disk(sector: u32, disk_bytes: u64) -> Found {
        let (bytes, _) = image(sector);
        dyad_gpt::read(&mut Cursor::new(bytes), sector, disk_bytes).unwrap()
    }

    fn counter() -> impl FnMut() -> Result<Guid, PhaseError> {
        let mut next = 0xa000_u128;
        move || {
            next += 1;
            Ok(Guid::from_u128(next))
        }
    }

    fn done(table: Table) -> Found {
        Found { table, primary: dyad_gpt::Copy::Good, backup: dyad_gpt::Copy::Good }
    }

    #[test]
    fn a_fresh_image_gets_slot_b_state_and_data() {
        for sector in [512, 4096] {
            let found = on_disk(sector, 4 * GIB);
            let table = plan(&found, &mut counter()).unwrap().unwrap();
            let size = |number| table.byte_range(number).unwrap().1;
            assert_eq!(size(4), 20 * MIB);
            assert_eq!(size(5), 2 * MIB);
            assert_eq!(size(6), STATE_BYTES);
            assert_eq!(size(7), 4 * GIB - (1 + 8 + 22 + 22) * MIB - STATE_BYTES - MIB);
            let names: Vec<_> =
                table.partitions().values().map(|partition| partition.name.as_str()).collect();
            assert_eq!(names, ["p1", "p2", "p3", "_empty", "_empty", "PND#state", "PND#data"]);
            assert_eq!(table.partitions()[&4].attributes, ATTRIBUTE_READ_ONLY);
            for (number, partition) in found.table.partitions() {
                assert_eq!(table.partitions()[number], *partition, "what was there stays");
            }
            assert_eq!(table.disk_sectors() * u64::from(sector), 4 * GIB);
        }
    }

    #[test]
    fn a_finished_table_is_left_alone() {
        let table = plan(&on_disk(512, 4 * GIB), &mut counter()).unwrap().unwrap();
        assert!(plan(&done(table), &mut counter()).unwrap().is_none());
    }

    #[test]
    fn a_damaged_copy_is_repaired_though_nothing_is_missing() {
        let table = plan(&on_disk(512, 4 * GIB), &mut counter()).unwrap().unwrap();
        let mut found = done(table.clone());
        found.backup = dyad_gpt::Copy::Damaged(dyad_gpt::Defect::Signature);
        assert_eq!(plan(&found, &mut counter()).unwrap(), Some(table));
    }

    #[test]
    fn the_smallest_disk_is_named_exactly() {
        let Err(Refusal::TooSmall { need_bytes, have_bytes }) = plan(&on_disk(512, GIB), &mut counter())
        else {
            panic!("1 GiB cannot do")
        };
        assert_eq!(have_bytes, GIB);
        assert!(plan(&on_disk(512, need_bytes), &mut counter()).is_ok());
        assert!(matches!(
            plan(&on_disk(512, need_bytes - MIB), &mut counter()),
            Err(Refusal::TooSmall { .. })
        ));
        // Too small even for slot B.
        assert!(matches!(plan(&on_disk(512, 48 * MIB), &mut counter()), Err(Refusal::TooSmall { .. })));
    }

    #[test]
    fn a_disk_that_grew_gives_its_space_to_data() {
        let mut table = plan(&on_disk(512, 4 * GIB), &mut counter()).unwrap().unwrap();
        table.grow(6 * GIB / 512).unwrap();
        let grown = plan(&done(table.clone()), &mut counter()).unwrap().unwrap();
        assert_eq!(grown.byte_range(7).unwrap().1, table.byte_range(7).unwrap().1 + 2 * GIB);
        assert_eq!(grown.partitions()[&7].guid, table.partitions()[&7].guid);
        assert!(plan(&done(grown), &mut counter()).unwrap().is_none());
    }

    #[test]
    fn a_number_used_for_something_else_is_refused() {
        let mut found = on_disk(512, 4 * GIB);
        let foreign = Partition {
            type_guid: types::LINUX,
            guid: Guid::from_u128(9),
            first_lba: 0,
            last_lba: 0,
            attributes: 0,
            name: "home".to_owned(),
        };
        found.table.add(4, Some(MIB), foreign).unwrap();
        let Err(Refusal::Layout { number: 4, found, expected }) = plan(&found, &mut counter()) else {
            panic!("partition 4 is not ours")
        };
        assert!(found.contains("\"home\"") && expected == "a root file system");
    }
}
