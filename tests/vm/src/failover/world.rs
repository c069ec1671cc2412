//! Machines for the programs of others: namespaces on a bridge of their own, each with a root in which Debian's packages are
//! unpacked and nothing is installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::boot::wait;

/// For whatever must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The bridge's own address, where clients are.
pub(crate) const CLIENTS: &str = "10.78.0.1";
/// Both machines.
pub(crate) const MACHINES: [&str; 2] = ["m1", "m2"];
/// Their addresses.
pub(crate) const ADDRESSES: [&str; 2] = ["10.78.0.11", "10.78.0.12"];
/// What PostgreSQL and Patroni run as.
pub(crate) const USER: &str = "5432:5432";
/// PostgreSQL's programs.
pub(crate) const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The bridge and what all machines are made of. Everything ends with it.
pub(crate) struct World {
    dir: tempfile::TempDir,
    holder: Child,
    packages: PathBuf,
}

/// One machine that is on.
pub(crate) struct Machine {
    name: &'static str,
    child: Child,
}

#[allow(clippy::disallowed_methods, reason = "programs that are spoken to while they run")]
fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

fn links_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

impl World {
    /// An empty bridge; Debian's packages are unpacked in `packages`.
    pub(crate) fn new(packages: &Path) -> Self {
        let holder = command("unshare", &["--net", "--", "sleep", "infinity"])
            .spawn()
            .expect("unshare (package util-linux) can be started");
        let own = links_of(std::process::id());
        wait("a network namespace", PATIENCE, || links_of(holder.id()).is_some_and(|it| Some(it) != own));
        let world = Self {
            dir: tempfile::tempdir().expect("a temporary directory can be made"),
            holder,
            packages: packages.to_owned(),
        };
        // Everybody must get through to what is below.
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode is set");
        world.sh(&format!(
            "ip link set lo up; ip link add br0 type bridge forward_delay 0; ip address add {CLIENTS}/24 dev br0; \
             ip link set br0 up"
        ));
        world
    }

    /// A program among the clients.
    pub(crate) fn clients(&self, program: &Path, args: &[&str]) -> Command {
        let mut all = command("nsenter", &["--net", "--target", &self.holder.id().to_string(), "--"]);
        all.arg(program).args(args);
        all
    }

    /// A shell's text among the clients, which must succeed; what it says.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output =
            self.clients(Path::new("sh"), &["-ec", script]).output().expect("nsenter can be started");
        crate::stdout(script, &output)
    }

    /// The root of a machine, made when it is asked for the first time. `data` in it belongs to [`USER`].
    pub(crate) fn root(&self, name: &str) -> PathBuf {
        let root = self.dir.path().join(name);
        if !root.exists() {
            for part in ["usr", "etc", "proc", "dev", "run", "tmp", "data", "var"] {
                fs::create_dir_all(root.join(part)).expect("a directory can be made");
            }
            for part in ["bin", "sbin", "lib", "lib64"] {
                symlink(format!("usr/{part}"), root.join(part)).expect("a link can be made");
            }
            symlink("/run", root.join("var/run")).expect("a link can be made");
            for (file, text) in [
                ("passwd", "root:x:0:0::/:/bin/sh\npostgres:x:5432:5432::/tmp:/bin/sh\n"),
                ("group", "root:x:0:\npostgres:x:5432:\n"),
                ("hosts", "127.0.0.1 localhost\n"),
            ] {
                fs::write(root.join("etc").join(file), text).expect("a file can be written");
            }
            for (part, mode) in [("tmp", 0o1777), ("data", 0o755)] {
                fs::set_permissions(root.join(part), fs::Permissions::from_mode(mode))
                    .expect("a mode is set");
            }
            std::os::unix::fs::chown(root.join("data"), Some(5432), Some(5432)).expect("an owner is set");
        }
        root
    }

    /// Switches a machine on: `script` is run beside its root, which is in `$root`, and its end is the machine's.
    pub(crate) fn start(&self, name: &'static str, address: &str, script: &str) -> Machine {
        let (root, packages) = (self.root(name), &self.packages);
        let script = format!(
            "root={root}
             mount --bind {packages}/usr $root/usr; mount -t proc proc $root/proc; mount --rbind /dev $root/dev
             mount -t tmpfs -o mode=1777 run $root/run
             until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
             ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0
             {script}",
            root = root.display(),
            packages = packages.display(),
        );
        let log = fs::File::options().create(true).append(true).open(root.join("log")).expect("a log");
        let more = log.try_clone().expect("a log");
        let inside = ["--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL", "--"];
        let target = self.holder.id().to_string();
        // A session of its own, as a container of the lab has: the scheduler gives each its share, whatever the bench's is.
        let child = command("setsid", &["nsenter", "--net", "--target", &target, "--", "unshare"])
            .args(inside)
            .args(["sh", "-ec", &script])
            .stdout(log)
            .stderr(more)
            .spawn()
            .expect("nsenter (package util-linux) can be started");
        let (own, clients) = (links_of(std::process::id()), links_of(self.holder.id()));
        wait("a machine's namespaces", PATIENCE, || {
            let its = links_of(child.id());
            its.is_some() && its != own && its != clients
        });
        self.sh(&format!(
            "ip link delete {name} 2>/dev/null || true; ip link add {name} type veth peer name eth0 netns {pid}; \
             ip link set {name} master br0 up",
            pid = child.id()
        ));
        Machine { name, child }
    }

    /// Pulls a machine's plug: nobody hears anything of it from then on.
    pub(crate) fn power_cut(&self, machine: Machine) {
        self.sh(&format!("ip link set {} down", machine.name));
        drop(machine);
    }

    /// What a machine said, the end of it.
    pub(crate) fn said(&self, name: &str) -> String {
        let text = fs::read(self.root(name).join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Machine {
    /// A text of the shell in it; what it says, also when it fails.
    pub(crate) fn look(&self, script: &str) -> String {
        let (target, inside) = (self.child.id().to_string(), ["--net", "--mount", "--target"]);
        let output = command("nsenter", &inside).args([&target, "--", "sh", "-c", script]).output();
        String::from_utf8_lossy(&output.expect("nsenter can be started").stdout).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process all others end, and then the one that waits for it.
        let pid = self.child.id();
        let first = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for pid in first.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
