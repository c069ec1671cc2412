//! The state machine under a clock of the test's own.

use super::machine::{BACKOFF_MIN_MS, KILL_WAIT_MS, STEADY_MS};
use super::*;
use dyad_api::control::ServiceState as State;
use dyad_spec::compiled::{GiveUp, Readiness, Restart, Service, Socket, SocketKind, StopStep};
use proptest::prelude::*;

fn service(name: &str, after: &[u16]) -> Service {
    Service {
        name: name.to_owned(),
        exec: vec!["/bin/true".into()],
        env: vec![],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: vec![],
        capabilities: None,
        autostart: true,
        after: after.to_vec(),
        readiness: Readiness::Started,
        start_timeout_ms: 1000,
        restart: Restart::Always,
        restart_min_ms: 200,
        restart_max_ms: 1000,
        restart_burst: 0,
        restart_window_ms: 60_000,
        give_up: GiveUp::Fail,
        stop: vec![StopStep { signal: 2, wait_ms: 300 }, StopStep { signal: 15, wait_ms: 400 }],
        sockets: vec![],
        fd_store_max: 0,
        nofile: 0,
        oom_score_adj: 0,
        no_new_privs: false,
        private_tmp: false,
        read_only: vec![],
        hidden: vec![],
        syscalls: None,
        console: false,
        phases: vec![],
        begins_after: None,
        warm_up: vec![],
        watchdog_ms: 0,
        fence: false,
    }
}

fn ended(all: u32, well: u32) -> Phases {
    Phases { all, well }
}

/// A machine whose phases have ended well.
fn machine(services: Vec<Service>) -> Machine {
    let mut machine = Machine::new(services, &["state", "data"], 0);
    machine.step(0, Event::Phases(ended(0b11, 0b11)));
    machine
}

fn acts(machine: &mut Machine, now: u64, event: Event) -> Vec<Action> {
    machine.step(now, event).into_iter().filter(|a| !matches!(a, Action::Changed(_))).collect()
}

/// Starts service 0 and gives it this process.
fn running(services: Vec<Service>, pid: u32) -> Machine {
    let mut machine = machine(services);
    assert_eq!(acts(&mut machine, 10, Event::Start(0)), [Action::Spawn(0)]);
    machine.step(10, Event::Spawned(0, pid));
    machine
}

#[test]
fn dependents_wait_until_what_they_need_is_ready() {
    let mut first = service("a", &[]);
    first.readiness = Readiness::Notify;
    let mut machine = machine(vec![first, service("b", &[0])]);
    assert_eq!(acts(&mut machine, 1, Event::Start(1)), [Action::Spawn(0)], "b brings a along");
    assert!(acts(&mut machine, 2, Event::Spawned(0, 50)).is_empty());
    assert_eq!(machine.slot(1).why, Why::WaitsFor(0));
    assert_eq!(acts(&mut machine, 7, Event::Ready(0)), [Action::Spawn(1)]);
    assert_eq!((machine.slot(0).state, machine.slot(0).ready_after_ms), (State::Ready, 6));
}

#[test]
fn nothing_starts_before_the_phases_and_without_those_it_needs() {
    let mut needs = service("pg", &[]);
    needs.phases = vec!["data".into()];
    let mut machine = Machine::new(vec![needs, service("other", &[])], &["state", "data"], 0);
    assert!(acts(&mut machine, 1, Event::Start(0)).is_empty());
    assert!(acts(&mut machine, 1, Event::Start(1)).is_empty());
    assert_eq!(machine.slot(0).why, Why::WaitsForPhases);
    assert!(acts(&mut machine, 2, Event::Phases(ended(0b01, 0b01))).is_empty());
    assert_eq!(machine.slot(1).why, Why::WaitsForPhases);
    assert_eq!(acts(&mut machine, 3, Event::Phases(ended(0b11, 0b01))), [Action::Spawn(1)]);
    assert_eq!((machine.slot(0).state, machine.slot(0).why), (State::Waiting, Why::PhaseFailed(1)));
}

#[test]
fn a_service_may_begin_before_the_last_phase() {
    let (mut early, mut picky) = (service("early", &[]), service("picky", &[]));
    early.begins_after = Some(vec!["state".into()]);
    picky.begins_after = Some(vec!["state".into()]);
    picky.phases = vec!["data".into()];
    let mut machine = Machine::new(vec![early, picky], &["state", "data"], 0);
    machine.step(1, Event::Start(0));
    machine.step(1, Event::Start(1));
    // How it ended does not matter to the one; the other needs more.
    assert_eq!(acts(&mut machine, 2, Event::Phases(ended(0b01, 0b00))), [Action::Spawn(0)]);
    assert_eq!(machine.slot(1).why, Why::WaitsForPhases);
    assert_eq!(acts(&mut machine, 3, Event::Phases(ended(0b11, 0b10))), [Action::Spawn(1)]);
}

#[test]
fn nobody_waits_for_who_has_sockets_and_it_stops_last() {
    let mut log = service("log", &[]);
    log.readiness = Readiness::Notify;
    log.sockets = vec![Socket {
        path: "/run/x".into(),
        kind: SocketKind::Stream,
        mode: 0o666,
        name: "x".into(),
        pass_credentials: true,
    }];
    let mut machine = machine(vec![log, service("writer", &[0])]);
    assert_eq!(acts(&mut machine, 1, Event::Start(1)), [Action::Spawn(0), Action::Spawn(1)]);
    machine.step(1, Event::Spawned(0, 50));
    machine.step(1, Event::Spawned(1, 51));
    machine.step(2, Event::Ready(0));
    assert_eq!(acts(&mut machine, 3, Event::Shutdown), [Action::Signal(1, 51, 2)]);
}

#[test]
fn back_off_doubles_is_bounded_and_is_forgiven() {
    let mut machine = running(vec![service("a", &[])], 50);
    let mut now = 100;
    for (round, wait) in [200, 400, 800, 1000, 1000].into_iter().enumerate() {
        assert_eq!(acts(&mut machine, now, Event::Exited(50, Exit::Status(1))), [Action::KillGroup(0)]);
        assert_eq!(machine.slot(0).state, State::BackOff);
        assert_eq!(machine.next_deadline_ms(), Some(now + wait));
        machine.step(now, Event::Empty(0));
        assert!(acts(&mut machine, now + wait - 1, Event::Tick).is_empty());
        now += wait;
        assert_eq!(acts(&mut machine, now, Event::Tick), [Action::Spawn(0)]);
        machine.step(now, Event::Spawned(0, 50));
        assert_eq!(machine.slot(0).restarts as usize, round + 1);
    }
    now += STEADY_MS;
    machine.step(now, Event::Exited(50, Exit::Signal(9)));
    assert_eq!(machine.next_deadline_ms(), Some(now + 200));
}

#[test]
fn the_first_pause_is_the_tables_and_the_next_ones_are_long_enough() {
    let mut spec = service("a", &[]);
    (spec.restart_min_ms, spec.restart_max_ms) = (0, 1);
    let mut machine = running(vec![spec], 50);
    let mut now = 100;
    for wait in [1, 100, 100, 100] {
        machine.step(now, Event::Exited(50, Exit::Status(1)));
        assert_eq!(machine.next_deadline_ms(), Some(now + wait));
        machine.step(now, Event::Empty(0));
        now += wait;
        assert_eq!(acts(&mut machine, now, Event::Tick), [Action::Spawn(0)]);
        machine.step(now, Event::Spawned(0, 50));
    }
}

#[test]
fn who_ends_too_often_is_given_up_and_forgiven_when_asked_for() {
    let mut spec = service("a", &[]);
    (spec.restart_burst, spec.restart_window_ms, spec.give_up) = (3, 10_000, GiveUp::Reboot);
    (spec.restart_min_ms, spec.restart_max_ms) = (100, 100);
    let mut machine = running(vec![spec], 50);
    let end = |machine: &mut Machine, now| {
        let actions = acts(machine, now, Event::Exited(50, Exit::Status(1)));
        machine.step(now, Event::Empty(0));
        machine.step(now + 100, Event::Tick);
        machine.step(now + 100, Event::Spawned(0, 50));
        actions
    };
    for now in [1000, 2000, 3000, 20_000, 21_000, 22_000] {
        assert_eq!(end(&mut machine, now), [Action::KillGroup(0)], "three in a window are not too many");
    }
    let last = acts(&mut machine, 23_000, Event::Exited(50, Exit::Status(1)));
    assert_eq!(last, [Action::KillGroup(0), Action::Reboot(0)]);
    let slot = machine.slot(0);
    assert_eq!((slot.state, slot.why, slot.wanted), (State::Failed, Why::GaveUp, false));
    machine.step(23_000, Event::Empty(0));
    assert_eq!(acts(&mut machine, 24_000, Event::Start(0)), [Action::Spawn(0)]);
}

#[test]
fn restarts_are_spread() {
    let services = (0..64).map(|n| service(&format!("s{n}"), &[])).collect();
    let mut machine = Machine::new(services, &[], 0x5eed);
    machine.step(0, Event::Phases(ended(0b11, 0)));
    let mut times = std::collections::BTreeSet::new();
    for id in machine.ids() {
        let pid = 100 + u32::from(id);
        machine.step(1, Event::Start(id));
        machine.step(1, Event::Spawned(id, pid));
        machine.step(2, Event::Exited(pid, Exit::Status(1)));
        times.insert(machine.slot(id).deadline_ms);
    }
    assert!(times.iter().all(|at| (152..=202).contains(at)), "{times:?}");
    assert!(times.len() > 20, "{times:?}");
}

#[test]
fn it_is_not_started_into_a_cgroup_that_is_not_empty() {
    let mut machine = running(vec![service("a", &[])], 50);
    machine.step(100, Event::Exited(50, Exit::Status(0)));
    assert!(acts(&mut machine, 5000, Event::Tick).is_empty(), "what it left behind still lives");
    assert_eq!(acts(&mut machine, 5001, Event::Empty(0)), [Action::Spawn(0)]);
}

#[test]
fn restart_policies() {
    for (restart, exit, state) in [
        (Restart::Never, Exit::Status(1), State::Failed),
        (Restart::Never, Exit::Status(0), State::Stopped),
        (Restart::OnFailure, Exit::Status(0), State::Stopped),
        (Restart::OnFailure, Exit::Status(1), State::BackOff),
        (Restart::OnFailure, Exit::Signal(11), State::BackOff),
        (Restart::Always, Exit::Status(0), State::BackOff),
    ] {
        let mut spec = service("a", &[]);
        spec.restart = restart;
        let mut machine = running(vec![spec], 50);
        machine.step(20, Event::Exited(50, exit));
        assert_eq!(machine.slot(0).state, state, "{restart:?} {exit:?}");
    }
}

#[test]
fn the_stop_ladder_climbs_to_the_kill_and_gives_up() {
    let mut machine = running(vec![service("a", &[])], 50);
    assert_eq!(acts(&mut machine, 100, Event::Stop(0)), [Action::Signal(0, 50, 2)]);
    assert!(acts(&mut machine, 399, Event::Tick).is_empty());
    assert_eq!(acts(&mut machine, 400, Event::Tick), [Action::Signal(0, 50, 15)]);
    assert_eq!(acts(&mut machine, 800, Event::Tick), [Action::KillGroup(0)]);
    assert!(!machine.is_quiet());
    machine.step(800 + u64::from(KILL_WAIT_MS), Event::Tick);
    assert_eq!(machine.slot(0).why, Why::Unkillable);
    assert!(machine.is_quiet(), "a shutdown does not wait for it");
    machine.step(30_000, Event::Exited(50, Exit::Signal(9)));
    machine.step(30_000, Event::Empty(0));
    assert_eq!(machine.slot(0).state, State::Stopped);
}

#[test]
fn a_main_process_that_leaves_others_behind_has_them_killed() {
    let mut machine = running(vec![service("a", &[])], 50);
    machine.step(100, Event::Stop(0));
    assert_eq!(acts(&mut machine, 110, Event::Exited(50, Exit::Status(0))), [Action::KillGroup(0)]);
    machine.step(111, Event::Empty(0));
    assert_eq!(machine.slot(0).state, State::Stopped);
}

#[test]
fn restart_is_stop_then_start() {
    let mut machine = running(vec![service("a", &[])], 50);
    assert_eq!(acts(&mut machine, 100, Event::Restart(0)), [Action::Signal(0, 50, 2)]);
    machine.step(110, Event::Exited(50, Exit::Status(0)));
    assert_eq!(acts(&mut machine, 111, Event::Empty(0)), [Action::Spawn(0)]);
    assert_eq!(machine.slot(0).restarts, 0, "it was asked for");
}

#[test]
fn start_timeout_and_watchdog_kill_and_restart() {
    let mut slow = service("a", &[]);
    slow.readiness = Readiness::Notify;
    slow.watchdog_ms = 500;
    let mut machine = running(vec![slow], 50);
    assert_eq!(acts(&mut machine, 1010, Event::Tick), [Action::KillGroup(0)]);
    machine.step(1011, Event::Exited(50, Exit::Signal(9)));
    assert_eq!(machine.slot(0).last, Ended::Deadline);
    machine.step(1012, Event::Empty(0));
    assert_eq!(machine.slot(0).state, State::BackOff);
    assert_eq!(acts(&mut machine, 1212, Event::Tick), [Action::Spawn(0)]);
    machine.step(1212, Event::Spawned(0, 51));
    machine.step(1300, Event::Ready(0));
    machine.step(1700, Event::Alive(0));
    assert!(acts(&mut machine, 2199, Event::Tick).is_empty());
    assert_eq!(acts(&mut machine, 2200, Event::Tick), [Action::KillGroup(0)]);
}

#[test]
fn a_oneshot_is_done_or_failed() {
    let mut once = service("a", &[]);
    once.readiness = Readiness::Exit;
    once.restart = Restart::Never;
    let mut machine = running(vec![once.clone(), service("b", &[0])], 50);
    machine.step(10, Event::Start(1));
    assert!(acts(&mut machine, 20, Event::Exited(50, Exit::Status(0))).contains(&Action::Spawn(1)));
    assert_eq!(machine.slot(0).state, State::Done);
    let mut machine = running(vec![once], 50);
    machine.step(20, Event::Exited(50, Exit::Status(3)));
    assert_eq!((machine.slot(0).state, machine.slot(0).last), (State::Failed, Ended::Status(3)));
}

#[test]
fn shutdown_stops_dependents_first_and_starts_nothing() {
    let mut machine = running(vec![service("a", &[]), service("b", &[0])], 50);
    machine.step(11, Event::Start(1));
    machine.step(11, Event::Spawned(1, 51));
    assert_eq!(acts(&mut machine, 100, Event::Shutdown), [Action::Signal(1, 51, 2)]);
    assert_eq!(acts(&mut machine, 101, Event::Exited(51, Exit::Status(0))), [Action::KillGroup(1)]);
    assert_eq!(acts(&mut machine, 102, Event::Empty(1)), [Action::Signal(0, 50, 2)]);
    machine.step(103, Event::Exited(50, Exit::Status(0)));
    machine.step(104, Event::Empty(0));
    assert!(machine.is_quiet());
    assert!(acts(&mut machine, 105, Event::Start(0)).is_empty());
}

#[test]
fn a_failed_spawn_backs_off() {
    let mut machine = machine(vec![service("a", &[])]);
    machine.step(10, Event::Start(0));
    machine.step(10, Event::SpawnFailed(0, 11));
    assert_eq!((machine.slot(0).state, machine.slot(0).last), (State::BackOff, Ended::NotStarted(11)));
    assert_eq!(acts(&mut machine, 210, Event::Tick), [Action::Spawn(0)]);
}

#[test]
fn notes_are_cut_at_characters() {
    let mut machine = machine(vec![service("a", &[])]);
    let text = format!("{}é", "x".repeat(NOTE_BYTES - 1));
    machine.set_note(0, &text);
    assert_eq!(machine.slot(0).note(), "x".repeat(NOTE_BYTES - 1));
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = 0..4u16;
    let pid = prop_oneof![100..104u32, Just(999)];
    let exit = prop_oneof![Just(Exit::Status(0)), Just(Exit::Status(1)), Just(Exit::Signal(9))];
    prop_oneof![
        4 => id.clone().prop_map(Event::Start),
        2 => id.clone().prop_map(Event::Stop),
        1 => id.clone().prop_map(Event::Restart),
        4 => (pid, exit).prop_map(|(pid, exit)| Event::Exited(pid, exit)),
        3 => id.clone().prop_map(Event::Ready),
        1 => id.clone().prop_map(Event::Hung),
        1 => id.prop_map(Event::Alive),
        6 => Just(Event::Tick),
        1 => Just(Event::Shutdown),
    ]
}

proptest! {
    /// Whatever happens: a spawn only into an empty cgroup, one process a service, signals only to its process, and the
    /// record is the state.
    #[test]
    fn rules_hold_for_any_history(events in prop::collection::vec((any_event(), 0..800u64), 1..120)) {
        let mut specs: Vec<Service> =
            vec![service("a", &[]), service("b", &[0]), service("c", &[0, 1]), service("d", &[])];
        specs[1].readiness = Readiness::Notify;
        specs[1].watchdog_ms = 700;
        specs[3].readiness = Readiness::Exit;
        let mut machine = machine(specs);
        let mut alive = [false; 4];
        let mut now = 0;
        for (event, pause) in events {
            now += pause;
            let mut queue = vec![event];
            while let Some(event) = queue.pop() {
                if let Event::Exited(pid, _) = event
                    && let Some(slot) = alive.get_mut((pid as usize).wrapping_sub(100))
                {
                    *slot = false;
                }
                for action in machine.step(now, event) {
                    match action {
                        Action::Spawn(id) => {
                            let at = usize::from(id);
                            prop_assert!(!alive[at], "{id} has a process");
                            prop_assert!(!machine.is_shutting_down());
                            alive[at] = true;
                            queue.push(Event::Spawned(id, 100 + u32::from(id)));
                        }
                        Action::Signal(id, pid, _) => prop_assert_eq!(pid, 100 + u32::from(id)),
                        Action::KillGroup(id) => {
                            if alive[usize::from(id)] {
                                queue.push(Event::Exited(100 + u32::from(id), Exit::Signal(9)));
                            }
                        }
                        Action::Changed(_) => {}
                        Action::Reboot(_) => prop_assert!(false, "no service here asks for that"),
                    }
                }
                for id in machine.ids() {
                    let slot = machine.slot(id);
                    if slot.dirty && slot.pid == 0 && !alive[usize::from(id)] && !queue.contains(&Event::Empty(id)) {
                        queue.insert(0, Event::Empty(id));
                    }
                }
            }
            for id in machine.ids() {
                let slot = *machine.slot(id);
                prop_assert_eq!(Slot::decode(&slot.encode()), Some(slot));
                if slot.state == State::BackOff {
                    prop_assert!(slot.deadline_ms >= now.min(slot.deadline_ms) && slot.deadline_ms != 0);
                    prop_assert!(slot.backoff_ms >= BACKOFF_MIN_MS);
                }
            }
        }
    }

    #[test]
    fn any_record_is_refused_or_read(bytes in prop::array::uniform32(any::<[u8; 6]>())) {
        let flat: Vec<u8> = bytes.concat();
        let record = <[u8; RECORD_BYTES]>::try_from(flat).expect("192 bytes");
        if let Some(slot) = Slot::decode(&record) {
            prop_assert_eq!(Slot::decode(&slot.encode()), Some(slot));
        }
    }
}

#[test]
fn a_new_image_waits_for_signs_of_life_as_long_as_ever() {
    let mut spec = service("a", &[]);
    spec.watchdog_ms = 100;
    let mut machine = running(vec![spec.clone()], 50);
    let written = *machine.slot(0);
    machine.step(90, Event::Alive(0));
    let mut next = self::machine(vec![spec]);
    next.restore(170, 0, written);
    assert!(acts(&mut next, 200, Event::Tick).is_empty(), "signs of life are not written down");
    assert_eq!(acts(&mut next, 270, Event::Tick), [Action::KillGroup(0)]);
}
