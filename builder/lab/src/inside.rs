//! The processes between the daemon and a container's PID 1, and before the witness: each a hidden command of this very
//! program, because only a process of one thread may change its namespaces.
//!
//! `keep` makes the namespaces that a process cannot enter itself (its children's process ids), waits for the daemon to
//! plug the network in, and starts `inside`, whose process is PID 1: that one mounts the root and becomes `init`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{dup2_stdin, pivot_root};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::{AtPath, Doing, LabError, Result, refuse};
use crate::netlink::{self, Netlink};
use crate::process::{self, Program};

/// Said when the namespaces are there.
pub(crate) const UNSHARED: &str = "unshared";
/// Heard when the network is plugged in.
pub(crate) const GO: &str = "go";
/// Exit code of `keep` when PID 1 wants to boot again.
pub(crate) const REBOOT: u8 = 3;
/// PID 1 of every image.
const INIT: &str = "/usr/lib/dyad/init";
/// Device nodes of the host that a container has.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What PID 1 finds. All paths are the host's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The unpacked image.
    pub(crate) root: PathBuf,
    /// The node's own directory: `state`, `data` and `efi` are shown by these names.
    pub(crate) dir: PathBuf,
    /// A named pipe that is the console.
    pub(crate) console: PathBuf,
    /// The node's control group.
    pub(crate) cgroup: PathBuf,
}

/// What the witness finds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Station {
    /// Its interface, which the daemon plugs in.
    pub(crate) interface: String,
    /// Addresses with their prefix lengths.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
}

fn decode<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| LabError::Refused(format!("a hidden command of the lab: {e}")))
}

/// Tells the daemon, over standard input, that the namespaces are there, and waits for the network.
fn meet() -> Result<UnixStream> {
    let sync = std::io::stdin().as_fd().try_clone_to_owned().doing("take over standard input")?;
    let sync = UnixStream::from(sync);
    writeln!(&sync, "{UNSHARED}").doing("tell the daemon of the namespaces")?;
    match hear(&sync)?.as_str() {
        GO => Ok(sync),
        other => refuse(format!("the daemon said {other:?}")),
    }
}

/// One line from the other side.
pub(crate) fn hear(stream: &UnixStream) -> Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line).doing("wait for the other side of the lab")?;
    Ok(line.trim_end().to_owned())
}

/// The hidden command `keep`. Returns the exit code when PID 1 has ended.
pub(crate) fn keep(text: &str) -> Result<u8> {
    let spec: Spec = decode(text)?;
    let own = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(own).doing("make a container's namespaces")?;
    let sync = meet()?;
    // PID 1 never waits for somebody who reads its console: for it, and for no other, a full pipe loses lines.
    let console = File::options()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&spec.console)
        .at("open", &spec.console)?;
    let (_leash, theirs) = UnixStream::pair().doing("make a container's leash")?;
    let mut init = process::spawn_inside(text, theirs.into(), console)?;
    writeln!(&sync, "{}", init.id()).doing("tell the daemon of PID 1")?;
    let status = init.wait().doing("wait for PID 1")?;
    // What reboot(2) in a container does to its PID 1.
    match status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGINT)) => Ok(0),
        Some(Ok(Signal::SIGHUP)) => Ok(REBOOT),
        _ => refuse(format!("PID 1 ended: {status}")),
    }
}

/// The hidden command `inside`. Returns only when something failed.
pub(crate) fn inside(text: &str) -> LabError {
    match prepare(text) {
        Ok(()) => Program::host(INIT.into()).become_it(&[], &[]),
        Err(e) => e,
    }
}

fn prepare(text: &str) -> Result<()> {
    let spec: Spec = decode(text)?;
    set_pdeathsig(Signal::SIGKILL).doing("ask for a signal at the parent's death")?;
    let mut byte = [0];
    if recv(0, &mut byte, MsgFlags::MSG_DONTWAIT) == Ok(0) {
        // It died before the request; its end of the leash is closed.
        return refuse("the container's keeper is gone");
    }
    cgroup::enter(&spec.cgroup)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).doing("make a container's namespaces")?;
    mounts(&spec)?;
    let null = File::open("/dev/null").at("open", Path::new("/dev/null"))?;
    dup2_stdin(&null).doing("close standard input")
}

fn mounts(spec: &Spec) -> Result<()> {
    let nowhere = None::<&str>;
    mount(nowhere, "/", nowhere, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nowhere)
        .doing("keep a container's mounts to itself")?;
    let root = spec.root.as_path();
    bind(root, root, MsFlags::MS_RDONLY)?;
    filesystem("proc", &root.join("proc"), SAFE, "")?;
    guard_proc(&root.join("proc"))?;
    filesystem("sysfs", &root.join("sys"), SAFE | MsFlags::MS_RDONLY, "")?;
    devices(&root.join("dev"), &spec.console)?;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (name, flags) in [("state", kept), ("data", kept), ("efi", SAFE | MsFlags::MS_RDONLY)] {
        bind(&spec.dir.join(name), &root.join(name), flags)?;
    }
    std::env::set_current_dir(root).at("enter", root)?;
    // The old root is stacked under the new one by the first call and taken away by the second.
    pivot_root(".", ".").doing("change the root of a container")?;
    umount2(".", MntFlags::MNT_DETACH).doing("leave the host's root")?;
    std::env::set_current_dir("/").at("enter", Path::new("/"))
}

fn filesystem(kind: &str, at: &Path, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, Some(data)).at("mount a container's file system on", at)
}

/// Shows `from` at `to` with these flags beside those that it already has, which an unprivileged mount may not lose.
fn bind(from: &Path, to: &Path, flags: MsFlags) -> Result<()> {
    let nowhere = None::<&str>;
    mount(Some(from), to, nowhere, MsFlags::MS_BIND, nowhere).at("bind-mount on", to)?;
    let has = statvfs(to).at("look at", to)?.flags();
    let mut all = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    for (mark, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if has.contains(mark) {
            all |= flag;
        }
    }
    mount(nowhere, to, nowhere, all, nowhere).at("set the flags of the mount", to)
}

/// Settings of the whole machine can be read, and those of the container's own network written.
fn guard_proc(proc: &Path) -> Result<()> {
    let sys = proc.join("sys");
    bind(&sys, &sys, SAFE | MsFlags::MS_RDONLY)?;
    let net = sys.join("net");
    bind(&net, &net, SAFE)?;
    let trigger = proc.join("sysrq-trigger");
    if trigger.exists() {
        bind(Path::new("/dev/null"), &trigger, MsFlags::empty())?;
    }
    Ok(())
}

fn devices(dev: &Path, console: &Path) -> Result<()> {
    filesystem("tmpfs", dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0755,size=64k")?;
    let node = |from: &Path, name: &str| {
        let at = dev.join(name);
        File::create(&at).at("create", &at)?;
        mount(Some(from), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).at("bind-mount on", &at)
    };
    for name in NODES {
        node(&Path::new("/dev").join(name), name)?;
    }
    node(console, "console")?;
    let ptmx = dev.join("ptmx");
    symlink("pts/ptmx", &ptmx).at("make the link", &ptmx)?;
    fs::create_dir(dev.join("pts")).at("create directory", dev)
}

/// The hidden command `station`: becomes the program in a network namespace of its own. Returns only when something failed.
pub(crate) fn station(text: &str) -> LabError {
    let ready = || -> Result<Station> {
        let station: Station = decode(text)?;
        unshare(CloneFlags::CLONE_NEWNET).doing("make the witness' network namespace")?;
        meet()?;
        netlink::configure(&Netlink::open()?, &station.interface, &station.addresses)?;
        let null = File::open("/dev/null").at("open", Path::new("/dev/null"))?;
        dup2_stdin(&null).doing("close standard input")?;
        Ok(station)
    };
    match ready() {
        Ok(Station { argv, .. }) => match argv.split_first() {
            Some((file, args)) => {
                let args: Vec<_> = args.iter().map(Into::into).collect();
                Program::host(file.into()).become_it(&args, &[])
            }
            None => LabError::Refused("no program for the witness".into()),
        },
        Err(e) => e,
    }
}
