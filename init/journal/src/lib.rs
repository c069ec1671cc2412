//! Library inside journald (`LD_PRELOAD`): a datagram leaves its socket only when journald comes for the next one.
//!
//! journald takes a message from its socket, then writes it down; killed in between it takes the message with it. The
//! sockets are PID 1's and outlive journald, so here a datagram is looked at (`MSG_PEEK`) and stays in front until
//! journald, which does one thing after the other, has dealt with it and asks for more. Killed before that, the next
//! journald reads it again: a message may be written twice, and none is lost.
//!
//! A datagram that journald does not survive is given up after [`TRIES`] journalds. How many have tried stands in the
//! socket itself, as its priority, which means nothing between processes of one machine.

#![allow(unsafe_code, reason = "a library inside a C program")]

use std::ffi::{c_int, c_ulong, c_void};
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};

/// journalds that a datagram may end. Highest priority that needs no privilege: 6.
const TRIES: c_int = 3;
/// Descriptors of journald's datagram sockets are among the first: they are passed to it.
const DESCRIPTORS: usize = 64;

/// Nothing was read from this descriptor yet: what is in front may have been there when another journald ended.
const FRESH: u8 = 0;
/// What was in front has been dealt with and is gone.
const EMPTY: u8 = 1;
/// What is in front is being dealt with.
const SEEN: u8 = 2;
/// The same, and it was the first.
const SEEN_FIRST: u8 = 3;

static STATES: [AtomicU8; DESCRIPTORS] = [const { AtomicU8::new(FRESH) }; DESCRIPTORS];

/// The state of a descriptor that is a datagram socket of this machine.
fn state(fd: c_int) -> Option<&'static AtomicU8> {
    let state = STATES.get(usize::try_from(fd).ok()?)?;
    let local = option(fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX);
    (local && option(fd, libc::SO_TYPE) == Some(libc::SOCK_DGRAM)).then_some(state)
}

fn option(fd: c_int, name: c_int) -> Option<c_int> {
    let (mut value, mut size) = (0, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: `value` is writable and as large as `size` says.
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast::<c_void>(), &raw mut size)
    };
    (done == 0).then_some(value)
}

fn set_tries(fd: c_int, tries: c_int) {
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `tries` is readable and as large as `size` says. Without the count a datagram has more tries.
    unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PRIORITY, (&raw const tries).cast::<c_void>(), size)
    };
}

/// Takes the datagram in front out of the socket.
fn drop_front(fd: c_int) {
    // SAFETY: no byte is written to an empty buffer; descriptors that came along are closed by the kernel.
    unsafe { libc::recv(fd, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
}

/// journald is back: what it has seen it has dealt with.
fn finish(fd: c_int, state: &AtomicU8) {
    match state.load(Ordering::Relaxed) {
        SEEN => drop_front(fd),
        SEEN_FIRST => {
            drop_front(fd);
            set_tries(fd, 0);
        }
        _ => return,
    }
    state.store(EMPTY, Ordering::Relaxed);
}

/// Before the first look: counts it, and gives up what ended too many.
fn count_try(fd: c_int) {
    let tries = option(fd, libc::SO_PRIORITY).unwrap_or(0);
    if tries >= TRIES {
        drop_front(fd);
        // journald's standard error is the kernel's log.
        let _ = writeln!(std::io::stderr(), "dyad: dropped a message that {TRIES} journalds did not survive");
    }
    set_tries(fd, if tries >= TRIES { 1 } else { tries + 1 });
}

/// In the place of the C library's.
///
/// # Safety
/// As recvmsg(2): `message` and what it points to are valid for the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> libc::ssize_t {
    // SAFETY: the caller's promise.
    let call =
        |flags: c_int| unsafe { libc::syscall(libc::SYS_recvmsg, fd, message, flags) as libc::ssize_t };
    let Some(state) = state(fd).filter(|_| flags & libc::MSG_PEEK == 0) else { return call(flags) };
    finish(fd, state);
    let first = state.load(Ordering::Relaxed) == FRESH;
    if first {
        count_try(fd);
    }
    let got = call(flags | libc::MSG_PEEK);
    match (got >= 0, first) {
        (true, first) => state.store(if first { SEEN_FIRST } else { SEEN }, Ordering::Relaxed),
        // There was none, so there is none to count.
        (false, true) => set_tries(fd, 0),
        (false, false) => {}
    }
    got
}

/// In the place of the C library's: journald asks for the length of what is in front before it reads it.
///
/// # Safety
/// As ioctl(2): `argument` is what `request` wants.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if request == libc::FIONREAD
        && let Some(state) = state(fd)
    {
        finish(fd, state);
    }
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int }
}
