//! The operator socket.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dyad_api::line::Lines;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::operator::calls::{Caller, Context};

/// Clients at the same time at most.
const CLIENTS_MAX: usize = 16;
/// For a client to take a reply.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after the kernel refused a connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Makes the socket, for root alone; one that an earlier supervisor left is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves clients for ever.
pub(crate) async fn serve_socket(listener: UnixListener, context: Rc<Context>) {
    let places = Rc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let place = Rc::clone(&places);
        let Ok(free) = places.acquire().await else { return };
        free.forget();
        match listener.accept().await {
            Ok((stream, _)) => {
                let context = Rc::clone(&context);
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve(stream, &context).await {
                        tracing::info!(%error, "an operator's connection broke");
                    }
                    place.add_permits(1);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no new operator connection");
                place.add_permits(1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, context: &Context) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    // Root and the supervisor's own user, which is root too on the appliance.
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("user {uid} is not root")));
    }
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        while let Some(line) = lines.next_line() {
            let reply = context.answer(line, Caller::Local).await.to_line();
            tokio::time::timeout(WRITE_DEADLINE, stream.write_all(&reply)).await??;
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => lines.push(&buffer[..count]),
        }
    }
}
