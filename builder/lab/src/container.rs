//! A node as a container: the image's root and its real PID 1 in fresh namespaces.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use dyad_api::client::Client;
use dyad_api::operator::{Call, SOCKET};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup;
use crate::console::Console;
use crate::control::{Cable, Power};
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::inside::{self, GO, REBOOT, Spec, UNSHARED};
use crate::member::{Attach, Body, Ended, Kind, signal};
use crate::netlink::Far;
use crate::network::{Network, Plugged};
use crate::process::{Launch, Program};
use crate::topology::{Node, Role};
use crate::vm::ask;

/// How long a container may take from its namespaces to its PID 1.
const START_WAIT: Duration = Duration::from_secs(20);

/// What every container of a lab is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The packet filter's program, for cuts.
    pub(crate) nft: Program,
    /// The lab's control group.
    pub(crate) cgroup: PathBuf,
    /// The disk image whose root they run.
    pub(crate) image: PathBuf,
}

/// A node of the container backend.
pub(crate) struct Container {
    pub(crate) node: Node,
    pub(crate) dir: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) network: Arc<Network>,
}

impl Kind for Container {
    fn name(&self) -> String {
        self.node.name()
    }

    fn prepare(&self) -> Result<(Launch, Attach)> {
        let cgroup = self.cgroup.join(self.name());
        cgroup::fresh(&cgroup)?;
        let console = self.dir.join("console");
        crate::state::remove_file(&console)?;
        mkfifo(&console, Mode::from_bits_truncate(0o600)).at("make the pipe", &console)?;
        let spec = Spec { root: self.root.clone(), dir: self.dir.clone(), console, cgroup: cgroup.clone() };
        let text = serde_json::to_string(&spec).expect("a spec holds only paths of the lab, which are text");
        let (sync, theirs) = UnixStream::pair().doing("make a container's sockets")?;
        let launch = hidden(crate::cli::KEEP, text, theirs, self.dir.join("container.log"));
        let (node, dir, network) = (self.node, self.dir.clone(), self.network.clone());
        let attach = move |keeper| {
            let body = attach(keeper, node, &dir, &spec.console, cgroup, network, &sync)?;
            Ok(Arc::new(body) as Arc<dyn Body>)
        };
        Ok((launch, Box::new(attach)))
    }
}

/// A hidden command of this program that speaks with the daemon over its standard input.
pub(crate) fn hidden(command: &str, spec: String, sync: UnixStream, log: PathBuf) -> Launch {
    Launch {
        program: Program::itself(),
        args: vec!["lab".into(), command.into(), spec.into()],
        stdin: Some(OwnedFd::from(sync)),
        passed: Vec::new(),
        log,
    }
}

/// Waits for the namespaces of a hidden command, plugs the network in and lets it go on.
pub(crate) fn meet(sync: &UnixStream, log: &Path, plug: impl FnOnce() -> Result<()>) -> Result<()> {
    sync.set_read_timeout(Some(START_WAIT)).doing("set a deadline on a member's start")?;
    heard(sync, log).and_then(|said| match said.as_str() {
        UNSHARED => Ok(()),
        other => refuse(format!("it said {other:?}")),
    })?;
    plug()?;
    let mut writer = sync;
    writeln!(writer, "{GO}").doing("let a member go on")
}

/// A line of a hidden command; when it ended instead, what its log says last.
fn heard(sync: &UnixStream, log: &Path) -> Result<String> {
    match inside::hear(sync)? {
        line if line.is_empty() => {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            refuse(said.lines().last().unwrap_or("it ended without a word").to_owned())
        }
        line => Ok(line),
    }
}

fn attach(
    keeper: Pid,
    node: Node,
    dir: &Path,
    console: &Path,
    cgroup: PathBuf,
    network: Arc<Network>,
    sync: &UnixStream,
) -> Result<Running> {
    let log = dir.join("container.log");
    // A pipe is at its end while nobody has it open for writing: held open until PID 1 has it.
    let reader = pipe(console, OFlag::O_RDONLY)?;
    let writer = pipe(console, OFlag::O_WRONLY)?;
    let mut ports = Vec::new();
    meet(sync, &log, || {
        for role in Role::ALL {
            let far = Far { name: role.name(), mac: node.mac(role), pid: Some(keeper), one_segment: false };
            ports.push(network.plug(&node.name(), node.link(role), &far)?);
        }
        Ok(())
    })?;
    let said = heard(sync, &log)?;
    let Ok(init) = said.parse() else { return refuse(format!("its keeper said {said:?}")) };
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).doing("wait for a container's console")?;
    let console = Console::start(reader, None, &dir.join("serial.log"))?;
    drop(writer);
    Ok(Running { name: node.name(), keeper, init: Pid::from_raw(init), cgroup, console, network, ports, log })
}

fn pipe(path: &Path, way: OFlag) -> Result<File> {
    let (read, write) = (way == OFlag::O_RDONLY, way == OFlag::O_WRONLY);
    let mut options = File::options();
    options.read(read).write(write).custom_flags(OFlag::O_NONBLOCK.bits());
    options.open(path).at("open", path)
}

struct Running {
    name: String,
    keeper: Pid,
    init: Pid,
    cgroup: PathBuf,
    console: Arc<Console>,
    network: Arc<Network>,
    ports: Vec<Plugged>,
    log: PathBuf,
}

impl Running {
    /// The supervisor's socket, seen through PID 1's root.
    fn supervisor(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/{}/root{SOCKET}", self.init))
    }
}

impl Body for Running {
    fn pid(&self) -> Pid {
        self.init
    }

    fn kill(&self) -> Result<()> {
        // With its parent's end PID 1 ends too; with PID 1 everything in the namespace does, in one step.
        signal(self.init, Signal::SIGKILL).or_else(|_| signal(self.keeper, Signal::SIGKILL))
    }

    fn press_power(&self) -> Result<()> {
        signal(self.init, Signal::SIGTERM)
    }

    fn pause(&self, stop_clock: bool) -> Result<()> {
        if stop_clock {
            return refuse(format!("{}'s clock is the host's: a container cannot stop it", self.name));
        }
        // The kernel answers pings and takes data for processes that stand still; a stalled machine does not.
        self.network.silence(&self.name, true)?;
        cgroup::freeze(&self.cgroup, true)
    }

    fn resume(&self, _: Power) -> Result<()> {
        cgroup::freeze(&self.cgroup, false)?;
        self.network.silence(&self.name, false)
    }

    fn cable(&self, role: Role, cable: Cable) -> Result<()> {
        let nics = Role::ALL.iter().zip(&self.ports).filter(|(of, _)| **of == role);
        nics.map(|(_, port)| port).try_for_each(|port| self.network.cable(port, cable))
    }

    /// PID 1 was there before the body.
    fn confirm(&self) -> Result<()> {
        Ok(())
    }

    fn agent(&self) -> bool {
        self.supervisor().is_ok()
    }

    fn call(&self, call: Call) -> Result<Value> {
        let socket = match self.supervisor() {
            Ok(socket) => socket,
            Err(e) => return refuse(format!("{}'s supervisor does not listen yet: {e}", self.name)),
        };
        let copy = socket.try_clone().doing("duplicate a supervisor's socket")?;
        ask(&self.name, &mut Client::new(socket, 1), &copy, call)
    }

    fn console(&self) -> Option<&Arc<Console>> {
        Some(&self.console)
    }

    fn detach(&self) {
        self.ports.iter().for_each(|port| self.network.unplug(port));
        let awake = self.network.silence(&self.name, false);
        if let Err(e) = awake.and_then(|()| cgroup::remove(&self.cgroup)) {
            eprintln!("daemon: {}: {e}", self.name);
        }
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        match status.code() {
            Some(0) => Ended::PoweredOff,
            Some(code) if code == i32::from(REBOOT) => Ended::Reboots,
            _ => Ended::Failed(match heard_last(&self.log) {
                Ok(line) => line,
                Err(e) => format!("its keeper ended with {status}: {e}"),
            }),
        }
    }
}

fn heard_last(log: &Path) -> std::result::Result<String, LabError> {
    let said = std::fs::read_to_string(log).at("read", log)?;
    Ok(said.lines().last().unwrap_or("its keeper was killed").to_owned())
}
