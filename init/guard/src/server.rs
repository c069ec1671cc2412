//! What is used of the server: names exactly as it exports them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::AtomicI32;

use crate::abi::{ERROR, ShowHook};

/// `ProcessUtility_hook_type`.
pub(crate) type UtilityHook = unsafe extern "C-unwind" fn(
    *mut c_void,
    *const c_char,
    bool,
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
);

// The two flags are `volatile sig_atomic_t` there: an atomic of the same size reads and writes them the same way.
#[allow(non_upper_case_globals, reason = "the server's names")]
unsafe extern "C-unwind" {
    pub(crate) static process_shared_preload_libraries_in_progress: bool;
    pub(crate) static mut ProcessUtility_hook: Option<UtilityHook>;
    pub(crate) static InterruptPending: AtomicI32;
    pub(crate) static QueryCancelPending: AtomicI32;
    pub(crate) static mut synchronous_commit: c_int;
    pub(crate) static PostmasterPid: libc::pid_t;

    pub(crate) fn standard_ProcessUtility(
        planned: *mut c_void,
        text: *const c_char,
        read_only: bool,
        context: c_int,
        parameters: *mut c_void,
        environment: *mut c_void,
        receiver: *mut c_void,
        completion: *mut c_void,
    );
    pub(crate) fn RegisterXactCallback(
        callback: extern "C-unwind" fn(c_int, *mut c_void),
        argument: *mut c_void,
    );
    pub(crate) fn ProcessInterrupts();
    pub(crate) fn assign_synchronous_commit(value: c_int, extra: *mut c_void);
    pub(crate) fn GetSessionUserId() -> u32;
    pub(crate) fn GetUserNameFromId(role: u32, missing_ok: bool) -> *const c_char;
    pub(crate) fn pfree(memory: *mut c_void);
    pub(crate) fn DefineCustomStringVariable(
        name: *const c_char,
        short: *const c_char,
        long: *const c_char,
        value: *mut *mut c_char,
        boot: *const c_char,
        context: c_int,
        flags: c_int,
        check: *const c_void,
        assign: *const c_void,
        show: Option<ShowHook>,
    );
    pub(crate) fn MarkGUCPrefixReserved(prefix: *const c_char);
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// Raises an error of the server; does not come back.
pub(crate) fn error(message: &CStr) -> ! {
    // SAFETY: `ereport` as its macro expands; the message is an argument, never a format.
    unsafe { errstart(ERROR, std::ptr::null()) };
    // SAFETY: as above.
    unsafe { errmsg(c"%s".as_ptr(), message.as_ptr()) };
    // SAFETY: as above; with level ERROR it leaves by a long jump, and this frame holds nothing.
    unsafe { errfinish(c"dyad_guard".as_ptr(), 0, c"dyad_guard".as_ptr()) };
    std::process::abort()
}
