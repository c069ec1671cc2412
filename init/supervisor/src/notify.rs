//! What the supervisor tells PID 1 about itself (sd_notify).

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// The notify socket of PID 1, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Notify {
    socket: Option<PathBuf>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub(crate) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        Self { socket, watchdog: watchdog.filter(|&usec| usec > 0).map(Duration::from_micros) }
    }

    /// Sends `READY=1`, `STATUS=...` and the like. It never blocks; a message that does not get through is lost.
    pub(crate) fn send(&self, message: &str) {
        let Some(path) = &self.socket else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to(message.as_bytes(), path)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "PID 1 did not take a notification");
        }
    }

    /// Feeds the watchdog for ever, at half its period: a hung event loop starves it.
    pub(crate) async fn feed(self) {
        let Some(period) = self.watchdog else { return };
        loop {
            self.send("WATCHDOG=1");
            tokio::time::sleep(period / 2).await;
        }
    }
}
