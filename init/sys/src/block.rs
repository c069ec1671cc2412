//! Block device ioctls: sizes, the kernel's view of a partition table, zeroing.
//!
//! The kernel's numbers come from `linux/fs.h` and `linux/blkpg.h`; they are ABI and never change.
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a request's number and the call that makes it are one fact"
)]

use std::fs::File;
use std::io;

use rustix::ioctl::{self, Getter, Opcode, Setter};

const BLKSSZGET: Opcode = 0x1268;
const BLKPG: Opcode = 0x1269;
const BLKZEROOUT: Opcode = 0x127f;
const BLKGETSIZE64: Opcode = ioctl::opcode::read::<usize>(0x12, 114);

/// Size of a whole block device or partition, bytes.
pub fn size_bytes(device: &File) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64; on any other kind of file the kernel answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }?)
}

/// Logical sector size of a block device, bytes (512 or 4096).
pub fn sector_bytes(device: &File) -> io::Result<u32> {
    // SAFETY: BLKSSZGET writes one int; on any other kind of file the kernel answers ENOTTY.
    let size = unsafe { ioctl::ioctl(device, Getter::<BLKSSZGET, i32>::new()) }?;
    u32::try_from(size).map_err(|_| io::Error::other(format!("BLKSSZGET answered {size}")))
}

/// What to do with one partition in the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionChange {
    /// BLKPG_ADD_PARTITION
    Add,
    /// BLKPG_DEL_PARTITION
    Delete,
    /// BLKPG_RESIZE_PARTITION: `length` may change, `start` must not.
    Resize,
}

/// `struct blkpg_partition`
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    pno: i32,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// `struct blkpg_ioctl_arg`
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    datalen: i32,
    data: *mut BlkpgPartition,
}

/// Tells the kernel about one partition of `disk` without touching the others, which may be in use.
/// `number` counts from 1; `start` and `length` are bytes.
pub fn change_partition(
    disk: &File,
    change: PartitionChange,
    number: u32,
    start: u64,
    length: u64,
) -> io::Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let pno = i32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut partition = BlkpgPartition {
        start: signed(start)?,
        length: signed(length)?,
        pno,
        devname: [0; 64],
        volname: [0; 64],
    };
    let arg = BlkpgArg {
        op: match change {
            PartitionChange::Add => 1,
            PartitionChange::Delete => 2,
            PartitionChange::Resize => 3,
        },
        flags: 0,
        datalen: size_of::<BlkpgPartition>() as i32,
        data: &raw mut partition,
    };
    // SAFETY: `arg` has the layout of `struct blkpg_ioctl_arg`, its pointer is to a live `struct blkpg_partition`
    // of `datalen` bytes that outlives the call, and the kernel only reads both.
    unsafe { ioctl::ioctl(disk, Setter::<BLKPG, BlkpgArg>::new(arg)) }?;
    Ok(())
}

/// Fills a byte range with zeroes, by the device's own means where it has any. Both numbers are multiples of 512.
pub fn zero_out(device: &File, start: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two u64, start and length in bytes.
    unsafe { ioctl::ioctl(device, Setter::<BLKZEROOUT, [u64; 2]>::new([start, length])) }?;
    Ok(())
}
