//! The thread that moves frames between QEMU's NICs and the host's port, as [`Fabric`] says.
//!
//! A NIC is one end of a datagram socket pair, one frame a datagram; the host's port is a packet socket on one end of
//! a veth pair. Sending never blocks: a full receiver loses the frame, as behind a real switch.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, send};

use super::checksum;
use super::fabric::{Fabric, Link, PortId};
use crate::clock;
use crate::error::{Doing, Result};

/// The largest frame taken: QEMU's own limit for one packet (64 KiB and headers).
const FRAME_MAX: usize = 68 * 1024;
/// Frames read from one port before the others get their turn.
const BURST_MAX: usize = 64;
/// Epoll token of the event that ends the thread; port numbers start at 1.
const STOP: u64 = 0;

/// The far end of a port.
enum End {
    Nic(UnixDatagram),
    Kernel(OwnedFd),
}

impl End {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            End::Nic(socket) => socket.as_fd(),
            End::Kernel(socket) => socket.as_fd(),
        }
    }
}

#[derive(Default)]
struct State {
    fabric: Fabric,
    ends: HashMap<PortId, Arc<End>>,
}

struct Shared {
    epoll: Epoll,
    stop: EventFd,
    state: Mutex<State>,
}

/// The running switch. Dropping it stops the thread.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts the thread with no port plugged in.
    pub(crate) fn start() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("create the switch's epoll")?;
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).doing("create an eventfd")?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).doing("watch the eventfd")?;
        let shared = Arc::new(Shared { epoll, stop, state: Mutex::default() });
        let inner = shared.clone();
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || run(&inner))
            .doing("start a thread")?;
        Ok(Relay { shared, thread: Some(thread) })
    }

    /// Plugs a NIC in; the socket's other end belongs to the machine.
    pub(crate) fn plug_nic(&self, owner: &str, link: Link, socket: UnixDatagram) -> Result<PortId> {
        self.plug(owner, link, End::Nic(socket))
    }

    /// Plugs the packet socket of the host's port into the LAN.
    pub(crate) fn plug_host(&self, owner: &str, socket: OwnedFd) -> Result<PortId> {
        self.plug_packet(owner, Link::Lan, socket)
    }

    /// Plugs in a packet socket on one end of a veth pair.
    pub(crate) fn plug_packet(&self, owner: &str, link: Link, socket: OwnedFd) -> Result<PortId> {
        self.plug(owner, link, End::Kernel(socket))
    }

    fn plug(&self, owner: &str, link: Link, end: End) -> Result<PortId> {
        let end = Arc::new(end);
        let mut state = self.shared.lock();
        let port = state.fabric.add(owner, link);
        state.ends.insert(port, end.clone());
        self.shared.epoll.add(end.fd(), EpollEvent::new(EpollFlags::EPOLLIN, port)).doing("watch a port")?;
        Ok(port)
    }

    /// Takes a port out.
    pub(crate) fn unplug(&self, port: PortId) {
        self.shared.unplug(port);
    }

    /// Runs `change` on the fabric: cuts and heals.
    pub(crate) fn with_fabric<T>(&self, change: impl FnOnce(&mut Fabric) -> T) -> T {
        change(&mut self.shared.lock().fabric)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A write to an eventfd fails only at its limit, which one write cannot reach.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unplug(&self, port: PortId) {
        let mut state = self.lock();
        state.fabric.remove(port);
        if let Some(end) = state.ends.remove(&port) {
            // The descriptor may outlive this call in the thread's hands: it must leave the epoll set now.
            let _ = self.epoll.delete(end.fd());
        }
    }
}

fn run(shared: &Shared) {
    let start = clock::now();
    let mut events = [EpollEvent::empty(); 32];
    let mut frame = vec![0; FRAME_MAX];
    let mut targets = Vec::new();
    loop {
        let ready = match shared.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(e) => {
                eprintln!("switch: epoll failed, the lab's network stands still: {e}");
                return;
            }
        };
        for event in &events[..ready] {
            if event.data() == STOP {
                return;
            }
            drain(shared, event.data(), &mut frame, &mut targets, start);
        }
    }
}

/// Forwards what a port has to say, up to [`BURST_MAX`] frames.
fn drain(shared: &Shared, port: PortId, frame: &mut [u8], targets: &mut Vec<PortId>, start: Instant) {
    let Some(end) = shared.lock().ends.get(&port).cloned() else { return };
    for _ in 0..BURST_MAX {
        let length = match recv(end.fd().as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
            // Zero bytes or a broken connection: the machine behind the port is gone.
            Ok(0) | Err(Errno::ECONNRESET) => return shared.unplug(port),
            Ok(length) => length,
            // The interface was down for a moment; frames come again when it is up.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return,
            Err(e) => {
                eprintln!("switch: port {port} failed and is unplugged: {e}");
                return shared.unplug(port);
            }
        };
        let frame = &mut frame[..length];
        if matches!(*end, End::Kernel(_)) {
            checksum::complete(frame);
        }
        let mut state = shared.lock();
        state.fabric.forward(port, frame, clock::now() - start, targets);
        for target in targets.iter() {
            if let Some(to) = state.ends.get(target) {
                // Full or gone receivers lose the frame.
                let _ = send(to.fd().as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn nic(relay: &Relay, owner: &str, link: Link) -> (UnixDatagram, PortId) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let port = relay.plug_nic(owner, link, theirs).unwrap();
        (ours, port)
    }

    fn hear(socket: &UnixDatagram) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())
    }

    #[test]
    fn frames_cross_and_a_dead_machine_disturbs_nobody() {
        let relay = Relay::start().unwrap();
        let (a, _) = nic(&relay, "node-a", Link::Lan);
        let (b, _) = nic(&relay, "node-b", Link::Lan);
        let (dead, _) = nic(&relay, "node-c", Link::Lan);
        let (wire, _) = nic(&relay, "node-b", Link::Wire(0));
        drop(dead);
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8; 100]].concat();
        for _ in 0..3 {
            a.send(&frame).unwrap();
            assert_eq!(hear(&b), Some(frame.clone()));
        }
        assert_eq!(hear(&wire), None, "the LAN does not leak into a wire");

        relay.with_fabric(|f| f.set_cuts([("node-a", "node-b")].into_iter()));
        a.send(&frame).unwrap();
        assert_eq!(hear(&b), None);
        relay.with_fabric(|f| f.set_cuts([].into_iter()));
        a.send(&frame).unwrap();
        assert_eq!(hear(&b), Some(frame));
    }

    #[test]
    fn an_unplugged_port_hears_nothing() {
        let relay = Relay::start().unwrap();
        let (a, _) = nic(&relay, "node-a", Link::Wire(3));
        let (b, port) = nic(&relay, "node-b", Link::Wire(3));
        relay.unplug(port);
        a.send(&[0; 60]).unwrap();
        assert_eq!(hear(&b), None);
    }
}
