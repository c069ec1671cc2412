//! Sockets that PID 1 binds, its own and its services', and the descriptors that services keep with it.

use std::os::unix::fs::PermissionsExt;

use dyad_spec::compiled::{Service, SocketKind};
use rustix::event::epoll;
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};

use super::{Core, StartError, Token};
use crate::exec::NOTIFY;
use crate::log::warning;
use crate::services::Id;

/// Connections that wait while their service is down.
const BACKLOG: i32 = 1024;
/// Receive buffer of datagram sockets: what a service misses while it restarts waits here.
const DATAGRAM_BYTES: usize = 8 << 20;
/// Descriptors kept for all services together.
pub(crate) const STORED_MAX: usize = 1024;

/// A descriptor that a service keeps with PID 1.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) service: Id,
    /// Empty: [`STORED_NAME`], which is what journald uses and costs no memory.
    name: String,
    pub(crate) fd: OwnedFd,
}

/// The name of a stored descriptor that was given none.
const STORED_NAME: &str = "stored";

impl Stored {
    pub(crate) fn new(service: Id, name: &str, fd: OwnedFd) -> Self {
        let name = if name == STORED_NAME { String::new() } else { name.to_owned() };
        Self { service, name, fd }
    }

    pub(crate) fn name(&self) -> &str {
        if self.name.is_empty() { STORED_NAME } else { &self.name }
    }

    /// As it is written down: the name may be empty.
    pub(crate) fn saved(&self) -> (Id, String, RawFd) {
        (self.service, self.name.clone(), self.fd.as_raw_fd())
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) notify: OwnedFd,
    pub(crate) control: OwnedFd,
    /// In the order of each service's table.
    pub(crate) sockets: Vec<(Id, String, OwnedFd)>,
    pub(crate) stored: Vec<Option<Stored>>,
}

impl Bound {
    /// Binds all sockets of the image.
    pub(crate) fn open(services: &[Service]) -> Result<Self, StartError> {
        let notify = open_socket(NOTIFY, SocketType::DGRAM, 0o666)?;
        let _ = sockopt::set_socket_passcred(&notify, true);
        let control = open_socket(dyad_api::control::SOCKET, SocketType::SEQPACKET, 0o600)?;
        let mut sockets = Vec::new();
        for (at, service) in services.iter().enumerate() {
            for socket in &service.sockets {
                let kind = match socket.kind {
                    SocketKind::Stream => SocketType::STREAM,
                    SocketKind::Datagram => SocketType::DGRAM,
                    SocketKind::SeqPacket => SocketType::SEQPACKET,
                };
                let fd = open_socket(&socket.path, kind, socket.mode)?;
                if socket.pass_credentials {
                    let _ = sockopt::set_socket_passcred(&fd, true);
                }
                sockets.push((at as Id, socket.name.clone(), fd));
            }
        }
        Ok(Self { notify, control, sockets, stored: Vec::with_capacity(STORED_MAX) })
    }
}

fn open_socket(path: &str, kind: SocketType, mode: u16) -> Result<OwnedFd, StartError> {
    let refused = |source: std::io::Error| StartError::Bind { path: path.to_owned(), source };
    let make = || -> std::io::Result<OwnedFd> {
        if let Some(parent) = std::path::Path::new(path).parent() {
            std::fs::create_dir_all(parent)?;
        }
        let _ = std::fs::remove_file(path);
        // Above the range that services get, and kept through a re-exec.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = dyad_sys::spawn::keep(socket_with(AddressFamily::UNIX, kind, flags, None)?)?;
        bind(&fd, &SocketAddrUnix::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(u32::from(mode)))?;
        if kind == SocketType::DGRAM {
            let _ = sockopt::set_socket_recv_buffer_size_force(&fd, DATAGRAM_BYTES);
        } else {
            listen(&fd, BACKLOG)?;
        }
        Ok(fd)
    };
    make().map_err(refused)
}

impl Core {
    /// FDSTORE=1: keeps a descriptor for the service's next start. One that is the same file as another of the service
    /// is closed instead, as the protocol says.
    pub(super) fn store(&mut self, service: Id, name: &str, fd: OwnedFd) {
        let max = usize::from(self.machine.specs()[usize::from(service)].fd_store_max);
        let own = self.bound.stored.iter().flatten().filter(|s| s.service == service);
        let (mut count, mut known) = (0, false);
        for stored in own {
            count += 1;
            known |= same_file(&stored.fd, &fd);
        }
        if known {
            return;
        }
        if count >= max || self.bound.stored.iter().flatten().count() >= STORED_MAX {
            warning!(
                "service {}: descriptor {name:?} not kept: its store holds {count} of {max}",
                self.machine.specs()[usize::from(service)].name
            );
            return;
        }
        let Ok(fd) = dyad_sys::spawn::keep(fd) else {
            warning!("no descriptor number left for the store");
            return;
        };
        let free = self.bound.stored.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.bound.stored.push(None);
            self.bound.stored.len() - 1
        });
        // Only its end is of interest; files cannot be watched, and have none.
        match epoll::add(&self.epoll, fd.as_fd(), Token::Stored(at as u16).data(), epoll::EventFlags::empty())
        {
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => warning!("cannot watch a stored descriptor: {errno}"),
        }
        self.bound.stored[at] = Some(Stored::new(service, name, fd));
        self.save();
    }

    /// The other end of a stored descriptor is gone.
    pub(super) fn drop_stored(&mut self, at: u16) {
        if let Some(stored) = self.bound.stored.get_mut(usize::from(at)).and_then(Option::take) {
            // Before it is closed: the service may hold a copy, and then epoll would go on telling of this one.
            let _ = epoll::delete(&self.epoll, &stored.fd);
            drop(stored);
            self.save();
        }
    }

    /// After a re-exec: watches all stored descriptors again.
    pub(super) fn watch_stored(&self) {
        for (at, stored) in self.bound.stored.iter().enumerate() {
            if let Some(stored) = stored {
                let token = Token::Stored(at as u16).data();
                let _ = epoll::add(&self.epoll, &stored.fd, token, epoll::EventFlags::empty());
            }
        }
    }

    /// FDSTOREREMOVE=1.
    pub(super) fn remove_stored(&mut self, service: Id, name: &str) {
        for at in 0..self.bound.stored.len() {
            if self.bound.stored[at].as_ref().is_some_and(|s| s.service == service && s.name() == name) {
                self.drop_stored(at as u16);
            }
        }
    }
}

/// Whether two descriptors are the same socket, pipe or file.
fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
