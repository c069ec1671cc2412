//! A fault at every place of a service's life and of a boot, one after the other: none may cost a start, an end or a word.

use std::fs;
use std::os::unix::net::UnixDatagram;

use dyad_api::control::{Answer, Call, ExitStatus, Oneshot, Refusal, ServiceState, ServiceStatus};
use dyad_spec::compiled::{Readiness, Service};

use crate::faults::FAULTS;
use crate::support::{Client, Container, inside, pause, service, wait_for};

/// A life, or a boot, has fewer places than this, and more than [`PLACES_MIN`].
const PLACES_MAX: u32 = 400;
const PLACES_MIN: u32 = 20;
/// Of how many places of a boot one gets a fault.
const BOOT_STEP: usize = 3;
/// Status of every end of the one that ends by itself.
const STATUS: i32 = 7;
/// Between two signs of life.
const ALIVE_MS: u64 = 1000;

/// This test program as a service: says once that it is ready, and again and again that it lives.
pub(crate) fn alive(name: &str) -> Service {
    let mut alive = service(name, "");
    alive.exec = ["/usr/lib/dyad/alive", "--ignored", "--exact", "places::inside_alive", "--nocapture"]
        .map(str::to_owned)
        .to_vec();
    alive.readiness = Readiness::Notify;
    alive.start_timeout_ms = 0;
    alive.watchdog_ms = 300 * ALIVE_MS as u32;
    alive
}

#[test]
#[ignore = "run by a_fault_at_every_place_of_a_life"]
fn inside_alive() {
    use std::io::Write as _;
    let mut starts = fs::File::options().create(true).append(true).open("/tmp/alive").expect("/tmp");
    starts.write_all(b"\n").expect("room in /tmp");
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(std::env::var("NOTIFY_SOCKET").expect("PID 1 gives it")).expect("PID 1 listens");
    socket.send(b"READY=1").expect("PID 1 reads");
    loop {
        pause(ALIVE_MS);
        socket.send(b"WATCHDOG=1").expect("PID 1 reads");
    }
}

/// Ends at once and is started again, until it finds a file.
fn brief() -> Service {
    let script =
        format!("echo >> /tmp/brief; [ -e /tmp/halt ] && exec /bin/busybox sleep 100000; exit {STATUS}");
    let mut brief = service("brief", &script);
    brief.restart_max_ms = 100;
    brief
}

/// Asks until there is an answer: a connection whose request was being answered is cut.
fn ask(client: &mut Client, container: &Container, call: &Call) -> Answer {
    wait_for("an answer", || match client.call(call.clone()) {
        Ok(Ok(answer)) => Some(answer),
        // What the cut connection had started is being killed.
        Ok(Err(Refusal::Busy(_))) => None,
        Ok(other) => panic!("{call:?}: {other:?}"),
        Err(_) => {
            *client = Client::connect(container);
            None
        }
    })
}

fn status(client: &mut Client, container: &Container, name: &str) -> ServiceStatus {
    match ask(client, container, &Call::Status { name: name.into() }) {
        Answer::Services(mut list) => list.remove(0),
        other => panic!("{other:?}"),
    }
}

fn reexecs(client: &mut Client, container: &Container) -> u32 {
    match ask(client, container, &Call::Stats) {
        Answer::Stats(stats) => stats.reexecs,
        other => panic!("{other:?}"),
    }
}

fn lines(container: &Container, path: &str) -> u32 {
    fs::read_to_string(inside(container, path)).map_or(0, |text| text.lines().count() as u32)
}

/// Waits until a service is in this state and has been restarted so often; says what it is in meanwhile.
fn reach(client: &mut Client, container: &Container, name: &str, state: ServiceState, restarts: u32) {
    let mut last = None;
    wait_for(&format!("{name} {state:?} after {restarts} restarts"), || {
        let now = status(client, container, name);
        if last.as_ref() != Some(&now) {
            assert!(now.restarts <= restarts || name == "brief", "{now:?}");
            last = Some(now.clone());
        }
        (now.state == state && now.restarts >= restarts).then_some(())
    });
}

/// Start, an end that nobody asked for, another start, a program that runs to its end, stop.
fn life(client: &mut Client, container: &Container, number: u32) {
    let names = ["alive", "brief"];
    for name in names {
        ask(client, container, &Call::Start { name: name.into() });
    }
    reach(client, container, "alive", ServiceState::Ready, number - 1);
    container.kill_service("alive");
    reach(client, container, "alive", ServiceState::Ready, number);
    assert_eq!(status(client, container, "alive").last_exit, Some(ExitStatus::Signaled(9)));
    let wanted = Oneshot {
        name: "across".into(),
        exec: ["/bin/busybox", "sh", "-c", "echo begun; exit 5"].map(str::to_owned).to_vec(),
        env: vec![],
        uid: 0,
        gid: 0,
        cwd: "/".into(),
        deadline_ms: 60_000,
        capture_max: 100,
    };
    match ask(client, container, &Call::RunOneshot(wanted)) {
        Answer::Finished(done) => {
            assert_eq!((done.status, done.stdout), (ExitStatus::Exited(5), b"begun\n".to_vec()));
        }
        other => panic!("{other:?}"),
    }
    fs::write(inside(container, "/tmp/halt"), "").expect("the container's /tmp");
    let mut odd = String::new();
    wait_for("as many starts as ends and orders", || {
        let now = status(client, container, "brief");
        let text = fs::read_to_string(inside(container, &format!("/proc/{}/cmdline", now.pid)));
        // From the start on that found the file nothing changes any more.
        if !text.is_ok_and(|words| words.ends_with("sleep\x00100000\0")) {
            return None;
        }
        let began = lines(container, "/tmp/brief");
        let told = format!("began {began} times, {number} of them ordered: {now:?}");
        if told != odd {
            println!("{told}");
            odd = told;
        }
        (began == now.restarts + number).then_some(())
    });
    assert_eq!(lines(container, "/tmp/alive"), 2 * number, "starts of alive");
    for name in names {
        ask(client, container, &Call::Stop { name: name.into() });
        reach(client, container, name, ServiceState::Stopped, number);
        assert_eq!(status(client, container, name).last_exit, Some(ExitStatus::Signaled(15)));
    }
    fs::remove_file(inside(container, "/tmp/halt")).expect("the container's /tmp");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_fault_at_every_place_of_a_life() {
    let program = std::env::current_exe().expect("this program");
    let mut services = vec![alive("alive"), brief()];
    services.iter_mut().for_each(|service| service.autostart = false);
    let container = Container::start(services, &[("alive", &program)]);
    let mut client = Client::connect(&container);
    for place in 0..PLACES_MAX {
        let before = reexecs(&mut client, &container);
        let fault = FAULTS[place as usize % FAULTS.len()];
        ask(&mut client, &container, &Call::Inject { fault, after: place });
        life(&mut client, &container, place + 1);
        if reexecs(&mut client, &container) == before {
            println!("a fault at each of {place} places of a life: nothing lost, nothing done twice");
            assert!(place >= PLACES_MIN, "a life has more places than {place}");
            return;
        }
    }
    panic!("a life has no more than {PLACES_MAX} places");
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn a_fault_at_every_place_of_a_boot() {
    // Every single one takes minutes.
    let step = if std::env::var_os("DYAD_SOAK").is_some() { 1 } else { BOOT_STEP };
    for place in (0..PLACES_MAX).step_by(step) {
        let mut last = service("last", "exec /bin/busybox sleep 1000");
        last.after = vec![0];
        last.phases = vec!["esp".into()];
        let services = vec![service("first", "exec /bin/busybox sleep 1000"), last];
        let container = Container::start_with(services, &[], &format!("DYAD_INJECT={place}"));
        let mut client = Client::connect(&container);
        wait_for("both services", || match ask(&mut client, &container, &Call::ListServices) {
            Answer::Services(list) => {
                list.iter().all(|s| s.state == ServiceState::Ready && s.restarts == 0).then_some(())
            }
            other => panic!("{other:?}"),
        });
        // The end of the last one may be told twice, the second time when the services are up.
        wait_for("all phases", || match ask(&mut client, &container, &Call::Phases) {
            Answer::Phases(list) => list.iter().all(|phase| phase.state.is_done()).then_some(()),
            other => panic!("{other:?}"),
        });
        if reexecs(&mut client, &container) == 0 {
            println!("a fault at every {step}. of {place} places of a boot: it goes on");
            assert!(place >= PLACES_MIN, "a boot has more places than {place}");
            return;
        }
    }
    panic!("a boot has no more than {PLACES_MAX} places");
}
