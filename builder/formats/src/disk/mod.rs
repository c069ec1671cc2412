//! A disk as extents over zeros, and the files that it can become.

mod layout;
pub mod qcow2;
mod raw;

use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;

pub use layout::{Esp, Layout, LayoutError, Slot, layout};
pub use raw::write as write_raw;

use crate::field;

/// A file that extents may refer to.
pub trait Input: Read + Seek {}
impl<T: Read + Seek + ?Sized> Input for T {}

/// Where an extent's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From memory.
    Bytes(Bytes),
    /// From one of the files that the writer is given.
    File {
        /// Index among these files.
        input: usize,
        /// Where in the file the extent starts.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
}

impl Source {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Source::Bytes(b) => b.len() as u64,
            Source::File { bytes, .. } => *bytes,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a disk could not be put together, written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input or output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Two extents share bytes or one leaves the disk.
    #[error(
        "disk image of {size} bytes: the extent at {offset} ({bytes} bytes) overlaps another or leaves the disk"
    )]
    Extent {
        /// Size of the disk.
        size: u64,
        /// Start of the extent.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// An extent names a file that the writer was not given, or more of it than there is.
    #[error("disk image: input file {input} ends before byte {end}")]
    ShortInput {
        /// Index of the file.
        input: usize,
        /// Byte that the extent needs.
        end: u64,
    },
    /// Not a qcow2 file that this reader knows, or a damaged one.
    #[error("qcow2: {0}")]
    Qcow2(String),
}

/// A disk: everything outside the extents is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    size: u64,
    extents: Vec<(u64, Source)>,
}

impl DiskImage {
    /// Checks that the extents lie apart and within the disk; their order does not matter.
    pub fn new(size: u64, mut extents: Vec<(u64, Source)>) -> Result<Self, Error> {
        extents.retain(|(_, source)| !source.is_empty());
        extents.sort_by_key(|(offset, _)| *offset);
        let mut end = 0;
        for (offset, source) in &extents {
            let bytes = source.len();
            let next = offset.checked_add(bytes).filter(|next| *next <= size && *offset >= end);
            end = next.ok_or(Error::Extent { size, offset: *offset, bytes })?;
        }
        Ok(DiskImage { size, extents })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Extents in rising order.
    pub fn extents(&self) -> &[(u64, Source)] {
        &self.extents
    }

    /// The disk's bytes from `offset`, zeros included; the buffer must not leave the disk.
    pub fn read_at(&self, inputs: &mut [&mut dyn Input], offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        let first = self.extents.partition_point(|(at, source)| at + source.len() <= offset);
        for (at, source) in &self.extents[first..] {
            if *at >= end {
                break;
            }
            let from = offset.max(*at);
            let to = end.min(at + source.len());
            let target = &mut buf[(from - offset) as usize..(to - offset) as usize];
            read_source(source, inputs, from - at, target)?;
        }
        Ok(())
    }

    /// Whether a range touches no extent at all.
    fn is_hole(&self, offset: u64, bytes: u64) -> bool {
        let first = self.extents.partition_point(|(at, source)| at + source.len() <= offset);
        self.extents.get(first).is_none_or(|(at, _)| *at >= offset + bytes)
    }
}

fn read_source(
    source: &Source,
    inputs: &mut [&mut dyn Input],
    skip: u64,
    buf: &mut [u8],
) -> Result<(), Error> {
    match source {
        Source::Bytes(bytes) => buf.copy_from_slice(&bytes[skip as usize..skip as usize + buf.len()]),
        Source::File { input, offset, .. } => {
            let end = offset + skip + buf.len() as u64;
            let short = Error::ShortInput { input: *input, end };
            let Some(file) = inputs.get_mut(*input) else { return Err(short) };
            file.seek(SeekFrom::Start(offset + skip))?;
            if field::read_full(*file, buf)? < buf.len() {
                return Err(short);
            }
        }
    }
    Ok(())
}

/// Whether a buffer holds only zeros.
pub(crate) fn is_zero(buf: &[u8]) -> bool {
    let chunks = buf.chunks_exact(64);
    let rest = chunks.remainder();
    rest.iter().all(|&b| b == 0) && chunks.into_iter().all(|c| c == [0u8; 64])
}
