//! Turning a fresh child into a program: one step after the other, each with an exit status of its own.

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Where journald takes standard output and error.
pub(crate) const JOURNAL_STREAM: &str = "/run/systemd/journal/stdout";
/// Where services send their sd_notify datagrams.
pub(crate) const NOTIFY: &str = "/run/dyad/notify";
/// Statuses of children that never became the program, from here on.
pub(crate) const NOT_STARTED_MIN: i32 = 200;
/// And up to here.
pub(crate) const NOT_STARTED_MAX: i32 = 209;
/// Open files of a program that says nothing about them: the kernel's own default.
const NOFILE: u64 = 1024;
/// Open files of PID 1.
const NOFILE_OWN: u64 = 65_536;
/// Capability numbers that the kernel could know.
const CAPABILITIES: u32 = 64;

/// Where standard output and error go.
pub(crate) enum Output<'a> {
    /// journald's stream, with this identifier and unit; the kernel's log while there is none. Also the console.
    Journal(&'a str, bool),
    /// The kernel's log: for journald itself.
    Kernel,
    /// Two pipes.
    Pipes(BorrowedFd<'a>, BorrowedFd<'a>),
}

/// What to run, and as whom.
pub(crate) struct Program<'a> {
    pub(crate) exec: &'a [String],
    pub(crate) env: &'a [(String, String)],
    pub(crate) cwd: &'a str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) capabilities: Option<&'a [u8]>,
    pub(crate) nofile: u64,
    pub(crate) oom_score_adj: i16,
    pub(crate) no_new_privs: bool,
    pub(crate) view: View<'a>,
    /// System calls that it may make, by number; `None`: all.
    pub(crate) syscalls: Option<&'a [u16]>,
    pub(crate) output: Output<'a>,
    /// Passed from descriptor 3 on, with their names.
    pub(crate) listen: &'a [(BorrowedFd<'a>, &'a str)],
    /// Give it NOTIFY_SOCKET.
    pub(crate) notify: bool,
    pub(crate) watchdog_ms: u32,
}

/// In what a program's view of the file systems differs from everybody's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View<'a> {
    /// `/tmp` and `/var/tmp` of its own.
    pub(crate) private_tmp: bool,
    /// Not to be written.
    pub(crate) read_only: &'a [String],
    /// Empty.
    pub(crate) hidden: &'a [String],
}

impl View<'_> {
    fn differs(&self) -> bool {
        self.private_tmp || !self.read_only.is_empty() || !self.hidden.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot set oom_score_adj: {0}")]
    Oom(#[source] std::io::Error),
    #[error("cannot set RLIMIT_NOFILE to {0}: {1}")]
    Limit(u64, #[source] nix::errno::Errno),
    #[error("cannot enter the directory {0}: {1}")]
    Directory(String, #[source] std::io::Error),
    #[error("cannot become user {0}, group {1}: {2}")]
    User(u32, u32, #[source] nix::errno::Errno),
    #[error("cannot limit the capabilities: {0}")]
    Capabilities(#[source] rustix::io::Errno),
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivs(#[source] rustix::io::Errno),
    #[error("cannot place the descriptors: {0}")]
    Descriptors(#[source] std::io::Error),
    #[error("cannot give it a view of {0} of its own: {1}")]
    View(String, #[source] std::io::Error),
    #[error("cannot limit its system calls: {0}")]
    Syscalls(#[source] std::io::Error),
    #[error("cannot execute {0}: {1}")]
    Exec(String, #[source] nix::errno::Errno),
}

impl Error {
    fn status(&self) -> i32 {
        match self {
            Error::Oom(_) => 200,
            Error::Limit(..) => 201,
            Error::Directory(..) => 202,
            Error::Exec(..) => 203,
            Error::User(..) => 204,
            Error::Capabilities(_) => 205,
            Error::NoNewPrivs(_) => 206,
            Error::Descriptors(_) => 207,
            Error::View(..) => 208,
            Error::Syscalls(_) => 209,
        }
    }
}

/// In a child: becomes the program. Comes back only if that failed, with the status to exit with; the reason stands on
/// the program's standard error.
pub(crate) fn become_program(program: &Program<'_>) -> i32 {
    dyad_sys::signals::reset_all();
    let _ = rustix::process::setsid();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let outputs = open_outputs(&program.output);
    let error = match run(program, null.ok(), outputs) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = std::io::stderr().write_all(format!("dyad: not started: {error}\n").as_bytes());
    error.status()
}

fn run(
    program: &Program<'_>,
    null: Option<OwnedFd>,
    outputs: Option<(OwnedFd, OwnedFd)>,
) -> Result<std::convert::Infallible, Error> {
    // The outputs first, so that every later step can tell why it failed.
    let mut fds: Vec<BorrowedFd<'_>> = Vec::with_capacity(3 + program.listen.len());
    let (null, outputs) = match (&null, &outputs) {
        (Some(null), Some((out, err))) => (null, (out, err)),
        (Some(null), None) => (null, (null, null)),
        (None, _) => return Err(Error::Descriptors(std::io::Error::other("no /dev/null"))),
    };
    fds.extend([null.as_fd(), outputs.0.as_fd(), outputs.1.as_fd()]);
    fds.extend(program.listen.iter().map(|(fd, _)| *fd));
    dyad_sys::spawn::place_fds(&fds).map_err(Error::Descriptors)?;
    // A container's host decides whom it ends first, and how many descriptors there are.
    let container = crate::boot::in_container();
    if program.oom_score_adj != 0 && !container {
        std::fs::write("/proc/self/oom_score_adj", program.oom_score_adj.to_string()).map_err(Error::Oom)?;
    }
    if program.nofile != 0 {
        let limit = if container { program.nofile.min(hard_limit()) } else { program.nofile };
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).map_err(|errno| Error::Limit(limit, errno))?;
    } else {
        // PID 1's own is higher, and programs that select(2) must not inherit that.
        setrlimit(Resource::RLIMIT_NOFILE, NOFILE.min(hard_limit()), hard_limit())
            .map_err(|errno| Error::Limit(NOFILE, errno))?;
    }
    change_view(program.view)?;
    take_identity(program)?;
    std::env::set_current_dir(program.cwd).map_err(|e| Error::Directory(program.cwd.to_owned(), e))?;
    if program.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(Error::NoNewPrivs)?;
    }
    let text = |s: &String| CString::new(s.as_str()).unwrap_or_default();
    let argv: Vec<CString> = program.exec.iter().map(text).collect();
    let env: Vec<CString> = environment(program).iter().map(text).collect();
    let path = argv.first().cloned().unwrap_or_default();
    // Last, because nothing above need be on the list.
    if let Some(allowed) = program.syscalls {
        dyad_sys::seccomp::allow_only(allowed).map_err(Error::Syscalls)?;
    }
    nix::unistd::execve(&path, &argv, &env)
        .map_err(|errno| Error::Exec(program.exec.first().cloned().unwrap_or_default(), errno))
}

/// For PID 1 itself: a descriptor for each service, and those that it keeps for them.
pub(crate) fn raise_own_limit() {
    let hard = hard_limit();
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, NOFILE_OWN.min(hard), hard) {
        crate::log::warning!("cannot allow PID 1 {NOFILE_OWN} descriptors: {errno}");
    }
}

/// How many descriptors this process may allow itself without a privilege.
fn hard_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard)
}

/// Mounts that only this program and its children see. What PID 1 mounts later is seen by them too.
fn change_view(view: View<'_>) -> Result<(), Error> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
    if !view.differs() {
        return Ok(());
    }
    let failed = |path: &str| {
        let path = path.to_owned();
        move |errno: rustix::io::Errno| Error::View(path, errno.into())
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::View("the mounts".to_owned(), errno.into()))?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", propagation).map_err(failed("/"))?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    for path in view.read_only {
        mount_bind(path.as_str(), path.as_str()).map_err(failed(path))?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | plain;
        mount_remount(path.as_str(), flags, "").map_err(failed(path))?;
    }
    for path in view.hidden {
        let flags = plain | MountFlags::RDONLY | MountFlags::NOEXEC;
        mount("tmpfs", path.as_str(), "tmpfs", flags, Some(c"mode=0000,size=4k")).map_err(failed(path))?;
    }
    if view.private_tmp {
        for path in ["/tmp", "/var/tmp"].into_iter().filter(|path| std::path::Path::new(path).is_dir()) {
            mount("tmpfs", path, "tmpfs", plain, Some(c"mode=1777,size=25%")).map_err(failed(path))?;
        }
    }
    Ok(())
}

/// User, groups and capabilities, in the order in which each is still allowed.
fn take_identity(program: &Program<'_>) -> Result<(), Error> {
    let keep = program.capabilities.map(|numbers| {
        numbers.iter().filter(|n| u32::from(**n) < CAPABILITIES).fold(0u64, |bits, n| bits | 1 << n)
    });
    if let Some(keep) = keep {
        for number in (0..CAPABILITIES).filter(|n| keep & (1 << n) == 0) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // Numbers that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => return Err(Error::Capabilities(errno)),
            }
        }
    }
    if program.uid == 0 && program.gid == 0 && program.groups.is_empty() {
        return Ok(());
    }
    let user = |errno| Error::User(program.uid, program.gid, errno);
    let groups: Vec<Gid> = program.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).map_err(user)?;
    let gid = Gid::from_raw(program.gid);
    setresgid(gid, gid, gid).map_err(user)?;
    let ambient = keep.filter(|keep| *keep != 0 && program.uid != 0);
    if ambient.is_some() {
        rustix::thread::set_keep_capabilities(true).map_err(Error::Capabilities)?;
    }
    let uid = Uid::from_raw(program.uid);
    setresuid(uid, uid, uid).map_err(user)?;
    if let Some(keep) = ambient {
        let set = CapabilitySet::from_bits_retain(keep);
        let sets = CapabilitySets { effective: set, permitted: set, inheritable: set };
        rustix::thread::set_capabilities(None, sets).map_err(Error::Capabilities)?;
        for number in (0..CAPABILITIES).filter(|n| keep & (1 << n) != 0) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::configure_capability_in_ambient_set(one, true).map_err(Error::Capabilities)?;
        }
    }
    Ok(())
}

fn environment(program: &Program<'_>) -> Vec<String> {
    let mut env = vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), "LANG=C.UTF-8".to_owned()];
    if program.notify {
        env.push(format!("NOTIFY_SOCKET={NOTIFY}"));
    }
    if program.watchdog_ms != 0 {
        env.push(format!("WATCHDOG_USEC={}", u64::from(program.watchdog_ms) * 1000));
        env.push(format!("WATCHDOG_PID={}", std::process::id()));
    }
    if !program.listen.is_empty() {
        let names: Vec<&str> = program.listen.iter().map(|(_, name)| *name).collect();
        env.push(format!("LISTEN_PID={}", std::process::id()));
        env.push(format!("LISTEN_FDS={}", program.listen.len()));
        env.push(format!("LISTEN_FDNAMES={}", names.join(":")));
    }
    env.extend(program.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

fn open_outputs(output: &Output<'_>) -> Option<(OwnedFd, OwnedFd)> {
    let twice = |fd: OwnedFd| fd.try_clone().ok().map(|copy| (fd, copy));
    match output {
        Output::Pipes(out, err) => Some((out.try_clone_to_owned().ok()?, err.try_clone_to_owned().ok()?)),
        Output::Kernel => twice(kernel_log()?),
        Output::Journal(name, console) => match journal_stream(name, *console) {
            Some(stream) => twice(stream),
            None => twice(kernel_log()?),
        },
    }
}

fn kernel_log() -> Option<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    open("/dev/kmsg").or_else(|_| open("/dev/console")).ok()
}

/// A connection to journald. Its listening socket is PID 1's, so this works while journald is down; only a full queue
/// refuses, and then nothing waits.
fn journal_stream(name: &str, console: bool) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&stream, &SocketAddrUnix::new(JOURNAL_STREAM).ok()?).ok()?;
    // Identifier, unit, priority, level prefixes, forward to syslog, kernel log, console.
    let header = format!("{name}\n{name}.service\n6\n1\n0\n0\n{}\n", u8::from(console));
    rustix::io::write(&stream, header.as_bytes()).ok().filter(|written| *written == header.len())?;
    // Programs expect a blocking standard output.
    rustix::io::ioctl_fionbio(&stream, false).ok()?;
    Some(stream)
}
