//! The kernel's device events (NETLINK_KOBJECT_UEVENT). Only the fact that something appeared is used: what is there is
//! read from /sys, so a lost event loses nothing.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with, sockopt,
};

/// Room for a burst; what does not fit shows as ENOBUFS and means: look again.
const RECEIVE_BYTES: usize = 1 << 20;

/// Opens the socket, without waiting.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::KOBJECT_UEVENT))?;
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES);
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

/// Reads all that is there; `true` when a device with a driver to find came, or events were lost.
pub(crate) fn drain(socket: &OwnedFd) -> bool {
    let mut news = false;
    let mut buffer = [0u8; 8192];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => news |= is_new_device(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(Errno::NOBUFS) => news = true,
            Err(_) => return news,
        }
    }
}

/// Whether an event's text (`add@/devices/... NUL KEY=VALUE NUL ...`) tells of a device that has a modalias.
pub(crate) fn is_new_device(event: &[u8]) -> bool {
    event.starts_with(b"add@") && event.split(|b| *b == 0).any(|line| line.starts_with(b"MODALIAS="))
}

/// Waits until something happens, at most so long.
pub(crate) fn wait(socket: &OwnedFd, ms: u64) {
    let timeout = Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000) as i64 * 1_000_000 };
    let _ = poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&timeout));
    drain(socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_devices_with_a_modalias_count() {
        assert!(is_new_device(b"add@/devices/x\0ACTION=add\0MODALIAS=virtio:d1v2\0SEQNUM=7\0"));
        assert!(!is_new_device(b"remove@/devices/x\0MODALIAS=virtio:d1v2\0"));
        assert!(!is_new_device(b"add@/module/x\0ACTION=add\0"));
        assert!(!is_new_device(b""));
    }
}
