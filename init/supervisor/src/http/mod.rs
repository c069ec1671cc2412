//! HTTP on every node, with the meanings that Patroni gave its paths, so that what was set up for Patroni works unchanged.
//!
//! One request a connection. Connections, the size of a head and every wait are bounded; a newcomer takes the place of the
//! oldest connection, so slow ones keep nobody out.

mod answer;
mod metrics;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use crate::operator::Context;
pub(crate) use answer::Facts;
use answer::{Request, Response};

/// Connections at the same time at most.
const CONNECTIONS_MAX: usize = 64;
/// From the first byte of a request to the end of its head.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// For a whole connection.
const CONNECTION: Duration = Duration::from_secs(5);
/// Between two tries to listen, and after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves for ever.
pub(crate) async fn serve(port: u16, context: Rc<Context>) {
    let mut said = false;
    let listener = loop {
        match listen(port) {
            Ok(listener) => break listener,
            Err(error) if !said => {
                said = true;
                tracing::error!(%error, port, "listen for HTTP");
            }
            Err(_) => {}
        }
        sleep(PAUSE).await;
    };
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= CONNECTIONS_MAX
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let context = Rc::clone(&context);
                connections.push_back(spawn_local(async move {
                    // Whoever is slow, or gone, has had his time.
                    let _ = timeout(CONNECTION, one(stream, &context)).await;
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "no new HTTP connection");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Both families on one socket.
fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.listen(64)
}

async fn one(mut stream: TcpStream, context: &Context) -> io::Result<()> {
    let mut head = Vec::new();
    let response = loop {
        match Request::parse(&head) {
            Ok(Some(request)) => break answer::answer(&request, &context.facts().await),
            Err(response) => break response,
            Ok(None) if head.len() >= HEAD_BYTES_MAX => {
                break Response::text(
                    431,
                    format!("the head of a request has at most {HEAD_BYTES_MAX} bytes\n"),
                );
            }
            Ok(None) => {}
        }
        let room = HEAD_BYTES_MAX - head.len();
        if (&mut stream).take(room as u64).read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    stream.write_all(&response.encode()).await?;
    stream.shutdown().await
}
