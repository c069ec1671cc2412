//! The real `init` as PID 1 of fresh namespaces: starts, kills, crashes, orphans, shutdown. It makes users' processes and
//! control groups, so it needs root, cgroup2, util-linux and busybox: tests/vm runs it in a guest.

mod faults;
mod hostile;
mod journal;
mod machine;
mod phases;
mod places;
mod steady;
mod support;

use dyad_api::control::{Answer, Call, ServiceState, ServiceStatus, Shutdown, SignalTarget};
use dyad_spec::compiled::Service;
use rustix::process::Signal;
use support::{Client, Container, pause, service, wait_for, zombies};

const SERVICES: usize = 20;
/// Number of mkdir(2).
const MKDIR: u16 = 83;

fn services() -> Vec<Service> {
    let mut services: Vec<Service> =
        (0..SERVICES).map(|n| service(&format!("s{n}"), "exec /bin/busybox sleep 1000")).collect();
    let mut stubborn = service("stubborn", "trap '' TERM; while :; do /bin/busybox sleep 1000; done");
    stubborn.autostart = false;
    services.push(stubborn);
    let mut writer = service("writer", "/bin/busybox sleep 1000 & exec /bin/busybox sleep 1000");
    writer.fence = true;
    services.push(writer);
    let mut user = service("user", "exec /bin/busybox sleep 1000");
    (user.uid, user.gid, user.groups) = (1234, 2345, vec![3456]);
    user.capabilities = Some(vec![10]);
    user.no_new_privs = true;
    services.push(user);
    let script = "echo secret > /tmp/secret; while :; do /bin/busybox sleep 1; done";
    let mut confined = service("confined", script);
    confined.no_new_privs = true;
    confined.private_tmp = true;
    confined.read_only = vec!["/var".into()];
    confined.hidden = vec!["/state".into()];
    services.push(confined);
    // Everything that a shell needs, but for the system call that makes directories.
    let mut filtered = service("filtered", "/bin/busybox mkdir /tmp/made; exec /bin/busybox sleep 1000");
    filtered.no_new_privs = true;
    filtered.syscalls = Some((0..451).filter(|number| *number != MKDIR).collect());
    services.push(filtered);
    services
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_life() {
    let container = Container::start(services(), &[]);
    let mut client = Client::connect(&container);
    let began = client.wait_all_ready();
    kills_and_restarts(&container, &mut client, &began);
    identities(&mut client);
    confinement(&container, &mut client);
    oneshots(&container, &mut client);
    crashes(&container, &mut client);
    ladder_and_fence(&container, &mut client);
    shutdown(container, &mut client);
}

fn kills_and_restarts(container: &Container, client: &mut Client, began: &[ServiceStatus]) {
    for status in began.iter().filter(|s| s.name.starts_with('s')) {
        let target = SignalTarget::Main(9);
        client.ask(Call::Signal { name: status.name.clone(), target });
    }
    let after = wait_for("all restarted", || {
        let list = client.services();
        let all = list.iter().filter(|s| s.name.starts_with('s') && s.name != "stubborn");
        all.clone().all(|s| s.state == ServiceState::Ready && s.restarts == 1).then_some(list.clone())
    });
    for (old, new) in began.iter().zip(&after).filter(|(old, _)| old.name.starts_with('s')) {
        assert_ne!(old.pid, new.pid, "{}", old.name);
        assert_eq!(new.last_exit, Some(dyad_api::control::ExitStatus::Signaled(9)));
    }
    assert_eq!(zombies(container), 0);
}

fn identities(client: &mut Client) {
    let pid = client.service("user").pid;
    let status =
        client.oneshot(&format!("grep -E '^(Uid|Gid|Groups|Cap|NoNew|Sig)' /proc/{pid}/status"), 5000).stdout;
    let status = String::from_utf8(status).expect("text");
    for line in [
        "Uid:\t1234\t1234\t1234\t1234",
        "Gid:\t2345\t2345\t2345\t2345",
        "Groups:\t3456",
        "CapEff:\t0000000000000400",
        "CapBnd:\t0000000000000400",
        "NoNewPrivs:\t1",
        "SigIgn:\t0000000000000000",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(status.contains(line), "no {line:?} in\n{status}");
    }
}

fn confinement(container: &Container, client: &mut Client) {
    let pid = client.service("confined").pid;
    let script = format!(
        "cat /proc/{pid}/root/tmp/secret; ls /tmp; touch /proc/{pid}/root/var/x || echo read-only; \
         touch /var/x && echo writable; touch /state/x; ls /proc/{pid}/root/state; grep Seccomp: /proc/{}/status",
        client.service("filtered").pid
    );
    let seen = String::from_utf8(client.oneshot(&script, 5000).stdout).expect("text");
    assert_eq!(seen, "secret\nread-only\nwritable\nSeccomp:\t2\n");
    assert!(!support::inside(container, "/tmp/made").exists(), "the filter let mkdir pass");
}

fn oneshots(container: &Container, client: &mut Client) {
    use dyad_api::control::ExitStatus;
    let done = client.oneshot("echo $WHAT; pwd; echo no >&2; exit 7", 5000);
    assert_eq!(
        (done.status, done.stdout, done.stderr),
        (ExitStatus::Exited(7), b"this\n/tmp\n".to_vec(), b"no\n".to_vec())
    );
    let late = client.oneshot("echo begun; sleep 100 & sleep 100", 300);
    assert_eq!((late.status, late.stdout), (ExitStatus::DeadlinePassed, b"begun\n".to_vec()));
    assert!(late.took_ms < 5000);
    let long = client.oneshot("i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done", 10_000);
    assert!(long.stdout.len() <= 1000 && long.stdout.ends_with(b"line 399\n"));
    let orphans = client.oneshot("i=0; while [ $i -lt 300 ]; do (sleep 0.2 &); i=$((i+1)); done", 20_000);
    assert_eq!(orphans.status, ExitStatus::Exited(0));
    wait_for("orphans reaped", || (zombies(container) == 0).then_some(()));
}

/// How often PID 1 has executed itself; `None` and a new connection when it does so just now.
fn life(container: &Container, client: &mut Client) -> Option<u32> {
    match client.call(Call::Hello { client: "test".into() }) {
        Ok(Ok(Answer::Hello { reexecs, .. })) => Some(reexecs),
        Ok(other) => panic!("{other:?}"),
        Err(_) => {
            *client = Client::connect(container);
            None
        }
    }
}

fn crashes(container: &Container, client: &mut Client) {
    let before = client.wait_all_ready();
    // It runs from memory: the disk that it came from may be gone.
    let of_pid1 = |what: &str| std::path::PathBuf::from(format!("/proc/{}/{what}", container.pid));
    let exe = std::fs::read_link(of_pid1("exe")).expect("PID 1's program");
    assert!(exe.to_string_lossy().starts_with("/memfd:init"), "PID 1 is {}", exe.display());
    let [program, gone] = ["init", "gone"].map(|n| support::inside(container, &format!("/usr/lib/dyad/{n}")));
    std::fs::rename(&program, &gone).expect("the image's program");
    let faults = [Signal::SEGV, Signal::ABORT, Signal::ILL, Signal::BUS, Signal::FPE, Signal::SYS];
    let (rounds, mut reexecs) = (30, 0);
    for n in 0..rounds {
        let fault = |at: usize| faults[at % faults.len()];
        // The first hits the loop, which has just answered; the second hits the recovery at a place of its own.
        container.signal(fault(n));
        pause(n as u64 * 13 % 41);
        container.signal(fault(n + 1));
        // How long that takes depends on the machine, so it is waited for. Lives that end before a whole turn of the loop
        // are counted, and too many in a row end PID 1: the second answer is of a later turn.
        reexecs = wait_for("another life", || {
            let (first, second) = (life(container, client)?, life(container, client)?);
            (first == second && second > reexecs).then_some(second)
        });
    }
    assert!(reexecs as usize >= rounds, "PID 1 executed itself {reexecs} times in {rounds} rounds");
    assert_eq!(std::fs::read_to_string(of_pid1("comm")).expect("PID 1's name"), "init\n");
    std::fs::rename(&gone, &program).expect("the image's program");
    let after = client.wait_all_ready();
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.pid, old.restarts), (new.pid, new.restarts), "{} was restarted", old.name);
    }
    assert_eq!(zombies(container), 0);
    // It still hears of ends and starts again.
    client.ask(Call::Signal { name: "s3".into(), target: SignalTarget::KillGroup });
    wait_for("s3 again", || {
        Some(client.service("s3")).filter(|s| s.restarts == 2 && s.state == ServiceState::Ready)
    });
}

/// Runs nft in the container's network.
fn nft(container: &Container, words: &str) -> String {
    let words: Vec<&str> = std::iter::once("nft").chain(words.split(' ')).collect();
    support::within(container, &["--net"], &words)
}

/// Elements of the gate's sets.
fn elements(container: &Container) -> String {
    let text = nft(container, "list ruleset");
    text.lines().filter(|line| line.contains("elements")).collect()
}

fn gate(container: &Container) {
    for words in [
        "add table inet dyad_gate",
        "add set inet dyad_gate vip4 { type ipv4_addr; flags timeout; }",
        "add set inet dyad_gate vip6 { type ipv6_addr; flags timeout; }",
        "add table arp dyad_gate",
        "add set arp dyad_gate vip4 { type ipv4_addr; flags timeout; }",
        "add element inet dyad_gate vip4 { 10.0.0.1 timeout 100s }",
        "add element inet dyad_gate vip6 { fd00::1 timeout 100s }",
        "add element arp dyad_gate vip4 { 10.0.0.1 timeout 100s }",
    ] {
        nft(container, words);
    }
    assert_eq!(elements(container).matches("elements").count(), 3);
}

fn ladder_and_fence(container: &Container, client: &mut Client) {
    gate(container);
    client.ask(Call::Start { name: "stubborn".into() });
    wait_for("stubborn", || (client.service("stubborn").state == ServiceState::Ready).then_some(()));
    client.ask(Call::Stop { name: "stubborn".into() });
    wait_for("stubborn gone", || (client.service("stubborn").state == ServiceState::Stopped).then_some(()));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let deadline = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 200_000_000;
    client.ask(Call::Arm { deadline_ns: Some(deadline) });
    assert_eq!(client.service("writer").state, ServiceState::Ready, "the deadline is still to come");
    wait_for("writer fenced", || (client.service("writer").state == ServiceState::Stopped).then_some(()));
    let times =
        wait_for("all writers gone", || Some(client.stats().fence).filter(|times| times.empty_ns != 0));
    let order = [deadline, times.gate_ns, times.killed_ns, times.empty_ns];
    assert_eq!(times.deadline_ns, deadline);
    assert!(order.is_sorted(), "deadline, gate, kill, empty: {order:?}");
    let after = order.map(|ns| (ns - deadline) / 1000);
    println!(
        "after the deadline: gate closed {} us, killed {} us, empty {} us",
        after[1], after[2], after[3]
    );
    assert_eq!(elements(container), "", "the gate is open");
    assert_eq!(client.service("s0").state, ServiceState::Ready, "only writers are fenced");
}

fn shutdown(mut container: Container, client: &mut Client) {
    let answer = client.ask(Call::Shutdown { how: Shutdown::PowerOff, reason: "the test is over".into() });
    assert_eq!(answer, Answer::Accepted);
    wait_for("the end of PID 1", || container.outer.as_mut()?.try_wait().expect("our child"));
    let left = std::fs::read_to_string(container.group.join("cgroup.events")).expect("our cgroup");
    assert!(left.contains("populated 0"), "processes are left: {left}");
}
