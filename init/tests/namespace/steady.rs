//! A million events without one allocation.

use std::os::unix::net::UnixDatagram;

use dyad_api::control::{Call, ServiceState};
use dyad_spec::compiled::Service;

use crate::support::{Client, Container, service, wait_for, zombies};

const EVENTS: u64 = 1_000_000;
/// Datagrams between two looks of the service that sends them at how many are wanted.
const ROUNDS: u32 = 3;

/// Runs this test program as a service.
fn pump() -> Service {
    let mut pump = service("pump", "");
    pump.exec = ["/usr/lib/dyad/pump", "--ignored", "--exact", "steady::inside_pump", "--nocapture"]
        .map(str::to_owned)
        .to_vec();
    pump.watchdog_ms = 60_000;
    pump
}

#[test]
#[ignore = "run by a_million_events_allocate_nothing"]
fn inside_pump() {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(std::env::var("NOTIFY_SOCKET").expect("PID 1 gives it")).expect("PID 1 listens");
    for n in 0u64.. {
        let text = match n % 8 {
            0 => format!("READY=1\nSTATUS=at {n}"),
            1 => format!("MAINPID={}", std::process::id()),
            2 => "X_UNKNOWN=1\nnonsense\n".to_owned(),
            _ => "WATCHDOG=1".to_owned(),
        };
        socket.send(text.as_bytes()).expect("PID 1 reads");
    }
}

/// Everything that goes on while a machine just runs: ends and restarts, orphans, questions, deadlines, a subscriber.
/// What an operator orders by name is not among it: reading the name is one allocation.
fn goings_on(client: &mut Client, container: &Container) {
    // "parent" leaves orphans each time it ends.
    for name in ["s0", "s1", "s2", "s3", "s4", "s5", "parent"] {
        let before = client.service(name).restarts;
        container.kill_service(name);
        wait_for("a restart", || {
            Some(client.service(name)).filter(|s| s.state == ServiceState::Ready && s.restarts > before)
        });
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec as u64;
    client.ask(Call::Arm { deadline_ns: Some((now + 3600) * 1_000_000_000) });
    wait_for("orphans reaped", || (zombies(container) == 0).then_some(()));
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_million_events_allocate_nothing() {
    let mut services: Vec<Service> =
        (0..20).map(|n| service(&format!("s{n}"), "exec /bin/busybox sleep 1000")).collect();
    for service in &mut services {
        service.restart_min_ms = 100;
        service.restart_max_ms = 100;
    }
    services.push(service("parent", "for n in 1 2 3 4 5 6 7 8; do (sleep 0.1 &); done; exec sleep 1000"));
    services.push(pump());
    let program = std::env::current_exe().expect("this program");
    let container = Container::start(services, &[("pump", &program)]);
    let mut client = Client::connect(&container);
    client.wait_all_ready();
    client.ask(Call::Subscribe);
    // Once for what is made on first use.
    goings_on(&mut client, &container);
    let before = client.stats();
    for _ in 0..ROUNDS {
        goings_on(&mut client, &container);
    }
    let after = wait_for("a million events", || {
        Some(client.stats()).filter(|stats| stats.events - before.events >= EVENTS)
    });
    println!(
        "{} events, {} allocations; turns: half below {} us, 99 % below {} us, longest {} us",
        after.events - before.events,
        after.allocations - before.allocations,
        after.turn_us(0.5),
        after.turn_us(0.99),
        after.turn_us_max,
    );
    assert!(before.allocations > 0, "the counter counts");
    assert_eq!(after.allocations - before.allocations, 0);
    assert_eq!(after.reexecs, 0);
}
