//! Puts the parts together and runs them on one thread.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use dyad_api::operator::{NetworkSection, PORT};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use crate::files::{self, Access, FileError};
use crate::notify::Notify;
use crate::operator::{self, Context};
use crate::paths::Paths;
use crate::pg::Owner;
use crate::pg::crashes::Crashes;
use crate::pg::manager::{Manager, PgState};
use crate::pid1::Pid1;
use crate::site::{self, Site};
use crate::{log, network};

/// Why the supervisor cannot run at all. PID 1 starts it again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("start a thread for the log, or the event loop: {0}")]
    Runtime(std::io::Error),
    #[error("make the operator socket: {0}")]
    Socket(std::io::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Runs until killed.
pub(crate) fn run(paths: Paths) -> Result<Infallible, StartError> {
    // Whatever is made without saying otherwise is root's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    log::init().map_err(StartError::Runtime)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    LocalSet::new().block_on(&runtime, serve(Rc::new(paths)))
}

async fn serve(paths: Rc<Paths>) -> Result<Infallible, StartError> {
    let notify = Notify::from_env();
    let site = site::load(&paths);
    tracing::info!(node = %site.identity.name, site = %site.identity.site, "supervisor starts");
    name_node(&paths, &site)?;
    let pid1 = Pid1::start(paths.init_socket());
    let (pg_wanted, wanted) = watch::channel(true);
    let (pg_state, pg) = watch::channel(PgState::default());
    let (network_state, network) =
        watch::channel(NetworkSection { state: "waiting".into(), note: String::new(), links: Vec::new() });
    let listener = operator::listen(&paths.operator_socket()).map_err(StartError::Socket)?;
    let context = Rc::new(Context {
        paths: Rc::clone(&paths),
        pid1: pid1.clone(),
        identity: site.identity.clone(),
        postgresql: site.postgresql.clone(),
        pg: pg.clone(),
        pg_wanted,
        network,
        execs: Cell::new(0),
    });
    spawn_local(operator::serve_socket(listener, Rc::clone(&context)));
    spawn_local(operator::serve_port(Rc::clone(&paths), PORT, context));
    spawn_local(network::keep(Rc::clone(&paths), site.clone(), network_state));
    spawn_local(notify.clone().feed());
    match files::read_plain(&paths.at("/etc/passwd"))?.as_deref().and_then(Owner::from_passwd) {
        Some(owner) => {
            let manager = Manager {
                paths,
                pid1,
                site: site.postgresql,
                owner,
                wanted,
                state: pg_state,
                crashes: Crashes::default(),
            };
            spawn_local(manager.run());
        }
        None => pg_state.send_modify(|state| state.section.note = "this image has no user postgres".into()),
    }
    notify.send("READY=1");
    tell_status(&notify, pg).await
}

/// Tells PID 1 how far the node is, for ever.
async fn tell_status(notify: &Notify, mut pg: watch::Receiver<PgState>) -> Result<Infallible, StartError> {
    let mut last = String::new();
    loop {
        let text = pg.borrow_and_update().section.state.clone();
        if text != last {
            notify.send(&format!("STATUS=PostgreSQL is {text}"));
            last = text;
        }
        if pg.changed().await.is_err() {
            // Without a manager nothing changes any more.
            std::future::pending::<Infallible>().await;
        }
    }
}

/// Gives the machine its name and writes what `/etc` links to.
fn name_node(paths: &Paths, site: &Site) -> Result<(), FileError> {
    let name = &site.identity.name;
    let dir = paths.at("/run/dyad/etc");
    files::ensure_dir(&dir, Access::own(0o755))?;
    let public = Access::own(0o644);
    files::ensure(&dir.join("hostname"), format!("{name}\n").as_bytes(), public)?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {name}\n");
    files::ensure(&dir.join("hosts"), hosts.as_bytes(), public)?;
    if paths.is_machine()
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        tracing::warn!(%error, name = %name, "set the host name");
    }
    Ok(())
}
