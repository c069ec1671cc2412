//! QEMU's machine protocol: one JSON object a line, requests answered by id, events in between.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Doing, LabError, Result, refuse};

/// How long QEMU may take to answer a command; under load its main loop can be away for seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    writer: Mutex<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, Sender<Value>>,
}

impl Qmp {
    /// Takes over a connected monitor socket. `event` is called from the reading thread.
    pub(crate) fn start(stream: UnixStream, event: impl Fn(&str, &Value) + Send + 'static) -> Result<Self> {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let reader = BufReader::new(stream.try_clone().doing("duplicate the monitor socket")?);
        let inner = waiting.clone();
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || read(reader, &inner, &event))
            .doing("start a thread")?;
        let qmp = Qmp { writer: Mutex::new(stream), waiting };
        qmp.send("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub(crate) fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.send(command, arguments)?;
        match answer.recv_timeout(ANSWER) {
            Ok(mut reply) => match reply.get("error") {
                Some(error) => refuse(format!("QEMU refused {command}: {}", text(&error["desc"]))),
                None => Ok(reply["return"].take()),
            },
            Err(RecvTimeoutError::Disconnected) => refuse("the machine went away"),
            Err(RecvTimeoutError::Timeout) => Err(LabError::Deadline {
                what: format!("QEMU did not answer {command}"),
                seconds: ANSWER.as_secs(),
                next: "a paused machine answers nothing: resume it first".into(),
            }),
        }
    }

    fn send(&self, command: &str, arguments: Value) -> Result<Receiver<Value>> {
        let (sender, receiver) = channel();
        let id = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, sender);
            id
        };
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": id }));
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(line.as_bytes()).doing("write to QEMU's monitor")?;
        Ok(receiver)
    }
}

fn read(reader: BufReader<UnixStream>, waiting: &Mutex<Waiting>, event: &dyn Fn(&str, &Value)) {
    for line in reader.lines() {
        let Ok(Ok(message)) = line.map(|l| serde_json::from_str::<Value>(&l)) else { break };
        if let Some(name) = message["event"].as_str() {
            event(name, &message["data"]);
        } else if let Some(id) = message["id"].as_u64() {
            let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&id);
            if let Some(sender) = sender {
                // The asker may have given up.
                let _ = sender.send(message);
            }
        }
    }
    // Dropping the senders tells everybody who still waits.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.clear();
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_find_their_question_among_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (events, heard) = channel();
        let peer = std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut writer = theirs;
            let mut ask = || {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                serde_json::from_str::<Value>(&line).unwrap()
            };
            writeln!(writer, r#"{{"QMP": {{"version": {{}}}}}}"#).unwrap();
            assert_eq!(ask()["execute"], "qmp_capabilities");
            let first = ask();
            assert_eq!(first["arguments"]["x"], 1);
            writeln!(writer, r#"{{"return": {{}}, "id": 1}}"#).unwrap();
            writeln!(writer, r#"{{"event": "RESET", "data": {{"guest": true}}}}"#).unwrap();
            writeln!(writer, "{}", json!({"return": {"ok": 7}, "id": first["id"]})).unwrap();
            let second = ask();
            writeln!(writer, "{}", json!({"error": {"desc": "not now"}, "id": second["id"]})).unwrap();
            ask();
        });
        let qmp = Qmp::start(ours, move |name, _| events.send(name.to_owned()).unwrap()).unwrap();
        assert_eq!(qmp.execute("first", json!({"x": 1})).unwrap()["ok"], 7);
        assert_eq!(heard.recv().unwrap(), "RESET");
        assert!(qmp.execute("second", json!({})).unwrap_err().to_string().contains("not now"));
        assert!(qmp.execute("third", json!({})).unwrap_err().to_string().contains("went away"));
        peer.join().unwrap();
    }
}
