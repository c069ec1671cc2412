//! The real `init` as PID 1 of fresh namespaces: starts, kills, crashes, orphans, shutdown. It makes users' processes and
//! control groups, so it needs root, cgroup2, util-linux and busybox: tests/vm runs it in a guest.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dyad_api::control::{
    Answer, Call, Message, Oneshot, Refusal, Request, ServiceState, ServiceStatus, Shutdown, SignalTarget,
};
use dyad_spec::compiled::{ImageTable, Readiness, Restart, Service, StopStep};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};
use rustix::process::{Pid, Signal, kill_process};

const SERVICES: usize = 20;
/// Longest wait for anything here.
const PATIENCE_MS: u64 = 20_000;

fn pause(ms: u64) {
    #[allow(clippy::disallowed_methods, reason = "a test watches another process from outside")]
    std::thread::sleep(std::time::Duration::from_millis(ms));
}

fn service(name: &str, script: &str) -> Service {
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
        stop: vec![StopStep { signal: 15, wait_ms: 1000 }],
        sockets: vec![],
        fd_store_max: 0,
        nofile: 0,
        oom_score_adj: 0,
        no_new_privs: false,
        console: false,
        phases: vec![],
        watchdog_ms: 0,
        fence: false,
    }
}

fn image() -> ImageTable {
    let mut services: Vec<Service> =
        (0..SERVICES).map(|n| service(&format!("s{n}"), "exec /bin/busybox sleep 1000")).collect();
    let mut stubborn = service("stubborn", "trap '' TERM; while :; do /bin/busybox sleep 1000; done");
    stubborn.autostart = false;
    services.push(stubborn);
    let mut writer = service("writer", "/bin/busybox sleep 1000 & exec /bin/busybox sleep 1000");
    writer.fence = true;
    services.push(writer);
    let mut user = service("user", "exec /bin/busybox sleep 1000");
    (user.uid, user.gid, user.groups) = (1234, 2345, vec![3456]);
    user.capabilities = Some(vec![10]);
    user.no_new_privs = true;
    services.push(user);
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

/// Where the host has cgroup2.
fn cgroup2() -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let line =
        text.lines().find(|line| line.contains(" - cgroup2 ")).expect("this test needs cgroup2 mounted");
    line.split(' ').nth(4).expect("mountinfo has the mount point in field 5").into()
}

struct Container {
    outer: Child,
    pid: u32,
    group: PathBuf,
    _root: tempfile::TempDir,
}

impl Container {
    fn start() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let dyad = root.path().join("payload");
        std::fs::create_dir_all(&dyad).expect("payload");
        std::fs::copy(env!("CARGO_BIN_EXE_init"), dyad.join("init")).expect("init");
        std::fs::write(dyad.join("image.bin"), image().encode()).expect("table");
        let group = cgroup2().join(format!("dyad-test-{}", std::process::id()));
        std::fs::create_dir_all(&group).expect("this test needs root: a cgroup of its own");
        let script = format!(
            "set -e; echo $$ > {group}/cgroup.procs
             exec /usr/bin/unshare --pid --fork --mount --ipc --uts --cgroup --net --kill-child sh -ec '
               T={root}/t; mkdir $T; mount -t tmpfs t $T; cd $T
               mkdir -p proc sys dev run tmp var state data efi etc bin lib64 usr/lib/dyad usr/lib/x86_64-linux-gnu
               ln -s usr/lib lib; cp /bin/busybox bin/
               mount --bind /usr/lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu; mount --bind /lib64 lib64
               cp {root}/payload/* usr/lib/dyad/
               mount -t tmpfs d dev; for n in null zero full random urandom; do touch dev/$n; mount --bind /dev/$n dev/$n; done
               for l in machine-id hostname hosts resolv.conf; do ln -s /run/dyad/etc/$l etc/$l; done
               exec chroot . /bin/busybox env -i container=dyad /usr/lib/dyad/init'",
            group = group.display(),
            root = root.path().display(),
        );
        #[allow(clippy::disallowed_methods, reason = "a test starts its subject")]
        let outer = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("sh");
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let pid = wait_for("PID 1", || std::fs::read_to_string(&children).ok()?.trim().parse().ok());
        Self { outer, pid, group, _root: root }
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run/dyad/init.sock", self.pid))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid as i32).expect("not 0");
        kill_process(pid, signal).expect("PID 1 is there");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Already gone when the test went well.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
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

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE_MS / 20 {
        if let Some(found) = look() {
            return found;
        }
        pause(20);
    }
    panic!("{what} did not come within {PATIENCE_MS} ms");
}

struct Client {
    socket: OwnedFd,
    next: u32,
}

impl Client {
    fn connect(container: &Container) -> Self {
        let path = container.socket();
        let socket = wait_for("the control socket", || {
            let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).ok()?;
            connect(&fd, &SocketAddrUnix::new(&path).ok()?).ok()?;
            Some(fd)
        });
        Self { socket, next: 0 }
    }

    fn call(&mut self, call: Call) -> io::Result<Result<Answer, Refusal>> {
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

    fn ask(&mut self, call: Call) -> Answer {
        self.call(call).expect("a connection").expect("not refused")
    }

    fn services(&mut self) -> Vec<ServiceStatus> {
        match self.ask(Call::ListServices) {
            Answer::Services(list) => list,
            other => panic!("{other:?}"),
        }
    }

    fn service(&mut self, name: &str) -> ServiceStatus {
        self.services().into_iter().find(|s| s.name == name).expect("known service")
    }

    fn wait_all_ready(&mut self) -> Vec<ServiceStatus> {
        wait_for("all services ready", || {
            let list: Vec<_> = self.services().into_iter().filter(|s| s.name != "stubborn").collect();
            list.iter().all(|s| s.state == ServiceState::Ready).then_some(list)
        })
    }

    fn oneshot(&mut self, script: &str, deadline_ms: u32) -> dyad_api::control::Finished {
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

/// Zombies among PID 1's children.
fn zombies(container: &Container) -> usize {
    let children = format!("/proc/{0}/task/{0}/children", container.pid);
    let list = std::fs::read_to_string(children).expect("PID 1 is there");
    let state = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    list.split_whitespace().filter(|pid| state(pid).contains(") Z ")).count()
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_life() {
    let container = Container::start();
    let mut client = Client::connect(&container);
    let began = client.wait_all_ready();
    kills_and_restarts(&container, &mut client, &began);
    identities(&mut client);
    oneshots(&container, &mut client);
    crashes(&container, &mut client);
    ladder_and_fence(&mut client);
    shutdown(container, &mut client);
}

fn kills_and_restarts(container: &Container, client: &mut Client, began: &[ServiceStatus]) {
    for status in began.iter().filter(|s| s.name.starts_with('s')) {
        let target = SignalTarget::Main(9);
        client.ask(Call::Signal { name: status.name.clone(), target });
    }
    let after = wait_for("all restarted", || {
        let list = client.services();
        let all = list.iter().filter(|s| s.name.starts_with('s') && s.name != "stubborn");
        all.clone().all(|s| s.state == ServiceState::Ready && s.restarts == 1).then_some(list.clone())
    });
    for (old, new) in began.iter().zip(&after).filter(|(old, _)| old.name.starts_with('s')) {
        assert_ne!(old.pid, new.pid, "{}", old.name);
        assert_eq!(new.last_exit, Some(dyad_api::control::ExitStatus::Signaled(9)));
    }
    assert_eq!(zombies(container), 0);
}

fn identities(client: &mut Client) {
    let pid = client.service("user").pid;
    let status =
        client.oneshot(&format!("grep -E '^(Uid|Gid|Groups|Cap|NoNew|Sig)' /proc/{pid}/status"), 5000).stdout;
    let status = String::from_utf8(status).expect("text");
    for line in [
        "Uid:\t1234\t1234\t1234\t1234",
        "Gid:\t2345\t2345\t2345\t2345",
        "Groups:\t3456",
        "CapEff:\t0000000000000400",
        "CapBnd:\t0000000000000400",
        "NoNewPrivs:\t1",
        "SigIgn:\t0000000000000000",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(status.contains(line), "no {line:?} in\n{status}");
    }
}

fn oneshots(container: &Container, client: &mut Client) {
    use dyad_api::control::ExitStatus;
    let done = client.oneshot("echo $WHAT; pwd; echo no >&2; exit 7", 5000);
    assert_eq!(
        (done.status, done.stdout, done.stderr),
        (ExitStatus::Exited(7), b"this\n/tmp\n".to_vec(), b"no\n".to_vec())
    );
    let late = client.oneshot("echo begun; sleep 100 & sleep 100", 300);
    assert_eq!((late.status, late.stdout), (ExitStatus::DeadlinePassed, b"begun\n".to_vec()));
    assert!(late.took_ms < 5000);
    let long = client.oneshot("i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done", 10_000);
    assert!(long.stdout.len() <= 1000 && long.stdout.ends_with(b"line 399\n"));
    let orphans = client.oneshot("i=0; while [ $i -lt 300 ]; do (sleep 0.2 &); i=$((i+1)); done", 20_000);
    assert_eq!(orphans.status, ExitStatus::Exited(0));
    wait_for("orphans reaped", || (zombies(container) == 0).then_some(()));
}

fn crashes(container: &Container, client: &mut Client) {
    let before = client.wait_all_ready();
    let faults = [Signal::SEGV, Signal::ABORT, Signal::ILL, Signal::BUS, Signal::FPE, Signal::SYS];
    for n in 0..60u64 {
        container.signal(faults[n as usize % faults.len()]);
        // Points spread over recovery and loop alike.
        pause(7 + n * 13 % 41);
    }
    let mut client = Client::connect(container);
    let Answer::Hello { reexecs, .. } = client.ask(Call::Hello { client: "test".into() }) else {
        panic!("hello is answered by hello")
    };
    assert!(reexecs >= 30, "PID 1 executed itself {reexecs} times after 60 faults");
    let after = client.wait_all_ready();
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.pid, old.restarts), (new.pid, new.restarts), "{} was restarted", old.name);
    }
    assert_eq!(zombies(container), 0);
    // It still hears of ends and starts again.
    client.ask(Call::Signal { name: "s3".into(), target: SignalTarget::KillGroup });
    wait_for("s3 again", || {
        Some(client.service("s3")).filter(|s| s.restarts == 2 && s.state == ServiceState::Ready)
    });
}

fn ladder_and_fence(client: &mut Client) {
    client.ask(Call::Start { name: "stubborn".into() });
    wait_for("stubborn", || (client.service("stubborn").state == ServiceState::Ready).then_some(()));
    client.ask(Call::Stop { name: "stubborn".into() });
    wait_for("stubborn gone", || (client.service("stubborn").state == ServiceState::Stopped).then_some(()));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let deadline = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 200_000_000;
    client.ask(Call::Arm { deadline_ns: Some(deadline) });
    assert_eq!(client.service("writer").state, ServiceState::Ready, "the deadline is still to come");
    wait_for("writer fenced", || (client.service("writer").state == ServiceState::Stopped).then_some(()));
    assert_eq!(client.service("s0").state, ServiceState::Ready, "only writers are fenced");
}

fn shutdown(mut container: Container, client: &mut Client) {
    let answer = client.ask(Call::Shutdown { how: Shutdown::PowerOff, reason: "the test is over".into() });
    assert_eq!(answer, Answer::Accepted);
    wait_for("the end of PID 1", || container.outer.try_wait().expect("our child"));
    let left = std::fs::read_to_string(container.group.join("cgroup.events")).expect("our cgroup");
    assert!(left.contains("populated 0"), "processes are left: {left}");
}
