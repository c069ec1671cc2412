//! The supervisor's end of PID 1's control socket: one task keeps the connection, comes back when it breaks, and shows
//! everybody else the services, phases and boot facts as PID 1 last told them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use dyad_api::control::{
    Answer, BootInfo, Call, DecodeError, EncodeError, Event, Finished, Message, Oneshot, PACKET_MAX, Phase,
    PhaseState, Refusal, Request, ServiceState, ServiceStatus,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that wait for the connection at most.
const ORDERS_MAX: usize = 64;
/// First and longest pause between two tries to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long PID 1 may take for an answer that needs no work; a one-shot has its own deadline on top.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Why PID 1 gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Pid1Error {
    /// No connection, or it broke before the answer came: the request may have been carried out.
    #[error("no connection to PID 1")]
    Disconnected,
    /// No answer in time: the request may have been carried out.
    #[error("PID 1 did not answer in time")]
    Timeout,
    /// Said no.
    #[error("PID 1: {0}")]
    Refused(#[from] Refusal),
    /// The request is too long for a packet.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Answered something else than the call asks for.
    #[error("PID 1 answered {0} with something else")]
    Strange(&'static str),
}

/// What PID 1 last said.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// Whether the connection stands; the rest is old news without it.
    pub(crate) connected: bool,
    /// Services in the order of the image table.
    pub(crate) services: Vec<ServiceStatus>,
    /// Early boot phases.
    pub(crate) phases: Vec<Phase>,
    /// What was booted.
    pub(crate) boot: Option<BootInfo>,
    /// An ordered shutdown has begun.
    pub(crate) shutting_down: bool,
}

impl View {
    /// State of a service; `None`: not in the image, or not known yet.
    pub(crate) fn service(&self, name: &str) -> Option<&ServiceStatus> {
        self.services.iter().find(|service| service.name == name)
    }

    /// A phase.
    pub(crate) fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Service(new) => match self.services.iter_mut().find(|old| old.name == new.name) {
                Some(old) => *old = new,
                None => self.services.push(new),
            },
            Event::Phase(new) => match self.phases.iter_mut().find(|old| old.name == new.name) {
                Some(old) => *old = new,
                None => self.phases.push(new),
            },
            Event::ShuttingDown => self.shutting_down = true,
            // The caller asks for everything anew.
            Event::Missed(_) => {}
        }
    }
}

/// Whether a process of the service may be alive.
pub(crate) fn is_alive(state: ServiceState) -> bool {
    match state {
        ServiceState::Starting | ServiceState::Ready | ServiceState::Stopping => true,
        ServiceState::Stopped
        | ServiceState::Waiting
        | ServiceState::Done
        | ServiceState::BackOff
        | ServiceState::Failed => false,
    }
}

struct Order {
    call: Call,
    reply: oneshot::Sender<Result<Answer, Pid1Error>>,
}

/// A handle; clones share the connection.
#[derive(Clone)]
pub struct Pid1 {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<View>,
}

impl Pid1 {
    /// Starts the task that keeps the connection. Must run inside a local task set.
    pub fn start(socket: PathBuf) -> Self {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let (publish, view) = watch::channel(View::default());
        tokio::task::spawn_local(keep(socket, queue, publish));
        Self { orders, view }
    }

    /// What PID 1 last said; the receiver tells of changes.
    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Waits until an early boot phase has ended well; why it did not. A PID 1 without this phase has nothing to wait for. The
    /// supervisor begins before most of them: what they mount is not there until then.
    pub(crate) async fn phase(&self, name: &str) -> Result<(), String> {
        let mut view = self.view();
        loop {
            {
                let view = view.borrow_and_update();
                let known = view.connected && !view.phases.is_empty();
                match view.phase(name) {
                    Some(phase) if phase.state.is_done() => return Ok(()),
                    Some(phase) if phase.state == PhaseState::Failed => {
                        return Err(format!("boot phase {name} failed: {}", phase.note));
                    }
                    None if known => return Ok(()),
                    Some(_) | None => {}
                }
            }
            if view.changed().await.is_err() {
                return Err("the connection to PID 1 is given up".to_owned());
            }
        }
    }

    /// Asks and waits for the answer.
    pub(crate) async fn call(&self, call: Call) -> Result<Answer, Pid1Error> {
        let work = match &call {
            Call::RunOneshot(oneshot) => Duration::from_millis(oneshot.deadline_ms.into()),
            _ => Duration::ZERO,
        };
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order { call, reply }).await.map_err(|_| Pid1Error::Disconnected)?;
        match tokio::time::timeout(work + ANSWER_DEADLINE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Pid1Error::Disconnected),
            Err(_) => Err(Pid1Error::Timeout),
        }
    }

    /// Gives an order that PID 1 takes at once.
    pub(crate) async fn order(&self, call: Call) -> Result<(), Pid1Error> {
        match self.call(call).await? {
            Answer::Accepted => Ok(()),
            _ => Err(Pid1Error::Strange("an order")),
        }
    }

    /// Runs a program to its end.
    pub(crate) async fn run(&self, oneshot: Oneshot) -> Result<Finished, Pid1Error> {
        match self.call(Call::RunOneshot(oneshot)).await? {
            Answer::Finished(finished) => Ok(finished),
            _ => Err(Pid1Error::Strange("a one-shot")),
        }
    }

    /// What was booted, with the marks reached by now; the last known when PID 1 does not answer.
    pub(crate) async fn boot(&self) -> Option<BootInfo> {
        match self.call(Call::BootInfo).await {
            Ok(Answer::BootInfo(boot)) => Some(boot),
            _ => self.view.borrow().boot.clone(),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("PID 1 closed the connection")]
    Closed,
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Encode(#[from] EncodeError),
    #[error("the supervisor is ending")]
    Ending,
}

async fn keep(socket: PathBuf, mut queue: mpsc::Receiver<Order>, view: watch::Sender<View>) {
    let mut pause = BACKOFF.0;
    loop {
        let ended = match Connection::open(&socket) {
            Ok(mut connection) => {
                let ended = connection.serve(&mut queue, &view).await;
                if view.borrow().connected {
                    pause = BACKOFF.0;
                }
                view.send_modify(|view| view.connected = false);
                ended
            }
            Err(error) => Broken::Io(error),
        };
        if matches!(ended, Broken::Ending) {
            return;
        }
        tracing::warn!(error = %ended, pause_ms = pause.as_millis() as u64, "no connection to PID 1");
        let wake = tokio::time::Instant::now() + pause;
        // Who asks meanwhile is told at once, instead of waiting for a PID 1 that may be long in coming.
        while let Ok(order) = tokio::time::timeout_at(wake, queue.recv()).await {
            let Some(order) = order else { return };
            let _ = order.reply.send(Err(Pid1Error::Disconnected));
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}

struct Connection {
    /// Of type SOCK_SEQPACKET: every read and write is one packet.
    fd: Rc<UnixStream>,
    next_id: u32,
    pending: HashMap<u32, oneshot::Sender<Result<Answer, Pid1Error>>>,
    /// Ids of our own questions after the view.
    own: HashMap<u32, &'static str>,
}

impl Connection {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from_std(fd.into())?;
        Ok(Self { fd: Rc::new(stream), next_id: 0, pending: HashMap::new(), own: HashMap::new() })
    }

    async fn serve(&mut self, queue: &mut mpsc::Receiver<Order>, view: &watch::Sender<View>) -> Broken {
        match self.serve_inner(queue, view).await {
            Ok(never) => match never {},
            Err(broken) => {
                for (_, reply) in self.pending.drain() {
                    let _ = reply.send(Err(Pid1Error::Disconnected));
                }
                broken
            }
        }
    }

    async fn serve_inner(
        &mut self,
        queue: &mut mpsc::Receiver<Order>,
        view: &watch::Sender<View>,
    ) -> Result<std::convert::Infallible, Broken> {
        self.ask(Call::Hello { client: "supervisor".into() }).await?;
        self.ask(Call::Subscribe).await?;
        self.ask(Call::Phases).await?;
        self.ask(Call::BootInfo).await?;
        let fd = Rc::clone(&self.fd);
        let mut buffer = vec![0; PACKET_MAX + 1];
        loop {
            tokio::select! {
                order = queue.recv() => {
                    let Order { call, reply } = order.ok_or(Broken::Ending)?;
                    self.next_id = self.next_id.wrapping_add(1);
                    match (Request { id: self.next_id, call }).encode() {
                        Err(error) => { let _ = reply.send(Err(error.into())); }
                        Ok(packet) => {
                            self.pending.insert(self.next_id, reply);
                            self.send(&packet).await?;
                        }
                    }
                }
                packet = receive(&fd, &mut buffer) => {
                    let count = packet?;
                    if count == 0 {
                        return Err(Broken::Closed);
                    }
                    self.take(Message::decode(&buffer[..count])?, view).await?;
                }
            }
        }
    }

    async fn ask(&mut self, call: Call) -> Result<(), Broken> {
        let what = match call {
            Call::Hello { .. } => "hello",
            Call::Phases => "phases",
            Call::BootInfo => "boot facts",
            _ => "services",
        };
        self.next_id = self.next_id.wrapping_add(1);
        self.own.insert(self.next_id, what);
        let packet = Request { id: self.next_id, call }.encode()?;
        self.send(&packet).await
    }

    async fn send(&self, packet: &[u8]) -> Result<(), Broken> {
        let sent = self.fd.async_io(Interest::WRITABLE, || {
            rustix::net::send(&self.fd, packet, SendFlags::NOSIGNAL).map_err(io::Error::from)
        });
        sent.await?;
        Ok(())
    }

    async fn take(&mut self, message: Message, view: &watch::Sender<View>) -> Result<(), Broken> {
        match message {
            Message::Event(Event::Missed(count)) => {
                tracing::warn!(count, "events of PID 1 were missed, asking for the whole state");
                self.ask(Call::ListServices).await?;
                self.ask(Call::Phases).await?;
            }
            Message::Event(event) => view.send_modify(|view| view.apply(event)),
            Message::Reply { id, result } => match (self.pending.remove(&id), self.own.remove(&id)) {
                (Some(reply), _) => {
                    // Nobody waits any more when the asking task ended: the answer is of no use then.
                    let _ = reply.send(result.map_err(Pid1Error::Refused));
                }
                (None, Some(what)) => show(what, result, view),
                (None, None) => tracing::warn!(id, "PID 1 answered a request that was never made"),
            },
        }
        Ok(())
    }
}

fn show(what: &'static str, result: Result<Answer, Refusal>, view: &watch::Sender<View>) {
    match result {
        Ok(Answer::Services(services)) => view.send_modify(|view| {
            view.services = services;
            view.connected = true;
        }),
        Ok(Answer::Phases(phases)) => view.send_modify(|view| view.phases = phases),
        Ok(Answer::BootInfo(boot)) => view.send_modify(|view| view.boot = Some(boot)),
        Ok(
            Answer::Hello { .. } | Answer::Accepted | Answer::Finished(_) | Answer::Stats(_) | Answer::Log(_),
        ) => {}
        Err(refusal) => tracing::error!(%refusal, what, "PID 1 refused a question"),
    }
}

/// One packet; its length. Dropping the future loses nothing.
async fn receive(fd: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, || {
        rustix::net::recv(fd, &mut *buffer, RecvFlags::empty())
            .map(|(_, count)| count)
            .map_err(io::Error::from)
    })
    .await
}
