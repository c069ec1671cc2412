//! The lab's daemon: owner of the namespaces, the switch and the machines, from `up` to `down`.
//!
//! The main thread starts processes and nothing else, because children are bound to the life of the thread that started
//! them. Every request has its own thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::prctl::set_name;
use nix::unistd::setsid;
use serde_json::{Value, json};

use crate::control::{Reply, Request, receive, send};
use crate::error::{Doing, LabError, Result, refuse};
use crate::machine::Launch;
use crate::node::NodeSlot;
use crate::process::Program;
use crate::state::StateDir;
use crate::switch::relay::Relay;
use crate::topology::{HOST, Node};
use crate::{namespace, netlink};

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
    nodes: Vec<Arc<NodeSlot>>,
    relay: Arc<Relay>,
    jobs: Mutex<Sender<Job>>,
}

/// The hidden `daemon` command. Standard input is the leash: a socket to the `up` that started it.
pub(crate) fn run(state: &StateDir) -> Result<()> {
    let leash = std::io::stdin().as_fd().try_clone_to_owned().doing("take over standard input")?;
    let leash = UnixStream::from(leash);
    match prepare(state) {
        Ok((lab, qemu, listener, jobs)) => {
            serve(lab.clone(), listener)?;
            hold_leash(lab.clone(), leash)?;
            work(&lab, &qemu, &jobs);
            state.remove_socket()
        }
        Err(e) => {
            // The reader may be gone; the log has it too.
            let _ = writeln!(&leash, "{e}");
            Err(e)
        }
    }
}

type Prepared = (Arc<Lab>, Program, UnixListener, Receiver<Job>);

/// Everything that must happen before the first thread, and the switch.
fn prepare(state: &StateDir) -> Result<Prepared> {
    // Started as /proc/self/exe, it would be called "exe" in process lists.
    set_name(c"dyad-lab").doing("name the process")?;
    // Fails only for a process group leader, which a freshly started process is not.
    setsid().doing("leave the terminal's session")?;
    let Some(file) = state.load()? else { return Err(LabError::NotUp(state.root().to_path_buf())) };
    namespace::create()?;
    let host = netlink::host_port()?;
    let relay = Arc::new(Relay::start()?);
    relay.plug_host(HOST, host)?;
    let listener = state.listen()?;
    let (sender, jobs) = channel();
    let qemu = file.setup.qemu.clone();
    let slot = |n: Node| Arc::new(NodeSlot::new(n, state.node(n), file.setup.clone(), relay.clone()));
    let nodes = Node::first(file.nodes).map(slot).collect();
    Ok((Arc::new(Lab { nodes, relay, jobs: Mutex::new(sender) }), qemu, listener, jobs))
}

fn work(lab: &Lab, qemu: &Program, jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Start(launch, answer) => {
                // The asker waits; it can only be gone when the daemon ends.
                let _ = answer.send(launch.start(qemu));
            }
            Job::End => break,
        }
    }
    for node in &lab.nodes {
        // Nodes that are off refuse; the others die with this process at the latest.
        let _ = node.kill();
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
    fn job(&self, job: Job) -> bool {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).is_ok()
    }

    fn end(&self) {
        // The main thread listens until it got this very job.
        let _ = self.job(Job::End);
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
                let rows: Vec<_> = self.nodes.iter().map(|n| n.row()).collect();
                return Ok(json!(rows));
            }
            Request::Start { node } => self.node(&node)?.start(&|launch| self.launch(launch))?,
            Request::Stop { node } => self.node(&node)?.stop()?,
            Request::Kill { node } => self.node(&node)?.kill()?,
            Request::Pause { node, stop_clock } => self.node(&node)?.pause(stop_clock)?,
            Request::Resume { node } => self.node(&node)?.resume()?,
            Request::Cut { from, to, one_way } => self.cut(&from, &to, one_way)?,
            Request::Heal { pair } => self.heal(pair)?,
            Request::Operator { node, call } => return self.node(&node)?.call(call),
            Request::Console { .. } | Request::Down => {}
        }
        Ok(Value::Null)
    }

    fn launch(&self, launch: Launch) -> Result<Child> {
        let (sender, answer) = channel();
        if !self.job(Job::Start(launch, sender)) {
            return refuse("the lab is ending");
        }
        answer.recv().unwrap_or_else(|_| refuse("the lab is ending"))
    }

    fn node(&self, name: &str) -> Result<&Arc<NodeSlot>> {
        match self.nodes.iter().find(|n| n.name() == name) {
            Some(node) => Ok(node),
            None => {
                refuse(format!("there is no node {name:?} in this lab; there is {}", self.names().join(", ")))
            }
        }
    }

    fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.name()).collect()
    }

    /// Both names must be on the network, and differ.
    fn check_pair(&self, a: &str, b: &str) -> Result<()> {
        let mut known = self.names();
        known.push(HOST.into());
        for name in [a, b] {
            if !known.iter().any(|k| k == name) {
                return refuse(format!(
                    "nothing called {name:?} is on this lab's network; there is {}",
                    known.join(", ")
                ));
            }
        }
        if a == b { refuse(format!("{a} cannot be cut from itself")) } else { Ok(()) }
    }

    fn cut(&self, from: &str, to: &str, one_way: bool) -> Result<()> {
        self.check_pair(from, to)?;
        self.relay.with_fabric(|f| {
            f.cut(from, to);
            if !one_way {
                f.cut(to, from);
            }
        });
        Ok(())
    }

    fn heal(&self, pair: Option<(String, String)>) -> Result<()> {
        let Some((a, b)) = pair else {
            self.relay.with_fabric(|f| f.heal_all());
            return Ok(());
        };
        self.check_pair(&a, &b)?;
        self.relay.with_fabric(|f| {
            f.heal(&a, &b);
            f.heal(&b, &a);
        });
        Ok(())
    }

    /// Connects a client and a console until the client leaves or the machine ends.
    fn console(&self, node: &str, mut stream: &UnixStream) -> Result<()> {
        let console = self.node(node)?.console()?;
        send(stream, &Reply::Done(Value::Null))?;
        console.view(stream.try_clone().doing("duplicate a console connection")?)?;
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            console.type_in(&buffer[..length])?;
        }
        Ok(())
    }
}
