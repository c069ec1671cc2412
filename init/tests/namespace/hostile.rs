//! Programs that behave badly, and a system that has run out of things.

use std::os::unix::net::UnixDatagram;

use dyad_api::control::{Answer, Call, ExitStatus, Oneshot, Refusal, ServiceState};
use dyad_spec::compiled::{Readiness, Service};
use rustix::time::{ClockId, clock_gettime};

use crate::support::{Client, Container, inside, service, wait_for, within, zombies};

const ORPHANS: u32 = 5000;

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Starts a daemon and ends, as daemons of old do; tells PID 1 which process to look after.
#[test]
#[ignore = "run by bad_programs_and_shortages"]
fn inside_daemon() {
    #[allow(
        clippy::disallowed_methods,
        clippy::zombie_processes,
        reason = "the daemon outlives who started it"
    )]
    let daemon =
        std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().expect("a daemon");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(std::env::var("NOTIFY_SOCKET").expect("PID 1 gives it")).expect("PID 1 listens");
    socket.send(format!("MAINPID={}\nREADY=1", daemon.id()).as_bytes()).expect("PID 1 reads");
}

fn services() -> Vec<Service> {
    let mut daemon = service("daemon", "");
    daemon.exec = ["/usr/lib/dyad/daemon", "--ignored", "--exact", "hostile::inside_daemon"]
        .map(str::to_owned)
        .to_vec();
    daemon.readiness = Readiness::Notify;
    let mut stubborn = service("stubborn", "trap '' TERM INT HUP; while :; do /bin/busybox sleep 1000; done");
    stubborn.stop[0].wait_ms = 500;
    vec![daemon, stubborn, service("plain", "exec /bin/busybox sleep 1000")]
}

fn script(name: &str, script: &str, deadline_ms: u32) -> Call {
    Call::RunOneshot(Oneshot {
        name: name.into(),
        exec: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        uid: 0,
        gid: 0,
        cwd: "/".into(),
        deadline_ms,
        capture_max: 100,
    })
}

fn finished(answer: Answer) -> ExitStatus {
    match answer {
        Answer::Finished(finished) => finished.status,
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn bad_programs_and_shortages() {
    let program = std::env::current_exe().expect("this program");
    let container = Container::start(services(), &[("daemon", &program)]);
    let mut client = Client::connect(&container);
    let before = client.wait_all_ready();
    orphans(&container, &mut client);
    runaway(&mut client);
    a_daemon(&container, &mut client);
    let began = now_ms();
    client.ask(Call::Stop { name: "stubborn".into() });
    wait_for("the stubborn one", || {
        (client.service("stubborn").state == ServiceState::Stopped).then_some(())
    });
    println!("a service that ignores SIGTERM for 500 ms: gone after {} ms", now_ms() - began);
    no_descriptors(&container, &mut client);
    assert_eq!(client.stats().reexecs, 0, "PID 1 went through all before in one life");
    no_memory(&container, &mut client);
    full_run(&container, &mut client);
    let after = client.service("plain");
    assert!(before.iter().any(|s| s.name == "plain" && s.pid != after.pid), "it was killed more than once");
}

fn orphans(container: &Container, client: &mut Client) {
    let began = now_ms();
    let loops = format!("i=0; while [ $i -lt {ORPHANS} ]; do (: &); i=$((i+1)); done");
    assert_eq!(finished(client.ask(script("orphans", &loops, 120_000))), ExitStatus::Exited(0));
    let made = now_ms();
    wait_for("orphans reaped", || (zombies(container) == 0).then_some(()));
    println!("{ORPHANS} orphans: made in {} ms, the last reaped {} ms later", made - began, now_ms() - made);
}

/// 200 processes that all the time become others: nobody can kill them one by one.
fn runaway(client: &mut Client) {
    let began = now_ms();
    let bomb = "i=0; while [ $i -lt 200 ]; do \
                (while :; do (:); done) & i=$((i+1)); done; wait";
    assert_eq!(finished(client.ask(script("bomb", bomb, 1000))), ExitStatus::DeadlinePassed);
    println!("200 processes that fork without end, killed after 1000 ms: gone after {} ms", now_ms() - began);
}

fn a_daemon(container: &Container, client: &mut Client) {
    let daemon = client.service("daemon");
    assert_eq!((daemon.restarts, daemon.last_exit), (0, None), "the end of its parent was none of its own");
    container.kill_service("daemon");
    let again = wait_for("the daemon again", || {
        Some(client.service("daemon")).filter(|s| s.restarts == 1 && s.state == ServiceState::Ready)
    });
    assert_ne!(again.pid, daemon.pid);
}

/// EMFILE: whatever needs a descriptor is refused or tried again, the rest goes on.
fn no_descriptors(container: &Container, client: &mut Client) {
    let pid = container.pid.to_string();
    within(container, &[], &["prlimit", "--pid", &pid, "--nofile=8:"]);
    let refused = client.call(script("none", ":", 1000)).expect("the connection holds");
    assert!(matches!(refused, Err(Refusal::Failed(_))), "{refused:?}");
    let before = client.service("plain").restarts;
    container.kill_service("plain");
    wait_for("its end", || (client.service("plain").restarts > before).then_some(()));
    within(container, &[], &["prlimit", "--pid", &pid, "--nofile=4096:"]);
    wait_for("a start", || (client.service("plain").state == ServiceState::Ready).then_some(()));
    assert_eq!(finished(client.ask(script("one", ":", 5000))), ExitStatus::Exited(0));
}

/// What PID 1 may grow while memory is short, KiB: what it needs to begin again, and less than a large request takes.
const ROOM_KIB: u64 = 512;

/// ENOMEM, for PID 1 and whoever it starts.
pub(crate) fn no_memory(container: &Container, client: &mut Client) {
    let before = client.stats().reexecs;
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.pid)).expect("PID 1 is there");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("its size");
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    let limit = |to: &str| {
        within(container, &[], &["prlimit", "--pid", &container.pid.to_string(), &format!("--as={to}:")]);
    };
    let plain = client.service("plain");
    limit(&((kib + ROOM_KIB) * 1024).to_string());
    let hungry = || script("hungry", "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=64M count=1", 5000);
    assert_ne!(finished(client.ask(hungry())), ExitStatus::Exited(0), "there is no room for 64 MiB");
    // A short packet that takes a megabyte to read: where there is no room for it, PID 1 begins again.
    let waiting = std::thread::scope(|scope| {
        let ask = || {
            let Call::RunOneshot(mut wanted) = script("large", "sleep 1", 5000) else {
                unreachable!("it is one")
            };
            wanted.env = vec![(String::new(), String::new()); 30_000];
            Client::connect(container).call(Call::RunOneshot(wanted)).is_ok()
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        all.into_iter().filter_map(|one| one.join().ok()).filter(|answered| *answered).count()
    });
    *client = Client::connect(container);
    let again = client.stats().reexecs - before;
    println!("without memory: {waiting} of 8 large requests answered, PID 1 began again {again} times");
    assert!(again > 0, "it had room enough");
    limit("unlimited");
    wait_for("room again", || {
        (client.call(hungry()).ok()?.ok().map(finished)? == ExitStatus::Exited(0)).then_some(())
    });
    assert_eq!(client.service("plain"), plain, "who runs does not notice");
}

/// ENOSPC on /run.
fn full_run(container: &Container, client: &mut Client) {
    let small = ["/bin/busybox", "mount", "-o", "remount,size=1m", "/run"];
    within(container, &["--mount", "--pid", "--root"], &small);
    std::fs::write(inside(container, "/run/fill"), vec![1; 2 << 20]).expect_err("2 MiB do not fit 1 MiB");
    let before = client.service("plain").restarts;
    container.kill_service("plain");
    wait_for("a restart", || {
        Some(client.service("plain")).filter(|s| s.restarts > before && s.state == ServiceState::Ready)
    });
    assert_eq!(finished(client.ask(script("full", ":", 5000))), ExitStatus::Exited(0));
    Client::connect(container).services();
}
