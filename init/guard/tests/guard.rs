//! The guard inside a real PostgreSQL 15, beside a server without it.

mod support;

use support::{Client, Server};

const HANG: &str = "no standby has it";

/// Commits something in every way there is; the statement whose answer counts is the last.
const WAYS: &[(&str, &str, &str)] = &[
    ("insert", "select 1", "insert into t values (1)"),
    ("block", "begin; insert into t values (1)", "commit"),
    ("prepare", "begin; insert into t values (1)", "prepare transaction 'p'"),
    ("commit prepared", "select 1", "commit prepared 'done'"),
    ("rollback prepared", "select 1", "rollback prepared 'undone'"),
    ("procedure", "select 1", "call commits()"),
];

/// Prepared transactions for the ways that need one, and a procedure that commits in its middle.
const SETUP: &str = "create table t (id int);; \
     create procedure commits() language plpgsql as 'begin insert into t values (1); commit; end';; \
     begin; insert into t values (2); prepare transaction 'done';; \
     begin; insert into t values (3); prepare transaction 'undone'";

/// Lets a client try `statement` while no standby is there, and does `disturb` to it once it waits.
fn disturbed(server: &Server, before: &str, statement: &str, disturb: impl Fn(u32)) -> Client {
    let mut client = server.client("app");
    client.ask(before);
    let pid = client.pid();
    client.send(statement);
    server.wait_event(pid, "SyncRep");
    disturb(pid);
    client
}

#[test]
fn a_cancel_storm_is_answered_falsely_without_the_guard_and_never_with_it() {
    let stock = Server::start(None, &[SETUP]);
    let server = Server::start(Some(""), &[SETUP]);
    let count = |name: &str| server.value(&format!("show dyad_guard.{name}")).parse::<u64>().unwrap();
    let seen = || server.value("select count(*) from t");
    for (way, before, statement) in WAYS {
        stock.require_standby(true);
        let cancel = |pid| stock.run(&format!("select pg_cancel_backend({pid})"));
        let answer = disturbed(&stock, before, statement, cancel).answer();
        assert!(
            answer.contains("canceling wait"),
            "{way}: the stock server answers although {HANG}: {answer}"
        );
        assert!(!answer.contains("ERROR"), "{way}: {answer}");
        stock.require_standby(false);

        let (before_cancels, before_rows) = (count("deferred_cancels"), seen());
        server.require_standby(true);
        let storm = |pid| {
            let each = "generate_series(1, 200) n, lateral (select pg_sleep(0.0005 + 0 * n)) pause";
            server.run(&format!("select pg_cancel_backend({pid}) from {each}"));
        };
        let mut client = disturbed(&server, before, statement, storm);
        assert!(!client.has_answer(), "{way}: {HANG}");
        assert!(count("deferred_cancels") > before_cancels, "{way}: counted");
        assert_eq!(seen(), before_rows, "{way}: nobody sees it before");
        server.require_standby(false);
        let answer = client.answer();
        assert!(!answer.contains("ERROR") && !answer.contains("WARNING"), "{way}: {answer}");
        assert!(
            client.ask("select 'still ' || 'here'").contains("still here"),
            "{way}: no cancel arrives late"
        );
    }
}

/// Sessions that commit at once under one storm, and how often each goes through all ways of [`way`].
const SESSIONS: usize = 4;
const ROUNDS: usize = 3;
const STEPS: usize = 3;

/// What a session does first and what it then waits for, step by step; nothing is left prepared after the last.
fn way(step: usize, session: usize) -> (&'static str, String) {
    match step {
        0 => ("select 1", "insert into t values (1)".to_owned()),
        1 => ("begin; insert into t values (1)", format!("prepare transaction 'of {session}'")),
        _ => ("select 1", format!("commit prepared 'of {session}'")),
    }
}

/// How many commits of a storm's sessions were answered while no standby was there, and how many there were. The storm
/// goes on while the setting is dropped, as a primary does that goes on alone: `calm` of the answers given then are
/// without a complaint.
fn stormed(server: &Server) -> (usize, usize, usize) {
    let (mut falsely, mut all, mut calm) = (0, 0, 0);
    let mut clients: Vec<Client> = (0..SESSIONS).map(|_| server.client("app")).collect();
    let pids: Vec<String> = clients.iter_mut().map(|client| client.pid().to_string()).collect();
    let storm = format!(
        "select count(pg_cancel_backend(pid)) from generate_series(1, 200) n, \
         lateral (select pg_sleep(0.001 + 0 * n)) pause, unnest(array[{}]) pid",
        pids.join(", ")
    );
    for step in (0..ROUNDS).flat_map(|_| 0..STEPS) {
        server.require_standby(true);
        for (session, client) in clients.iter_mut().enumerate() {
            let (before, statement) = way(step, session);
            client.ask(before);
            client.send(&statement);
            server.wait_event(pids[session].parse().unwrap(), "SyncRep");
        }
        server.run(&storm);
        falsely += clients.iter_mut().filter_map(|client| client.has_answer().then_some(())).count();
        let mut canceller = server.client("postgres");
        canceller.send(&storm);
        server.require_standby(false);
        for client in &mut clients {
            let answer = client.answer();
            calm += usize::from(!answer.contains("ERROR") && !answer.contains("WARNING"));
            all += 1;
        }
        // One that comes late would end the next statement.
        canceller.answer();
    }
    (falsely, calm, all)
}

#[test]
fn false_answers_of_many_sessions_under_a_storm_are_counted_without_the_guard_and_none_with_it() {
    let table = "create table t (id int)";
    let (stock_falsely, _, all) = stormed(&Server::start(None, &[table]));
    let server = Server::start(Some(""), &[table]);
    let (falsely, calm, _) = stormed(&server);
    let dropped = server.value("show dyad_guard.deferred_cancels");
    println!(
        "{all} commits, answered without a standby: {stock_falsely} stock, {falsely} guarded ({dropped} cancels)"
    );
    assert!(stock_falsely > 0, "the storm does nothing to a stock server: {stock_falsely} of {all}");
    assert_eq!((falsely, calm), (0, all), "of {all}");
    assert_eq!(
        server.value("select count(*) from t"),
        (ROUNDS * 2 * SESSIONS).to_string(),
        "nothing is lost"
    );
}

#[test]
fn a_terminated_session_leaves_nothing_that_others_see_before_the_standby_has_it() {
    let stock = Server::start(None, &[SETUP]);
    stock.require_standby(true);
    let terminate = |server: &Server, pid| server.run(&format!("select pg_terminate_backend({pid})"));
    let mut client = disturbed(&stock, "select 1", "insert into t values (1)", |pid| terminate(&stock, pid));
    client.ended();
    assert_eq!(stock.value("select count(*) from t where id = 1"), "1", "the stock server shows the row");

    let server = Server::start(Some(""), &[SETUP]);
    server.require_standby(true);
    let mut client =
        disturbed(&server, "select 1", "insert into t values (1)", |pid| terminate(&server, pid));
    assert!(!client.has_answer());
    assert_eq!(server.value("select count(*) from t where id = 1"), "0");
    assert_eq!(server.value("show dyad_guard.deferred_terminations"), "1");
    server.require_standby(false);
    // psql notices at its next statement.
    client.send("select 1");
    client.ended();
    assert_eq!(server.value("select count(*) from t where id = 1"), "1");
    assert_eq!(
        server.value("select count(*) from pg_stat_activity where usename = 'app'"),
        "0",
        "and it did end"
    );
}

#[test]
fn timeouts_do_not_end_the_wait() {
    let settings = "set statement_timeout = '150ms'; set lock_timeout = '150ms'; \
         set idle_in_transaction_session_timeout = '150ms'; set idle_session_timeout = '10s'; \
         set client_connection_check_interval = '100ms'";
    let stock = Server::start(None, &[SETUP]);
    stock.require_standby(true);
    // The server's own timer is off while a plain COMMIT runs, not while a procedure commits.
    let mut client = stock.client("app");
    client.ask(settings);
    client.send("call commits()");
    let answer = client.answer();
    assert!(answer.contains("canceling wait"), "the stock server's statement_timeout: {answer}");

    let server = Server::start(Some(""), &[SETUP]);
    server.require_standby(true);
    let mut client = disturbed(&server, settings, "call commits()", |_| {
        // The timeout shows in the counter: it has passed, and it was dropped.
        server.until("a dropped timeout", || server.value("show dyad_guard.deferred_cancels") != "0");
    });
    assert!(!client.has_answer());
    server.require_standby(false);
    let answer = client.answer();
    assert!(!answer.contains("ERROR") && !answer.contains("WARNING"), "{answer}");
    // Outside of a commit they work as ever.
    assert!(client.ask("select pg_sleep(5)").contains("statement timeout"));
}

#[test]
fn less_than_on_is_raised_except_for_roles_that_may() {
    let server =
        Server::start(Some("batch, other"), &[SETUP, "grant all on t to public", "create role batch login"]);
    server.require_standby(true);
    for level in ["off", "local", "remote_write"] {
        let mut client = server.client("app");
        client.ask(&format!("set synchronous_commit = {level}"));
        let pid = client.pid();
        client.send("insert into t values (1)");
        server.wait_event(pid, "SyncRep");
        assert!(!client.has_answer(), "{level}");
        server.require_standby(false);
        client.answer();
        assert!(client.ask("show synchronous_commit").contains(level), "the setting itself is left alone");
        server.require_standby(true);
    }
    let mut client = server.client("batch");
    client.ask("set synchronous_commit = off");
    client.send("insert into t values (7)");
    assert!(!client.answer().contains("ERROR"), "batch does not wait");
    assert_eq!(server.value("select count(*) from t where id = 7"), "1");
    assert!(server.value("show dyad_guard.raised_commits").parse::<u32>().unwrap() >= 3);
}

#[test]
fn a_cancel_before_the_commit_and_a_shutdown_during_it_work_as_ever() {
    let server = Server::start(Some(""), &[SETUP]);
    let mut client = server.client("app");
    let pid = client.pid();
    client.send("insert into t select 1 from pg_sleep(60)");
    server.wait_event(pid, "PgSleep");
    server.run(&format!("select pg_cancel_backend({pid})"));
    assert!(client.answer().contains("canceling statement due to user request"));
    assert_eq!(server.value("select count(*) from t where id = 1"), "0");
    server.require_standby(true);
    let mut client = disturbed(&server, "select 1", "insert into t values (1)", |_| {});
    assert!(!client.has_answer());
    server.stop_fast();
    assert!(!client.ended().contains("INSERT"), "it ends without an answer");
}

#[test]
fn it_is_refused_by_another_major_version_and_outside_of_preloading() {
    let server = Server::start(None, &["select 1"]);
    let refused = server.client("postgres").ask(&format!("load '{}'", support::library().display()));
    assert!(refused.contains("must be named in shared_preload_libraries"), "{refused}");
    assert_eq!(server.value("select 1"), "1");
    // The same library for another major version.
    let mut bytes = std::fs::read(support::library()).unwrap();
    let magic: Vec<u8> = [56_i32, 1500, 100, 32].iter().flat_map(|word| word.to_le_bytes()).collect();
    let at: Vec<usize> =
        (0..bytes.len() - magic.len()).filter(|at| bytes[*at..].starts_with(&magic)).collect();
    assert_eq!(at.len(), 1);
    bytes[at[0] + 4..at[0] + 8].copy_from_slice(&1600_i32.to_le_bytes());
    let other = server.dir().join("other.so");
    std::fs::write(&other, bytes).unwrap();
    let refused = server.client("postgres").ask(&format!("load '{}'", other.display()));
    assert!(refused.contains("version mismatch") && refused.contains("library is version 16"), "{refused}");
}
