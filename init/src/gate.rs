//! The process that closes the gate of the virtual addresses. It is made while there is time, waits for one byte, and then
//! needs no memory and no program: it sends messages that it has prepared. PID 1 itself never speaks to the packet filter,
//! whose lock it could have to wait for.

use dyad_api::gate::{GateSet, SETS};
use rustix::fd::BorrowedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ATTRIBUTE_TABLE: u16 = 1;
const ATTRIBUTE_SET: u16 = 2;
const ERROR: u16 = 2;

/// Waits for the order, closes the gate, answers with the number of sets that were emptied; again and again, until PID 1
/// is gone. For a child that shares PID 1's memory as it was.
pub(crate) fn serve(orders: BorrowedFd<'_>) -> i32 {
    let (all, each) = (flush(&SETS), SETS.map(|set| flush(&[set])));
    let mut order = [0u8; 1];
    loop {
        match recv(orders, &mut order[..], RecvFlags::empty()) {
            Ok((1, _)) => {
                // Opened now: when it was made, the packet filter's modules may not have been there.
                // A transaction waits for all processors, so one is faster than three; but it fails when one set is not
                // there, and the others must be emptied all the same.
                let closed = if is_flushed(&all, SETS.len()) {
                    SETS.len()
                } else {
                    each.iter().filter(|batch| is_flushed(batch, 1)).count()
                };
                let _ = send(orders, &[closed as u8], SendFlags::NOSIGNAL);
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return 0,
        }
    }
}

/// One transaction; `false` if one of its sets is not there, or no packet filter.
fn is_flushed(batch: &[u8], sets: usize) -> bool {
    let open = || {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
    };
    let Ok(socket) = open() else { return false };
    let mut answer = [0u8; 512];
    // The kernel has answered when send comes back: once for each set, and with the failed ones the good ones were undone.
    send(&socket, batch, SendFlags::empty()).is_ok()
        && (0..sets).all(|_| {
            recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)
                .is_ok_and(|(length, _)| is_success(&answer[..length]))
        })
}

/// `nlmsghdr | error`: 0 is an acknowledgement.
fn is_success(answer: &[u8]) -> bool {
    answer.get(4..6) == Some(&ERROR.to_ne_bytes()) && answer.get(16..20) == Some(&[0; 4])
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
    out.extend_from_slice(&(20 + attributes.len() as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    // Sequence and port.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attributes);
}

fn attribute(out: &mut Vec<u8>, kind: u16, text: &str) {
    out.extend_from_slice(&(4 + text.len() as u16 + 1).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A transaction that deletes all elements of some sets.
fn flush(sets: &[GateSet]) -> Vec<u8> {
    let mut batch = Vec::new();
    message(&mut batch, BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
    for set in sets {
        let mut attributes = Vec::new();
        attribute(&mut attributes, ATTRIBUTE_TABLE, set.table);
        attribute(&mut attributes, ATTRIBUTE_SET, set.set);
        message(&mut batch, DELETE_ELEMENTS, ACKNOWLEDGE, set.family, 0, &attributes);
    }
    message(&mut batch, BATCH_END, 0, 0, SUBSYSTEM, &[]);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut answer = [0; 36];
        answer[4] = 2;
        assert!(is_success(&answer));
        answer[16..20].copy_from_slice(&(-2i32).to_ne_bytes());
        assert!(!is_success(&answer));
        assert!(!is_success(&[]));
    }
}
