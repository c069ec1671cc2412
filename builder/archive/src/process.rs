//! The one way of this program to run another: absolute path, no shell, logged argv, clean environment, a deadline,
//! bounded output. A program that must keep running is started with `Command::start`.
#![allow(clippy::disallowed_methods, reason = "the subprocess wrapper itself")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::clock::Deadline;

/// Kept of the standard error of a program; what follows is read and dropped.
pub const STDERR_BYTES_MAX: usize = 64 << 10;
/// Default limit for the standard output of a program.
pub const STDOUT_BYTES_MAX: usize = 16 << 20;
/// Default time that a program may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long output may stay open after the program itself ended (a grandchild may hold it).
const DRAIN: Duration = Duration::from_secs(2);
/// Searched after the directories of PATH: administration tools are not in every user's PATH.
const TOOL_DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Running a program failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such program on this machine.
    #[error("{name} is not installed: it is neither in PATH nor in {}", TOOL_DIRECTORIES.join(" "))]
    NotFound {
        /// Its name.
        name: String,
    },
    /// The path given is not absolute.
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(PathBuf),
    /// The operating system refused a step.
    #[error("{program}: cannot {step}: {source}")]
    Io {
        /// Path of the program.
        program: String,
        /// The step.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    Deadline {
        /// Path of the program.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It ended, but a process that it started kept its output open and was killed.
    #[error(
        "{program} ended, but a process that it started kept its output open for {seconds} s and was killed"
    )]
    Held {
        /// Path of the program.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It wrote more than allowed.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// Path of the program.
        program: String,
        /// The limit.
        limit: usize,
    },
    /// It ended with something else than success.
    #[error("{program} {status}{}", stderr_tail(.stderr))]
    Failed {
        /// Path of the program.
        program: String,
        /// How it ended (`exit status: 1`, `signal: 9 (SIGKILL)`).
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
}

fn stderr_tail(stderr: &str) -> String {
    let lines: Vec<_> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => String::new(),
        n => format!(": {}", lines[n.saturating_sub(5)..].join("; ")),
    }
}

/// The absolute path of a program: from PATH (absolute entries only), else from the usual directories.
///
/// # Errors
/// `ProcessError::NotFound`.
pub fn find(name: &str) -> Result<PathBuf, ProcessError> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(TOOL_DIRECTORIES.iter().map(PathBuf::from));
    directories
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
        .ok_or_else(|| ProcessError::NotFound { name: name.to_owned() })
}

/// A program about to be run.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    inherit_env: bool,
    removed: Vec<OsString>,
    directory: PathBuf,
    stdin: Vec<u8>,
    deadline: Duration,
    stdout_bytes_max: usize,
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: String,
}

impl Command {
    /// A command for the program at this absolute path. It gets `LC_ALL=C`, PATH and nothing else of the environment.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            inherit_env: false,
            removed: Vec::new(),
            directory: PathBuf::from("/"),
            stdin: Vec::new(),
            deadline: DEADLINE,
            stdout_bytes_max: STDOUT_BYTES_MAX,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Hands the whole environment of this process on (cargo and the like need it).
    #[must_use]
    pub fn inherit_env(mut self) -> Self {
        self.inherit_env = true;
        self
    }

    /// Takes a variable from what it inherits.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.removed.push(name.as_ref().to_owned());
        self
    }

    /// Working directory; `/` if not set.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Bytes for its standard input; empty if not set.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long `run` lets it take; 60 s if not set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How much standard output `run` accepts, in bytes; 16 MiB if not set.
    #[must_use]
    pub fn stdout_bytes_max(mut self, limit: usize) -> Self {
        self.stdout_bytes_max = limit;
        self
    }

    fn name(&self) -> String {
        self.program.display().to_string()
    }

    fn io(&self, step: &'static str) -> impl Fn(std::io::Error) -> ProcessError {
        let program = self.name();
        move |source| ProcessError::Io { program: program.clone(), step, source }
    }

    fn prepare(&self) -> Result<std::process::Command, ProcessError> {
        if !self.program.is_absolute() {
            return Err(ProcessError::NotAbsolute(self.program.clone()));
        }
        tracing::debug!(program = %self.program.display(), args = ?self.args, "run");
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).current_dir(&self.directory);
        if !self.inherit_env {
            command.env_clear();
            if let Some(path) = std::env::var_os("PATH") {
                command.env("PATH", path);
            }
        }
        for name in &self.removed {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").envs(self.env.iter().map(|(name, value)| (name, value)));
        // A group of its own: the whole group can be killed, and a Ctrl-C at the terminal is ours to handle.
        command.process_group(0);
        Ok(command)
    }

    /// Runs the program to its end and hands back what it left, whatever its status.
    ///
    /// # Errors
    /// It cannot be started, takes too long, or writes too much. It is dead when this returns.
    pub fn run(self) -> Result<Output, ProcessError> {
        let mut command = self.prepare()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running =
            Running { child: command.spawn().map_err(self.io("start it"))?, program: self.name() };
        let stdout = collect(running.child.stdout.take(), self.stdout_bytes_max);
        let stderr = collect(running.child.stderr.take(), STDERR_BYTES_MAX);
        let input = running.child.stdin.take();
        let bytes = self.stdin.clone();
        // A program may end without reading its input; that it did is told by its status, not by this write.
        std::thread::spawn(move || input.map(|mut pipe| pipe.write_all(&bytes)));
        let Some(status) = running.wait(self.deadline)? else {
            running.kill();
            return Err(ProcessError::Deadline { program: self.name(), seconds: self.deadline.as_secs() });
        };
        let drain = Deadline::after(DRAIN);
        let out = stdout.recv_timeout(drain.left());
        let err = stderr.recv_timeout(drain.left().max(Duration::from_millis(1)));
        let (Ok((stdout, cut)), Ok((stderr, _))) = (out, err) else {
            // A grandchild holds the pipes; nothing may outlive this call.
            running.kill();
            return Err(ProcessError::Held { program: self.name(), seconds: DRAIN.as_secs() });
        };
        if cut {
            return Err(ProcessError::TooMuchOutput { program: self.name(), limit: self.stdout_bytes_max });
        }
        Ok(Output { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }

    /// Runs the program to its end; anything but exit status 0 is an error.
    ///
    /// # Errors
    /// As `run`, and `ProcessError::Failed` with the last lines it wrote.
    pub fn run_checked(self) -> Result<Output, ProcessError> {
        let program = self.name();
        let output = self.run()?;
        match output.status.success() {
            true => Ok(output),
            false => Err(ProcessError::Failed { program, status: output.status, stderr: output.stderr }),
        }
    }

    /// Starts a program that keeps running. Its output goes to `log`, its input is empty, and it is killed with its
    /// process group when the handle is dropped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self, log: &File) -> Result<Running, ProcessError> {
        let mut command = self.prepare()?;
        let output = || log.try_clone().map_err(self.io("hand its log file over"));
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        Ok(Running { child: command.spawn().map_err(self.io("start it"))?, program: self.name() })
    }
}

/// Reads a pipe to its end on a thread, keeping at most `limit` bytes; says whether there was more.
fn collect(pipe: Option<impl Read + Send + 'static>, limit: usize) -> Receiver<(Vec<u8>, bool)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut kept, mut cut) = (Vec::new(), false);
        if let Some(mut pipe) = pipe {
            let mut chunk = [0; 16 << 10];
            while let Ok(n @ 1..) = pipe.read(&mut chunk) {
                let room = n.min(limit - kept.len());
                kept.extend_from_slice(&chunk[..room]);
                cut |= room < n;
            }
        }
        // Nobody listens any more when the program was killed at its deadline.
        let _ = sender.send((kept, cut));
    });
    receiver
}

/// A program that runs. Dropping the handle kills it and its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    program: String,
}

impl Running {
    /// Its process id, which is its process group too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn io(&self, step: &'static str) -> impl Fn(std::io::Error) -> ProcessError {
        let program = self.program.clone();
        move |source| ProcessError::Io { program: program.clone(), step, source }
    }

    /// Waits so long for its end; `None` when it still runs.
    ///
    /// # Errors
    /// The operating system cannot tell.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, ProcessError> {
        if let Some(status) = self.child.try_wait().map_err(self.io("wait for it"))? {
            return Ok(Some(status));
        }
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| self.io("watch it")(e.into()))?;
        let deadline = Deadline::after(limit);
        while !deadline.passed() {
            let left = deadline.left();
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.io("watch it")(e.into())),
            }
            if let Some(status) = self.child.try_wait().map_err(self.io("wait for it"))? {
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Kills the process group and reaps the program.
    pub fn kill(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.kill();
        }
    }
}
