//! Every call of an operator, and every path of HTTP, against two paired nodes as real processes.

#![allow(clippy::disallowed_methods, reason = "tests start programs and wait")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dyad_api::client::CallError;
use dyad_api::control::ServiceState;
use dyad_api::operator::{
    Call, Certificate, CheckRow, Credentials, EventRow, Events, FailureKind, FirewallRules, Freeze, NodeName,
    PolicyRow, Protection, ResourceName, RoundTrip, RoundTripRow, ServiceName, Signed, Status, SwitchOver,
    TakeOver, Verdict,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;
use support::cluster::{Cluster, NAMES, VIPS, program, story};
use support::lan::Lan;

fn ask<T: DeserializeOwned>(cluster: &Cluster, at: usize, call: Call) -> T {
    cluster.nodes[at].client().call(call.clone()).unwrap_or_else(|error| panic!("{call:?}: {error}"))
}

/// Why a node says no.
fn refusal(cluster: &Cluster, at: usize, call: Call) -> (FailureKind, String) {
    match cluster.nodes[at].client().call::<Value>(call.clone()) {
        Err(CallError::Refused(failure)) => (failure.kind, failure.message),
        other => panic!("{call:?} is not refused: {other:?}"),
    }
}

/// How full df finds the volume of the machine that the tests run on.
fn used_percent(path: &Path) -> u64 {
    let shown = Command::new("df").arg("--output=pcent").arg(path).output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    text.lines().next_back().unwrap().trim().trim_end_matches('%').parse().unwrap()
}

fn switch_over(to: usize) -> Call {
    Call::SwitchOver(SwitchOver { resource: Some("pg/main".into()), to: Some(NAMES[to].into()) })
}

/// Status line and body of an answer.
fn http(at: usize, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(SocketAddr::new(Lan::address(at), 8008)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(at: usize, path: &str) -> u16 {
    http(at, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n")).0
}

#[test]
fn operators_are_answered_as_documented() {
    story("operators_are_answered_as_documented", "wan", |cluster| {
        cluster.lan.squat(VIPS[0], true);
        NAMES.iter().enumerate().for_each(|(at, _)| lay_hooks(cluster, at));
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        a_stranger_is_told(cluster, holder);
        cluster.lan.squat(VIPS[0], false);
        cluster.wait_vips(holder);
        what_is_shown(cluster, holder);
        hooks_are_run(cluster, holder);
        a_row_goes_from_one_node_to_the_other(cluster, holder);
        policy_is_told(cluster, other);
        a_long_query_is_told(cluster, holder);
        what_is_refused(cluster, holder);
        what_differs_is_put_right(cluster, holder);

        // Asked on the standby, carried out by the holder.
        let _: Value = ask(cluster, other, switch_over(other));
        cluster.wait_vips(other);
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        hooks_are_run(cluster, other);
        cluster.wait("the old primary's log at the other node", || {
            let call = Call::Events(Events { lines: 1000, node: Some(NAMES[holder].into()) });
            let rows: Vec<EventRow> = ask(cluster, other, call);
            rows.iter().any(|row| row.to == "handing over").then_some(())
        });
        let rows: Vec<EventRow> = ask(cluster, other, Call::Events(Events { lines: 1000, node: None }));
        assert!(rows.iter().any(|row| row.to == "becoming primary"), "{rows:?}");

        // Drained by a word to the other node, it hands over and takes nothing. Who pings the address loses three at most.
        let pings = Pings::start();
        let drain = || NodeName { node: Some(NAMES[other].into()) };
        let _: Value = ask(cluster, holder, Call::Drain(drain()));
        cluster.wait_vips(holder);
        let why = || ask::<Vec<String>>(cluster, holder, Call::Why(ResourceName::default())).join("\n");
        cluster.wait("the drained standby", || {
            let status: Status = cluster.nodes[holder].status();
            let why = why();
            (status.protection != Protection::Protected && why.contains("is drained")).then_some(())
        });
        let rows: Vec<CheckRow> = ask(cluster, holder, Call::Check);
        let worst = rows.iter().filter(|row| row.name == "protection").map(|row| row.verdict).max();
        assert!(worst > Some(Verdict::Ok), "{rows:?}");
        let _: Value = ask(cluster, other, Call::Undrain(NodeName::default()));
        assert_eq!(cluster.wait_for(Protection::Protected), holder, "nothing moves back");
        let (sent, lost) = pings.end();
        assert!(sent > 3 && lost <= 3, "{lost} of {sent} pings were lost");

        let _: Value = ask(cluster, holder, Call::Freeze(Freeze { seconds: 600 }));
        cluster.wait("the freeze", || why().contains("frozen").then_some(()));
        let _: Value = ask(cluster, holder, Call::Freeze(Freeze { seconds: 0 }));
        cluster.wait("its end", || (!why().contains("frozen")).then_some(()));
        from_another_machine(cluster, holder);

        // A machine that is told to go down hands over first. This PID 1 then stays.
        let (_, why) = refusal(cluster, holder, Call::PowerOff);
        assert!(why.contains("Shutdown"), "{why}");
        cluster.wait_vips(other);
        cluster.replay();
    });
}

/// One that works, and one that fails until `allowed` is there. Each notes where and on which timeline it ran.
fn lay_hooks(cluster: &Cluster, at: usize) {
    let hooks = cluster.nodes[at].path("usr/lib/dyad/hooks/primary");
    fs::create_dir_all(&hooks).unwrap();
    let ran = cluster.nodes[at].path("ran").display().to_string();
    let allowed = cluster.nodes[at].path("allowed").display().to_string();
    let note = format!("#!/bin/sh\necho \"${{0##*/}} $DYAD_NODE $DYAD_TIMELINE\" >> {ran}\n");
    let second = format!("{note}test -e {allowed} || {{ echo not yet >&2; exit 3; }}\n");
    for (name, text, mode) in
        [("10-first", &note, 0o755), ("20-second", &second, 0o755), ("README", &note, 0o644)]
    {
        fs::write(hooks.join(name), text).unwrap();
        fs::set_permissions(hooks.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// One that fails is told and tried again, and what is done is done once on a timeline.
fn hooks_are_run(cluster: &Cluster, at: usize) {
    let row = || {
        let rows: Vec<CheckRow> = ask(cluster, at, Call::Check);
        rows.into_iter().find(|row| row.node == NAMES[at] && row.name == "hooks").unwrap()
    };
    cluster.wait("a hook that fails", || {
        (row().verdict == Verdict::Warning && row().note == "20-second ended with status 3: not yet")
            .then_some(())
    });
    fs::write(cluster.nodes[at].path("allowed"), "").unwrap();
    cluster.wait("its end", || (row().verdict == Verdict::Ok).then_some(()));
    let status: Status = cluster.nodes[at].status();
    let timeline =
        status.nodes.iter().find(|row| row.name == NAMES[at]).and_then(|row| row.timeline).unwrap();
    let ran = fs::read_to_string(cluster.nodes[at].path("ran")).unwrap();
    let lines =
        |name: &str| ran.lines().filter(|line| *line == format!("{name} {} {timeline}", NAMES[at])).count();
    assert!(lines("10-first") == 1 && lines("20-second") >= 2 && lines("README") == 0, "{ran}");
}

/// `ping`, once a second, of the virtual address.
struct Pings(Child);

impl Pings {
    fn start() -> Self {
        let mut command = Command::new("/usr/bin/ping");
        command.args(["-n", "-i", "1", &VIPS[0].to_string()]);
        Pings(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// How many were sent, and how many of them nobody answered.
    fn end(self) -> (u32, u32) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let output = self.0.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let line = said.lines().find(|line| line.contains("packets transmitted")).expect(&said);
        let mut numbers = line.split(", ").map(|part| part.split(' ').next().unwrap().parse::<u32>());
        let mut next = || numbers.next().unwrap().unwrap();
        let (sent, answered) = (next(), next());
        (sent, sent - answered)
    }
}

/// Both nodes show certificates of one authority, for every address and name of the site, and a client that believes another one,
/// or looks for somebody else, does not log in.
fn certificates(cluster: &Cluster, holder: usize) {
    let ssl = "select version from pg_stat_ssl where pid = pg_backend_pid()";
    let authority = cluster.authority();
    let login = |authority: &str, target: &str| cluster.believing(authority, target, ssl);
    for at in [holder, 1 - holder] {
        let address = Lan::address(at);
        for target in [format!("host={address}"), format!("host={} hostaddr={address}", NAMES[1 - at])] {
            assert_eq!(login(&authority, &target).as_deref(), Ok("TLSv1.3"), "{target}");
        }
    }
    for vip in VIPS {
        assert_eq!(login(&authority, &format!("host={vip}")).as_deref(), Ok("TLSv1.3"), "{vip}");
    }
    let other = rcgen::generate_simple_self_signed(vec![VIPS[0].to_string()]).unwrap().cert.pem();
    let error = login(&other, &format!("host={}", VIPS[0])).unwrap_err();
    assert!(error.contains("certificate verify failed"), "{error}");
    let error = login(&authority, &format!("host=elsewhere hostaddr={}", VIPS[0])).unwrap_err();
    assert!(error.contains("does not match host name"), "{error}");
}

/// A certificate that somebody else signed, shown by both nodes, and the authority's again.
fn certificate_of_ones_own(cluster: &Cluster, at: usize) {
    let ssl = "select version from pg_stat_ssl where pid = pg_backend_pid()";
    let node = &cluster.nodes[at];
    let order = |own| node.client().call::<Vec<String>>(Call::Certificate(Certificate { own }));
    let make = |names: &[&str]| {
        let made = rcgen::generate_simple_self_signed(
            names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        );
        let made = made.unwrap();
        Signed { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    };
    let four = VIPS[0].to_string();
    let (ours, other) = (make(&["db.example", &four]), make(&["db.example"]));
    let apart = Signed { key: other.key, ..ours.clone() };
    let refused = order(Some(apart)).unwrap_err().to_string();
    assert!(refused.contains("not the one of the first certificate"), "{refused}");
    assert_eq!(order(Some(ours.clone())).unwrap(), [VIPS[1].to_string()], "what it is not for is named");
    let authority = cluster.authority();
    let login = |believed: &str, host: &str, at: usize| {
        cluster.believing(believed, &format!("host={host} hostaddr={}", Lan::address(at)), ssl)
    };
    let shown = |believed: &str, host: &str| {
        for at in [0, 1] {
            cluster.wait("the certificate on both nodes", || login(believed, host, at).ok());
        }
    };
    shown(&ours.certificate, "db.example");
    let error = login(&authority, NAMES[0], 0).unwrap_err();
    assert!(error.contains("certificate verify failed"), "{error}");
    let credentials: Credentials = ask(cluster, at, Call::Credentials);
    assert_eq!(credentials.authority, "", "nobody is told to believe what is not shown");
    // The other node goes on receiving, also with a new connection.
    for node in &cluster.nodes {
        let log = node.log();
        assert!(!log.contains("BEGIN PRIVATE") && !log.contains(ours.key.lines().nth(1).unwrap()), "{log}");
    }
    cluster.sql(at, "select pg_terminate_backend(pid) from pg_stat_replication").unwrap();
    cluster.wait_for(Protection::Protected);
    assert_eq!(order(None).unwrap(), Vec::<String>::new());
    shown(&authority, NAMES[0]);
}

fn a_stranger_is_told(cluster: &Cluster, holder: usize) {
    cluster.wait("the stranger in the status", || {
        let vips = cluster.nodes[holder].status().vips;
        let note = "02:00:00:00:00:fe has this address";
        (vips[0].holder.is_none() && vips[0].note.contains(note) && vips[1].holder.is_some()).then_some(())
    });
    let about = ResourceName { resource: Some(VIPS[0].to_string()) };
    let why: Vec<String> = ask(cluster, holder, Call::Why(about));
    assert!(
        why.iter().any(|line| line.contains("10.77.0.100") && line.contains("has this address")),
        "{why:?}"
    );
}

/// Asked of either node; the table is made and dropped for it.
fn a_row_goes_from_one_node_to_the_other(cluster: &Cluster, holder: usize) {
    let other = 1 - holder;
    for at in [holder, other] {
        let row: RoundTripRow = ask(cluster, at, Call::RoundTrip(RoundTrip::default()));
        assert_eq!((&*row.writer, &*row.reader), (NAMES[holder], NAMES[other]));
        assert!(row.written_us > 0 && row.read_us > 0, "{row:?}");
        let tables = "select count(*) from pg_class where relname like 'dyad%'";
        cluster.wait("the end of the table", || {
            [holder, other].iter().all(|at| cluster.sql(*at, tables).as_deref() == Ok("0")).then_some(())
        });
    }
    let (kind, why) = refusal(cluster, other, Call::RoundTrip(RoundTrip { token: Some("x".into()) }));
    assert_eq!((kind, why.contains("only the other node")), (FailureKind::Usage, true), "{why}");
}

fn paths_are_answered(cluster: &Cluster, holder: usize) {
    let other = 1 - holder;
    // Path; holder, standby.
    for (path, wanted) in [
        ("/primary", [200, 503]),
        ("/read-write", [200, 503]),
        ("/replica", [503, 200]),
        ("/replica?lag=1MB", [503, 200]),
        ("/sync", [503, 200]),
        ("/async", [503, 503]),
        ("/read-only", [200, 200]),
        ("/app", [200, 200]),
        ("/health", [200, 200]),
        ("/liveness", [200, 200]),
        ("/readiness", [200, 200]),
        ("/nothing", [404, 404]),
    ] {
        assert_eq!([holder, other].map(|at| get(at, path)), wanted, "{path}");
    }
    // A balancer sends nobody where the application is down, whoever holds the database.
    cluster.nodes[other].init.other("app", ServiceState::Failed);
    cluster.wait("an application that is down", || (get(other, "/app") == 503).then_some(()));
    assert_eq!((get(holder, "/app"), get(other, "/replica")), (200, 200));
    cluster.nodes[other].init.other("app", ServiceState::Ready);
    cluster.wait("an application that is back", || (get(other, "/app") == 200).then_some(()));
}

fn what_is_shown(cluster: &Cluster, holder: usize) {
    let other = 1 - holder;
    for at in [holder, other] {
        let status: Status = cluster.nodes[at].status();
        assert_eq!(status.reason, "losing either node loses nothing and needs nobody");
        for row in &status.nodes {
            let role = if row.name == NAMES[holder] { "primary" } else { "standby" };
            assert_eq!((&*row.role, row.up, row.timeline), (role, true, Some(1)), "{}", row.name);
        }
        cluster.wait("a standby that is not behind", || {
            let status: Status = cluster.nodes[at].status();
            status.nodes.iter().all(|row| row.lag_bytes == Some(0)).then_some(())
        });
        let credentials: Credentials = ask(cluster, at, Call::Credentials);
        let first: Vec<_> = credentials.addresses.iter().take(2).cloned().collect();
        assert_eq!(first, VIPS.map(|vip| vip.to_string()), "those that lead to the writer come first");
        assert_eq!(credentials.authority, cluster.authority(), "one authority on both nodes");

        let firewall: FirewallRules = ask(cluster, at, Call::Firewall);
        assert_eq!(firewall.state, "applied");
        assert!(firewall.rules.contains("policy drop"), "{}", firewall.rules);
        // Nobody logs in here by SSH, and nobody talks to what is not served.
        for port in [9, 22] {
            let closed = SocketAddr::new(Lan::address(at), port);
            let error = TcpStream::connect_timeout(&closed, Duration::from_millis(500)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "dropped, not refused");
        }
    }
    let rows: Vec<CheckRow> = ask(cluster, other, Call::Check);
    for at in [holder, other] {
        let of = |name: &str| -> Vec<_> {
            rows.iter()
                .filter(|row| row.node == NAMES[at] && row.name == name)
                .map(|row| row.verdict)
                .collect()
        };
        let names =
            ["protection", "database", "replication", "witness", "addresses", "ways", "links", "fencing"];
        for name in names.into_iter().chain(["services", "image"]) {
            assert_eq!(of(name), [Verdict::Ok], "{name} of {}: {rows:?}", NAMES[at]);
        }
        assert_eq!(of("way to the other node"), [Verdict::Ok; 6], "{rows:?}");
        let fullest = used_percent(cluster.nodes[at].dir.path());
        let storage = if fullest > 90 { Verdict::Warning } else { Verdict::Ok };
        assert_eq!(of("storage"), [storage], "df says {fullest} %: {rows:?}");
    }
    certificates(cluster, holder);
    certificate_of_ones_own(cluster, other);
    let plain = format!("host={} sslmode=disable", Lan::address(holder));
    let refused = cluster.believing(&cluster.authority(), &plain, "select 1").unwrap_err();
    assert!(refused.contains("no encryption"), "{refused}");
    paths_are_answered(cluster, holder);
    metrics_at_rest(cluster, holder);
    // Hundreds that say nothing keep nobody out, and a head without an end is refused.
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(SocketAddr::new(Lan::address(holder), 8008)).unwrap()).collect();
    assert_eq!(get(holder, "/primary"), 200);
    drop(silent);
    assert_eq!(http(holder, &format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9_000))).0, 431);
}

/// PostgreSQL writes WAL of its own accord (running transactions, every 15 s): a look may fall into its flush.
fn metrics_at_rest(cluster: &Cluster, holder: usize) {
    cluster.wait("the metrics of a pair at rest", || {
        let (status, body) = http(holder, "GET /metrics HTTP/1.1\r\n\r\n");
        assert_eq!(status, 200);
        for line in ["dyad_protection{level=\"PROTECTED\"} 1", "dyad_primary 1"] {
            assert!(body.lines().any(|found| found == line), "{line} in:\n{body}");
        }
        body.lines().any(|found| found == "dyad_lag_bytes 0").then_some(())
    });
}

/// What a query on the standby keeps from being cleaned up on the primary is told there.
fn a_long_query_is_told(cluster: &Cluster, holder: usize) {
    let mut query = cluster.psql(1 - holder);
    let mut query = query.args(["-c", "select pg_sleep(100)"]).stdout(Stdio::null()).spawn().unwrap();
    let transactions = "do $$ begin for n in 1..50 loop perform txid_current(); commit; end loop; end $$";
    cluster.wait("the age of the standby's query", || {
        cluster.sql(holder, transactions).unwrap();
        let (_, body) = http(holder, "GET /metrics HTTP/1.1\r\n\r\n");
        let age = body.lines().find_map(|line| line.strip_prefix("dyad_feedback_age_transactions "))?;
        (age.parse::<u64>().unwrap() > 50).then_some(())
    });
    let end = "select pg_cancel_backend(pid) from pg_stat_activity where query like 'select pg_sleep%'";
    assert_eq!(cluster.sql(1 - holder, end).unwrap(), "t");
    assert!(!query.wait().unwrap().success());
}

fn policy_is_told(cluster: &Cluster, at: usize) {
    let rules: Vec<PolicyRow> = ask(cluster, at, Call::Policy);
    let lost = &rules[0];
    assert_eq!(lost.when, "the primary's node is lost");
    assert!(
        lost.then.contains("silent for 15 s, the standby takes over with the witness's consent"),
        "{lost:?}"
    );
}

fn what_is_refused(cluster: &Cluster, holder: usize) {
    let other = 1 - holder;
    let postgresql = || ServiceName { name: "postgresql".into() };
    for at in [holder, other] {
        for call in [Call::Stop(postgresql()), Call::Start(postgresql()), Call::Restart(postgresql())] {
            let (kind, why) = refusal(cluster, at, call);
            assert_eq!(kind, FailureKind::Refused);
            assert!(why.contains("dyadctl switchover") && why.contains("dyadctl drain"), "{why}");
        }
        assert!(refusal(cluster, at, switch_over(holder)).1.contains("holds the database already"));
        let nowhere = SwitchOver { resource: None, to: Some("node-c".into()) };
        assert_eq!(refusal(cluster, at, Call::SwitchOver(nowhere)).0, FailureKind::Usage);
        let nothing = ResourceName { resource: Some("vol/x".into()) };
        assert_eq!(refusal(cluster, at, Call::Why(nothing)).0, FailureKind::Usage);
    }
    let force = |peer_is_off| Call::TakeOver(TakeOver { resource: None, peer_is_off });
    assert!(refusal(cluster, holder, force(true)).1.contains("holds the database already"));
    let (kind, price) = refusal(cluster, other, force(false));
    assert_eq!(kind, FailureKind::Refused);
    assert!(price.contains("may lose"), "{price}");
    assert_eq!(cluster.wait_for(Protection::Protected), holder, "nothing moved");
}

fn what_differs_is_put_right(cluster: &Cluster, holder: usize) {
    for statement in
        ["alter role app nologin", "alter system set wal_sender_timeout = '60s'", "select pg_reload_conf()"]
    {
        cluster.sql(holder, statement).unwrap();
    }
    cluster.wait("the role and the setting", || {
        let role = cluster.sql(holder, "select rolcanlogin from pg_roles where rolname = 'app'").ok()?;
        let setting = cluster.sql(holder, "show wal_sender_timeout").ok()?;
        (role == "t" && setting == "2s").then_some(())
    });
    cluster.wait("the repairs in the status", || {
        let status: Status = cluster.nodes[holder].status();
        status.node.postgresql.repaired.contains(&"alter role app".to_owned()).then_some(())
    });
    let status: Status = cluster.nodes[holder].status();
    assert_eq!(status.protection, Protection::Protected, "a repair costs nothing");
}

/// The real program with the key of the site file's operator, and with another.
fn from_another_machine(cluster: &Cluster, holder: usize) {
    let dyadctl = |known: bool, at: usize, args: &[&str]| {
        let status: Status = cluster.nodes[at].status();
        let output = Command::new(program("dyadctl"))
            .args(["--node", &Lan::address(at).to_string(), "--node-key", &status.node.key.unwrap(), "--key"])
            .arg(cluster.key(known))
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = dyadctl(true, 1 - holder, &["status"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.lines().next(), Some("PROTECTED: losing either node loses nothing and needs nobody"));
    let (code, out, err) = dyadctl(false, holder, &["status"]);
    assert_eq!((code, &*out), (Some(1), ""), "{err}");
    let (code, _, err) = dyadctl(true, holder, &["switchover", "pg/main", "--to", NAMES[holder]]);
    assert_eq!(code, Some(1));
    assert!(err.contains("holds the database already"), "{err}");
}
