//! The real program over loopback: enrolment, SIGKILL and restart, and everything that somebody may send it.

mod support;

use std::fs;
use std::time::Duration;

use dyad_channel::Identity;
use dyad_channel::frame::{self, Numbered};
use dyad_channel::secret::{Code, Proof};
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::witness::{Call, Enroll, FRAME_BYTES_MAX, Refused, Reply};
use dyad_cluster::message::{Answer, Cas, Refusal, ToArbiter, Verdict};
use dyad_cluster::register::Change;
use dyad_cluster::types::{BootId, ClusterId, Epoch, Incarnation, Pact, RequestId, ResourceId};
use support::process::{Member, Running, ask, client, pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const R: ResourceId = ResourceId(0);

fn cas(expect: u64, change: Change) -> Vec<Cas> {
    vec![Cas { resource: R, expect: Epoch(expect), change }]
}

async fn enrolled(witness: &Running, cluster: u128) -> [Member; 2] {
    let mut members = pair(cluster, witness.address);
    let code = witness.enroll().secret();
    for (member, complete) in members.iter_mut().zip([false, true]) {
        match member.enroll(&code, witness.address).await.unwrap() {
            Reply::Enrolled { complete: told, .. } => assert_eq!(told, complete),
            other => panic!("{other:?}"),
        }
    }
    for member in &mut members {
        member.hello().await;
    }
    members
}

/// All state on disk, without the sockets and the lock.
fn content(witness: &Running) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(&witness.state)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_cluster_enrols_and_its_grants_outlive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = Running::start(&dir.path().join("state"));
    let [mut a, mut b] = enrolled(&witness, 1).await;
    let won = a.batch(1, cas(0, Change::Found)).await;
    assert_eq!(won.answer, Answer::Verdicts { request: RequestId(1), verdicts: vec![Verdict::Won] });

    let pact = Pact { epoch: Epoch(1), attempt: 1, nonce: 7 };
    a.batch(2, cas(1, Change::Protect(pact))).await;
    witness.kill_and_restart();

    // The connection is gone with the process: unknown, never refused.
    let read = Call::Read { cluster: a.cluster };
    assert!(a.call(&read).await.is_err());
    let known = a.mirror.clone();
    let Reply::Registers { registers, grants, .. } = a.call(&read).await.unwrap() else { panic!() };
    assert_eq!((registers, grants), (known, false), "all is there, and nothing is granted yet");

    // The same request again gets its first answer, although the run is another.
    a.incarnation = None;
    a.hello().await;
    let again = a.batch(2, cas(1, Change::Protect(pact))).await;
    assert_eq!(again.answer, Answer::Verdicts { request: RequestId(2), verdicts: vec![Verdict::Won] });
    let waits = a.batch(3, cas(2, Change::Degrade)).await;
    assert_eq!(waits.answer, Answer::Verdicts { request: RequestId(3), verdicts: vec![Verdict::NotHeard] });
    let status = witness.status();
    assert_eq!(status.clusters[0].state, "waits");
    assert!(status.clusters[0].meaning.contains(&b.identity.public().id().to_string()));

    assert!(b.call(&read).await.is_err());
    b.incarnation = None;
    b.hello().await;
    let alive = b.batch(1, cas(2, Change::TakeOver(pact))).await;
    assert_eq!(
        alive.answer,
        Answer::Verdicts { request: RequestId(1), verdicts: vec![Verdict::HolderAlive] }
    );
    let won = a.batch(4, cas(2, Change::Degrade)).await;
    assert_eq!(won.answer, Answer::Verdicts { request: RequestId(4), verdicts: vec![Verdict::Won] });
    let status = witness.status();
    assert_eq!(status.clusters[0].state, "grants");
    assert_eq!(
        (status.clusters[0].resources[0].epoch, status.clusters[0].resources[0].mode.as_str()),
        (3, "Solo")
    );

    assert_eq!(a.call(&Call::Leave { cluster: a.cluster }).await.unwrap(), Reply::Left);
    assert_eq!(b.call(&read).await.unwrap(), Reply::Refused(Refused::NotEnrolled));
    assert_eq!(witness.status().clusters.len(), 0);
}

#[tokio::test]
async fn a_lost_answer_to_an_enrolment_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = Running::start(&dir.path().join("state"));
    let [mut a, mut b] = pair(9, witness.address);
    let code = witness.enroll().secret();
    a.enroll(&code, witness.address).await.unwrap();
    let read = Call::Read { cluster: a.cluster };
    assert_eq!(a.call(&read).await.unwrap(), Reply::Refused(Refused::Waiting));
    assert_eq!(witness.status().clusters[0].state, "enrolling");
    witness.kill_and_restart();
    let told = b.enroll(&code, witness.address).await.unwrap();
    assert!(matches!(told, Reply::Enrolled { complete: true, .. }), "{told:?}");
    witness.kill_and_restart();
    for member in [&mut a, &mut b] {
        let mut told = member.enroll(&code, witness.address).await;
        if told.is_err() {
            // The connection died with the process.
            told = member.enroll(&code, witness.address).await;
        }
        assert!(matches!(told, Ok(Reply::Enrolled { complete: true, .. })), "{told:?}");
    }
    assert_eq!(witness.status().codes_open, 0);
}

/// Messages of another time, each with the name under which it is refused.
fn replays(a: &Member) -> [(ToArbiter, Refusal); 5] {
    let boot = a.boot;
    let old_run = Incarnation(a.incarnation.unwrap().0 ^ 1);
    [
        (ToArbiter::Renew { boot, incarnation: old_run, sequence: 1 }, Refusal::Incarnation),
        (ToArbiter::Hello { boot, incarnation: Some(old_run), mirror: Some(vec![]) }, Refusal::Incarnation),
        (
            ToArbiter::Hello {
                boot: BootId { count: 0, nonce: 0 },
                incarnation: a.incarnation,
                mirror: Some(vec![]),
            },
            Refusal::Boot,
        ),
        (
            ToArbiter::Batch {
                boot,
                incarnation: a.incarnation.unwrap(),
                request: RequestId(4),
                items: cas(1, Change::Resume),
            },
            Refusal::Request,
        ),
        (
            ToArbiter::Batch {
                boot,
                incarnation: a.incarnation.unwrap(),
                request: RequestId(6),
                items: vec![cas(1, Change::Resume)[0]; 65],
            },
            Refusal::TooLarge,
        ),
    ]
}

/// Each of these is refused by its name, and the state on disk is what it was.
#[tokio::test]
async fn bad_calls_are_named_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Running::start(&dir.path().join("state"));
    let [mut a, _b] = enrolled(&witness, 1).await;
    let [mut c, _d] = enrolled(&witness, 2).await;
    a.batch(5, cas(0, Change::Found)).await;
    c.batch(1, cas(0, Change::Found)).await;
    let before = content(&witness);
    let refused = |reply: Reply| match reply {
        Reply::Refused(refused) => refused,
        other => panic!("{other:?}"),
    };

    let wrong_cluster = Call::Read { cluster: c.cluster };
    assert_eq!(refused(a.call(&wrong_cluster).await.unwrap()), Refused::NotEnrolled);
    let no_cluster = Call::Leave { cluster: ClusterId(77) };
    assert_eq!(refused(a.call(&no_cluster).await.unwrap()), Refused::NotEnrolled);
    let stranger = Identity::draw().unwrap();
    let unknown_key = client(&stranger, Trust::AnyKey, witness.address);
    assert_eq!(
        refused(unknown_key.call(&Call::Read { cluster: a.cluster }).await.unwrap()),
        Refused::NotEnrolled
    );
    let unknown_key = client(&stranger, Trust::AnyKey, witness.address);
    assert_eq!(
        refused(unknown_key.call(&Call::Leave { cluster: a.cluster }).await.unwrap()),
        Refused::NotEnrolled
    );

    let forged = Enroll { statement: a.statement(), proof: Proof([0; 32]) };
    assert_eq!(refused(a.call(&Call::Enroll(forged)).await.unwrap()), Refused::Code);
    let wrong_code = Code::draw().secret();
    assert_eq!(refused(a.enroll(&wrong_code, witness.address).await.unwrap()), Refused::Code);

    let incarnation = a.incarnation;
    for (message, refusal) in replays(&a) {
        assert_eq!(a.ask(message).await.answer, Answer::Refused(refusal));
        assert_eq!(a.incarnation, incarnation);
    }
    assert_eq!(content(&witness), before);
}

async fn raw(member: &Member, witness: &Running) -> TlsStream<TcpStream> {
    let config = tls::client(&member.identity, Trust::AnyKey, Speaks::Witness).unwrap();
    let tcp = TcpStream::connect(witness.address).await.unwrap();
    TlsConnector::from(config).connect("dyad".try_into().unwrap(), tcp).await.unwrap()
}

async fn refusal_of(stream: &mut TlsStream<TcpStream>) -> Refused {
    let frame = frame::read(stream, FRAME_BYTES_MAX).await.unwrap().expect("an answer");
    match frame::decode::<Numbered<Reply>>(&frame).unwrap().message {
        Reply::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn mangled_oversized_and_slow_messages_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Running::start(&dir.path().join("state"));
    let [mut a, _b] = enrolled(&witness, 1).await;
    a.batch(1, cas(0, Change::Found)).await;
    let before = content(&witness);

    let mut stream = raw(&a, &witness).await;
    stream.write_all(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()).await.unwrap();
    assert_eq!(refusal_of(&mut stream).await, Refused::TooLarge(FRAME_BYTES_MAX as u32));

    let mut stream = raw(&a, &witness).await;
    stream.write_all(&[3, 0, 0, 0, 9, 1, 1]).await.unwrap();
    assert_eq!(refusal_of(&mut stream).await, Refused::Version(frame::VERSION));

    // A good message with one byte changed, each byte in turn: it does not decode, or it is refused.
    let call = Call::Arbiter {
        cluster: a.cluster,
        message: ToArbiter::Batch {
            boot: a.boot,
            incarnation: a.incarnation.unwrap(),
            request: RequestId(2),
            items: cas(7, Change::Degrade),
        },
    };
    let good = frame::encode(&Numbered { number: 1, message: call }, FRAME_BYTES_MAX).unwrap();
    let mut chance = support::Chance(1);
    for at in 5..good.len() - 3 {
        let mut bad = good.clone();
        // The request number must stay: a later one is a good message.
        bad[at] ^= 0x80 | (1 << chance.below(7));
        let mut stream = raw(&a, &witness).await;
        stream.write_all(&bad).await.unwrap();
        let frame = tokio::time::timeout(Duration::from_secs(30), frame::read(&mut stream, FRAME_BYTES_MAX))
            .await
            .expect("an answer or the end");
        if let Ok(Some(frame)) = frame {
            match frame::decode::<Numbered<Reply>>(&frame).unwrap().message {
                Reply::Refused(_) => {}
                Reply::Arbiter(answer) => match answer.answer {
                    Answer::Refused(_) => {}
                    Answer::Verdicts { verdicts, .. } => {
                        assert!(verdicts.iter().all(|v| matches!(v, Verdict::Lost(_))), "{verdicts:?}");
                    }
                    other => panic!("byte {at}: {other:?}"),
                },
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&content(&witness)), names(&before));

    // Half a message and silence: closed, and meanwhile everybody else is served.
    let mut slow = raw(&a, &witness).await;
    slow.write_all(&good[..9]).await.unwrap();
    let read = Call::Read { cluster: a.cluster };
    let mut other = a.call(&read).await;
    if other.is_err() {
        other = a.call(&read).await;
    }
    let Ok(Reply::Registers { registers, .. }) = other else { panic!("{other:?}") };
    assert_eq!(registers[0].1.epoch, Epoch(1), "no change came of all that");
    let mut end = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), slow.read_to_end(&mut end)).await;
    assert!(closed.is_ok() && end.is_empty(), "closed without an answer");
}

/// A real full file system, in a namespace of its own: an enrolment is refused by name, what is enrolled goes on.
#[tokio::test]
async fn a_full_file_system_refuses_newcomers_and_keeps_members() {
    let dir = tempfile::tempdir().unwrap();
    // The program runs under a mount of its own; the test reaches the file system through /proc.
    let mut held = support::process::Namespaced::start(dir.path(), "256k");
    let witness = held.witness();
    let [mut a, _b] = enrolled(witness, 1).await;
    a.batch(1, cas(0, Change::Found)).await;
    let code = witness.enroll().secret();
    held.fill();
    let before = content(held.witness());
    let [mut c, _d] = pair(2, held.witness().address);
    let told = c.enroll(&code, held.witness().address).await.unwrap();
    assert_eq!(told, Reply::Refused(Refused::Storage("No space left on device (os error 28)".to_owned())));
    assert_eq!(content(held.witness()), before, "nothing is left of it");

    let won = a.batch(2, cas(1, Change::Resume)).await;
    assert_eq!(won.answer, Answer::Verdicts { request: RequestId(2), verdicts: vec![Verdict::Won] });
    held.make_room();
    // A stranger that was refused is hung up on: the first call learns that, the second comes through.
    let mut told = c.enroll(&code, held.witness().address).await;
    if told.is_err() {
        told = c.enroll(&code, held.witness().address).await;
    }
    let told = told.unwrap();
    assert!(matches!(told, Reply::Enrolled { complete: false, .. }), "{told:?}");
}

#[test]
fn the_command_line_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let text = |out: std::process::Output| {
        (out.status.code(), String::from_utf8(out.stderr).unwrap(), String::from_utf8(out.stdout).unwrap())
    };
    let (code, error, _) = text(ask(&["status", "--state", state.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    assert!(error.contains("no witness runs on this state directory"), "{error}");

    let witness = Running::start(&state);
    let (code, error, _) = text(ask(&["enroll", "ABC", "--state", state.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("a code has 20 letters and digits, like 7K3MQ-0RT5W-9XBDA-HJ2CP; this one has 3"),
        "{error}"
    );
    let (code, error, _) = text(ask(&["run", "--listen", "127.0.0.1:0", "--state", state.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    assert!(error.contains("another dyad-witness runs on this state directory"), "{error}");
    let other = dir.path().join("other");
    let taken = witness.address.to_string();
    let (code, error, _) = text(ask(&["run", "--listen", &taken, "--state", other.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    assert!(error.contains(&format!("cannot listen on {taken}")), "{error}");
    let (code, error, _) = text(ask(&["run", "--listen", "nowhere"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("nowhere"), "{error}");

    let (code, _, help) = text(ask(&["--help"]));
    assert_eq!(code, Some(0));
    assert!(help.contains("Examples:") && help.contains("dyad-witness enroll"), "{help}");
    let (code, _, status) = text(ask(&["status", "--state", state.to_str().unwrap()]));
    assert_eq!(code, Some(0));
    assert!(status.starts_with("No cluster has enrolled here."), "{status}");
}

/// A file that cannot be read stops its own cluster and no other.
#[tokio::test]
async fn a_damaged_file_stops_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let mut witness = Running::start(&dir.path().join("state"));
    let [a, _b] = enrolled(&witness, 1).await;
    let [c, _d] = enrolled(&witness, 2).await;
    fs::write(witness.state.join(format!("{:032x}.cluster", 1)), [0; 32 << 10]).unwrap();
    witness.kill_and_restart();
    let status = witness.status();
    assert_eq!(status.clusters.iter().map(|c| c.state.as_str()).collect::<Vec<_>>(), ["damaged", "waits"]);
    for (member, wanted) in [(&a, true), (&c, false)] {
        let read = Call::Read { cluster: member.cluster };
        assert!(member.call(&read).await.is_err(), "the connection died with the process");
        let reply = member.call(&read).await.unwrap();
        assert_eq!(reply == Reply::Refused(Refused::Damaged), wanted, "{reply:?}");
    }
}
