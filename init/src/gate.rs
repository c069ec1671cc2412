//! The process that closes the gate of the virtual addresses. It is made while there is time, waits for one byte, and then
//! needs no memory and no program: it sends messages that it has prepared. PID 1 itself never speaks to the packet filter,
//! whose lock it could have to wait for.

use dyad_api::gate::{Batch, SETS, answered, flush};
use rustix::fd::BorrowedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

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
                let closed = if is_flushed(&all) {
                    SETS.len()
                } else {
                    each.iter().filter(|batch| is_flushed(batch)).count()
                };
                let _ = send(orders, &[closed as u8], SendFlags::NOSIGNAL);
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return 0,
        }
    }
}

/// One transaction; `false` if one of its sets is not there, or no packet filter.
fn is_flushed(batch: &Batch) -> bool {
    let open = || {
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
    };
    let Ok(socket) = open() else { return false };
    let mut answer = [0u8; 512];
    // The kernel has answered when send comes back: once for each set, and with the failed ones the good ones were undone.
    send(&socket, &batch.bytes, SendFlags::empty()).is_ok()
        && (0..batch.answers).all(|_| {
            recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)
                .is_ok_and(|(length, _)| answered(&answer[..length]).is_ok())
        })
}
