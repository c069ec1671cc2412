//! The operator protocol as bytes on a line, and the client against a scripted stream.

use std::collections::VecDeque;
use std::io::{Read, Write};

use dyad_api::client::{CallError, Client};
use dyad_api::operator::*;
use proptest::prelude::*;

#[test]
fn requests_read_as_documented() {
    let read = |line: &str| Request::parse(line.as_bytes());
    assert_eq!(read(r#"{"id":1,"call":"status"}"#), Ok(Request { id: 1, call: Call::Status }));
    assert_eq!(
        read(r#"{"id":2,"call":"logs","args":{"lines":5}}"#),
        Ok(Request { id: 2, call: Call::Logs(Logs { lines: 5, service: None }) })
    );
    let (id, failure) = read(r#"{"id":3,"call":"shutdown"}"#).unwrap_err();
    assert_eq!((id, failure.kind), (3, FailureKind::Usage));
    assert!(failure.message.contains("`shutdown`") && failure.message.contains("`poweroff`"), "{failure}");
    let (id, failure) = read("GET / HTTP/1.0").unwrap_err();
    assert_eq!((id, failure.kind), (0, FailureKind::Usage));
    let (_, failure) = read(r#"{"id":4,"call":"stop","args":{"name":"a","now":true}}"#).unwrap_err();
    assert!(failure.message.contains("unknown field `now`"), "{failure}");
}

#[test]
fn replies_hold_one_of_ok_and_error() {
    let ok = Reply::ok(7, &serde_json::json!({}));
    assert_eq!(ok.to_line(), b"{\"id\":7,\"ok\":{}}\n");
    let error = Reply::error(8, Failure::new(FailureKind::Refused, "no"));
    assert_eq!(error.to_line(), b"{\"id\":8,\"error\":{\"kind\":\"refused\",\"message\":\"no\"}}\n");
}

#[test]
fn passwords_do_not_show_in_debug_output() {
    let row = CredentialRow { role: "app".into(), password: "sesame".into(), databases: vec![] };
    assert!(!format!("{row:?}").contains("sesame"));
}

proptest! {
    #[test]
    fn any_line_is_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&line);
    }

    #[test]
    fn any_json_is_read_or_refused(text in r#"\{("id":[0-9]{1,3},)?("call":"[a-z]{1,9}",?)?("args":(null|\{\}|[0-9]))?\}"#) {
        let _ = Request::parse(text.as_bytes());
    }
}

/// A stream whose input is a script and whose output is kept.
struct Script {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Short reads, as a serial port gives them.
        let count = buffer.len().min(3);
        self.input.read(&mut buffer[..count])
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn script(input: &str) -> Client<Script> {
    Client::new(Script { input: input.bytes().collect(), output: Vec::new() }, 5)
}

#[test]
fn the_client_skips_what_was_meant_for_an_earlier_one() {
    let mut client =
        script("tail of a reply\"}\n{\"id\":4,\"ok\":[1]}\n\n{\"id\":5,\"ok\":[2]}\n{\"id\":6,\"ok\":[3]}\n");
    assert_eq!(client.call::<Vec<u8>>(Call::Services).unwrap(), vec![2]);
    assert_eq!(client.call::<Vec<u8>>(Call::Services).unwrap(), vec![3]);
    assert!(matches!(client.call::<Vec<u8>>(Call::Services), Err(CallError::Closed)));
}

#[test]
fn the_client_tells_a_refusal_from_a_strange_answer() {
    let mut client = script(
        "{\"id\":5,\"error\":{\"kind\":\"failed\",\"message\":\"disk full\"}}\n{\"id\":6,\"ok\":{\"x\":1}}\n",
    );
    let refused = client.call::<Vec<u8>>(Call::Reboot).unwrap_err();
    assert_eq!(refused.to_string(), "disk full");
    assert!(matches!(client.call::<Vec<u8>>(Call::Reboot), Err(CallError::Decode(_))));
}
