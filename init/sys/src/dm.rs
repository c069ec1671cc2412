//! device-mapper by ioctl: create a device with one table, read-only or not, and remove it. No libdevmapper, no udev.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// DM_NAME_LEN, terminating zero included.
const NAME_BYTES: usize = 128;
const UUID_BYTES: usize = 129;
/// `_IOWR(0xfd, nr, struct dm_ioctl)`: the size is that of the fixed part (312 bytes).
const fn request(nr: u64) -> u64 {
    (3 << 30) | ((size_of::<DmIoctl>() as u64) << 16) | (0xfd << 8) | nr
}
const DM_DEV_CREATE: u64 = request(3);
const DM_DEV_REMOVE: u64 = request(4);
const DM_DEV_SUSPEND: u64 = request(6);
const DM_TABLE_LOAD: u64 = request(9);
const DM_READONLY_FLAG: u32 = 1;

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_BYTES],
    uuid: [u8; UUID_BYTES],
    data: [u8; 7],
}

/// `struct dm_target_spec`; the parameters follow it as a zero-terminated string.
#[repr(C)]
#[derive(Clone, Copy)]
struct TargetSpec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}

const PARAMS_MAX: usize = 1024;

/// What one ioctl carries: header, one target, its parameters.
#[repr(C)]
#[derive(Clone, Copy)]
struct Packet {
    header: DmIoctl,
    target: TargetSpec,
    params: [u8; PARAMS_MAX],
}

/// One target that fills the device.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// Target type (`verity`, `linear`).
    pub kind: &'a str,
    /// Length of the device in sectors of 512 bytes.
    pub sectors: u64,
    /// Parameters as the kernel's documentation of the target gives them.
    pub params: &'a str,
}

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// No device-mapper in this kernel, or not root.
    #[error("cannot open /dev/mapper/control: {0}")]
    Control(#[source] io::Error),
    /// A name, type or parameter string too long for the interface.
    #[error("device-mapper {what} {value:?} is too long: at most {max} bytes")]
    TooLong {
        /// Which of them.
        what: &'static str,
        /// The string.
        value: String,
        /// Bytes accepted.
        max: usize,
    },
    /// One ioctl.
    #[error("device-mapper cannot {step} {name:?}: {source}")]
    Step {
        /// `create`, `load the table of`, `resume`, `remove`.
        step: &'static str,
        /// Device name.
        name: String,
        /// What the kernel said; its log names the parameter that it disliked.
        source: io::Error,
    },
}

/// An open `/dev/mapper/control`.
#[derive(Debug)]
pub struct DeviceMapper {
    control: File,
}

impl DeviceMapper {
    /// Opens the control node.
    pub fn open() -> Result<Self, DmError> {
        let control =
            File::options().read(true).write(true).open("/dev/mapper/control").map_err(DmError::Control)?;
        Ok(Self { control })
    }

    /// Creates and activates a device of one target; gives its device number (`makedev`). Nothing is left behind
    /// when a later step fails.
    pub fn create(&self, name: &str, target: &Target<'_>, read_only: bool) -> Result<u64, DmError> {
        let mut packet = packet(name)?;
        self.call(DM_DEV_CREATE, &mut packet, "create", name)?;
        let dev = packet.header.dev;
        let result = self.load_and_resume(name, target, read_only);
        if result.is_err() {
            // The error of the step that failed is the one to tell.
            let _ = self.remove(name);
        }
        result.map(|()| dev)
    }

    fn load_and_resume(&self, name: &str, target: &Target<'_>, read_only: bool) -> Result<(), DmError> {
        let mut load = packet(name)?;
        load.header.target_count = 1;
        load.header.flags = if read_only { DM_READONLY_FLAG } else { 0 };
        load.target.length = target.sectors;
        copy("target type", target.kind, &mut load.target.target_type)?;
        copy("parameters", target.params, &mut load.params)?;
        self.call(DM_TABLE_LOAD, &mut load, "load the table of", name)?;
        // Without DM_SUSPEND_FLAG this ioctl resumes.
        self.call(DM_DEV_SUSPEND, &mut packet(name)?, "resume", name)
    }

    /// Removes a device that nobody holds open.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        self.call(DM_DEV_REMOVE, &mut packet(name)?, "remove", name)
    }

    fn call(&self, request: u64, packet: &mut Packet, step: &'static str, name: &str) -> Result<(), DmError> {
        // SAFETY: `packet` is writable for `data_size` bytes, which is its own size, and starts with a dm_ioctl.
        let result = unsafe { libc::ioctl(self.control.as_raw_fd(), request, std::ptr::from_mut(packet)) };
        if result < 0 {
            return Err(DmError::Step { step, name: name.to_owned(), source: io::Error::last_os_error() });
        }
        Ok(())
    }
}

fn packet(name: &str) -> Result<Packet, DmError> {
    let mut header = DmIoctl {
        version: [4, 0, 0],
        data_size: size_of::<Packet>() as u32,
        data_start: size_of::<DmIoctl>() as u32,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; NAME_BYTES],
        uuid: [0; UUID_BYTES],
        data: [0; 7],
    };
    copy("name", name, &mut header.name)?;
    let target = TargetSpec {
        sector_start: 0,
        length: 0,
        status: 0,
        next: size_of::<TargetSpec>() as u32,
        target_type: [0; 16],
    };
    Ok(Packet { header, target, params: [0; PARAMS_MAX] })
}

fn copy(what: &'static str, value: &str, into: &mut [u8]) -> Result<(), DmError> {
    if value.len() >= into.len() {
        return Err(DmError::TooLong { what, value: value.to_owned(), max: into.len() - 1 });
    }
    into[..value.len()].copy_from_slice(value.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Numbers from a C program against linux/dm-ioctl.h of 6.1.
    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(size_of::<DmIoctl>(), 312);
        assert_eq!(offset_of!(DmIoctl, dev), 40);
        assert_eq!(offset_of!(DmIoctl, name), 48);
        assert_eq!(offset_of!(DmIoctl, uuid), 176);
        assert_eq!(offset_of!(DmIoctl, data), 305);
        assert_eq!(size_of::<TargetSpec>(), 40);
        assert_eq!(offset_of!(TargetSpec, target_type), 24);
        assert_eq!(offset_of!(Packet, params), 352);
        assert_eq!(DM_DEV_CREATE, 0xc138_fd03);
        assert_eq!(DM_TABLE_LOAD, 0xc138_fd09);
    }

    #[test]
    fn long_names_are_refused_by_name() {
        let name = "n".repeat(128);
        let error = packet(&name).err().expect("128 bytes leave no room for the zero");
        assert!(error.to_string().contains("at most 127 bytes"), "{error}");
    }
}
