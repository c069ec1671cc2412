//! Connections on the control socket.

use dyad_api::control::{Answer, Event as Told, Message, PACKET_MAX, Refusal, Request};
use rustix::event::epoll;
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};

use super::{Core, Token};
use crate::log::{info, warning};

/// Connections at the same time.
const CLIENTS_MAX: usize = 16;
/// What a client may leave unread.
const SEND_BYTES: usize = 2 << 20;
/// Requests of one client before other events get their turn.
const REQUESTS_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Client {
    fd: OwnedFd,
    subscribed: bool,
    /// Events that it did not get because its queue was full.
    missed: u32,
}

/// All connections, by number.
#[derive(Debug)]
pub(super) struct Clients {
    list: Vec<Option<Client>>,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self { list: Vec::with_capacity(CLIENTS_MAX) }
    }
}

/// How a packet went.
enum Sent {
    Yes,
    Full,
    Gone,
}

impl Client {
    fn send(&self, message: &Message) -> Sent {
        let Ok(packet) = message.encode() else { return Sent::Full };
        match send(&self.fd, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => Sent::Yes,
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Sent::Full,
            Err(_) => Sent::Gone,
        }
    }
}

impl Core {
    pub(super) fn accept_client(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(fd) = accept_with(&self.bound.control, flags) else { return };
        // Not rustix's call: a peer outside of this pid namespace has process id 0, which that cannot hold.
        match nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::PeerCredentials) {
            Ok(peer) if peer.uid() == 0 => {}
            _ => {
                warning!("control socket: a peer that is not root was refused");
                return;
            }
        }
        let free = self.clients.list.iter().position(Option::is_none);
        if free.is_none() && self.clients.list.len() == CLIENTS_MAX {
            warning!("control socket: {CLIENTS_MAX} clients already, another was refused");
            return;
        }
        let at = free.unwrap_or(self.clients.list.len());
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, SEND_BYTES);
        let Ok(fd) = dyad_sys::spawn::keep(fd) else { return };
        let token = Token::Client(at as u16);
        if epoll::add(&self.epoll, fd.as_fd(), token.data(), epoll::EventFlags::IN).is_err() {
            return;
        }
        let client = Some(Client { fd, subscribed: false, missed: 0 });
        if at == self.clients.list.len() {
            self.clients.list.push(client);
        } else {
            self.clients.list[at] = client;
        }
        self.save();
    }

    pub(super) fn read_client(&mut self, at: u16) {
        for _ in 0..REQUESTS_MAX {
            let Some(client) = self.clients.list.get(usize::from(at)).and_then(Option::as_ref) else {
                return;
            };
            let mut packet = vec![0u8; PACKET_MAX];
            match recv(&client.fd, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return self.drop_client(at),
                Ok((length, _)) => match Request::decode(&packet[..length]) {
                    Ok(request) => {
                        let _ = self.memory.answering(Some(at));
                        self.answer(at, request);
                        let _ = self.memory.answering(None);
                    }
                    Err(error) => {
                        warning!("control socket: {error}");
                        return self.drop_client(at);
                    }
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.drop_client(at),
            }
        }
    }

    /// Closes a connection; its one-shots end with it.
    pub(super) fn drop_client(&mut self, at: u16) {
        if self.clients.list.get_mut(usize::from(at)).and_then(Option::take).is_some() {
            self.kill_jobs_of(at);
            self.save();
        }
    }

    /// Sends a reply. A client that does not read its replies is cut off.
    pub(super) fn reply(&mut self, at: u16, id: u32, result: Result<Answer, Refusal>) {
        let Some(client) = self.clients.list.get(usize::from(at)).and_then(Option::as_ref) else { return };
        match client.send(&Message::Reply { id, result }) {
            Sent::Yes => {}
            Sent::Full => {
                info!("control socket: a client did not read its replies and was cut off");
                self.drop_client(at);
            }
            Sent::Gone => self.drop_client(at),
        }
    }

    /// From now on this client gets events.
    pub(super) fn subscribe(&mut self, at: u16) {
        if let Some(client) = self.clients.list.get_mut(usize::from(at)).and_then(Option::as_mut) {
            client.subscribed = true;
        }
        self.save();
    }

    /// What is written down of the connections.
    pub(super) fn saved_clients(&self) -> Vec<(u16, RawFd, bool, u32)> {
        let numbered = self.clients.list.iter().enumerate();
        numbered
            .filter_map(|(at, client)| {
                let client = client.as_ref()?;
                Some((at as u16, client.fd.as_raw_fd(), client.subscribed, client.missed))
            })
            .collect()
    }

    /// Takes a connection of a former image over.
    pub(super) fn take_client(&mut self, at: u16, fd: OwnedFd, subscribed: bool, missed: u32) {
        if epoll::add(&self.epoll, &fd, Token::Client(at).data(), epoll::EventFlags::IN).is_err() {
            return;
        }
        while self.clients.list.len() <= usize::from(at) {
            self.clients.list.push(None);
        }
        // What happened while nobody told it: one event too few at most, and it is told so.
        let missed = if subscribed { missed.saturating_add(1) } else { missed };
        self.clients.list[usize::from(at)] = Some(Client { fd, subscribed, missed });
    }

    /// Tells all subscribers; who does not read misses events and is told how many.
    pub(super) fn tell(&mut self, event: &Told) {
        for at in 0..self.clients.list.len() {
            let Some(client) = self.clients.list[at].as_mut().filter(|client| client.subscribed) else {
                continue;
            };
            if client.missed > 0 {
                match client.send(&Message::Event(Told::Missed(client.missed))) {
                    Sent::Yes => client.missed = 0,
                    Sent::Full | Sent::Gone => {
                        client.missed = client.missed.saturating_add(1);
                        continue;
                    }
                }
            }
            match client.send(&Message::Event(event.clone())) {
                Sent::Yes => {}
                // A client that went away is noticed when its end is read.
                Sent::Full | Sent::Gone => client.missed = client.missed.saturating_add(1),
            }
        }
    }
}
