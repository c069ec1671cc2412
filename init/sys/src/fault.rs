//! The last resort of PID 1: on a fault or panic it executes itself again, with every child and descriptor kept.
//!
//! The kernel panics when PID 1 ends. The handler below runs on a stack of its own, touches nothing but memory that was
//! prepared beforehand, and calls `execveat` on a descriptor of the binary; the new image finds its state in a memfd.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

/// Signals that end PID 1 unless they are handled.
pub const FAULTS: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

const STACK_BYTES: usize = 64 * 1024;
/// Bytes that are noted before the binary is executed: cause and time.
pub const NOTE_BYTES: usize = 12;

/// Everything the handler needs; made once and leaked, because a handler may run at any time.
struct Plan {
    binary: OwnedFd,
    /// Keeps the strings alive that `argv` points to.
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

static PLAN: AtomicPtr<Plan> = AtomicPtr::new(std::ptr::null_mut());
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The signal that brought the handler up, written into `note_fd` for the next image to tell.
static NOTE_FD: AtomicI32 = AtomicI32::new(-1);
static NOTE_AT: AtomicI32 = AtomicI32::new(0);

/// Installs the handlers. After a fault `binary` is executed with `argv` and an empty environment; before that the
/// signal's number (4 bytes) and CLOCK_BOOTTIME in nanoseconds (8 bytes), little endian, are written at `note_at` of
/// `note_fd`, which must stay open.
pub fn install(binary: OwnedFd, argv: Vec<CString>, note_fd: RawFd, note_at: u32) -> io::Result<()> {
    let mut pointers: Vec<_> = argv.iter().map(|s| s.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let plan = Plan { binary, _strings: argv, argv: pointers, envp: vec![std::ptr::null()] };
    NOTE_FD.store(note_fd, Ordering::Relaxed);
    NOTE_AT.store(note_at as i32, Ordering::Relaxed);
    OWNER.store(std::process::id(), Ordering::Relaxed);
    PLAN.store(Box::into_raw(Box::new(plan)), Ordering::Release);
    let stack = Box::leak(vec![0u8; STACK_BYTES].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the stack is leaked, so it outlives every handler.
    if unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in FAULTS {
        // SAFETY: `action` is initialised and the handler is async-signal-safe: it only stores to atomics and makes
        // system calls.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Executes the binary again now: for the panic hook and for a live upgrade. Comes back only if that failed or
/// [`install`] was not called. `cause` is noted like a signal number; panics use [`CAUSE_PANIC`].
pub fn reexec(cause: i32) -> io::Error {
    let plan = PLAN.load(Ordering::Acquire);
    // In a child between fork and exec a fault must end the child, not make a second PID 1 of it.
    // SAFETY: getpid has no arguments and cannot fail.
    if plan.is_null() || OWNER.load(Ordering::Relaxed) != unsafe { libc::getpid() } as u32 {
        return io::Error::from_raw_os_error(libc::EPERM);
    }
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable; the call is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let mut note = [0; NOTE_BYTES];
    note[..4].copy_from_slice(&cause.to_le_bytes());
    note[4..].copy_from_slice(&(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64).to_le_bytes());
    // SAFETY: `note` lives through the call; a bad descriptor is answered with an error.
    unsafe {
        libc::pwrite(
            NOTE_FD.load(Ordering::Relaxed),
            note.as_ptr().cast(),
            note.len(),
            i64::from(NOTE_AT.load(Ordering::Relaxed)),
        )
    };
    // SAFETY: a plan once stored is never freed or changed.
    let plan = unsafe { &*plan };
    // SAFETY: path, argv and envp are null-terminated and live for ever.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.binary.as_raw_fd(),
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Noted by the panic hook: no signal has this number.
pub const CAUSE_PANIC: i32 = 1000;
/// Noted by an asked-for re-exec (a new binary).
pub const CAUSE_UPGRADE: i32 = 1001;

extern "C" fn on_fault(signal: libc::c_int) {
    let _ = reexec(signal);
    // SAFETY: _exit is async-signal-safe. For PID 1 this is the kernel panic that was to be avoided, and `panic=`
    // on the command line resets the machine; for a child it is its end.
    unsafe { libc::_exit(128 + signal) };
}

/// Faults that a test injects; each really happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// `panic!`
    Panic,
    /// `abort`
    Abort,
    /// Unbounded recursion.
    StackOverflow,
    /// A store to address 0.
    NullWrite,
    /// An instruction that does not exist.
    IllegalInstruction,
    /// An allocation that cannot succeed.
    Allocation,
    /// Nothing goes on any more, and nothing ends it.
    Freeze,
}

/// Makes the fault happen.
#[allow(clippy::panic, reason = "this is the place where a test asks for one")]
pub fn inject(what: Injection) {
    match what {
        Injection::Panic => panic!("injected"),
        Injection::Abort => std::process::abort(),
        Injection::StackOverflow => {
            std::hint::black_box(recurse(1));
        }
        // SAFETY: unsound on purpose: the fault is the point, and the handler never returns here.
        Injection::NullWrite => unsafe {
            std::arch::asm!("mov byte ptr [{0}], 1", in(reg) 0usize);
        },
        // SAFETY: as above.
        Injection::IllegalInstruction => unsafe { std::arch::asm!("ud2") },
        Injection::Allocation => {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; 1 << 30]>());
        }
        Injection::Freeze => loop {
            std::thread::park();
        },
    }
}

#[allow(unconditional_recursion, reason = "overflowing the stack is the point")]
fn recurse(depth: u64) -> u64 {
    let block = std::hint::black_box([depth; 512]);
    recurse(depth + 1) + block[(depth % 512) as usize]
}
