//! The lab's daemon: owner of the namespaces, the network and the members, from `up` to `down`.
//!
//! The main thread starts processes and nothing else, because children are bound to the life of the thread that started
//! them. Every request has its own thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::prctl::set_name;
use nix::unistd::setsid;
use serde_json::{Value, json};

use crate::container::Container;
use crate::control::{CutRow, Reply, Request, receive, send};
use crate::error::{Doing, LabError, Result, refuse};
use crate::machine::Setup;
use crate::member::Kind;
use crate::network::{Cut, Network};
use crate::node::{Slot, Starter};
use crate::process::Launch;
use crate::state::{BackendFile, LabFile, StateDir};
use crate::topology::{HOST, Node, Role, WITNESS};
use crate::vm::Vm;
use crate::witness::Witness;
use crate::{cgroup, namespace, root};

/// What the daemon says on its leash when it listens; anything else there is the reason why not.
pub(crate) const READY: &str = "ready";
/// What `up` says on the leash when the lab shall stay.
pub(crate) const RELEASE: &str = "release";

/// Work for the main thread.
enum Job {
    Start(Launch, Sender<Result<Child>>),
    End,
}

struct Lab {
    members: Vec<Arc<Slot>>,
    network: Arc<Network>,
    /// The control group of a lab of containers.
    cgroup: Option<PathBuf>,
    jobs: Jobs,
}

/// The way to the main thread.
#[derive(Clone)]
struct Jobs(Arc<Mutex<Sender<Job>>>);

impl Jobs {
    fn send(&self, job: Job) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(job).is_ok()
    }

    fn launch(&self, launch: Launch) -> Result<Child> {
        let (sender, answer) = channel();
        if !self.send(Job::Start(launch, sender)) {
            return refuse("the lab is ending");
        }
        answer.recv().unwrap_or_else(|_| refuse("the lab is ending"))
    }
}

/// The hidden `daemon` command. Standard input is the leash: a socket to the `up` that started it.
pub(crate) fn run(state: &StateDir) -> Result<()> {
    let leash = std::io::stdin().as_fd().try_clone_to_owned().doing("take over standard input")?;
    let leash = UnixStream::from(leash);
    match prepare(state, &leash) {
        Ok((lab, listener, jobs)) => {
            serve(lab.clone(), listener)?;
            hold_leash(lab.clone(), leash)?;
            work(&lab, &jobs);
            state.remove_socket()
        }
        Err(e) => {
            // The reader may be gone; the log has it too.
            let _ = writeln!(&leash, "{e}");
            Err(e)
        }
    }
}

type Prepared = (Arc<Lab>, UnixListener, Receiver<Job>);

/// Everything that must happen before the first thread, and the network.
fn prepare(state: &StateDir, leash: &UnixStream) -> Result<Prepared> {
    // Started as /proc/self/exe, it would be called "exe" in process lists.
    set_name(c"dyad-lab").doing("name the process")?;
    // Fails only for a process group leader, which a freshly started process is not.
    setsid().doing("leave the terminal's session")?;
    let Some(file) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    let network = Arc::new(match &file.backend {
        BackendFile::Vm(_) => {
            namespace::create()?;
            Network::with_switch()?
        }
        BackendFile::Container(setup) => {
            namespace::create_for_containers(leash)?;
            cgroup::fresh(&setup.cgroup)?;
            let root = state.container_root();
            if !root.exists() {
                root::unpack(&setup.image, &root)?;
            }
            Network::with_bridges(setup.nft.clone(), file.nodes)?
        }
    });
    let listener = state.listen()?;
    let (sender, receiver) = channel();
    let jobs = Jobs(Arc::new(Mutex::new(sender)));
    let starter = jobs.clone();
    let starter: Arc<Starter> = Arc::new(move |launch| starter.launch(launch));
    let members =
        kinds(state, &file, &network).into_iter().map(|k| Arc::new(Slot::new(k, starter.clone()))).collect();
    let cgroup = match &file.backend {
        BackendFile::Vm(_) => None,
        BackendFile::Container(setup) => Some(setup.cgroup.clone()),
    };
    Ok((Arc::new(Lab { members, network, cgroup, jobs }), listener, receiver))
}

fn kinds(state: &StateDir, file: &LabFile, network: &Arc<Network>) -> Vec<Box<dyn Kind>> {
    let mut kinds: Vec<Box<dyn Kind>> = Vec::new();
    for node in Node::first(file.nodes) {
        let (dir, network) = (state.node(node), network.clone());
        kinds.push(match &file.backend {
            BackendFile::Vm(setup) => Box::new(Vm { node, dir, setup: Setup::clone(setup), network }),
            BackendFile::Container(setup) => Box::new(Container {
                node,
                dir,
                root: state.container_root(),
                cgroup: setup.cgroup.clone(),
                network,
            }),
        });
    }
    if let Some(program) = &file.witness {
        let (program, dir, network) = (program.clone(), state.member(WITNESS), network.clone());
        kinds.push(Box::new(Witness { program, dir, network }));
    }
    kinds
}

/// The NIC of this name.
fn role(name: &str) -> Result<Role> {
    match Role::ALL.into_iter().find(|role| role.name() == name) {
        Some(role) => Ok(role),
        None => {
            let known = Role::ALL.map(Role::name).join(", ");
            refuse(format!("a node has no NIC {name:?}; it has {known}"))
        }
    }
}

fn work(lab: &Lab, jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Start(launch, answer) => {
                // The asker waits; it can only be gone when the daemon ends.
                let _ = answer.send(launch.start());
            }
            Job::End => break,
        }
    }
    for member in &lab.members {
        // Members that are off refuse; the others die with this process at the latest.
        let _ = member.kill();
    }
    if let Some(group) = &lab.cgroup
        && let Err(e) = cgroup::remove(group)
    {
        eprintln!("daemon: {e}");
    }
}

/// Ends the lab when `up` dies before it says that the lab shall stay.
fn hold_leash(lab: Arc<Lab>, leash: UnixStream) -> Result<()> {
    writeln!(&leash, "{READY}").doing("tell `dyad lab up` that the daemon listens")?;
    let watch = move || {
        let mut line = String::new();
        let released = BufReader::new(&leash).read_line(&mut line).is_ok() && line.trim_end() == RELEASE;
        if !released {
            eprintln!("daemon: `dyad lab up` ended before the lab was up: ending the lab");
            lab.end();
        }
    };
    std::thread::Builder::new().name("leash".into()).spawn(watch).doing("start a thread").map(drop)
}

fn serve(lab: Arc<Lab>, listener: UnixListener) -> Result<()> {
    let accept = move || {
        for stream in listener.incoming() {
            let lab = lab.clone();
            let answer = move || match stream {
                Ok(stream) => lab.answer(&stream),
                Err(e) => eprintln!("daemon: a connection failed: {e}"),
            };
            if let Err(e) = std::thread::Builder::new().name("request".into()).spawn(answer) {
                eprintln!("daemon: cannot start a thread for a request: {e}");
            }
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(accept).doing("start a thread").map(drop)
}

impl Lab {
    fn end(&self) {
        // The main thread listens until it got this very job.
        let _ = self.jobs.send(Job::End);
    }

    fn answer(&self, stream: &UnixStream) {
        let result = receive(stream).and_then(|request| match request {
            Request::Console { node } => self.console(&node, stream).map(|()| None),
            Request::Down => Ok(Some((Value::Null, true))),
            request => self.act(request).map(|value| Some((value, false))),
        });
        let (reply, end) = match result {
            Ok(None) => return,
            Ok(Some((value, end))) => (Reply::Done(value), end),
            Err(e) => (Reply::Failed(e.to_string()), false),
        };
        // Who asked may be gone.
        let _ = send(stream, &reply);
        if end {
            self.end();
        }
    }

    fn act(&self, request: Request) -> Result<Value> {
        match request {
            Request::Machines => {
                let rows: Vec<_> = self.members.iter().map(|n| n.row()).collect();
                return Ok(json!(rows));
            }
            Request::Cuts => {
                let rows: Vec<_> =
                    self.network.cuts().into_iter().map(|(from, to)| CutRow { from, to }).collect();
                return Ok(json!(rows));
            }
            Request::Start { node } => self.member(&node)?.start()?,
            Request::Stop { node } => self.member(&node)?.stop()?,
            Request::Kill { node } => self.member(&node)?.kill()?,
            Request::Pause { node, stop_clock } => self.member(&node)?.pause(stop_clock)?,
            Request::Resume { node } => self.member(&node)?.resume()?,
            Request::Cut { from, to, one_way } => {
                let mut pairs = self.both_ways(from, to)?;
                pairs.truncate(if one_way { 1 } else { 2 });
                self.network.cut(&pairs)?;
            }
            Request::Heal { pair: Some((a, b)) } => self.network.heal(&self.both_ways(a, b)?)?,
            Request::Heal { pair: None } => self.network.heal_all()?,
            Request::Cable { node, nic, cable } => self.member(&node)?.cable(role(&nic)?, cable)?,
            Request::Operator { node, call } => return self.member(&node)?.call(call),
            Request::Console { .. } | Request::Down => {}
        }
        Ok(Value::Null)
    }

    fn member(&self, name: &str) -> Result<&Arc<Slot>> {
        match self.members.iter().find(|n| n.name() == name) {
            Some(member) => Ok(member),
            None => {
                refuse(format!("there is no node {name:?} in this lab; there is {}", self.names().join(", ")))
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.members.iter().map(|n| n.name()).collect()
    }

    /// From `a` to `b`, and back. Both names must be on the network, and differ.
    fn both_ways(&self, a: String, b: String) -> Result<Vec<Cut>> {
        let mut known = self.names();
        known.push(HOST.into());
        for name in [&a, &b] {
            if !known.contains(name) {
                return refuse(format!(
                    "nothing called {name:?} is on this lab's network; there is {}",
                    known.join(", ")
                ));
            }
        }
        if a == b {
            return refuse(format!("{a} cannot be cut from itself"));
        }
        Ok(vec![(a.clone(), b.clone()), (b, a)])
    }

    /// Connects a client and a console until the client leaves or the machine ends.
    fn console(&self, node: &str, mut stream: &UnixStream) -> Result<()> {
        let console = self.member(node)?.console()?;
        send(stream, &Reply::Done(Value::Null))?;
        console.view(stream.try_clone().doing("duplicate a console connection")?)?;
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            console.type_in(&buffer[..length])?;
        }
        Ok(())
    }
}
