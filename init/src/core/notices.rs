//! The sd_notify socket.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg};

use super::Core;
use crate::cgroup;
use crate::log::warning;
use crate::notify::{self, DATAGRAM_MAX};
use crate::services::{Event, Id};

/// Datagrams taken before other events get their turn.
const READ_MAX: usize = 256;
/// Descriptors that one datagram may carry (the kernel's limit is 253).
const FDS_MAX: usize = 64;

impl Core {
    pub(super) fn read_notices(&mut self) {
        for _ in 0..READ_MAX {
            if !self.read_notice() {
                return;
            }
        }
    }

    fn read_notice(&mut self) -> bool {
        let mut bytes = [0u8; DATAGRAM_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // It stays in the socket until it is dealt with: a crash in between reads it again, and all that it can say may be
        // said twice.
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK;
        let received =
            match recvmsg(&self.bound.notify, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => received,
                Err(Errno::INTR) => return true,
                Err(Errno::AGAIN) => return false,
                Err(errno) => {
                    warning!("notify socket: {errno}");
                    return false;
                }
            };
        self.meter.events += 1;
        let mut sender = None;
        let mut fds = [const { None }; FDS_MAX];
        let mut free = fds.iter_mut();
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(who) => {
                    sender = Some(who.pid.as_raw_nonzero().get() as u32)
                }
                RecvAncillaryMessage::ScmRights(received) => {
                    // What finds no place is closed; there is place for all that fit the ancillary buffer.
                    received.zip(&mut free).for_each(|(fd, place)| *place = Some(fd));
                }
                _ => {}
            }
        }
        // A cut datagram means something else than what was sent.
        if received.flags.contains(ReturnFlags::TRUNC) {
            warning!("a notify datagram of more than {DATAGRAM_MAX} bytes was dropped");
            self.drop_notice();
            return true;
        }
        // Processes outside of this pid namespace have number 0 here.
        if let Some(id) = sender.filter(|pid| *pid > 1).and_then(|pid| self.service_of(pid)) {
            self.take_notice(id, &bytes[..received.bytes], &mut fds);
        }
        self.drop_notice();
        true
    }

    /// Takes the oldest datagram out of the socket, with the descriptors that it carries.
    pub(super) fn drop_notice(&self) {
        let _ = recv(&self.bound.notify, &mut [0u8; 1][..], RecvFlags::DONTWAIT);
    }

    /// The service that a process belongs to, by main process or cgroup.
    fn service_of(&self, pid: u32) -> Option<Id> {
        if let Some(id) = self.machine.ids().find(|id| self.machine.slot(*id).pid == pid) {
            return Some(id);
        }
        let mut name = [0; 128];
        cgroup::service_of(pid, &mut name).and_then(|name| self.machine.find(name))
    }

    fn take_notice(&mut self, id: Id, bytes: &[u8], fds: &mut [Option<OwnedFd>]) {
        let notice = notify::parse(bytes);
        if let Some(text) = notice.status {
            self.machine.set_note(id, text);
        }
        if let Some(pid) = notice.main_pid.filter(|pid| *pid != self.machine.slot(id).pid) {
            if self.service_of(pid) == Some(id) {
                self.step(Event::MainPid(id, pid));
            } else {
                warning!(
                    "service {}: MAINPID={pid} is not a process of its cgroup",
                    self.machine.specs()[usize::from(id)].name
                );
            }
        }
        if notice.ready {
            self.step(Event::Ready(id));
        }
        if notice.stopping {
            self.step(Event::Stopping(id));
        }
        if notice.alive {
            self.step(Event::Alive(id));
        }
        if notice.hung {
            self.step(Event::Hung(id));
        }
        let name = notice.fd_name.unwrap_or("stored");
        if notice.remove {
            self.remove_stored(id, name);
        }
        if notice.store {
            for fd in fds.iter_mut().filter_map(Option::take) {
                self.store(id, name, fd);
            }
        }
    }
}
