//! Loop devices: a file of the initrd as a block device.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Attaches `file` read-only to a free loop device and gives the device's number. `/dev` must be a devtmpfs.
pub fn attach_read_only(file: BorrowedFd<'_>) -> io::Result<u32> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    let device = File::open(format!("/dev/loop{number}"))?;
    // SAFETY: all-zero bytes are a valid loop_config.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_READ_ONLY;
    // SAFETY: `config` is readable for the size of a loop_config.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from a C program against linux/loop.h of 6.1.
    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
