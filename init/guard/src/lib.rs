//! PostgreSQL's guard: while a commit waits for the standby, nothing makes the server answer as if the standby had it.
//!
//! Without it, a cancel during the wait (a request of the client, `pg_cancel_backend`, `statement_timeout`) ends the
//! wait with a warning and the ordinary answer, and `synchronous_commit = off` skips it. With it:
//!
//! - From just before a transaction commits or prepares until it has, and around `COMMIT PREPARED` and
//!   `ROLLBACK PREPARED`, SIGINT is counted and dropped: what is being committed cannot be cancelled any more.
//! - SIGTERM is kept until then, unless the postmaster sent it (a shutdown): `pg_terminate_backend` would make the row
//!   visible to others before the standby has it.
//! - `synchronous_commit` below `on` is raised to `on` for that moment, except for the roles in `dyad_guard.async_roles`.
//!
//! `SHOW dyad_guard.deferred_cancels`, `.deferred_terminations` and `.raised_commits` count over all sessions.
//!
//! Not covered: a replication worker that applies `COMMIT PREPARED` of another cluster, and a superuser who empties
//! `synchronous_standby_names`.

#![allow(unsafe_code, reason = "a library inside a C program")]

mod abi;
mod server;
mod show;
mod window;

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use abi::*;

/// PostgreSQL asks for this first and refuses a library of another major version.
#[unsafe(export_name = "Pg_magic_func")]
extern "C" fn magic() -> *const Magic {
    static BLOCK: Magic = MAGIC;
    &raw const BLOCK
}

/// Called once by the postmaster, which every session is a fork of.
#[unsafe(export_name = "_PG_init")]
extern "C-unwind" fn init() {
    // SAFETY: a plain flag of the server.
    if !unsafe { server::process_shared_preload_libraries_in_progress } {
        server::error(c"dyad_guard must be named in shared_preload_libraries: sessions that run already would have no guard");
    }
    if !show::init() {
        server::error(c"dyad_guard has no memory for its counters");
    }
    window::define();
    show::define();
    // SAFETY: the server calls back with an event and the null pointer given here, for the life of the process.
    unsafe { server::RegisterXactCallback(on_transaction, ptr::null_mut()) };
    let hook = &raw mut server::ProcessUtility_hook;
    // SAFETY: nobody else changes hooks while a library is loaded.
    let before = unsafe { hook.replace(Some(on_utility)) };
    let before = before.map_or(ptr::null_mut(), |hook| hook as *mut ());
    NEXT_UTILITY.store(before, Ordering::Relaxed);
}

/// The hook that was there before, null for none.
static NEXT_UTILITY: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

extern "C-unwind" fn on_transaction(event: c_int, _: *mut c_void) {
    match event {
        EVENT_PRE_COMMIT | EVENT_PRE_PREPARE => window::open(),
        EVENT_COMMIT | EVENT_PREPARE | EVENT_ABORT => window::close(),
        _ => {}
    }
}

/// The second half of a two-phase commit waits while its statement runs, not when that statement's own transaction ends.
/// An error leaves by a long jump over this frame, which holds nothing; the abort then closes the window.
#[allow(clippy::too_many_arguments, reason = "the server's signature")]
extern "C-unwind" fn on_utility(
    planned: *mut c_void,
    text: *const c_char,
    read_only: bool,
    context: c_int,
    parameters: *mut c_void,
    environment: *mut c_void,
    receiver: *mut c_void,
    completion: *mut c_void,
) {
    let guarded = finishes_prepared(planned);
    if guarded {
        window::open();
    }
    let next = NEXT_UTILITY.load(Ordering::Relaxed);
    let next: server::UtilityHook = if next.is_null() {
        server::standard_ProcessUtility
    } else {
        // SAFETY: the hook found at the start, of exactly this type.
        unsafe { std::mem::transmute::<*mut (), server::UtilityHook>(next) }
    };
    // SAFETY: the server's own arguments, handed on.
    unsafe { next(planned, text, read_only, context, parameters, environment, receiver, completion) };
    if guarded {
        window::close();
    }
}

fn finishes_prepared(planned: *const c_void) -> bool {
    // SAFETY: a utility hook is called with a PlannedStmt; a test checks the offset against the server's headers.
    let statement = unsafe { planned.wrapping_byte_add(PLANNED_UTILITY).cast::<*const c_int>().read() };
    if statement.is_null() {
        return false;
    }
    // SAFETY: every node begins with its tag.
    if unsafe { statement.read() } != TAG_TRANSACTION {
        return false;
    }
    // SAFETY: the tag says TransactionStmt, whose kind is there.
    let kind = unsafe { statement.wrapping_byte_add(TRANSACTION_KIND).read() };
    matches!(kind, KIND_COMMIT_PREPARED | KIND_ROLLBACK_PREPARED)
}
