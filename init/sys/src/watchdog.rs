//! The hardware watchdog (`/dev/watchdog`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const WDIOC_KEEPALIVE: u64 = 0x8004_5705;
const WDIOC_SETTIMEOUT: u64 = 0xc004_5706;
const WDIOC_GETBOOTSTATUS: u64 = 0x8004_5702;
/// Bit of the boot status: the last reset came from the watchdog.
pub const CARD_RESET: i32 = 0x20;

/// An armed watchdog: unless it is fed, the machine resets. Closing it does not disarm it (no magic close is written).
#[derive(Debug)]
pub struct Watchdog {
    device: OwnedFd,
}

impl Watchdog {
    /// Opens, and thereby arms, a watchdog.
    pub fn open(path: &str) -> io::Result<Self> {
        Ok(Self { device: File::options().write(true).open(path)?.into() })
    }

    /// Takes over one that a former image of this process had open.
    pub fn from_fd(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Its descriptor, to be exchanged for one that survives a re-exec.
    pub fn into_fd(self) -> OwnedFd {
        self.device
    }

    /// Asks for a timeout in seconds and gives what the hardware took.
    pub fn set_timeout(&self, seconds: i32) -> io::Result<i32> {
        let mut value = seconds;
        self.call(WDIOC_SETTIMEOUT, &mut value)?;
        Ok(value)
    }

    /// Feeds it.
    pub fn feed(&self) -> io::Result<()> {
        self.call(WDIOC_KEEPALIVE, &mut 0)
    }

    /// Why the machine started, as far as the hardware knows (see [`CARD_RESET`]).
    pub fn boot_status(&self) -> io::Result<i32> {
        let mut value = 0;
        self.call(WDIOC_GETBOOTSTATUS, &mut value)?;
        Ok(value)
    }

    fn call(&self, request: u64, value: &mut i32) -> io::Result<()> {
        // SAFETY: every request used here reads or writes at most one int.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), request, std::ptr::from_mut(value)) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
