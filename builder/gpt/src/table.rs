//! The table as a value: partitions by number, and the operations that keep it sound.

use std::collections::BTreeMap;

use crate::{ENTRY_BYTES, ENTRY_COUNT, Error, Guid, NAME_UNITS_MAX};

/// Every partition that this crate places starts and ends on this boundary.
pub const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Attribute bit 60: mount read-only (Discoverable Partitions Specification).
pub const ATTRIBUTE_READ_ONLY: u64 = 1 << 60;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What it is for; see [`crate::types`].
    pub type_guid: Guid,
    /// Its own identity (PARTUUID).
    pub guid: Guid,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, inclusive.
    pub last_lba: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// Label, at most 36 UTF-16 units.
    pub name: String,
}

impl Partition {
    /// Length in sectors; zero for an inverted range.
    pub fn sectors(&self) -> u64 {
        if self.last_lba < self.first_lba { 0 } else { (self.last_lba - self.first_lba).saturating_add(1) }
    }
}

/// A run of free sectors, aligned on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First sector.
    pub first_lba: u64,
    /// Length in sectors.
    pub sectors: u64,
}

/// A partition table for a disk of a known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    sector_size: u32,
    disk_sectors: u64,
    /// Identity of the disk.
    pub disk_guid: Guid,
    partitions: BTreeMap<u32, Partition>,
}

/// Sectors that hold the entries.
pub(crate) fn entry_sectors(sector_size: u32) -> u64 {
    u64::from((ENTRY_COUNT * ENTRY_BYTES).div_ceil(sector_size))
}

impl Table {
    /// An empty table. `sector_size` is 512 or 4096.
    pub fn new(sector_size: u32, disk_sectors: u64, disk_guid: Guid) -> Result<Self, Error> {
        if sector_size != 512 && sector_size != 4096 {
            return Err(Error::SectorSize(sector_size));
        }
        // Protective MBR, two headers, two entry arrays and one sector between them; byte offsets must fit 64 bits.
        if disk_sectors < 4 + 2 * entry_sectors(sector_size)
            || disk_sectors.checked_mul(u64::from(sector_size)).is_none()
        {
            return Err(Error::DiskTooSmall { sectors: disk_sectors, sector_size });
        }
        Ok(Table { sector_size, disk_sectors, disk_guid, partitions: BTreeMap::new() })
    }

    /// Bytes of a sector.
    pub fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Size of the disk in sectors.
    pub fn disk_sectors(&self) -> u64 {
        self.disk_sectors
    }

    /// First sector that a partition may use.
    pub fn first_usable(&self) -> u64 {
        2 + entry_sectors(self.sector_size)
    }

    /// Last sector that a partition may use.
    pub fn last_usable(&self) -> u64 {
        self.disk_sectors - 2 - entry_sectors(self.sector_size)
    }

    /// Partitions by number, from 1.
    pub fn partitions(&self) -> &BTreeMap<u32, Partition> {
        &self.partitions
    }

    /// Where a partition lies, in bytes: (offset, length).
    pub fn byte_range(&self, number: u32) -> Option<(u64, u64)> {
        let p = self.partitions.get(&number)?;
        Some((p.first_lba * u64::from(self.sector_size), p.sectors() * u64::from(self.sector_size)))
    }

    /// Adds a partition at a place of the caller's choice.
    pub fn insert(&mut self, number: u32, partition: Partition) -> Result<(), Error> {
        if number == 0 || number > ENTRY_COUNT {
            return Err(Error::Number(number));
        }
        if self.partitions.contains_key(&number) {
            return Err(Error::NumberTaken(number));
        }
        if partition.type_guid.is_zero() {
            return Err(Error::UnusedType(number));
        }
        check_name(&partition.name)?;
        let (first, last) = (partition.first_lba, partition.last_lba);
        let (usable_first, usable_last) = (self.first_usable(), self.last_usable());
        if first > last || first < usable_first || last > usable_last {
            return Err(Error::Range { number, first, last, usable_first, usable_last });
        }
        for (&other, p) in &self.partitions {
            if first <= p.last_lba && p.first_lba <= last {
                return Err(Error::Overlap(other, number));
            }
        }
        self.partitions.insert(number, partition);
        Ok(())
    }

    /// Adds a partition in the first gap that is large enough; `bytes` of `None` takes the largest gap whole.
    /// Start and length are multiples of 1 MiB; `partition`'s own range is ignored. Returns the range taken.
    pub fn add(&mut self, number: u32, bytes: Option<u64>, mut partition: Partition) -> Result<Span, Error> {
        let sector = u64::from(self.sector_size);
        let align = ALIGNMENT_BYTES / sector;
        let gaps = self.free();
        let largest = gaps.iter().map(|g| g.sectors).max().unwrap_or(0);
        let wanted = match bytes {
            Some(0) => align,
            Some(b) => b.div_ceil(sector).checked_next_multiple_of(align).unwrap_or(u64::MAX),
            None => largest.max(1),
        };
        let gap = gaps
            .iter()
            .find(|g| g.sectors >= wanted)
            .ok_or(Error::NoSpace { wanted: bytes.unwrap_or(ALIGNMENT_BYTES), largest: largest * sector })?;
        let span = Span { first_lba: gap.first_lba, sectors: wanted };
        partition.first_lba = span.first_lba;
        partition.last_lba = span.first_lba + span.sectors - 1;
        self.insert(number, partition)?;
        Ok(span)
    }

    /// Free runs of at least 1 MiB, aligned to 1 MiB on both sides, in disk order.
    pub fn free(&self) -> Vec<Span> {
        let align = ALIGNMENT_BYTES / u64::from(self.sector_size);
        let mut used: Vec<_> = self.partitions.values().map(|p| (p.first_lba, p.last_lba)).collect();
        used.sort_unstable();
        used.push((self.last_usable() + 1, u64::MAX));
        let mut at = self.first_usable();
        let mut gaps = Vec::new();
        for (first, last) in used {
            let start = at.next_multiple_of(align);
            let end = first / align * align;
            if end > start {
                gaps.push(Span { first_lba: start, sectors: end - start });
            }
            at = last.saturating_add(1);
        }
        gaps
    }

    /// Changes what does not move a partition: type, GUID, attributes, name.
    pub fn relabel(&mut self, number: u32, change: impl FnOnce(&mut Partition)) -> Result<(), Error> {
        let old = self.partitions.get(&number).ok_or(Error::Number(number))?;
        let mut new = old.clone();
        change(&mut new);
        (new.first_lba, new.last_lba) = (old.first_lba, old.last_lba);
        check_name(&new.name)?;
        if new.type_guid.is_zero() {
            return Err(Error::UnusedType(number));
        }
        self.partitions.insert(number, new);
        Ok(())
    }

    /// Removes a partition and returns it.
    pub fn remove(&mut self, number: u32) -> Option<Partition> {
        self.partitions.remove(&number)
    }

    /// Fits the table to a disk of another size: the backup copy moves to its end. Refuses to cut a partition off.
    pub fn grow(&mut self, disk_sectors: u64) -> Result<(), Error> {
        let resized = Table::new(self.sector_size, disk_sectors, self.disk_guid)?;
        for (&number, p) in &self.partitions {
            if p.last_lba > resized.last_usable() {
                return Err(Error::Shrink { disk: disk_sectors, number, last: p.last_lba });
            }
        }
        self.disk_sectors = disk_sectors;
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.encode_utf16().count() > NAME_UNITS_MAX || name.contains('\0') {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}
