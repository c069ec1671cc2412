//! Starting processes: clone3 straight into a cgroup, descriptors put where the program expects them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// First descriptor number that PID 1 keeps for itself; services get theirs below it.
pub const KEPT_FD_MIN: RawFd = 200;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` as of Linux 5.7 (CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into `cgroup` (an open cgroup2 directory) and runs `child` there; gives the parent the process id.
///
/// The child is a full copy, never a vfork: a spawn does not hold up PID 1's loop. `child` comes back only if
/// its exec failed, with the status to exit with.
///
/// The caller must be single-threaded: a lock that another thread held would stay locked in the child. The call
/// checks this and refuses with `EBUSY` otherwise.
pub fn spawn(cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> i32) -> io::Result<u32> {
    if !single_threaded() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a properly sized clone_args without CLONE_VM and without a stack, so the child continues on
    // its own copy of this stack; the process has one thread (checked above), so no lock is held by a thread that
    // the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => {
            let status = child();
            // SAFETY: ends the child without running the parent's exit handlers a second time.
            unsafe { libc::_exit(status) }
        }
        n if n > 0 => Ok(n as u32),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process has one thread only: `task` has a link from itself, one from its parent and one a thread. Where
/// /proc is not mounted yet nobody started one.
fn single_threaded() -> bool {
    rustix::fs::stat("/proc/self/task").map_or(true, |task| task.st_nlink <= 3)
}

/// In a child: makes `fds` the descriptors 0, 1, 2, ... in this order and closes all others.
///
/// Afterwards none of the given descriptors may be used under its old number: the caller execs next.
pub fn place_fds(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = fds.len() as RawFd;
    let mut high = Vec::with_capacity(fds.len());
    for fd in fds {
        // Two steps, because a source may sit on a number that is a target.
        // SAFETY: F_DUPFD reads no memory; the result is a new descriptor that only `high` knows.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count.max(3)) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        high.push(copy);
    }
    for (target, source) in high.iter().enumerate() {
        // SAFETY: dup2 reads no memory; whatever owned `target` belongs to the parent's image, which this child
        // replaces by exec without running any destructor.
        if unsafe { libc::dup2(*source, target as RawFd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    close_from(count.max(3))
}

/// Closes every descriptor from `first` on. Only for a child about to exec: owners of those descriptors in this
/// process would be left with dead numbers.
pub fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: close_range reads no memory; see above for ownership.
    if unsafe { libc::syscall(libc::SYS_close_range, first as u32, u32::MAX, 0u32) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves a descriptor into the range that survives PID 1's re-exec (number from [`KEPT_FD_MIN`] on, no close-on-exec).
pub fn keep(fd: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD reads no memory.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, KEPT_FD_MIN) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `copy` was made just now and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Takes over a descriptor that this process inherited through exec; `None` if that number is not open.
///
/// Call it once for each number, and only for numbers from [`KEPT_FD_MIN`] on: everything that this program opens
/// itself starts below and belongs to somebody.
pub fn adopt(number: RawFd) -> Option<OwnedFd> {
    if number < KEPT_FD_MIN {
        return None;
    }
    // SAFETY: F_GETFD reads no memory.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the number is open and, by the rule above, nobody in this process owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
