//! An address that moves between machines: asked for, taken, announced, given up.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dyad_spec::Mac;
use dyad_sys::packet::PacketSocket;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout_at};

use crate::frames;
use crate::netlink::{NetError, Netlink, mac};

/// Questions whether somebody has an address, and the pause behind each. Whoever had it before has been silent for the
/// time of a lease already: this finds strangers, on a link that answers within a millisecond.
const PROBES: (u32, Duration) = (3, Duration::from_millis(30));
/// Longest frame that is looked at; what speaks of addresses is shorter.
const FRAME_BYTES_MAX: usize = 256;
/// EADDRNOTAVAIL: the address is not there.
const NOT_THERE: i32 = -99;
/// EEXIST
const THERE: i32 = -17;

/// A link, as far as frames need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Kernel index.
    pub index: u32,
    /// Present address.
    pub mac: Mac,
    /// Up, with a signal.
    pub carrier: bool,
}

fn changed<T>(what: String, result: Result<T, rtnetlink::Error>) -> Result<T, NetError> {
    result.map_err(|error| NetError::Step { step: what, message: error.to_string() })
}

impl Netlink {
    /// A link by name; `None`: there is none, or it has no address.
    pub async fn port(&self, name: &str) -> Result<Option<Port>, NetError> {
        let links = self.links().await?;
        let named = |link: &&LinkMessage| {
            link.attributes.iter().any(|found| matches!(found, LinkAttribute::IfName(n) if n == name))
        };
        let Some(link) = links.iter().find(named) else { return Ok(None) };
        let mac = link.attributes.iter().find_map(|found| match found {
            LinkAttribute::Address(bytes) => mac(bytes),
            _ => None,
        });
        let flags = link.header.flags;
        let carrier = flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp);
        Ok(mac.map(|mac| Port { index: link.header.index, mac, carrier }))
    }

    /// Puts an address on a link, alone in its network so that nothing is sent from it unless asked for; done when it is
    /// there already.
    pub async fn take(&self, port: Port, address: IpAddr) -> Result<(), NetError> {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle().address().add(port.index, address, whole);
        let message = request.message_mut();
        if address.is_ipv6() {
            // It was asked for already, and must not wait a second for the kernel to ask again.
            message.header.flags = rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
            // Deprecated: answers, and is nobody's choice for a new connection.
            let mut cache = CacheInfo::default();
            (cache.ifa_preferred, cache.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(cache));
        }
        match request.execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == THERE => Ok(()),
            result => changed(format!("take {address}"), result),
        }
    }

    /// Takes it off again; done when it is not there.
    pub async fn give_up(&self, address: IpAddr) -> Result<(), NetError> {
        let read = |error: rtnetlink::Error| NetError::Read { what: "addresses", message: error.to_string() };
        let found: Vec<_> = self
            .handle()
            .address()
            .get()
            .set_address_filter(address)
            .execute()
            .try_collect()
            .await
            .map_err(read)?;
        for message in found {
            match self.handle().address().del(message).execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == NOT_THERE => {}
                result => changed(format!("give up {address}"), result)?,
            }
        }
        Ok(())
    }
}

/// Says one frame on a link.
pub fn speak(port: Port, address: IpAddr, frame: &[u8]) -> io::Result<()> {
    PacketSocket::open(port.index, frames::ethertype(address))?.send(frame)
}

/// A packet socket that can be waited for: to the runtime one kind of datagram is like another.
fn listen(port: Port, address: IpAddr) -> io::Result<UnixDatagram> {
    let socket = OwnedFd::from(PacketSocket::open(port.index, frames::ethertype(address))?);
    UnixDatagram::from_std(socket.into())
}

/// Asks a link whether somebody else has an address; his link address.
pub async fn taken(port: Port, address: IpAddr) -> io::Result<Option<Mac>> {
    let socket = listen(port, address)?;
    let question = frames::probe(port.mac, address);
    for _ in 0..PROBES.0 {
        socket.send(&question).await?;
        let until = Instant::now() + PROBES.1;
        if let Some(mac) = claimed(&socket, address, port.mac, until).await? {
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

/// Asks neighbours for a sign of life, from an address of one's own; whether one answers within `limit`.
pub async fn heard(port: Port, from: &[IpAddr], neighbours: &[IpAddr], limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    let mut sockets = Vec::new();
    for neighbour in neighbours {
        let question = from.iter().find_map(|from| frames::ask(port.mac, *from, *neighbour));
        let Some(question) = question else { continue };
        let socket = listen(port, *neighbour)?;
        socket.send(&question).await?;
        sockets.push((socket, *neighbour));
    }
    for (socket, neighbour) in sockets {
        // The first waits for all the time; what came to the others meanwhile waits in them.
        if claimed(&socket, neighbour, port.mac, until).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn claimed(
    socket: &UnixDatagram,
    address: IpAddr,
    own: Mac,
    until: Instant,
) -> io::Result<Option<Mac>> {
    let mut buffer = [0; FRAME_BYTES_MAX];
    // What is there is looked at first, also when the time is over; others' traffic does not prolong it.
    while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
        match frames::claim(&buffer[..received?]) {
            Some((claimed, mac)) if claimed == address && mac != own => return Ok(Some(mac)),
            Some(_) | None => {}
        }
    }
    Ok(None)
}
