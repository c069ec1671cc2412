//! Starting other programs: the only place that makes a `Command`.
//!
//! Long-running children are started through this program itself (`lab launch`), which asks the kernel to kill them when
//! their parent dies and then becomes them. So a daemon that is killed leaves nothing behind.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

use crate::clock::{self, Deadline};
use crate::error::{AtPath, Doing, LabError, Result, refuse};

/// The most that is kept of a short-lived program's output.
const OUTPUT_MAX: u64 = 1 << 20;
/// How often a short-lived program is looked at.
const POLL: Duration = Duration::from_millis(20);
/// This very program, even when its file was replaced since.
const SELF: &str = "/proc/self/exe";

/// A program as it is really started: directly, or by its own dynamic loader when it comes from the tools root.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Program {
    /// The file that is executed.
    pub(crate) file: PathBuf,
    /// Arguments before the caller's own.
    pub(crate) before: Vec<OsString>,
    /// Variables that it needs beside the caller's.
    pub(crate) env: Vec<(String, PathBuf)>,
}

impl Program {
    /// A program of the host.
    pub(crate) fn host(file: PathBuf) -> Self {
        Program { file, before: Vec::new(), env: Vec::new() }
    }

    /// This very program.
    pub(crate) fn itself() -> Self {
        Program::host(PathBuf::from(SELF))
    }

    #[allow(clippy::disallowed_methods, reason = "the lab's subprocess wrapper")]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.args(&self.before).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Becomes the program. Returns only when that failed.
    pub(crate) fn become_it(&self, args: &[OsString], env: &[(&str, String)]) -> LabError {
        let error = self.command().args(args).envs(env.iter().map(|(k, v)| (k, v))).exec();
        LabError::File { what: "execute", path: self.file.clone(), source: error }
    }

    /// Runs the program to its end and returns its standard output; a failure carries its last words.
    pub(crate) fn output(&self, args: &[&str], env: &[(&str, String)], limit: Duration) -> Result<String> {
        let mut command = self.command();
        command.args(args).envs(env.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().at("execute", &self.file)?;
        let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let status = wait(&mut child, limit);
        if status.is_none() {
            end(&mut child);
        }
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        match status {
            Some(status) if status.success() => Ok(out),
            Some(status) => refuse(format!("{}: {status}: {}", self.file.display(), err.trim())),
            None => Err(LabError::Deadline {
                what: format!("{} did not end", self.file.display()),
                seconds: limit.as_secs(),
                next: format!("it said: {}", err.trim()),
            }),
        }
    }
}

impl Program {
    /// Whether the program prints `words` on its standard output in time. It is killed either way.
    pub(crate) fn says(&self, args: &[OsString], words: &str, limit: Duration) -> bool {
        let mut command = self.command();
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { return false };
        let (sender, heard) = std::sync::mpsc::channel();
        let (pipe, words) = (child.stdout.take(), words.as_bytes().to_vec());
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let mut bytes =
                pipe.into_iter().flat_map(|p| std::io::BufReader::new(p).bytes()).map_while(|b| b.ok());
            let found = bytes.by_ref().take(OUTPUT_MAX as usize).any(|byte| {
                said.push(byte);
                said.ends_with(&words)
            });
            // The asker may have given up.
            let _ = sender.send(found);
        });
        let found = heard.recv_timeout(limit).unwrap_or(false);
        end(&mut child);
        found
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error is what there is to show.
            let _ = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a child; `None` when the time is up first.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Deadline::after(limit);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        clock::pause(deadline.left()?.min(POLL));
    }
}

/// Kills a child and reaps it.
pub(crate) fn end(child: &mut Child) {
    // Fails only when it is dead already.
    let _ = child.kill();
    let _ = child.wait();
}

/// A long-running program to start.
pub(crate) struct Launch {
    pub(crate) program: Program,
    pub(crate) args: Vec<OsString>,
    /// Its standard input; nothing without.
    pub(crate) stdin: Option<OwnedFd>,
    /// Stay open in the child under their numbers.
    pub(crate) passed: Vec<OwnedFd>,
    /// Gets standard output and error.
    pub(crate) log: PathBuf,
}

impl Launch {
    /// Starts a child that dies with the calling thread's process. Call it from a thread that lives as long as the
    /// process: the kernel sends the death signal when the *thread* that started the child ends.
    pub(crate) fn start(self) -> Result<Child> {
        let Launch { program, args, stdin, passed, log } = self;
        for fd in &passed {
            fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).doing("let a child inherit a socket")?;
        }
        let log_file = append(&log)?;
        let mut launch = itself(&[crate::cli::LAUNCH]);
        launch.arg(getpid().to_string()).arg("--").arg(&program.file).args(&program.before).args(args);
        launch.envs(program.env.iter().map(|(k, v)| (k, v)));
        launch.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        launch.stdout(log_file.try_clone().at("duplicate", &log)?).stderr(log_file);
        launch.spawn().at("execute", Path::new(SELF))
    }
}

/// This program again with one of its hidden commands.
#[allow(clippy::disallowed_methods, reason = "the lab's subprocess wrapper")]
fn itself(words: &[&str]) -> Command {
    let mut command = Command::new(SELF);
    command.arg("lab").args(words);
    command
}

/// Starts what becomes PID 1 of a container: as the first child of a process that made a namespace for the process ids of
/// its children.
pub(crate) fn spawn_inside(spec: &str, leash: OwnedFd, console: File) -> Result<Child> {
    let error = console.try_clone().doing("duplicate a container's console")?;
    let mut command = itself(&[crate::cli::INSIDE, spec]);
    command.env_clear().env("container", "dyad").stdin(leash).stdout(console).stderr(error);
    command.spawn().at("execute", Path::new(SELF))
}

/// Starts the daemon: this program again, with `leash` as its standard input and its words in `log`.
pub(crate) fn spawn_daemon(state: &Path, leash: OwnedFd, lock: &File, log: &Path) -> Result<Child> {
    // The lock's descriptor goes along, never closed: the lock holds until the daemon and all its children are gone.
    fcntl(lock.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).doing("let the daemon inherit the lock")?;
    let log_file = append(log)?;
    let mut command = itself(&[crate::cli::DAEMON, "--state"]);
    command.arg(state).stdin(leash).stdout(log_file.try_clone().at("duplicate", log)?).stderr(log_file);
    let child = command.spawn().at("execute", Path::new(SELF));
    fcntl(lock.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).doing("keep the lock from other children")?;
    child
}

fn append(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).at("open", path)
}

/// The hidden `launch` command: binds this process to its parent's life and becomes `argv`.
pub(crate) fn launch(parent: i32, argv: &[OsString]) -> LabError {
    if let Err(source) = set_pdeathsig(Signal::SIGKILL) {
        return LabError::Os { what: "ask for a signal at the parent's death", source: source.into() };
    }
    // The parent may have died before the request.
    if getppid() != Pid::from_raw(parent) {
        return LabError::Refused("the lab's daemon is gone".into());
    }
    match argv.split_first() {
        Some((file, args)) => Program::host(PathBuf::from(file)).become_it(args, &[]),
        None => LabError::Refused("nothing to launch".into()),
    }
}

/// A program in the host's usual directories, those of the administrator included.
pub(crate) fn on_host(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/libexec"];
    std::env::split_paths(&path)
        .chain(usual.iter().map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(OsStr::new(name)))
        .find(|file| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_failure_and_deadline_are_told_apart() {
        let sh = Program::host(on_host("sh").unwrap());
        let run = |script: &str| sh.output(&["-c", script], &[("WORD", "hi".into())], Duration::from_secs(2));
        assert_eq!(run("echo $WORD").unwrap(), "hi\n");
        assert!(run("echo broken >&2; exit 3").unwrap_err().to_string().contains("exit status: 3: broken"));
        let late = sh.output(&["-c", "exec sleep 9"], &[], Duration::from_millis(100)).unwrap_err();
        assert!(matches!(late, LabError::Deadline { .. }), "{late}");
        assert_eq!(on_host("surely-no-such-program"), None);
        let says = |script: &str| sh.says(&["-c".into(), script.into()], "words", Duration::from_millis(500));
        assert!(says("echo many words; exec sleep 9"));
        assert!(!says("echo nothing") && !says("exec sleep 9"));
    }
}
