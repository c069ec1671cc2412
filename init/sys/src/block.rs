//! Block device ioctls: sizes, the kernel's view of a partition table, discarding and loop devices.
//!
//! The kernel's numbers come from `linux/fs.h`, `linux/blkpg.h` and `linux/loop.h`; they are ABI and never change.
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "a request's number and the call that makes it are one fact")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::ioctl::{self, Getter, IntegerSetter, NoArg, Opcode, Setter};

const BLKRRPART: Opcode = 0x125f;
const BLKFLSBUF: Opcode = 0x1261;
const BLKSSZGET: Opcode = 0x1268;
const BLKPG: Opcode = 0x1269;
const BLKDISCARD: Opcode = 0x1277;
const BLKZEROOUT: Opcode = 0x127f;
const BLKGETSIZE64: Opcode = ioctl::opcode::read::<usize>(0x12, 114);

const LOOP_CLR_FD: Opcode = 0x4c01;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_GET_FREE: Opcode = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_PARTSCAN: u32 = 8;

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

/// Makes the kernel read the partition table again. EBUSY when any partition is in use.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    unsafe { ioctl::ioctl(disk, NoArg::<BLKRRPART>::new()) }?;
    Ok(())
}

/// Writes back and drops the page cache of a device, so that the next read comes from the medium.
pub fn flush_buffers(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl::ioctl(device, NoArg::<BLKFLSBUF>::new()) }?;
    Ok(())
}

/// Tells the device that a byte range holds nothing any more. What a later read gives is up to the device.
pub fn discard(device: &File, start: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64, start and length in bytes.
    unsafe { ioctl::ioctl(device, Setter::<BLKDISCARD, [u64; 2]>::new([start, length])) }?;
    Ok(())
}

/// Fills a byte range with zeroes, by the device's own means where it has any. Both numbers are multiples of 512.
pub fn zero_out(device: &File, start: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two u64, start and length in bytes.
    unsafe { ioctl::ioctl(device, Setter::<BLKZEROOUT, [u64; 2]>::new([start, length])) }?;
    Ok(())
}

/// `struct loop_info64`
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How a loop device shows its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Free the device when its last user (mount, device-mapper table, open file) is gone.
    pub autoclear: bool,
    /// Read a partition table and show its partitions.
    pub partitions: bool,
    /// Logical sector size, bytes: 0 (the default, 512), 512 or 4096.
    pub sector_bytes: u32,
}

/// Asks `/dev/loop-control` for the number of an unused loop device. Another program may take it first: when
/// [`loop_attach`] then says EBUSY, ask again.
pub fn loop_free(control: &File) -> io::Result<u32> {
    // LOOP_CTL_GET_FREE answers in its return value, which the ioctl wrappers of rustix do not pass on.
    struct GetFree;
    // SAFETY: no pointer is passed, and the output is read from the return value alone.
    unsafe impl ioctl::Ioctl for GetFree {
        type Output = u32;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> Opcode {
            LOOP_CTL_GET_FREE
        }
        fn as_ptr(&mut self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }
        unsafe fn output_from_ptr(
            output: ioctl::IoctlOutput,
            _: *mut std::ffi::c_void,
        ) -> rustix::io::Result<u32> {
            u32::try_from(output).map_err(|_| rustix::io::Errno::INVAL)
        }
    }
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; on another kind of file the kernel answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(control, GetFree) }?)
}

/// Binds a loop device to a file, in one call so that no half-configured device is ever visible.
pub fn loop_attach(device: &File, backing: impl AsFd, options: LoopOptions) -> io::Result<()> {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    let fd = u32::try_from(backing.as_fd().as_raw_fd())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let config = LoopConfig {
        fd,
        block_size: options.sector_bytes,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: flag(options.read_only, LO_FLAGS_READ_ONLY)
                | flag(options.autoclear, LO_FLAGS_AUTOCLEAR)
                | flag(options.partitions, LO_FLAGS_PARTSCAN),
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout of `struct loop_config`; the kernel reads it and takes its own reference on
    // the backing file, which `backing` keeps open during the call.
    unsafe { ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }?;
    Ok(())
}

/// Frees a loop device; with users left the kernel does so when the last one goes.
pub fn loop_detach(device: &File) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD ignores its argument.
    unsafe { ioctl::ioctl(device, IntegerSetter::<LOOP_CLR_FD>::new_usize(0)) }?;
    Ok(())
}
