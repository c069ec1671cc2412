//! The operator's socket: one JSON line asked, one answered. Whoever may open the state directory may use it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dyad_channel::secret::Code;
use dyad_channel::server::Counters;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::disk::Disk;
use crate::status::{self, About, Status};
use crate::witness::Witness;

const SOCKET: &str = "control.sock";
/// For a question to come and its answer to go.
const DEADLINE: Duration = Duration::from_secs(10);
/// Operators at a time.
const OPERATORS_MAX: usize = 8;
/// A question is one short line.
const QUESTION_BYTES_MAX: u64 = 4096;

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Question {
    /// How things are.
    Status,
    /// Open a code.
    Enroll {
        /// As typed.
        code: String,
    },
}

/// What an operator is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Told {
    /// To `status`.
    Status(Box<Status>),
    /// To `enroll`.
    Opened,
    /// The reason.
    Refused(String),
}

pub(crate) fn path(state: &Path) -> PathBuf {
    state.join(SOCKET)
}

/// Takes the socket's place. The caller holds the state directory's lock, so a socket that is there is a dead one.
pub(crate) fn bind(state: &Path) -> io::Result<UnixListener> {
    let path = path(state);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers operators until dropped.
pub(crate) async fn serve<D: Disk>(
    listener: UnixListener,
    witness: Arc<Witness<D>>,
    about: About,
    counters: Arc<Counters>,
) {
    let places = Arc::new(Semaphore::new(OPERATORS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (witness, about, counters) = (witness.clone(), about.clone(), counters.clone());
        tokio::spawn(async move {
            let _place = place;
            let exchange = async {
                let (read, mut write) = stream.split();
                let mut line = String::new();
                tokio::io::BufReader::new(read.take(QUESTION_BYTES_MAX)).read_line(&mut line).await?;
                let told = match serde_json::from_str(&line) {
                    Ok(question) => tell(&witness, &about, &counters, question).await,
                    Err(error) => Told::Refused(format!("the question does not decode: {error}")),
                };
                let mut answer = serde_json::to_vec(&told)?;
                answer.push(b'\n');
                write.write_all(&answer).await
            };
            // An operator that went away needs no answer.
            let _ = tokio::time::timeout(DEADLINE, exchange).await;
        });
    }
}

async fn tell<D: Disk>(witness: &Witness<D>, about: &About, counters: &Counters, question: Question) -> Told {
    match question {
        Question::Status => Told::Status(Box::new(status::status(witness, about, counters).await)),
        Question::Enroll { code } => match Code::parse(&code) {
            Ok(code) => match witness.open_code(&code.secret()).await {
                Ok(()) => Told::Opened,
                Err(error) => Told::Refused(error.to_string()),
            },
            Err(error) => Told::Refused(error.to_string()),
        },
    }
}

/// Asks the witness that runs on this state directory.
pub(crate) fn ask(state: &Path, question: &Question) -> Result<Told, String> {
    let path = path(state);
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        format!(
            "{}: {error}; no witness runs on this state directory (`dyad-witness run --state DIR`), or it is another user's",
            path.display()
        )
    })?;
    let mut exchange = || -> io::Result<Told> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    exchange().map_err(|error| format!("{}: {error}", path.display()))
}
