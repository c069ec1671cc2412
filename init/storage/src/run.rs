//! The one place that starts a program: absolute path, argv logged, deadline, bounded output, nothing inherited.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::kmsg::Log;

/// What is kept of each output stream; the rest is read and dropped so that the program never blocks on us.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// A program and how to judge its end.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    path: &'static str,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    deadline: Duration,
    /// Statuses that mean success.
    good: &'static [i32],
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Not in the image, or not executable.
    #[error("cannot start {path}: {source}")]
    Start {
        /// Absolute path.
        path: &'static str,
        /// What execve or fork said.
        source: std::io::Error,
    },
    /// Waiting for it failed.
    #[error("cannot wait for {path}: {source}")]
    Wait {
        /// Absolute path.
        path: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Killed at its deadline.
    #[error("`{command}` did not end within {seconds} s and was killed; stderr: {stderr}")]
    Deadline {
        /// Path and arguments.
        command: String,
        /// The deadline.
        seconds: u64,
        /// Last output.
        stderr: String,
    },
    /// Ended with another status than success.
    #[error("`{command}` ended with {status}; stderr: {stderr}")]
    Failed {
        /// Path and arguments.
        command: String,
        /// Exit status or signal.
        status: ExitStatus,
        /// What it wrote, bounded.
        stderr: String,
    },
}

impl Tool {
    pub(crate) fn new(path: &'static str, deadline: Duration) -> Self {
        Self { path, args: Vec::new(), env: Vec::new(), deadline, good: &[0] }
    }

    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn good(mut self, statuses: &'static [i32]) -> Self {
        self.good = statuses;
        self
    }

    fn command_line(&self) -> String {
        let mut line = self.path.to_owned();
        for arg in &self.args {
            line.push(' ');
            line.push_str(arg);
        }
        line
    }

    /// Runs the program to its end and gives its standard output.
    pub(crate) fn run(&self, log: &Log) -> Result<String, ToolError> {
        log.line(&format!("run {}", self.command_line()));
        #[allow(clippy::disallowed_methods, reason = "this is the subprocess wrapper")]
        let mut command = Command::new(self.path);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| ToolError::Start { path: self.path, source })?;
        let mut stdout = Stream::new(child.stdout.take());
        let mut stderr = Stream::new(child.stderr.take());
        let waited = self.watch(&child, &mut stdout, &mut stderr);
        let in_time = match waited {
            Ok(in_time) => in_time,
            Err(source) => {
                // Not being able to watch a program is no reason to leave it running on a disk.
                let _ = child.kill();
                let _ = child.wait();
                return Err(ToolError::Wait { path: self.path, source });
            }
        };
        if !in_time {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|source| ToolError::Wait { path: self.path, source })?;
        if !in_time {
            return Err(ToolError::Deadline {
                command: self.command_line(),
                seconds: self.deadline.as_secs(),
                stderr: stderr.text(),
            });
        }
        match status.code() {
            Some(code) if self.good.contains(&code) => Ok(stdout.text()),
            _ => Err(ToolError::Failed { command: self.command_line(), status, stderr: stderr.text() }),
        }
    }

    /// Collects output until the program has ended (`true`) or its deadline has passed (`false`).
    fn watch(&self, child: &Child, stdout: &mut Stream, stderr: &mut Stream) -> std::io::Result<bool> {
        #[allow(
            clippy::disallowed_methods,
            reason = "the deadline of a program is kept here and nowhere else"
        )]
        let now = Instant::now;
        let end = now() + self.deadline;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| std::io::Error::other("the child has no process id"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let left = end.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let ready = {
                let mut fds = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
                fds.extend([&*stdout, &*stderr].into_iter().filter_map(Stream::poll_fd));
                match poll(&mut fds, Some(&timeout)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
                !fds[0].revents().is_empty()
            };
            // A program that has ended has written all it will: what the pipes hold is read, and a grandchild that
            // keeps them open is not waited for.
            let more = stdout.read_ready()? | stderr.read_ready()?;
            if ready && !more {
                return Ok(true);
            }
        }
    }
}

/// One output pipe and the start of what came through it.
struct Stream {
    pipe: Option<Box<dyn Pipe>>,
    bytes: Vec<u8>,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Stream {
    fn new(pipe: Option<impl Pipe + 'static>) -> Self {
        Self { pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>), bytes: Vec::new() }
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        self.pipe.as_ref().map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
    }

    /// Reads once when there is something; `true` when there was.
    fn read_ready(&mut self) -> std::io::Result<bool> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(false) };
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer)? {
            0 => self.pipe = None,
            count => {
                let keep = count.min(OUTPUT_BYTES_MAX.saturating_sub(self.bytes.len()));
                self.bytes.extend_from_slice(&buffer[..keep]);
            }
        }
        Ok(true)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(path: &'static str) -> Tool {
        Tool::new(path, Duration::from_secs(10))
    }

    #[test]
    fn gives_standard_output() {
        assert_eq!(tool("/bin/echo").arg("a b").run(&Log::silent()).unwrap(), "a b");
    }

    #[test]
    fn reads_more_than_a_pipe_holds_and_keeps_a_bounded_part() {
        let out = tool("/usr/bin/head").args(["-c", "1000000", "/dev/zero"]).run(&Log::silent()).unwrap();
        assert_eq!(out.len(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn names_command_status_and_stderr() {
        let error = tool("/bin/ls").arg("/no/such/file").run(&Log::silent()).unwrap_err().to_string();
        assert!(error.contains("`/bin/ls /no/such/file` ended with exit status: 2"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = tool("/no/such/program").run(&Log::silent()).unwrap_err().to_string();
        assert!(error.starts_with("cannot start /no/such/program:"), "{error}");
    }

    #[test]
    fn a_deadline_kills() {
        let short = Tool::new("/bin/sleep", Duration::from_millis(50)).arg("60");
        assert!(matches!(short.run(&Log::silent()), Err(ToolError::Deadline { .. })));
    }

    #[test]
    fn statuses_that_mean_success_are_the_callers_choice() {
        assert!(tool("/bin/false").good(&[0, 1]).run(&Log::silent()).is_ok());
    }

    #[test]
    fn the_environment_is_clean() {
        let out = tool("/usr/bin/env").env("X", "y").run(&Log::silent()).unwrap();
        let mut lines: Vec<_> = out.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", "PATH=/usr/sbin:/usr/bin", "X=y"]);
    }
}
