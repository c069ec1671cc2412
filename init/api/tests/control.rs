//! PID 1's protocol: what was written is read back, and no bytes whatever make the reader panic.

use dyad_api::control::*;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[ -~äöü]{0,24}"
}

fn oneshot() -> impl Strategy<Value = Oneshot> {
    let texts = prop::collection::vec(text(), 0..5);
    let env = prop::collection::vec((text(), text()), 0..4);
    (text(), texts, env, any::<(u32, u32, u32, u32)>(), text()).prop_map(|(name, exec, env, numbers, cwd)| {
        let (uid, gid, deadline_ms, capture_max) = numbers;
        Oneshot { name, exec, env, uid, gid, cwd, deadline_ms, capture_max }
    })
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        text().prop_map(|client| Call::Hello { client }),
        Just(Call::ListServices),
        text().prop_map(|name| Call::Status { name }),
        text().prop_map(|name| Call::Start { name }),
        text().prop_map(|name| Call::Stop { name }),
        text().prop_map(|name| Call::Restart { name }),
        (text(), any::<i32>())
            .prop_map(|(name, signal)| Call::Signal { name, target: SignalTarget::Group(signal) }),
        text().prop_map(|name| Call::Signal { name, target: SignalTarget::KillGroup }),
        oneshot().prop_map(Call::RunOneshot),
        Just(Call::Phases),
        Just(Call::BootInfo),
        text().prop_map(|reason| Call::Shutdown { how: Shutdown::PowerOff, reason }),
        any::<Option<u64>>().prop_map(|deadline_ns| Call::Arm { deadline_ns }),
        Just(Call::Subscribe),
        Just(Call::Stats),
        Just(Call::Log),
        text().prop_map(|path| Call::Upgrade { path }),
        any::<u32>().prop_map(|after| Call::Inject { fault: Fault::Freeze, after }),
    ]
}

fn exit() -> impl Strategy<Value = ExitStatus> {
    prop_oneof![
        any::<i32>().prop_map(ExitStatus::Exited),
        any::<i32>().prop_map(ExitStatus::Signaled),
        Just(ExitStatus::DeadlinePassed),
        text().prop_map(ExitStatus::NotStarted),
    ]
}

fn service() -> impl Strategy<Value = ServiceStatus> {
    let state = prop_oneof![Just(ServiceState::Ready), Just(ServiceState::BackOff), Just(ServiceState::Done)];
    (text(), state, any::<(u32, u64, u32, u32)>(), prop::option::of(exit()), text()).prop_map(
        |(name, state, (pid, since_ms, ready_after_ms, restarts), last_exit, note)| ServiceStatus {
            name,
            state,
            pid,
            since_ms,
            ready_after_ms,
            restarts,
            last_exit,
            note,
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..2000);
    let finished = (exit(), bytes(), bytes(), any::<u32>()).prop_map(|(status, stdout, stderr, took_ms)| {
        Answer::Finished(Finished { status, stdout, stderr, took_ms })
    });
    let boot = (
        text(),
        any::<[u8; 16]>(),
        any::<Option<[u8; 32]>>(),
        prop::collection::vec((text(), any::<u64>()), 0..5),
    )
        .prop_map(|(name, boot_id, root_hash, marks)| {
            Answer::BootInfo(BootInfo {
                version: name.clone(),
                kernel: name.clone(),
                name,
                boot_id,
                root_hash,
                slot: Slot::B,
                marks,
                previous: "power was cut".into(),
                stats: Stats::default(),
            })
        });
    let answer = prop_oneof![
        any::<([u8; 16], u32)>().prop_map(|(boot_id, reexecs)| Answer::Hello { boot_id, reexecs }),
        prop::collection::vec(service(), 0..30).prop_map(Answer::Services),
        Just(Answer::Accepted),
        finished,
        boot,
    ];
    let refusal = prop_oneof![text().prop_map(Refusal::UnknownService), Just(Refusal::ShuttingDown)];
    let result = prop_oneof![answer.prop_map(Ok), refusal.prop_map(Err)];
    prop_oneof![
        (any::<u32>(), result).prop_map(|(id, result)| Message::Reply { id, result }),
        service().prop_map(|service| Message::Event(Event::Service(service))),
        any::<u32>().prop_map(|count| Message::Event(Event::Missed(count))),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(id in any::<u32>(), call in call()) {
        let request = Request { id, call };
        let packet = request.encode().unwrap();
        prop_assert_eq!(packet[0], VERSION);
        prop_assert_eq!(Request::decode(&packet).unwrap(), request);
    }

    #[test]
    fn messages_round_trip(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..600), versioned in any::<bool>()) {
        if versioned && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        let _ = Request::decode(&bytes);
        if let Ok(message) = Message::decode(&bytes) {
            // What is accepted has a meaning that survives another trip (varints may be written longer than need be).
            prop_assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn a_cut_or_longer_packet_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let packet = message.encode().unwrap();
        prop_assert!(Message::decode(&packet[..cut.index(packet.len())]).is_err());
        let mut longer = packet.clone();
        longer.push(0);
        prop_assert_eq!(Message::decode(&longer), Err(DecodeError::Body("bytes after the message")));
    }
}

#[test]
fn bounds_are_kept_both_ways() {
    let big = Finished {
        status: ExitStatus::Exited(0),
        stdout: vec![0; CAPTURE_MAX as usize],
        stderr: vec![0; CAPTURE_MAX as usize],
        took_ms: 1,
    };
    let reply = |finished| Message::Reply { id: u32::MAX, result: Ok(Answer::Finished(finished)) };
    assert!(reply(big.clone()).encode().is_ok(), "two full captures fit a packet");
    let too_big = Finished { stdout: vec![0; PACKET_MAX], ..big };
    assert!(matches!(reply(too_big).encode(), Err(EncodeError::TooLong { .. })));
    assert_eq!(
        Message::decode(&vec![VERSION; PACKET_MAX + 1]),
        Err(DecodeError::TooLong { bytes: PACKET_MAX + 1 })
    );
    assert_eq!(Message::decode(&[]), Err(DecodeError::Empty));
    assert_eq!(Message::decode(&[VERSION + 1, 0]), Err(DecodeError::Version { found: VERSION + 1 }));
}
