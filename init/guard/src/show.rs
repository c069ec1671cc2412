//! Counters that all sessions share, and the settings that show them.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::abi::{GUC_INTERNAL, ShowHook};
use crate::server;

/// One page that the postmaster maps and every session inherits.
#[repr(C)]
pub(crate) struct Counters {
    /// Cancels dropped.
    pub(crate) cancels: AtomicU64,
    /// Terminations kept until the commit was through.
    pub(crate) terminations: AtomicU64,
    /// Commits that asked for less than `on`.
    pub(crate) raised: AtomicU64,
}

static SHARED: AtomicPtr<Counters> = AtomicPtr::new(ptr::null_mut());

/// Maps the page; false without memory.
pub(crate) fn init() -> bool {
    // SAFETY: a new anonymous mapping, wherever the kernel likes.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size_of::<Counters>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return false;
    }
    // A fresh page is zero, which is three counters at zero.
    SHARED.store(page.cast(), Ordering::Relaxed);
    true
}

/// The counters; async-signal-safe.
pub(crate) fn counters() -> &'static Counters {
    // SAFETY: mapped before the first session exists, never unmapped, and only atomics are in it.
    unsafe { &*SHARED.load(Ordering::Relaxed) }
}

pub(crate) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Decimal digits with the final zero; a session shows one value at a time and the server copies it at once.
fn decimal(value: u64) -> *const c_char {
    const LEN: usize = 21;
    static TEXT: [std::sync::atomic::AtomicU8; LEN] = [const { std::sync::atomic::AtomicU8::new(0) }; LEN];
    let (mut at, mut rest) = (LEN - 1, value);
    loop {
        at -= 1;
        TEXT[at].store(b'0' + (rest % 10) as u8, Ordering::Relaxed);
        rest /= 10;
        if rest == 0 {
            return TEXT[at].as_ptr().cast::<c_char>().cast_const();
        }
    }
}

extern "C-unwind" fn show_cancels() -> *const c_char {
    decimal(counters().cancels.load(Ordering::Relaxed))
}

extern "C-unwind" fn show_terminations() -> *const c_char {
    decimal(counters().terminations.load(Ordering::Relaxed))
}

extern "C-unwind" fn show_raised() -> *const c_char {
    decimal(counters().raised.load(Ordering::Relaxed))
}

/// Makes the settings.
pub(crate) fn define() {
    let all: [(_, _, ShowHook); 3] = [
        (
            c"dyad_guard.deferred_cancels",
            c"Cancels dropped while a commit waited for the standby.",
            show_cancels,
        ),
        (
            c"dyad_guard.deferred_terminations",
            c"Terminations kept back while a commit waited for the standby.",
            show_terminations,
        ),
        (
            c"dyad_guard.raised_commits",
            c"Commits that asked for less than synchronous_commit = on.",
            show_raised,
        ),
    ];
    static VALUES: [AtomicPtr<c_char>; 3] = [const { AtomicPtr::new(ptr::null_mut()) }; 3];
    for ((name, short, show), value) in all.into_iter().zip(&VALUES) {
        let none: c_int = 0;
        // SAFETY: all pointers live as long as the process.
        unsafe {
            server::DefineCustomStringVariable(
                name.as_ptr(),
                short.as_ptr(),
                ptr::null(),
                value.as_ptr(),
                c"0".as_ptr(),
                GUC_INTERNAL,
                none,
                ptr::null(),
                ptr::null(),
                Some(show),
            );
        }
    }
    // SAFETY: a name of ours, that lives as long as the process.
    unsafe { server::MarkGUCPrefixReserved(c"dyad_guard".as_ptr()) };
}
