//! The partitions of an image: ESP, root A, verity A.

use dyad_gpt::{ALIGNMENT_BYTES, ATTRIBUTE_READ_ONLY, Guid, Partition, Table, types};

use super::{DiskImage, Error, Source};
use crate::fat;

/// Number of the EFI system partition.
const ESP: u32 = 1;
/// Number of root A.
const ROOT_A: u32 = 2;
/// Number of verity A.
const VERITY_A: u32 = 3;

/// The EFI system partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Esp {
    /// Its volume; the partition is as large, rounded up to 1 MiB.
    pub volume: fat::Image,
    /// PARTUUID.
    pub guid: Guid,
}

/// One of root and verity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Content.
    pub source: Source,
    /// Bytes of the partition, rounded up to 1 MiB.
    pub bytes: u64,
    /// Partition name.
    pub name: String,
}

/// What a disk is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a sector: 512 or 4096.
    pub sector_size: u32,
    /// Identity of the disk.
    pub disk_guid: Guid,
    /// Partition 1.
    pub esp: Esp,
    /// Partition 2.
    pub root: Slot,
    /// Partition 3.
    pub verity: Slot,
    /// The verity root hash: its halves become the PARTUUIDs of root and verity.
    pub root_hash: [u8; 32],
}

/// Why a disk could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The table refused a partition.
    #[error(transparent)]
    Gpt(#[from] dyad_gpt::Error),
    /// An extent does not fit.
    #[error(transparent)]
    Disk(#[from] Error),
    /// The image is larger than its slot.
    #[error("{name} has {bytes} bytes, its slot {slot}: make the slot larger in the definition")]
    SlotTooSmall {
        /// Partition name.
        name: String,
        /// Bytes of the content.
        bytes: u64,
        /// Bytes of the slot.
        slot: u64,
    },
}

/// Lays out the smallest disk that holds the three partitions; first boot grows it.
pub fn layout(layout: &Layout) -> Result<(DiskImage, Table), LayoutError> {
    for slot in [&layout.root, &layout.verity] {
        if slot.source.len() > slot.bytes {
            let (name, bytes) = (slot.name.clone(), slot.source.len());
            return Err(LayoutError::SlotTooSmall { name, bytes, slot: slot.bytes });
        }
    }
    let sizes = [layout.esp.volume.bytes, layout.root.bytes, layout.verity.bytes];
    let content: u64 = sizes.iter().map(|bytes| bytes.next_multiple_of(ALIGNMENT_BYTES)).sum();
    // One unit in front for the primary table and one behind for the backup.
    let size = content + 2 * ALIGNMENT_BYTES;
    let mut table = Table::new(layout.sector_size, size / u64::from(layout.sector_size), layout.disk_guid)?;

    let mut halves = [[0u8; 16]; 2];
    halves[0].copy_from_slice(&layout.root_hash[..16]);
    halves[1].copy_from_slice(&layout.root_hash[16..]);
    let [root_guid, verity_guid] = halves.map(Guid::from_text_order);
    let partition = |type_guid, guid, attributes, name: &str| Partition {
        type_guid,
        guid,
        first_lba: 0,
        last_lba: 0,
        attributes,
        name: name.to_owned(),
    };
    let read_only = ATTRIBUTE_READ_ONLY;
    table.add(ESP, Some(sizes[0]), partition(types::ESP, layout.esp.guid, 0, "esp"))?;
    table.add(
        ROOT_A,
        Some(sizes[1]),
        partition(types::ROOT_X86_64, root_guid, read_only, &layout.root.name),
    )?;
    table.add(
        VERITY_A,
        Some(sizes[2]),
        partition(types::ROOT_X86_64_VERITY, verity_guid, read_only, &layout.verity.name),
    )?;

    let start = |number| table.byte_range(number).map_or(0, |(offset, _)| offset);
    let encoded = table.encode();
    let mut extents = vec![
        (0, Source::Bytes(encoded.head.into())),
        (encoded.tail_offset, Source::Bytes(encoded.tail.into())),
        (start(ROOT_A), layout.root.source.clone()),
        (start(VERITY_A), layout.verity.source.clone()),
    ];
    let esp = start(ESP);
    extents
        .extend(layout.esp.volume.extents.iter().map(|(at, bytes)| (esp + at, Source::Bytes(bytes.clone()))));
    Ok((DiskImage::new(size, extents)?, table))
}
