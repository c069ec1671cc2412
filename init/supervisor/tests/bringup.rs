//! The real supervisor brings up the real PostgreSQL 15.

mod support;

use std::fs;

use dyad_api::control::Call as InitCall;
use dyad_api::operator::Status;
use support::{Node, contents};

#[test]
fn an_empty_volume_becomes_a_serving_server_and_a_second_supervisor_changes_nothing() {
    let mut node = Node::new(None);
    node.start();
    let status = node.wait_serving();
    assert_eq!(status.nodes[0].role, "primary");
    assert_eq!(status.node.postgresql.timeline, Some(1));
    assert!(status.node.postgresql.version.unwrap().starts_with("15."));
    for (setting, value) in [
        ("data_checksums", "on"),
        ("wal_log_hints", "on"),
        ("synchronous_commit", "on"),
        ("restart_after_crash", "off"),
        ("password_encryption", "scram-sha-256"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(node.sql(&format!("show {setting}")), value, "{setting}");
    }
    let config = node.path("run/dyad/postgresql");
    let (files, postmaster) = (contents(&config), node.init.postmaster());
    assert_ne!(postmaster, 0);
    let written = |name| fs::metadata(config.join(name)).unwrap().modified().unwrap();
    let before = written("postgresql.conf");

    node.kill();
    node.start();
    let status = node.wait_serving();
    assert_eq!(node.init.postmaster(), postmaster, "the server was adopted, not restarted");
    assert_eq!(contents(&config), files);
    assert_eq!(written("postgresql.conf"), before, "rendered twice, written once");
    assert_eq!(status.node.postgresql.repaired, Vec::<String>::new());
    let inits = node.init.calls().iter().filter(|call| is_initdb(call)).count();
    assert_eq!(inits, 1);
}

fn is_initdb(call: &InitCall) -> bool {
    matches!(call, InitCall::RunOneshot(oneshot) if oneshot.exec.iter().any(|word| word == "--data-checksums"))
}

#[test]
fn foreign_files_are_left_alone_and_named() {
    let mut node = Node::new(None);
    fs::create_dir(node.path("data/pg/main")).unwrap();
    fs::write(node.path("data/pg/main/precious"), "x").unwrap();
    node.start();
    let mut client = node.client();
    let note = node.wait("the refusal", || {
        let status: Status = client.call(dyad_api::operator::Call::Status).unwrap();
        Some(status.reason).filter(|reason| reason.contains("precious"))
    });
    assert!(note.contains("holds no PG_VERSION") && note.contains("left alone"), "{note}");
    assert_eq!(fs::read_to_string(node.path("data/pg/main/precious")).unwrap(), "x");
}
