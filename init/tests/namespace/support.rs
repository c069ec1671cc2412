//! The real `init` as PID 1 of fresh namespaces, and a client of its control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use dyad_api::control::{
    Answer, Call, Message, Oneshot, Refusal, Request, ServiceState, ServiceStatus, Stats,
};
use dyad_spec::compiled::{GiveUp, ImageTable, Readiness, Restart, Service, StopStep};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything here.
const PATIENCE_MS: u64 = 60_000;

pub(crate) fn pause(ms: u64) {
    #[allow(clippy::disallowed_methods, reason = "a test watches another process from outside")]
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

pub(crate) fn service(name: &str, script: &str) -> Service {
    Service {
        name: name.to_owned(),
        exec: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: vec![],
        capabilities: None,
        autostart: true,
        after: vec![],
        readiness: Readiness::Started,
        start_timeout_ms: 10_000,
        restart: Restart::Always,
        restart_min_ms: 100,
        restart_max_ms: 1000,
        restart_burst: 0,
        restart_window_ms: 60_000,
        give_up: GiveUp::Fail,
        stop: vec![StopStep { signal: 15, wait_ms: 1000 }],
        sockets: vec![],
        fd_store_max: 0,
        nofile: 0,
        oom_score_adj: 0,
        no_new_privs: false,
        private_tmp: false,
        read_only: vec![],
        hidden: vec![],
        syscalls: None,
        console: false,
        phases: vec![],
        begins_after: None,
        warm_up: vec![],
        watchdog_ms: 0,
        fence: false,
    }
}

/// Where the host has cgroup2.
fn cgroup2() -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let line =
        text.lines().find(|line| line.contains(" - cgroup2 ")).expect("this test needs cgroup2 mounted");
    line.split(' ').nth(4).expect("mountinfo has the mount point in field 5").into()
}

/// PID 1 in namespaces of its own, under a cgroup of its own.
pub(crate) struct Container {
    /// Who made the namespaces; nobody where PID 1 is this machine's own.
    pub(crate) outer: Option<Child>,
    pub(crate) pid: u32,
    pub(crate) group: PathBuf,
    _root: Option<tempfile::TempDir>,
}

impl Container {
    /// Boots this image; `files` are laid beside the program.
    pub(crate) fn start(services: Vec<Service>, files: &[(&str, &Path)]) -> Self {
        Self::start_with(services, files, "")
    }

    /// The same, with this environment for PID 1.
    pub(crate) fn start_with(services: Vec<Service>, files: &[(&str, &Path)], env: &str) -> Self {
        Self::prepared(services, files, env, ":")
    }

    /// The same, after shell words in the directory that is to be its root.
    pub(crate) fn prepared(
        services: Vec<Service>,
        files: &[(&str, &Path)],
        env: &str,
        prepare: &str,
    ) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let dyad = root.path().join("payload");
        std::fs::create_dir_all(&dyad).expect("payload");
        std::fs::copy(env!("CARGO_BIN_EXE_init"), dyad.join("init")).expect("init");
        for (name, from) in files {
            std::fs::copy(from, dyad.join(name)).expect("a file for the container");
        }
        std::fs::write(dyad.join("image.bin"), image(services).encode()).expect("table");
        let script = format!(
            "mkdir -p proc sys run tmp var state data efi etc bin lib64 usr/lib/dyad usr/lib/x86_64-linux-gnu
             ln -s usr/lib lib; cp /bin/busybox bin/
             mount --bind /usr/lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu; mount --bind /lib64 lib64
             cp {root}/payload/* usr/lib/dyad/
             for l in machine-id hostname hosts resolv.conf; do ln -s /run/dyad/etc/$l etc/$l; done
             {prepare}; : > began; exec chroot . /bin/busybox env -i container=dyad {env} /usr/lib/dyad/init",
            root = root.path().display(),
        );
        Self::run(root, &script)
    }

    /// The process that this shell text becomes, as PID 1 of fresh namespaces; it begins in the directory that is to be its
    /// root.
    pub(crate) fn run(root: tempfile::TempDir, script: &str) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let group = cgroup2().join(format!("dyad-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&group).expect("this test needs root: a cgroup of its own");
        let script = format!(
            "set -e; echo $$ > {group}/cgroup.procs
             exec /usr/bin/unshare --pid --fork --mount --ipc --uts --cgroup --net --kill-child sh -ec '
               T={root}/t; mkdir $T; mount -t tmpfs t $T; cd $T; mkdir dev
               mount -t tmpfs d dev; for n in null zero full random urandom; do touch dev/$n; mount --bind /dev/$n dev/$n; done
               {script}'",
            group = group.display(),
            root = root.path().display(),
        );
        #[allow(clippy::disallowed_methods, reason = "a test starts its subject")]
        let outer = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("sh");
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let pid = wait_for("PID 1", || std::fs::read_to_string(&children).ok()?.trim().parse().ok());
        Self { outer: Some(outer), pid, group, _root: Some(root) }
    }

    /// The machine that this process runs on.
    pub(crate) fn machine() -> Self {
        Self { outer: None, pid: 1, group: cgroup2(), _root: None }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run/dyad/init.sock", self.pid))
    }

    /// SIGKILL for all processes of a service, by nobody that PID 1 knows.
    pub(crate) fn kill_service(&self, name: &str) {
        let list = self.group.join(format!("system.slice/{name}.service/cgroup.procs"));
        for pid in std::fs::read_to_string(list).expect("the service's cgroup").lines() {
            let pid = Pid::from_raw(pid.parse().expect("a number")).expect("not 0");
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid as i32).expect("not 0");
        // It may have ended by an earlier one: tests judge how, and that is not lost.
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(outer) = &mut self.outer else { return };
        // Already gone when the test went well.
        let _ = outer.kill();
        let _ = outer.wait();
        remove_groups(&self.group);
    }
}

fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE_MS / 20 {
        if let Some(found) = look() {
            return found;
        }
        pause(20);
    }
    panic!("{what} did not come within {PATIENCE_MS} ms");
}

pub(crate) struct Client {
    socket: OwnedFd,
    next: u32,
}

impl Client {
    pub(crate) fn connect(container: &Container) -> Self {
        let path = container.socket();
        let socket = wait_for("the control socket", || {
            let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).ok()?;
            connect(&fd, &SocketAddrUnix::new(&path).ok()?).ok()?;
            Some(fd)
        });
        Self { socket, next: 0 }
    }

    pub(crate) fn call(&mut self, call: Call) -> io::Result<Result<Answer, Refusal>> {
        self.next += 1;
        let request = Request { id: self.next, call }.encode().expect("short");
        send(&self.socket, &request, SendFlags::NOSIGNAL)?;
        let mut bytes = vec![0; 65536];
        loop {
            let (length, _) = recv(&self.socket, &mut bytes[..], RecvFlags::empty())?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match Message::decode(&bytes[..length]).expect("a message") {
                Message::Reply { id, result } if id == self.next => return Ok(result),
                Message::Reply { .. } | Message::Event(_) => {}
            }
        }
    }

    pub(crate) fn ask(&mut self, call: Call) -> Answer {
        self.call(call).expect("a connection").expect("not refused")
    }

    pub(crate) fn services(&mut self) -> Vec<ServiceStatus> {
        match self.ask(Call::ListServices) {
            Answer::Services(list) => list,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn service(&mut self, name: &str) -> ServiceStatus {
        self.services().into_iter().find(|s| s.name == name).expect("known service")
    }

    pub(crate) fn wait_all_ready(&mut self) -> Vec<ServiceStatus> {
        wait_for("all services ready", || {
            let mut list = self.services();
            list.retain(|s| s.state != ServiceState::Stopped);
            list.iter().all(|s| s.state == ServiceState::Ready).then_some(list)
        })
    }

    pub(crate) fn stats(&mut self) -> Stats {
        match self.ask(Call::Stats) {
            Answer::Stats(stats) => stats,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn oneshot(&mut self, script: &str, deadline_ms: u32) -> dyad_api::control::Finished {
        let answer = self.ask(Call::RunOneshot(Oneshot {
            name: "probe".into(),
            exec: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("WHAT".into(), "this".into())],
            uid: 0,
            gid: 0,
            cwd: "/tmp".into(),
            deadline_ms,
            capture_max: 1000,
        }));
        match answer {
            Answer::Finished(finished) => finished,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn image(services: Vec<Service>) -> ImageTable {
    ImageTable {
        name: "test".into(),
        version: "1".into(),
        services,
        directories: vec![],
        links: vec![],
        sysctls: vec![],
        modules: vec![],
    }
}

/// Runs a program of the host, in some of the container's namespaces; what it wrote.
pub(crate) fn within(container: &Container, namespaces: &[&str], words: &[&str]) -> String {
    #[allow(clippy::disallowed_methods, reason = "a test looks at its subject from outside")]
    let mut command = Command::new("nsenter");
    command.args(["--target", &container.pid.to_string()]).args(namespaces).args(words);
    let output = command.output().expect("nsenter is installed");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A path as PID 1 of the container sees it.
pub(crate) fn inside(container: &Container, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", container.pid))
}

/// Zombies among PID 1's children.
pub(crate) fn zombies(container: &Container) -> usize {
    let children = format!("/proc/{0}/task/{0}/children", container.pid);
    let list = std::fs::read_to_string(children).expect("PID 1 is there");
    let state = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    list.split_whitespace().filter(|pid| state(pid).contains(") Z ")).count()
}
