//! Signal dispositions, and the ends of children.

use std::io;

/// In a child: every signal back to its default action and none blocked. Rust ignores SIGPIPE, and what is ignored or
/// blocked stays so through exec.
pub fn reset_all() {
    // The kernel's struct sigaction: handler (SIG_DFL is 0), flags, restorer, mask. Not through glibc, which refuses
    // to touch the two signals that it keeps for itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: `default` has the size and layout of the kernel's struct; signals without a disposition (SIGKILL,
        // SIGSTOP) are refused, harmlessly.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8usize)
        };
    }
    set_mask(false);
}

/// Blocks every signal (they are read from a signalfd) or none. Faults are never blocked: a blocked one would end
/// PID 1 before its handler.
pub fn set_mask(block: bool) {
    // SAFETY: an all-zero sigset_t is a valid value to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    if block {
        // SAFETY: `set` is writable.
        unsafe { libc::sigfillset(&raw mut set) };
        for signal in crate::fault::FAULTS {
            // SAFETY: `set` is initialised.
            unsafe { libc::sigdelset(&raw mut set, signal) };
        }
    } else {
        // SAFETY: `set` is writable.
        unsafe { libc::sigemptyset(&raw mut set) };
    }
    // SAFETY: `set` is initialised; no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// What [`peek`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Children {
    /// There are none.
    None,
    /// All live.
    Alive,
    /// This one ended; it stays a zombie until [`reap`].
    Ended(u32, Exit),
}

/// Looks for an ended child without reaping it, so that its status can be recorded first.
pub fn peek() -> io::Result<Children> {
    match waitid(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
        Ok(Some((pid, exit))) => Ok(Children::Ended(pid, exit)),
        Ok(None) => Ok(Children::Alive),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Children::None),
        Err(error) => Err(error),
    }
}

/// Reaps one ended child.
pub fn reap(pid: u32) -> io::Result<()> {
    waitid(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG).map(|_| ())
}

/// Takes note of one child that a signal has stopped; each stop is told once.
pub fn take_stopped() -> io::Result<Option<u32>> {
    Ok(waitid(libc::P_ALL, 0, libc::WSTOPPED | libc::WNOHANG)?.map(|(pid, _)| pid))
}

fn waitid(kind: libc::idtype_t, id: u32, options: i32) -> io::Result<Option<(u32, Exit)>> {
    // SAFETY: all-zero bytes are a valid siginfo_t, and si_pid 0 then means that nothing ended.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable for the length of the call.
    if unsafe { libc::waitid(kind, id, &raw mut info, options) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills the SIGCHLD member of the union, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    if pid == 0 {
        return Ok(None);
    }
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Status(status) } else { Exit::Signal(status) };
    Ok(Some((pid as u32, exit)))
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill reads no memory.
    if unsafe { libc::kill(pid as i32, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal to every process but the caller; `false` when there was none left.
pub fn kill_all(signal: i32) -> io::Result<bool> {
    // SAFETY: kill reads no memory.
    if unsafe { libc::kill(-1, signal) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(false) } else { Err(error) }
}
