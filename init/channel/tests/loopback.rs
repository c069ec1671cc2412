//! Client and server over real sockets: who gets in, and what each kind of bad behaviour meets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dyad_channel::client::{self, Cause, Client};
use dyad_channel::frame::{self, FrameError, Numbered};
use dyad_channel::server::{self, Answer, Counters, Peer, Service};
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::{Identity, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const FRAME_MAX: usize = 1024;
const SERVER: server::Limits = server::Limits {
    strangers_max: 3,
    per_key_max: 2,
    frame_bytes_max: FRAME_MAX,
    handshake_ms: 5_000,
    idle_ms: 60_000,
    frame_ms: 300,
    answer_ms: 500,
};
const CLIENT: client::Limits = client::Limits { call_ms: 10_000, frame_bytes_max: FRAME_MAX, waiting_max: 2 };

/// Repeats what it is sent; "wait" is never answered, "lie" with another number, "bye" is the last.
struct Echo {
    known: Vec<PublicKey>,
}

impl Service for Echo {
    fn knows(&self, key: &PublicKey) -> bool {
        self.known.contains(key)
    }

    async fn answer(&self, _peer: &Peer, frame: Vec<u8>) -> Answer {
        let mut question: Numbered<String> = frame::decode(&frame).unwrap();
        match question.message.as_str() {
            "wait" => std::future::pending().await,
            "lie" => question.number += 1,
            _ => {}
        }
        let keep = question.message != "bye";
        Answer { frame: frame::encode(&question, FRAME_MAX).unwrap(), keep }
    }

    fn refuse(&self, error: &FrameError) -> Option<Vec<u8>> {
        let message = error.to_string();
        frame::encode(&Numbered { number: 0, message }, FRAME_MAX).ok()
    }
}

struct World {
    address: SocketAddr,
    server: Identity,
    node: Identity,
    counters: Arc<Counters>,
}

async fn world(trust: impl FnOnce(&Identity) -> Trust, limits: server::Limits) -> World {
    let (server, node) = (Identity::draw().unwrap(), Identity::draw().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counters = Arc::new(Counters::default());
    let tls = tls::server(&server, trust(&node), Speaks::Witness).unwrap();
    let service = Arc::new(Echo { known: vec![node.public()] });
    tokio::spawn(server::serve(listener, tls, service, limits, counters.clone()));
    World { address, server, node, counters }
}

impl World {
    fn client(&self, identity: &Identity, trust: Trust, speaks: Speaks) -> Client<String, String> {
        Client::new(self.address, tls::client(identity, trust, speaks).unwrap(), CLIENT)
    }

    fn good(&self) -> Client<String, String> {
        self.client(&self.node, Trust::Pinned(vec![self.server.public()]), Speaks::Witness)
    }

    async fn raw(&self, identity: &Identity) -> tokio_rustls::client::TlsStream<TcpStream> {
        let config =
            tls::client(identity, Trust::Pinned(vec![self.server.public()]), Speaks::Witness).unwrap();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(config).connect("dyad".try_into().unwrap(), tcp).await.unwrap()
    }
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("holds within 30 s");
}

fn hello() -> String {
    "hello".to_owned()
}

#[tokio::test]
async fn both_ends_are_who_they_are_said_to_be() {
    let world = world(|node| Trust::Pinned(vec![node.public()]), SERVER).await;
    assert_eq!(world.good().call(&hello()).await.unwrap(), "hello");

    let stranger = Identity::draw().unwrap();
    let client = world.client(&stranger, Trust::Pinned(vec![world.server.public()]), Speaks::Witness);
    // In TLS 1.3 the client is done before the server has judged it: it sees the refusal where the answer should be.
    let cause = client.call(&hello()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Frame(_) | Cause::Closed), "{cause:?}");

    let client = world.client(&world.node, Trust::Pinned(vec![stranger.public()]), Speaks::Witness);
    let text = client.call(&hello()).await.unwrap_err().to_string();
    assert!(text.contains(&format!("key {}, which is not pinned", world.server.public().id())), "{text}");

    let client = world.client(&world.node, Trust::AnyKey, Speaks::Peer);
    let cause = client.call(&hello()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Handshake(_)), "another protocol's client: {cause:?}");
}

#[tokio::test]
async fn every_failure_is_an_unknown_outcome_and_the_next_call_works() {
    let world = world(|_| Trust::AnyKey, SERVER).await;
    let client = world.good();
    assert_eq!(client.call(&hello()).await.unwrap(), "hello");
    let cause = client.call(&"wait".to_owned()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Closed | Cause::Frame(_)), "{cause:?}");
    let cause = client.call(&"lie".to_owned()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Number { .. }), "{cause:?}");
    assert_eq!(client.call(&"bye".to_owned()).await.unwrap(), "bye");
    let cause = client.call(&hello()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Closed | Cause::Frame(_)), "closed behind the answer: {cause:?}");
    let cause = client.call(&"x".repeat(2 * FRAME_MAX)).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Frame(FrameError::TooLarge { .. })), "{cause:?}");
    assert_eq!(client.call(&hello()).await.unwrap(), "hello");

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = tls::client(&world.node, Trust::AnyKey, Speaks::Witness).unwrap();
    let client: Client<String, String> = Client::new(nobody, config, CLIENT);
    let text = client.call(&hello()).await.unwrap_err().to_string();
    assert!(text.starts_with(&format!("outcome unknown: {nobody}: cannot connect: ")), "{text}");
}

/// An address at which nothing answers, not even with a refusal: its queue is full and stays so.
async fn silence() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    let wait = Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(wait, TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
    }
    (listener, queued, address)
}

#[tokio::test]
async fn an_address_that_does_not_answer_costs_a_part_of_the_time_and_not_the_question() {
    let world = world(|node| Trust::Pinned(vec![node.public()]), SERVER).await;
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_listener, _queued, silent) = silence().await;
    for before in [vec![], vec![silent], vec![refuses, silent], vec![silent, refuses]] {
        let ways: Vec<_> = before.into_iter().chain([world.address]).collect();
        let config =
            tls::client(&world.node, Trust::Pinned(vec![world.server.public()]), Speaks::Witness).unwrap();
        let client: Client<String, String> = Client::by_any(ways.clone(), config, CLIENT);
        assert_eq!(client.call(&hello()).await.unwrap(), "hello", "{ways:?}");
    }
    // One that connects and never says a word: the question after it begins with the next.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config =
        tls::client(&world.node, Trust::Pinned(vec![world.server.public()]), Speaks::Witness).unwrap();
    let ways = vec![mute.local_addr().unwrap(), world.address];
    let limits = client::Limits { call_ms: 2_000, ..CLIENT };
    let client: Client<String, String> = Client::by_any(ways, config, limits);
    assert_eq!(client.call(&hello()).await.unwrap_err().cause, Cause::Deadline(2_000));
    assert_eq!(client.call(&hello()).await.unwrap(), "hello");
    let config = tls::client(&world.node, Trust::AnyKey, Speaks::Witness).unwrap();
    let limits = client::Limits { call_ms: 400, ..CLIENT };
    let client: Client<String, String> = Client::by_any(vec![silent, refuses], config, limits);
    let unknown = client.call(&hello()).await.unwrap_err();
    assert_eq!(unknown.at, format!("{silent} or {refuses}"));
    assert_eq!(unknown.cause, Cause::Deadline(400), "one of them may still answer");
}

#[tokio::test]
async fn a_silent_server_is_left_at_the_deadline_and_the_queue_is_bounded() {
    // Accepts and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::client(&Identity::draw().unwrap(), Trust::AnyKey, Speaks::Witness).unwrap();
    let client: Client<String, String> =
        Client::new(address, config, client::Limits { call_ms: 200, ..CLIENT });
    let question = hello();
    let (a, b, c, d) = tokio::join!(
        client.call(&question),
        client.call(&question),
        client.call(&question),
        client.call(&question)
    );
    for outcome in [a, b, c] {
        assert_eq!(outcome.unwrap_err().cause, Cause::Deadline(200));
    }
    assert_eq!(d.unwrap_err().cause, Cause::Busy(2));
}

#[tokio::test]
async fn a_caller_that_stops_waiting_leaves_no_answer_behind() {
    let world = world(|_| Trust::AnyKey, server::Limits { answer_ms: 60_000, ..SERVER }).await;
    let client = world.good();
    let wait = "wait".to_owned();
    let gone = tokio::time::timeout(Duration::from_millis(100), client.call(&wait)).await;
    assert!(gone.is_err());
    assert_eq!(client.call(&hello()).await.unwrap(), "hello");
}

#[tokio::test]
async fn slow_and_oversized_messages_are_cut_off() {
    let world = world(|_| Trust::AnyKey, SERVER).await;
    let mut slow = world.raw(&world.node).await;
    slow.write_all(&[10, 0]).await.unwrap();
    let mut end = Vec::new();
    let _ = slow.read_to_end(&mut end).await;
    assert!(end.is_empty(), "half a length and then silence is not answered");

    let mut large = world.raw(&world.node).await;
    large.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let answer = frame::read(&mut large, FRAME_MAX).await.unwrap().unwrap();
    let answer: Numbered<String> = frame::decode(&answer).unwrap();
    assert_eq!(answer.message, "message of 4294967295 bytes, at most 1024 are accepted");
    assert_eq!(frame::read(&mut large, FRAME_MAX).await.unwrap_or(None), None, "and closed");
    eventually(|| world.counters.closed.load(Ordering::Relaxed) == 2).await;

    let mut noise = TcpStream::connect(world.address).await.unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    eventually(|| world.counters.handshakes_failed.load(Ordering::Relaxed) == 1).await;
    assert_eq!(world.good().call(&hello()).await.unwrap(), "hello");
}

/// Sockets that say nothing fill all places for strangers; nodes still get through, known or not.
#[tokio::test]
async fn silent_strangers_lock_nobody_out() {
    let world = world(|_| Trust::AnyKey, server::Limits { handshake_ms: 600_000, ..SERVER }).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    eventually(|| world.counters.displaced.load(Ordering::Relaxed) >= 17).await;
    assert_eq!(world.good().call(&hello()).await.unwrap(), "hello");
    let newcomer = Identity::draw().unwrap();
    let client = world.client(&newcomer, Trust::Pinned(vec![world.server.public()]), Speaks::Witness);
    assert_eq!(client.call(&hello()).await.unwrap(), "hello");
}

/// A node that lost its old connections gets new ones at once: the oldest of its own give way.
#[tokio::test]
async fn a_known_key_has_a_few_places_of_its_own() {
    let world = world(|_| Trust::AnyKey, SERVER).await;
    let clients: Vec<_> = (0..4).map(|_| world.good()).collect();
    for client in &clients {
        assert_eq!(client.call(&hello()).await.unwrap(), "hello");
    }
    eventually(|| world.counters.displaced.load(Ordering::Relaxed) == 2).await;
    assert_eq!(clients[3].call(&hello()).await.unwrap(), "hello");
    assert!(clients[0].call(&hello()).await.is_err(), "the first connection gave way");
}
