//! The operator's side of [`crate::operator`]: blocking, over anything that reads and writes.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;

use crate::line::{Lines, TooLong};
use crate::operator::{Call, Failure, Reply, Request};

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The connection broke, or a read passed the deadline set on it.
    #[error("connection to the supervisor: {0}")]
    Io(#[from] std::io::Error),
    /// The supervisor closed the connection.
    #[error("the supervisor closed the connection before it answered")]
    Closed,
    /// The reply is longer than a line may be.
    #[error("reply of the supervisor: {0}")]
    TooLong(#[from] TooLong),
    /// The reply is not of the type that the call has.
    #[error("reply of the supervisor does not decode ({0}); it may run another version")]
    Decode(#[from] serde_json::Error),
    /// The supervisor said no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    lines: Lines,
    next_id: u64,
}

impl<S: Read + Write> Client<S> {
    /// Takes a connected stream. On a serial port, where replies to an earlier client may still arrive, `first_id` must
    /// differ from what that client used; on a socket any number does.
    pub fn new(stream: S, first_id: u64) -> Self {
        // 0 is the id of replies to lines that were no requests.
        Self { stream, lines: Lines::default(), next_id: first_id.max(1) }
    }

    /// Asks, waits for the reply, decodes it. Replies to other ids are dropped.
    pub fn call<T: DeserializeOwned>(&mut self, call: Call) -> Result<T, CallError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1).max(1);
        // The leading line end finishes what an earlier client of a serial port may have left half-written.
        let mut bytes = vec![b'\n'];
        bytes.extend_from_slice(&Request { id, call }.to_line());
        self.stream.write_all(&bytes)?;
        self.stream.flush()?;
        loop {
            let line = self.read_line()?;
            // A half line of an earlier client's reply is no JSON: it is not ours, like a reply with another id.
            match serde_json::from_slice::<Reply>(&line) {
                Ok(Reply { id: got, ok, error }) if got == id => {
                    return match error {
                        Some(failure) => Err(failure.into()),
                        None => Ok(serde_json::from_value(ok.unwrap_or_default())?),
                    };
                }
                Ok(_) | Err(_) => continue,
            }
        }
    }

    fn read_line(&mut self) -> Result<Vec<u8>, CallError> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(line) = self.lines.next_line() {
                return Ok(line?);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(CallError::Closed),
                Ok(count) => self.lines.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
