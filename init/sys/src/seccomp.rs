//! A system call filter: an allow-list by number.

use std::io;

/// `struct sock_filter` codes: load a word of the call's data, jump if equal, return.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
/// Without these nothing starts, ends, or comes back from a signal's handler.
const ALWAYS: [u16; 3] =
    [libc::SYS_execve as u16, libc::SYS_exit_group as u16, libc::SYS_rt_sigreturn as u16];

fn filter(allowed: &[u16]) -> Vec<libc::sock_filter> {
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // Of another architecture (the 32 bit entry) the numbers mean something else.
    let mut filter =
        vec![step(LOAD, ARCH_AT), libc::sock_filter { jt: 1, ..step(JUMP_IF_EQUAL, AUDIT_ARCH_X86_64) }];
    filter.extend([step(RETURN, KILL_PROCESS), step(LOAD, NUMBER_AT)]);
    for number in allowed.iter().chain(&ALWAYS) {
        filter.push(libc::sock_filter { jf: 1, ..step(JUMP_IF_EQUAL, u32::from(*number)) });
        filter.push(step(RETURN, ALLOW));
    }
    filter.push(step(RETURN, KILL_PROCESS));
    filter
}

/// From now on this process and its children may only make these system calls, and execve, exit_group, rt_sigreturn; any
/// other one kills the process. Needs `no_new_privs`, or root.
pub fn allow_only(allowed: &[u16]) -> io::Result<()> {
    let mut filter = filter(allowed);
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `length` instructions that live through the call; the kernel copies and checks them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
