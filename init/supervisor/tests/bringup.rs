//! The real supervisor brings up the real PostgreSQL 15.

mod support;

use std::fs;

use dyad_api::control::Call as InitCall;
use dyad_api::operator::{Call, ServiceName, Status};
use rustix::process::{Pid, Signal, kill_process};
use support::{Node, SITE, contents};

#[test]
fn an_empty_volume_becomes_a_serving_server_and_a_second_supervisor_changes_nothing() {
    let mut node = Node::new(Some(SITE));
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
        let status: Status = client.call(Call::Status).unwrap();
        Some(status.reason).filter(|reason| reason.contains("precious"))
    });
    assert!(note.contains("holds no PG_VERSION") && note.contains("left alone"), "{note}");
    assert_eq!(fs::read_to_string(node.path("data/pg/main/precious")).unwrap(), "x");
}

#[test]
fn roles_and_databases_of_the_site_are_there_and_their_passwords_work() {
    let mut node = Node::new(Some(SITE));
    node.start();
    node.wait_serving();
    let credentials = node.credentials();
    assert_eq!(credentials.roles.len(), 1);
    let row = &credentials.roles[0];
    assert_eq!((&*row.role, &row.databases[..]), ("app", &["shop".to_owned()][..]));
    let app =
        |password| node.psql(Some(("app", password)), "shop", "create table t (id int); select current_user");
    assert!(app("wrong").unwrap_err().contains("password authentication failed"));
    assert!(app(&row.password).unwrap().ends_with("app"));
    let verifier = node.sql("select rolpassword from pg_authid where rolname = 'app'");
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    assert_eq!(node.sql("show work_mem"), "7MB", "a setting of the site");
    // No secret in any log.
    assert!(!node.log().contains(&row.password) && !node.log().contains(&verifier));
}

#[test]
fn what_somebody_changed_is_put_right_and_told() {
    let mut node = Node::new(Some(SITE));
    node.start();
    node.wait_serving();
    let password = node.credentials().roles[0].password.clone();
    node.sql("alter system set fsync = off");
    node.sql("alter system set log_min_messages = 'info'");
    node.sql("select pg_reload_conf()");
    node.sql("alter role app superuser password 'mine'");
    node.sql("alter database shop owner to postgres");
    let hba = node.path("run/dyad/postgresql/pg_hba.conf");
    let declared = fs::read(&hba).unwrap();
    fs::remove_file(&hba).unwrap();
    fs::write(&hba, "local all all trust\n").unwrap();

    // Repair is part of every pass; a new supervisor begins one at once.
    node.kill();
    node.start();
    let status = node.wait_serving();
    assert_eq!(fs::read(&hba).unwrap(), declared);
    assert_eq!(node.sql("show fsync"), "on");
    assert_eq!(node.sql("show log_min_messages"), "info", "what is not declared is left alone");
    assert_eq!(node.sql("select rolsuper from pg_roles where rolname = 'app'"), "f");
    assert_eq!(node.psql(Some(("app", &password)), "shop", "select 1").unwrap(), "1");
    assert_eq!(node.sql("select datdba::regrole from pg_database where datname = 'shop'"), "app");
    let repaired = status.node.postgresql.repaired.join("; ");
    for part in
        ["pg_hba.conf was not as declared", "fsync = 'off'", "alter role app", "the owner of database shop"]
    {
        assert!(repaired.contains(part), "{part:?} in {repaired:?}");
    }
}

#[test]
fn a_changed_site_is_reloaded_or_restarted_as_the_setting_needs() {
    let mut node = Node::new(Some(SITE));
    node.start();
    node.wait_serving();
    let first = node.init.postmaster();
    let mut change = |from: &str, to: &str| {
        let site = fs::read_to_string(node.path("efi/dyad/site.toml")).unwrap();
        assert!(site.contains(from));
        fs::write(node.path("efi/dyad/site.toml"), site.replace(from, to)).unwrap();
        node.kill();
        node.start();
        node.wait_serving();
        node.init.postmaster()
    };
    assert_eq!(change("7MiB", "9MiB"), first, "a reload is enough");
    assert_ne!(change("max_connections = 50", "max_connections = 60"), first, "only a restart changes this");
    assert_eq!(node.sql("show work_mem"), "9MB");
    assert_eq!(node.sql("show max_connections"), "60");
}

#[test]
fn a_setting_that_the_server_refuses_is_named_and_the_running_server_goes_on() {
    let mut node = Node::new(Some(SITE));
    node.start();
    node.wait_serving();
    let site = fs::read_to_string(node.path("efi/dyad/site.toml")).unwrap();
    fs::write(node.path("efi/dyad/site.toml"), site.replace("\"off\"", "\"perhaps\"")).unwrap();
    node.kill();
    node.start();
    wait_reason(&node, "enable_seqscan");
    assert_eq!(node.sql("select 1"), "1");
}

#[test]
fn a_setting_that_a_starting_server_refuses_is_named_too() {
    let mut node = Node::new(Some(&SITE.replace("\"off\"", "\"perhaps\"")));
    node.start();
    wait_reason(&node, "enable_seqscan");
    fs::write(node.path("efi/dyad/site.toml"), SITE).unwrap();
    node.kill();
    node.start();
    node.wait_serving();
}

#[test]
fn a_refused_site_file_starts_nothing() {
    let mut node = Node::new(Some("cluster = \"x\"\nnodes = 7\n"));
    node.start();
    let reason = wait_reason(&node, "the site file is refused");
    assert!(reason.contains("nodes"), "{reason}");
    assert!(!node.path("data/pg/main").exists() && !node.path("data/pg/main.new").exists());
}

fn wait_reason(node: &Node, part: &str) -> String {
    let mut client = node.client();
    node.wait(part, || {
        let status: Status = client.call(Call::Status).unwrap();
        Some(status.reason).filter(|reason| reason.contains(part))
    })
}

#[test]
#[allow(clippy::disallowed_methods, reason = "that nothing happens can only be seen by waiting")]
fn a_dead_or_hung_server_is_replaced_and_a_stopped_one_is_not() {
    let mut node = Node::new(Some(SITE));
    node.start();
    node.wait_serving();
    for (signal, restarts) in [(Signal::KILL, 1), (Signal::STOP, 2)] {
        let before = node.init.postmaster();
        let pid = Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        node.wait("another postmaster", || {
            Some(()).filter(|()| ![0, before].contains(&node.init.postmaster()))
        });
        let status = node.wait_serving();
        assert_eq!(status.node.postgresql.restarts, restarts, "after {signal:?}");
    }
    let mut client = node.client();
    let name = || ServiceName { name: "postgresql".into() };
    client.call::<serde_json::Value>(Call::Stop(name())).unwrap();
    node.wait("no postmaster", || Some(()).filter(|()| node.init.postmaster() == 0));
    let reason = wait_reason(&node, "stopped by the operator");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(node.init.postmaster(), 0, "{reason}");
    client.call::<serde_json::Value>(Call::Start(name())).unwrap();
    node.wait_serving();
}

#[test]
fn an_image_without_the_test_agent_runs_nothing() {
    let mut node = Node::new(None);
    node.start();
    let exec = dyad_api::operator::Exec { argv: vec!["/usr/bin/id".into()], deadline_ms: 1000 };
    let error = node.client().call::<serde_json::Value>(Call::Exec(exec)).unwrap_err().to_string();
    assert!(error.contains("test-agent"), "{error}");
    assert!(
        !node
            .init
            .calls()
            .iter()
            .any(|call| matches!(call, InitCall::RunOneshot(one) if one.name.starts_with("exec")))
    );
}
