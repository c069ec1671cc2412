//! The window in which a session cannot be cancelled: it opens right before the commit record is written and closes
//! when the transaction has ended, whichever way.
//!
//! The server's own handlers are put aside at its opening and put back at its close, so outside of it nothing differs
//! from a server without guard. A session is one thread; atomics are for its signal handler.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering::Relaxed};

use crate::abi::{COMMIT_ON, GUC_SIGHUP};
use crate::server;
use crate::show::{add_one, counters};

static OPEN: AtomicBool = AtomicBool::new(false);
/// A SIGTERM came that is delivered at the close.
static TERMINATED: AtomicBool = AtomicBool::new(false);
/// What the transaction had asked for, when that was raised; -1 otherwise.
static ASKED: AtomicI32 = AtomicI32::new(-1);
/// The server's handler of SIGTERM, for the handler of ours.
static TERM_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
/// Value of `dyad_guard.async_roles`, owned by the server.
static ASYNC_ROLES: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// The server's handlers while ours are installed.
struct Saved(std::cell::UnsafeCell<[MaybeUninit<libc::sigaction>; 2]>);

// SAFETY: only the session's one thread touches it, and never from a signal handler.
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved(std::cell::UnsafeCell::new([MaybeUninit::uninit(); 2]));
const SIGNALS: [c_int; 2] = [libc::SIGINT, libc::SIGTERM];
/// Each look at what is pending may be followed by something new.
const LOOKS_MAX: u32 = 4;

/// Makes the setting that names who may commit without waiting.
pub(crate) fn define() {
    // SAFETY: all pointers live as long as the process.
    unsafe {
        server::DefineCustomStringVariable(
            c"dyad_guard.async_roles".as_ptr(),
            c"Roles whose synchronous_commit is left as they set it, separated by commas.".as_ptr(),
            ptr::null(),
            ASYNC_ROLES.as_ptr(),
            c"".as_ptr(),
            GUC_SIGHUP,
            0,
            ptr::null(),
            ptr::null(),
            None,
        );
    }
}

/// Opens it. A cancel or termination that is pending already is honoured first, by an error of the server's, which
/// leaves by a long jump: the frames up to here hold nothing that would have to be dropped.
pub(crate) fn open() {
    if OPEN.load(Relaxed) {
        return;
    }
    raise_commit();
    install();
    for _ in 0..LOOKS_MAX {
        // SAFETY: a flag that the server's signal handlers set.
        if unsafe { &server::InterruptPending }.load(Relaxed) == 0 {
            return;
        }
        // The abort that may follow finds the window closed, as it must.
        restore();
        // SAFETY: as CHECK_FOR_INTERRUPTS, at a place where the transaction can still fail.
        unsafe { server::ProcessInterrupts() };
        install();
    }
    // The server holds interrupts back here: a cancel that waits must not meet the wait for the standby.
    // SAFETY: as above.
    unsafe { &server::QueryCancelPending }.store(0, Relaxed);
}

/// Closes it; a termination that was kept is delivered. Nothing when it is closed.
pub(crate) fn close() {
    restore();
    let asked = ASKED.swap(-1, Relaxed);
    if asked >= 0 {
        set_commit(asked);
    }
    if TERMINATED.swap(false, Relaxed) {
        // SAFETY: to this very process, whose own handler is back; a session is one thread.
        unsafe { libc::raise(libc::SIGTERM) };
    }
}

fn install() {
    for (slot, signal) in SIGNALS.into_iter().enumerate() {
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: zero is a valid sigaction: default action, empty mask.
        let ours = unsafe { ours.assume_init_mut() };
        ours.sa_sigaction = on_signal as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: only this thread touches the slots.
        let saved = unsafe { &mut (*SAVED.0.get())[slot] };
        // SAFETY: both are valid; with these signal numbers the call cannot fail.
        unsafe { libc::sigaction(signal, ours, saved.as_mut_ptr()) };
        if signal == libc::SIGTERM {
            // SAFETY: the call above has written it.
            TERM_HANDLER.store(unsafe { saved.assume_init_ref() }.sa_sigaction, Relaxed);
        }
    }
    OPEN.store(true, Relaxed);
}

fn restore() {
    if !OPEN.swap(false, Relaxed) {
        return;
    }
    for (slot, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: written by `install`, only this thread touches it.
        let saved = unsafe { (*SAVED.0.get())[slot].as_ptr() };
        // SAFETY: a handler that was installed before.
        unsafe { libc::sigaction(signal, saved, ptr::null_mut()) };
    }
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    if signal == libc::SIGINT {
        add_one(&counters().cancels);
        return;
    }
    let handler = TERM_HANDLER.load(Relaxed);
    // SAFETY: the kernel's own record of the signal.
    let info = unsafe { &*info };
    // SAFETY: a signal of this kind was sent by a process.
    let sender = unsafe { info.si_pid() };
    // SAFETY: set once, before this process was forked.
    let postmaster = unsafe { server::PostmasterPid };
    if sender == postmaster && handler != libc::SIG_DFL && handler != libc::SIG_IGN {
        // The server shuts down: the session ends without an answer, as it does without us.
        // SAFETY: the server's handler of this signal, installed without SA_SIGINFO as all of its are.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
        handler(signal);
        return;
    }
    add_one(&counters().terminations);
    TERMINATED.store(true, Relaxed);
}

fn raise_commit() {
    // SAFETY: a plain variable of this process.
    let asked = unsafe { server::synchronous_commit };
    if asked >= COMMIT_ON || may_commit_async() {
        return;
    }
    add_one(&counters().raised);
    ASKED.store(asked, Relaxed);
    set_commit(COMMIT_ON);
}

/// The variable decides whether the log is flushed; its assign hook, what is waited for.
fn set_commit(level: c_int) {
    // SAFETY: a plain variable of this process.
    unsafe { server::synchronous_commit = level };
    // SAFETY: the hook copies the level and ignores the second argument.
    unsafe { server::assign_synchronous_commit(level, ptr::null_mut()) };
}

fn may_commit_async() -> bool {
    let roles = ASYNC_ROLES.load(Relaxed);
    if roles.is_null() {
        return false;
    }
    // SAFETY: the value of a string setting, which cannot change while we look.
    let roles = unsafe { CStr::from_ptr(roles) }.to_bytes();
    if roles.is_empty() {
        return false;
    }
    // SAFETY: a session that commits has a user.
    let user = unsafe { server::GetSessionUserId() };
    // SAFETY: in a transaction; null when the role was dropped meanwhile.
    let name = unsafe { server::GetUserNameFromId(user, true) };
    if name.is_null() {
        return false;
    }
    // SAFETY: a string made for us.
    let known = unsafe { CStr::from_ptr(name) }.to_bytes();
    let found = roles.split(|byte| *byte == b',').any(|role| role.trim_ascii() == known);
    // SAFETY: made for us, used no more.
    unsafe { server::pfree(name.cast_mut().cast()) };
    found
}
