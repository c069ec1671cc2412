//! The process: state directory, identity, sockets.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dyad_channel::Identity;
use dyad_channel::identity::IdentityError;
use dyad_channel::server::{self, Counters};
use dyad_channel::tls::{self, Speaks, TlsError, Trust};
use dyad_channel::witness::FRAME_BYTES_MAX;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::disk::Directory;
use crate::status::About;
use crate::witness::{OpenError, Settings, Witness};
use crate::{clock, control};

/// Generous to nodes far away, and a bound to everybody else.
const LIMITS: server::Limits = server::Limits {
    strangers_max: 64,
    // A node's own, and a new one while the old is still thought to live.
    per_key_max: 2,
    frame_bytes_max: FRAME_BYTES_MAX,
    handshake_ms: 10_000,
    // The longest T is 120 s and is renewed six times.
    idle_ms: 60_000,
    frame_ms: 10_000,
    answer_ms: 10_000,
};
/// Threads for disk calls; a disk that hangs holds up clusters that write, never those that only renew.
const DISK_THREADS: usize = 4;
/// Disk calls are shallow.
const DISK_STACK_BYTES: usize = 128 << 10;

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// A step on the state directory failed.
    #[error("{step} {path}: {source}", path = .path.display())]
    State { step: &'static str, path: PathBuf, source: io::Error },
    /// Two processes on one state would answer with two voices.
    #[error("{0}: another dyad-witness runs on this state directory")]
    Taken(String),
    /// No key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// State that cannot be read.
    #[error("state directory: {0}")]
    Open(#[from] OpenError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {source}; give another with `--listen ADDR:PORT`")]
    Listen { address: SocketAddr, source: io::Error },
    /// No event loop.
    #[error("starting the event loop: {0}")]
    Loop(io::Error),
}

/// Serves until the process is killed: the state on disk is whole at every moment, so nothing needs an orderly end.
pub(crate) fn run(listen: SocketAddr, state: &Path, storage_is_durable: bool) -> Result<(), RunError> {
    let _lock = take(state)?;
    raise_descriptors();
    let identity = Identity::load_or_make(&state.join("identity.key"))?;
    let witness = Arc::new(Witness::open(Directory::new(state), Settings::new(storage_is_durable))?);
    // A stranger may come to enrol: keys are judged by the calls they make.
    let tls = tls::server(&identity, Trust::AnyKey, Speaks::Witness)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .thread_stack_size(DISK_STACK_BYTES)
        .build()
        .map_err(RunError::Loop)?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(listen).await.map_err(|source| RunError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(|source| RunError::Listen { address: listen, source })?;
        let at = |source| RunError::State { step: "bind", path: control::path(state), source };
        let operators = control::bind(state).map_err(at)?;
        let about = About {
            identity: identity.public().id().to_string(),
            listen: address.to_string(),
            started_ms: clock::now().0,
        };
        let clusters = witness.entries().len();
        eprintln!("dyad-witness: listening on {address}, identity {}, {clusters} clusters", about.identity);
        let counters = Arc::new(Counters::default());
        tokio::spawn(control::serve(operators, witness.clone(), about, counters.clone()));
        ready();
        server::serve(listener, tls, witness, LIMITS, counters).await;
        Ok(())
    })
}

/// Makes the directory if it is not there, and locks it for the life of the process.
fn take(state: &Path) -> Result<File, RunError> {
    let at = |step, path: &Path| {
        let path = path.to_owned();
        move |source| RunError::State { step, path, source }
    };
    match fs::DirBuilder::new().mode(0o700).create(state) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(at("create directory", state))?,
    }
    let path = state.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::Taken(state.display().to_string())),
        Err(error) => Err(at("lock", &path)(error.into())),
    }
}

/// A thousand clusters have two thousand connections; many systems start programs with a limit of 1024.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Going without is no reason not to start: connections beyond the limit wait.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Tells a service manager that asked (`NOTIFY_SOCKET`, as systemd does) that calls are answered from now on.
fn ready() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = socket.as_encoded_bytes();
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound().and_then(|s| s.send_to_addr(b"READY=1", &address)));
    if let Err(error) = sent {
        eprintln!("dyad-witness: telling the service manager: {error}");
    }
}
