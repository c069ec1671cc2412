//! journald is killed and stopped while a service logs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use dyad_api::control::{Call, ServiceState, SignalTarget};
use dyad_spec::compiled::{Readiness, Service, Socket, SocketKind};
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use rustix::time::{ClockId, clock_gettime};

use crate::support::{Client, Container, inside, pause, service, wait_for, within};

/// Kills of one container's journald.
const KILLS: u32 = 30;
const SECOND_NS: u64 = 1_000_000_000;
/// Lines a second: an emulated processor's journald needs a second for each start, so little is asked of it; and what is
/// asked of a real one.
const RATE: u64 = 300;
const RATE_SOAK: u64 = 10_000;
/// How long somebody else's SIGSTOP stands, if nobody undoes it.
const STOP_MS: u64 = 2000;
const STOP_MS_SOAK: u64 = 60_000;
/// What libsystemd asks for before it sends its first message, bytes.
const SEND_BUFFER: usize = 8 << 20;
const CONFIG: &str = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nForwardToWall=no\n\
    RateLimitIntervalSec=0\nRuntimeMaxUse=4G\nRuntimeKeepFree=1M\n";

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * SECOND_NS + now.tv_nsec as u64
}

/// Logs natively and to standard output until told to halt, then tells how many lines and how long one took at most.
#[test]
#[ignore = "run by journald_is_killed_and_stopped"]
fn inside_logger() {
    let socket = UnixDatagram::unbound().expect("a socket");
    sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).expect("root may");
    socket.connect("/run/systemd/journal/socket").expect("PID 1 holds the socket");
    let mut blocked = 0u64;
    let mut send = |message: String| {
        let text = format!("SYSLOG_IDENTIFIER=logger\nPRIORITY=6\nMESSAGE={message}\n");
        match rustix::net::send(&socket, text.as_bytes(), SendFlags::DONTWAIT) {
            Err(Errno::AGAIN) => {
                blocked += 1;
                socket.send(text.as_bytes()).expect("PID 1 holds the socket");
            }
            sent => assert_eq!(sent.expect("PID 1 holds the socket"), text.len()),
        }
    };
    let rate: u64 = std::env::var("RATE").ok().and_then(|text| text.parse().ok()).expect("lines a second");
    let (began, mut longest) = (now_ns(), 0);
    let mut lines = 0u64;
    while !Path::new("/tmp/halt").exists() {
        for _ in 0..100 {
            let before = now_ns();
            send(format!("line {lines}"));
            longest = longest.max(now_ns() - before);
            lines += 1;
        }
        // EPIPE ends this process, and that is seen.
        writeln!(std::io::stdout(), "wrote {lines}").expect("standard output holds");
        let ahead = (lines * SECOND_NS / rate).saturating_sub(now_ns() - began);
        pause(ahead / 1_000_000);
    }
    fs::write("/tmp/result", format!("{lines} {blocked} {}", longest / 1000)).expect("the container's /tmp");
    pause(1_000_000);
}

/// The library that journald runs with. A guest brings it; cargo links none for a test of another crate.
fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("DYAD_JOURNAL") {
        return path.into();
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("journal");
    #[allow(clippy::disallowed_methods, reason = "a test that starts cargo")]
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--package", "dyad-journal", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo is installed");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("debug/libdyad_journal.so")
}

fn services(rate: u64) -> Vec<Service> {
    let socket = |name: &str, kind| Socket {
        path: format!("/run/systemd/journal/{name}"),
        kind,
        mode: 0o666,
        name: name.to_owned(),
        pass_credentials: true,
    };
    let mut journald = service("journald", "");
    journald.exec = vec!["/usr/lib/dyad/journald".into()];
    journald.env = vec![("LD_PRELOAD".into(), "/usr/lib/dyad/dyad_journal.so".into())];
    journald.readiness = Readiness::Notify;
    journald.restart_min_ms = 100;
    journald.restart_max_ms = 100;
    journald.fd_store_max = 64;
    journald.autostart = false;
    journald.sockets = vec![
        socket("stdout", SocketKind::Stream),
        socket("socket", SocketKind::Datagram),
        socket("dev-log", SocketKind::Datagram),
    ];
    let mut logger = service("logger", "");
    logger.exec = ["/usr/lib/dyad/logger", "--ignored", "--exact", "journal::inside_logger", "--nocapture"]
        .map(str::to_owned)
        .to_vec();
    logger.env = vec![("RATE".into(), rate.to_string())];
    logger.autostart = false;
    vec![journald, logger]
}

/// Waits until journald is up once more; its restarts.
fn journald_up(client: &mut Client, restarts: u32) -> u32 {
    wait_for("journald", || {
        Some(client.service("journald")).filter(|s| s.state == ServiceState::Ready && s.restarts >= restarts)
    })
    .restarts
}

#[test]
#[ignore = "run in a guest by tests/vm"]
fn journald_is_killed_and_stopped() {
    // As many containers one after the other; `cargo xtask soak journald 34` is 1,000 kills and more.
    let rounds = std::env::var("DYAD_SOAK").map_or(1, |n| n.parse().expect("DYAD_SOAK is a number"));
    for round in 0..rounds {
        kills_and_a_stop(
            if round == 0 && rounds > 1 { STOP_MS_SOAK } else { STOP_MS },
            if rounds > 1 { RATE_SOAK } else { RATE },
        );
    }
}

fn kills_and_a_stop(stop_ms: u64, rate: u64) {
    let program = std::env::current_exe().expect("this program");
    let journald = Path::new("/usr/lib/systemd/systemd-journald");
    let library = library();
    let files = [("logger", program.as_path()), ("journald", journald), ("dyad_journal.so", &library)];
    let container = Container::start(services(rate), &files);
    let mut client = Client::connect(&container);
    fs::create_dir_all(inside(&container, "/etc/systemd")).expect("the container's /etc");
    fs::write(inside(&container, "/etc/systemd/journald.conf"), CONFIG).expect("the container's /etc");
    for name in ["journald", "logger"] {
        client.ask(Call::Start { name: name.into() });
    }
    journald_up(&mut client, 0);
    for kill in 0..KILLS {
        pause(50 + u64::from(kill * 37 % 100));
        client.ask(Call::Signal { name: "journald".into(), target: SignalTarget::KillGroup });
        journald_up(&mut client, kill + 1);
    }
    let before = client.service("journald");
    client.ask(Call::Signal { name: "journald".into(), target: SignalTarget::Main(19) });
    pause(stop_ms);
    let after = client.service("journald");
    assert_eq!((after.pid, after.restarts), (before.pid, before.restarts), "it goes on, nobody replaces it");
    fs::write(inside(&container, "/tmp/halt"), "").expect("the container's /tmp");
    let result = wait_for("the logger", || fs::read_to_string(inside(&container, "/tmp/result")).ok());
    let numbers: Vec<u64> = result.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [lines, blocked, longest_us] = numbers[..] else { panic!("three numbers: {result:?}") };
    let logger = client.service("logger");
    assert_eq!(
        (logger.state, logger.restarts),
        (ServiceState::Ready, 0),
        "it was ended by {:?}",
        logger.last_exit
    );
    let (mut seen, mut again) = (BTreeSet::new(), 0);
    let directory = inside(&container, "/run/log/journal");
    let directory = format!("--directory={}", directory.display());
    wait_for("all lines", || {
        let text = within(&container, &[], &["journalctl", &directory, "--output=cat", "-t", "logger"]);
        seen.clear();
        let numbers = text.lines().filter_map(|line| line.strip_prefix("line ")?.parse::<u64>().ok());
        again = numbers.filter(|number| !seen.insert(*number)).count();
        (seen.contains(&(lines - 1))).then_some(())
    });
    let lost = lines - seen.len() as u64;
    println!(
        "{KILLS} kills and one stop of {stop_ms} ms under {lines} lines: {lost} lost, {again} twice; the service was made to \
         wait {blocked} times, its longest message took {longest_us} us",
    );
    // A message stays with PID 1 until journald has written it, and one that it has just written may be there again.
    assert_eq!(lost, 0, "native messages were lost");
    assert_eq!(blocked, 0, "a service had to wait for journald");
    assert!(again <= KILLS as usize + 1, "{again} native messages stand twice in the journal");
    assert!(client.stats().stored.0 >= 1, "journald keeps its streams with PID 1");
}
