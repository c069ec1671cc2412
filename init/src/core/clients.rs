//! Connections on the control socket.

use dyad_api::control::{Answer, Event as Told, Message, PACKET_MAX, Refusal, Request};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};

use super::{Core, Token};
use crate::log::{info, warning};
use crate::services::Id;

/// Connections at the same time.
pub(super) const CLIENTS_MAX: usize = 16;
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
    /// Buffers that are used again and again: the packet being written, the packet being read.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::with_capacity(CLIENTS_MAX),
            outgoing: Vec::with_capacity(PACKET_MAX + 1),
            incoming: Vec::with_capacity(PACKET_MAX),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.list.iter().flatten().count()
    }
}

/// How a packet went.
enum Sent {
    Yes,
    Full,
    Gone,
}

impl Client {
    fn send(&self, packet: &[u8]) -> Sent {
        match send(&self.fd, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
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

    /// Marked before anything is read: who has sent what this process does not survive, even in reading it, is cut off.
    pub(super) fn read_client(&mut self, at: u16) {
        let _ = self.memory.answering(Some(at));
        self.read_requests(at);
        let _ = self.memory.answering(None);
    }

    fn read_requests(&mut self, at: u16) {
        for _ in 0..REQUESTS_MAX {
            let Clients { list, incoming, .. } = &mut self.clients;
            let Some(client) = list.get(usize::from(at)).and_then(Option::as_ref) else { return };
            incoming.clear();
            match recv(&client.fd, spare_capacity(incoming), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return self.drop_client(at),
                Ok(_) => match Request::decode(incoming) {
                    Ok(request) => self.answer(at, request),
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
        self.send_reply(at, &Message::Reply { id, result });
    }

    /// Replies with all services, of which no copy is made.
    pub(super) fn reply_services(&mut self, at: u16, id: u32) {
        for service in self.machine.ids() {
            self.refresh_status(service);
        }
        let all = std::mem::take(&mut self.statuses);
        let message = Message::Reply { id, result: Ok(Answer::Services(all)) };
        self.send_reply(at, &message);
        if let Message::Reply { result: Ok(Answer::Services(all)), .. } = message {
            self.statuses = all;
        }
    }

    fn send_reply(&mut self, at: u16, message: &Message) {
        let Clients { list, outgoing, .. } = &mut self.clients;
        let Some(client) = list.get(usize::from(at)).and_then(Option::as_ref) else { return };
        let sent = match message.encode_into(outgoing) {
            Ok(()) => client.send(outgoing),
            Err(error) => {
                warning!("control socket: {error}");
                Sent::Full
            }
        };
        match sent {
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
    pub(super) fn saved_clients(&self) -> impl Iterator<Item = (u16, RawFd, bool, u32)> {
        self.clients.list.iter().enumerate().filter_map(|(at, client)| {
            let client = client.as_ref()?;
            Some((at as u16, client.fd.as_raw_fd(), client.subscribed, client.missed))
        })
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
    pub(super) fn tell(&mut self, event: Told) {
        self.send_event(&Message::Event(event));
    }

    /// Tells a service's state, of which no copy is made.
    pub(super) fn tell_service(&mut self, id: Id) {
        let at = usize::from(id);
        let message = Message::Event(Told::Service(std::mem::take(&mut self.statuses[at])));
        self.send_event(&message);
        if let Message::Event(Told::Service(status)) = message {
            self.statuses[at] = status;
        }
    }

    fn send_event(&mut self, message: &Message) {
        let Clients { list, outgoing, .. } = &mut self.clients;
        // Those first who missed something, because the packet is written once for all others.
        for client in list.iter_mut().flatten().filter(|client| client.subscribed && client.missed > 0) {
            let told = Message::Event(Told::Missed(client.missed));
            if told.encode_into(outgoing).is_ok() && matches!(client.send(outgoing), Sent::Yes) {
                client.missed = 0;
            }
        }
        if message.encode_into(outgoing).is_err() {
            return;
        }
        for client in list.iter_mut().flatten().filter(|client| client.subscribed) {
            // Nothing between what was missed and what the client is told of it. One that went away is noticed when
            // its end is read.
            if client.missed > 0 || !matches!(client.send(outgoing), Sent::Yes) {
                client.missed = client.missed.saturating_add(1);
            }
        }
    }
}
