//! The PID 1 itself: threads and plain blocking calls.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use dyad_api::control::*;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
use rustix::process::{Pid, Signal, kill_process};

use super::lan::Machine;
use super::{as_postgres, postgres_ids};

/// Called with each request before it is carried out.
pub(crate) type Hook = Box<dyn FnMut(&Call) + Send>;

#[derive(Clone)]
pub(crate) struct TestInit(Arc<Inner>);

struct Inner {
    root: PathBuf,
    born: Instant,
    machine: Option<Machine>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    service: Option<ServiceStatus>,
    wanted_down: bool,
    subscribers: Vec<Arc<OwnedFd>>,
    /// Running one-shots by name, with the connection they belong to.
    oneshots: HashMap<String, (u32, usize)>,
    hook: Option<Hook>,
    calls: Vec<Call>,
    /// Counts boots: each has another id.
    boots: u8,
    /// Of the dead-man's switch.
    deadline_ns: Option<u64>,
    /// How often it struck.
    fenced: u32,
    /// Phase `data` has not ended yet.
    data_is_away: bool,
    /// Services beside PostgreSQL, which run as far as anybody can see.
    others: Vec<ServiceStatus>,
}

impl State {
    fn services(&self) -> Answer {
        Answer::Services(self.service.iter().chain(&self.others).cloned().collect())
    }
}

impl TestInit {
    /// Listens below `root`.
    pub(crate) fn start(root: &Path, machine: Option<Machine>) -> Self {
        let (root_of, born) = (root.into(), Instant::now());
        let init = Self(Arc::new(Inner { root: root_of, born, machine, state: Mutex::default() }));
        init.state().service = Some(status(ServiceState::Stopped, 0, 0, None));
        init.state().boots = 7;
        // What the site files of these tests name.
        init.other("app", ServiceState::Ready);
        let watching = Arc::downgrade(&init.0);
        thread::spawn(move || {
            while let Some(inner) = watching.upgrade() {
                Self(inner).fence_when_due();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let path = root.join("run/dyad/init.sock");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let accepting = init.clone();
        thread::spawn(move || {
            for number in 0.. {
                let Ok(fd) = rustix::net::accept(&listener) else { return };
                let init = accepting.clone();
                thread::spawn(move || init.serve(Arc::new(fd), number));
            }
        });
        let notify = UnixDatagram::bind(root.join("run/notify")).unwrap();
        fs::set_permissions(root.join("run/notify"), fs::Permissions::from_mode(0o777)).unwrap();
        let notified = init.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = notify.recv(&mut buffer) {
                if String::from_utf8_lossy(&buffer[..count]).lines().any(|line| line == "READY=1") {
                    notified.change(|service| service.state = ServiceState::Ready);
                }
            }
        });
        init
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Calls `hook` with every request from now on.
    pub(crate) fn hook(&self, hook: Hook) {
        self.state().hook = Some(hook);
    }

    /// Another service is in this state from now on.
    pub(crate) fn other(&self, name: &str, now: ServiceState) {
        let mut state = self.state();
        let service = ServiceStatus { name: name.to_owned(), ..status(now, 0, self.now_ms(), None) };
        state.others.retain(|other| other.name != name);
        state.others.push(service.clone());
        let packet = Message::Event(Event::Service(service)).encode().unwrap();
        state.subscribers.retain(|fd| rustix::net::send(fd, &packet, SendFlags::NOSIGNAL).is_ok());
    }

    /// All requests so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Process of the postmaster, 0 without one.
    pub(crate) fn postmaster(&self) -> u32 {
        self.state().service.as_ref().map_or(0, |service| service.pid)
    }

    /// Whether a one-shot of this name runs.
    pub(crate) fn runs(&self, oneshot: &str) -> bool {
        self.state().oneshots.contains_key(oneshot)
    }

    /// Ends everything and waits for it.
    pub(crate) fn kill_all(&self) {
        let pids: Vec<u32> = {
            let mut state = self.state();
            state.hook = None;
            state.wanted_down = true;
            let postmaster = state.service.as_ref().map(|service| service.pid);
            state.oneshots.values().map(|(pid, _)| *pid).chain(postmaster).filter(|pid| *pid != 0).collect()
        };
        pids.iter().for_each(|pid| kill_tree(*pid));
        let start = Instant::now();
        while pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())
            && start.elapsed().as_secs() < 20
        {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// After everything was killed: the machine starts again.
    pub(crate) fn reboot(&self) {
        let mut state = self.state();
        state.boots += 1;
        state.deadline_ns = None;
        // What was connected is gone with the supervisor; its subscription too.
        state.subscribers.clear();
        state.service = Some(status(ServiceState::Stopped, 0, 0, None));
    }

    /// The volume is not mounted yet: an empty directory is in its place, as in a boot.
    pub(crate) fn take_data_away(&self) {
        self.state().data_is_away = true;
        let volume = self.0.root.join("data/pg");
        fs::rename(&volume, volume.with_extension("away")).unwrap();
        fs::create_dir(&volume).unwrap();
    }

    /// The phase ends: the volume takes the place of the directory, in which nobody has left anything.
    pub(crate) fn bring_data_back(&self) {
        let volume = self.0.root.join("data/pg");
        fs::remove_dir(&volume).expect("nothing is written where the volume will be");
        fs::rename(volume.with_extension("away"), &volume).unwrap();
        let mut state = self.state();
        state.data_is_away = false;
        let packet = Message::Event(Event::Phase(phase("data"))).encode().unwrap();
        state.subscribers.retain(|fd| rustix::net::send(fd, &packet, SendFlags::NOSIGNAL).is_ok());
    }

    /// How often the dead-man's switch struck.
    pub(crate) fn fenced(&self) -> u32 {
        self.state().fenced
    }

    fn fence_when_due(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now_ns = u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap();
        let mut state = self.state();
        if state.deadline_ns.is_none_or(|deadline| now_ns <= deadline) {
            return;
        }
        state.deadline_ns = None;
        state.fenced += 1;
        let pid = state.service.as_ref().map_or(0, |service| service.pid);
        drop(state);
        if pid != 0 {
            kill_tree(pid);
        }
    }

    fn boot_id(&self) -> [u8; 16] {
        [self.state().boots; 16]
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.born.elapsed().as_millis()).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut ServiceStatus)) {
        let now = self.now_ms();
        let mut state = self.state();
        let service = state.service.as_mut().unwrap();
        let before = service.state;
        change(service);
        if service.state != before {
            service.since_ms = now;
        }
        let packet = Message::Event(Event::Service(service.clone())).encode().unwrap();
        state.subscribers.retain(|fd| rustix::net::send(fd, &packet, SendFlags::NOSIGNAL).is_ok());
    }

    fn serve(&self, fd: Arc<OwnedFd>, number: usize) {
        let mut buffer = vec![0; PACKET_MAX + 1];
        while let Ok((_, count @ 1..)) = rustix::net::recv(&fd, &mut buffer, RecvFlags::empty()) {
            let request = Request::decode(&buffer[..count]).unwrap();
            let hook = {
                let mut state = self.state();
                state.calls.push(request.call.clone());
                state.hook.take()
            };
            if let Some(mut hook) = hook {
                hook(&request.call);
                self.state().hook.get_or_insert(hook);
            }
            match request.call {
                Call::RunOneshot(oneshot) => self.oneshot(&fd, number, request.id, oneshot),
                call => {
                    let result = self.answer(&fd, call);
                    reply(&fd, request.id, result);
                }
            }
        }
        // What was asked for by a connection dies with it.
        let orphans: Vec<u32> = self
            .state()
            .oneshots
            .values()
            .filter(|(_, owner)| *owner == number)
            .map(|(pid, _)| *pid)
            .collect();
        orphans.into_iter().for_each(kill_tree);
    }

    fn answer(&self, fd: &Arc<OwnedFd>, call: Call) -> Result<Answer, Refusal> {
        match call {
            Call::Hello { .. } => Ok(Answer::Hello { boot_id: self.boot_id(), reexecs: 0 }),
            Call::Subscribe => {
                let mut state = self.state();
                state.subscribers.push(Arc::clone(fd));
                Ok(state.services())
            }
            Call::ListServices | Call::Status { .. } => Ok(self.state().services()),
            Call::Phases => {
                let away = self.state().data_is_away;
                let mut phases = ["state", "data", "esp"].map(phase);
                phases[1].state = if away { PhaseState::Running } else { PhaseState::Changed };
                Ok(Answer::Phases(phases.into()))
            }
            Call::BootInfo => Ok(Answer::BootInfo(BootInfo {
                name: "test".into(),
                version: "1.0.0".into(),
                boot_id: self.boot_id(),
                root_hash: None,
                slot: Slot::Other,
                kernel: "none".into(),
                marks: vec![("kernel".into(), 1)],
                previous: String::new(),
                stats: Stats::default(),
            })),
            Call::Arm { deadline_ns } => {
                self.state().deadline_ns = deadline_ns;
                Ok(Answer::Accepted)
            }
            Call::Start { .. } => self.start_service(),
            Call::Stop { .. } => {
                self.stop_service();
                Ok(Answer::Accepted)
            }
            Call::Signal { target, .. } => match (self.postmaster(), target) {
                (0, _) => Err(Refusal::NotRunning("postgresql".into())),
                (pid, SignalTarget::KillGroup | SignalTarget::Group(_)) => {
                    kill_tree(pid);
                    Ok(Answer::Accepted)
                }
                (pid, SignalTarget::Main(number)) => {
                    signal(pid, Signal::from_named_raw(number).unwrap());
                    Ok(Answer::Accepted)
                }
            },
            // Noted with every other call: the test ends the supervisor and starts it.
            Call::Restart { name } if name == "supervisor" => Ok(Answer::Accepted),
            other => Err(Refusal::Invalid(format!("{other:?} is not part of this test"))),
        }
    }

    fn start_service(&self) -> Result<Answer, Refusal> {
        if self.postmaster() != 0 {
            return Ok(Answer::Accepted);
        }
        let main = self.0.root.join("data/pg/main");
        let config = self.0.root.join("run/dyad/postgresql/postgresql.conf");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.root.join("postgresql.log"))
            .unwrap();
        let mut child = as_postgres(self.0.machine.as_ref(), "/usr/lib/postgresql/15/bin/postgres")
            .arg("-D")
            .arg(main)
            .args(["-c", &format!("config_file={}", config.display())])
            .env("NOTIFY_SOCKET", self.0.root.join("run/notify"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let pid = child.id();
        self.state().wanted_down = false;
        self.change(|service| {
            service.state = ServiceState::Starting;
            service.pid = pid;
        });
        let init = self.clone();
        thread::spawn(move || {
            let exit = exit(child.wait().unwrap());
            let state = if init.state().wanted_down { ServiceState::Stopped } else { ServiceState::Failed };
            init.change(|service| {
                *service = ServiceStatus { since_ms: service.since_ms, ..status(state, 0, 0, Some(exit)) };
            });
        });
        Ok(Answer::Accepted)
    }

    /// Fast stop, and after ten seconds the whole tree.
    fn stop_service(&self) {
        let pid = self.postmaster();
        if pid == 0 {
            return;
        }
        self.state().wanted_down = true;
        self.change(|service| service.state = ServiceState::Stopping);
        signal(pid, Signal::INT);
        let init = self.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(10));
            if init.postmaster() == pid {
                kill_tree(pid);
            }
        });
    }

    fn oneshot(&self, fd: &Arc<OwnedFd>, number: usize, id: u32, oneshot: Oneshot) {
        // The packet filter's program and hooks are root's; everything else is PostgreSQL's.
        let roots = oneshot.exec[0] == "/usr/sbin/nft" || oneshot.name.starts_with("hook-");
        let ids = if roots { (0, 0) } else { postgres_ids() };
        assert_eq!((oneshot.uid, oneshot.gid), ids);
        let mut state = self.state();
        if state.oneshots.contains_key(&oneshot.name) {
            drop(state);
            return reply(fd, id, Err(Refusal::Busy(oneshot.name)));
        }
        let mut command = as_postgres(self.0.machine.as_ref(), &oneshot.exec[0]);
        command.args(&oneshot.exec[1..]).current_dir(&oneshot.cwd).env_clear().envs(oneshot.env);
        command.env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8").stdin(Stdio::null());
        let mut child = piped(command);
        state.oneshots.insert(oneshot.name.clone(), (child.id(), number));
        drop(state);
        let (init, fd) = (self.clone(), Arc::clone(fd));
        thread::spawn(move || {
            let mut stdout = child.stdout.take().unwrap();
            let reader = thread::spawn(move || read_all(&mut stdout));
            let stderr = read_all(&mut child.stderr.take().unwrap());
            let status = exit(child.wait().unwrap());
            let stdout = reader.join().unwrap();
            init.state().oneshots.remove(&oneshot.name);
            reply(&fd, id, Ok(Answer::Finished(Finished { status, stdout, stderr, took_ms: 1 })));
        });
    }
}

fn piped(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let surplus = bytes.len().saturating_sub(CAPTURE_MAX as usize);
    bytes.split_off(surplus)
}

fn reply(fd: &OwnedFd, id: u32, result: Result<Answer, Refusal>) {
    let packet = Message::Reply { id, result }.encode().unwrap();
    // The supervisor may have been killed meanwhile.
    let _ = rustix::net::send(fd, &packet, SendFlags::NOSIGNAL);
}

fn status(state: ServiceState, pid: u32, since_ms: u64, last_exit: Option<ExitStatus>) -> ServiceStatus {
    let name = "postgresql".to_owned();
    ServiceStatus {
        name,
        state,
        pid,
        since_ms,
        ready_after_ms: 0,
        restarts: 0,
        last_exit,
        note: String::new(),
    }
}

fn phase(name: &str) -> Phase {
    Phase { name: name.into(), state: PhaseState::Changed, started_ms: 1, took_ms: 1, note: String::new() }
}

fn exit(status: std::process::ExitStatus) -> ExitStatus {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Exited(code),
        (None, signal) => ExitStatus::Signaled(signal.unwrap_or(0)),
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {pid:?}: {}", io::Error::from(error)),
    }
}

/// Kills a process and all below it: the children first get no chance to lose their parent.
fn kill_tree(pid: u32) {
    let mut tree = vec![pid];
    let mut at = 0;
    while let Some(parent) = tree.get(at) {
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        tree.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
        at += 1;
    }
    tree.into_iter().for_each(|pid| signal(pid, Signal::KILL));
}
