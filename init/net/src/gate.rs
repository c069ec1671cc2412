//! The supervisor's end of the gate of the virtual addresses: opens for a while, prolongs, closes.

use std::net::IpAddr;

use dyad_api::gate::{self, Batch};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const ENOENT: i32 = 2;

/// Why the gate does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No packet filter, or no socket to it.
    #[error("speak to the packet filter: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// It said no: its tables are not there.
    #[error("the packet filter refuses a change of the gate for {address}: {}", std::io::Error::from_raw_os_error(*.number))]
    Refused {
        /// Of the change.
        address: IpAddr,
        /// The kernel's number.
        number: i32,
    },
}

/// Speaks to the packet filter of this thread's network namespace. Each change is one transaction, for which the kernel
/// waits for all processors: milliseconds.
#[derive(Debug, Default)]
pub struct Gate(());

impl Gate {
    /// Lets an address answer for so many milliseconds from now, and no longer.
    pub fn open(&self, address: IpAddr, life_ms: u64) -> Result<(), GateError> {
        match transact(&gate::prolong(address, life_ms)) {
            // It was not open, or its life has just ended.
            Err(Failed::Number(ENOENT)) => transact(&gate::open(address, life_ms)),
            done => done,
        }
        .map_err(|failed| failed.of(address))
    }

    /// Ends it at once. What is closed stays closed.
    pub fn close(&self, address: IpAddr) -> Result<(), GateError> {
        match transact(&gate::close(address)) {
            Err(Failed::Number(ENOENT)) => Ok(()),
            done => done.map_err(|failed| failed.of(address)),
        }
    }
}

enum Failed {
    Socket(rustix::io::Errno),
    Number(i32),
}

impl Failed {
    fn of(self, address: IpAddr) -> GateError {
        match self {
            Failed::Socket(error) => GateError::Socket(error),
            Failed::Number(number) => GateError::Refused { address, number },
        }
    }
}

fn transact(batch: &Batch) -> Result<(), Failed> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
            .map_err(Failed::Socket)?;
    send(&socket, &batch.bytes, SendFlags::empty()).map_err(Failed::Socket)?;
    let mut answer = [0; 1024];
    // The kernel has answered when send comes back.
    for _ in 0..batch.answers {
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).map_err(Failed::Socket)?;
        gate::answered(&answer[..length]).map_err(Failed::Number)?;
    }
    Ok(())
}
