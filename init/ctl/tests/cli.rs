//! The program against a supervisor that answers from a script: what it prints and how it ends.

#![allow(clippy::disallowed_methods, reason = "runs the program under test")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use dyad_api::operator::{Failure, FailureKind, Reply, Request};
use serde_json::{Value, json};

/// Runs dyadctl against a socket that answers each call with what `answer` says.
fn dyadctl(args: &[&str], answer: fn(&Value) -> Result<Value, Failure>) -> Output {
    let dir = std::env::temp_dir().join(format!(
        "dyadctl-{}-{}",
        std::process::id(),
        args.join("-").replace('/', "")
    ));
    std::fs::create_dir(&dir).unwrap();
    let socket = dir.join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            if line.is_empty() {
                continue;
            }
            let id = Request::parse(line.as_bytes()).unwrap().id;
            let reply = match answer(&serde_json::from_str(&line).unwrap()) {
                Ok(ok) => Reply::ok(id, &ok),
                Err(failure) => Reply::error(id, failure),
            };
            stream.write_all(&reply.to_line()).unwrap();
        }
    });
    let output =
        Command::new(env!("CARGO_BIN_EXE_dyadctl")).arg("--socket").arg(&socket).args(args).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    output
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn status(_: &Value) -> Result<Value, Failure> {
    Ok(json!({
        "protection": "SINGLE", "reason": "one node by design: losing it loses the service",
        "nodes": [{"name": "node-a", "role": "primary", "up": true, "timeline": 1, "lag_bytes": 0}],
        "resources": [], "vips": [],
        "node": {
            "name": "node-a", "cluster": "lab", "site": "site.toml", "image": null, "phases": [],
            "services": [{"name": "x", "state": "failed", "pid": 0, "ready_after_ms": 0, "restarts": 3,
                          "last_exit": null, "note": "no such file"}],
            "storage": [{"path": "/data/pg", "total_bytes": 2097152, "free_bytes": 1048576}],
            "network": {"state": "applied", "note": "", "links": [
                {"name": "bond0", "up": true, "addresses": ["10.0.0.1/24"], "note": "active-backup on lan0"}]},
            "postgresql": {"state": "serving", "note": "", "version": "15.9", "system_identifier": "1",
                           "timeline": 1, "probe": null, "repaired": ["pg_hba.conf"], "restarts": 0}
        }
    }))
}

#[test]
fn the_first_line_says_what_losing_the_node_costs() {
    let output = dyadctl(&["status"], status);
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().next(), Some("SINGLE: one node by design: losing it loses the service"));
    for line in [
        "postgresql    serving (15.9, restarts 0)",
        "              put right: pg_hba.conf",
        "              bond0 up 10.0.0.1/24 (active-backup on lan0)",
        "storage       /data/pg 2 MiB, 1 MiB free",
        "service       x failed: no such file",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} in:\n{shown}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_is_the_supervisors_object_on_one_line() {
    let output = dyadctl(&["status", "--json"], status);
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, status(&Value::Null).unwrap());
}

#[test]
fn a_watched_status_is_shown_again_when_it_has_changed() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let output = dyadctl(&["status", "--watch"], |request| {
        let mut shown = status(request)?;
        match ASKED.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Ok(shown),
            2 => {
                shown["protection"] = json!("DOWN");
                Ok(shown)
            }
            _ => Err(Failure::new(FailureKind::Refused, "that was all")),
        }
    });
    let first = |line: &&str| line.starts_with("SINGLE: ") || line.starts_with("DOWN: ");
    let screens: Vec<_> = text(&output.stdout).lines().filter(first).collect();
    assert_eq!(screens.len(), 2, "{screens:?}");
    assert!(screens[0].starts_with("SINGLE: ") && screens[1].starts_with("DOWN: "), "{screens:?}");
    assert_eq!(ASKED.load(Ordering::SeqCst), 4);
    assert_eq!(text(&output.stderr), "dyadctl: that was all\n");
}

#[test]
fn a_take_over_is_forced_only_by_the_flag() {
    let price = "the last 3 commits may be lost";
    let ask = |args: &[&str], answer| dyadctl(&[&["takeover"], args].concat(), answer);
    let told = ask(&[], |request| {
        assert_eq!(request["args"]["peer_is_off"], false);
        Err(Failure::new(FailureKind::Refused, "the last 3 commits may be lost"))
    });
    assert_eq!((told.status.code(), text(&told.stderr)), (Some(1), &*format!("dyadctl: {price}\n")));
    let forced = ask(&["--i-verified-peer-is-off"], |request| {
        assert_eq!(request["args"]["peer_is_off"], true);
        Ok(Value::Null)
    });
    assert_eq!(forced.status.code(), Some(0), "{}", text(&forced.stderr));
}

#[test]
fn a_refusal_goes_to_standard_error_with_status_1() {
    let output = dyadctl(&["restart", "nothing"], |request| {
        assert_eq!(request["args"]["name"], "nothing");
        Err(Failure::new(FailureKind::Usage, "PID 1: there is no service \"nothing\" in this image"))
    });
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "dyadctl: PID 1: there is no service \"nothing\" in this image\n");
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_supervisor_the_message_names_the_socket() {
    let output = Command::new(env!("CARGO_BIN_EXE_dyadctl"))
        .args(["--socket", "/nowhere/s", "status"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("dyadctl: /nowhere/s: "), "{}", text(&output.stderr));
}

#[test]
fn wrong_usage_is_status_2() {
    for args in [&["fly"][..], &["--node", "192.0.2.1", "status"], &["logs", "-n", "0"], &["start"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_dyadctl")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

fn rows(verdict: &str) -> Value {
    json!([
        {"node": "node-a", "name": "protection", "verdict": "ok", "note": "losing either node loses nothing"},
        {"node": "node-b", "name": "storage", "verdict": verdict, "note": "/data/pg is 93 % full"},
    ])
}

#[test]
fn the_policy_is_told_rule_by_rule() {
    let told =
        |_: &Value| Ok(json!([{"when": "the standby is lost", "then": "commits wait until it is back"}]));
    let output = dyadctl(&["policy"], told);
    assert_eq!(text(&output.stdout), "the standby is lost:\n    commits wait until it is back\n");
    let output = dyadctl(&["policy", "--json"], told);
    assert!(text(&output.stdout).starts_with("[{"));
}

#[test]
fn a_round_trip_says_where_and_how_long() {
    let output = dyadctl(&["round-trip"], |_: &Value| {
        Ok(json!({"writer": "node-a", "reader": "node-b", "written_us": 2_340, "read_us": 950}))
    });
    let line = "written on node-a in 2.3 ms, read on node-b 0.9 ms later; nothing is left of it\n";
    assert_eq!(text(&output.stdout), line);
}

#[test]
fn a_check_tells_each_thing_and_ends_as_a_monitoring_plugin_does() {
    let good = |_: &Value| Ok(rows("ok"));
    let odd = |_: &Value| Ok(rows("warning"));
    let bad = |_: &Value| Ok(rows("critical"));
    let output = dyadctl(&["check"], bad);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    let line = "node-b       storage                CRITICAL  /data/pg is 93 % full";
    assert_eq!(shown.lines().nth(1), Some(line));
    let plugin = |answer| {
        let output = dyadctl(&["check", "--plugin"], answer);
        (output.status.code().unwrap(), text(&output.stdout).to_owned())
    };
    assert_eq!(plugin(good), (0, "DYAD OK - losing either node loses nothing\n".to_owned()));
    assert_eq!(plugin(odd), (1, "DYAD WARNING - node-b storage: /data/pg is 93 % full\n".to_owned()));
    assert_eq!(plugin(bad), (2, "DYAD CRITICAL - node-b storage: /data/pg is 93 % full\n".to_owned()));
    let failed = plugin(|_| Err(Failure::new(FailureKind::Unavailable, "PID 1 does not answer")));
    assert_eq!(failed, (3, "DYAD UNKNOWN - PID 1 does not answer\n".to_owned()));
    assert_eq!(dyadctl(&["check"], odd).status.code(), Some(0), "a warning is no failure");
}
