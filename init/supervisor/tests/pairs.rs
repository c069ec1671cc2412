//! Stories of two nodes with real servers: protected, lost, taken over, and back.

#![allow(clippy::disallowed_methods, reason = "tests start programs of PostgreSQL")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use supervisor::pg::health::Probes;
use supervisor::pg::{PgError, Relation};
use support::pair::{Half, known, protect, protected, story, until};

/// The holder is away just then, and is asked again: nothing is copied whole for that. The quarantine.
async fn rewound_while_away(own: &Half, holder: &Half) -> PathBuf {
    holder.crash().await;
    let back = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        holder.server.serve(false).await.unwrap();
    };
    let (kept, ()) = tokio::join!(own.server.rewind("7"), back);
    kept.unwrap()
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_by_rewind() {
    story("a_killed_primary_is_replaced_and_comes_back_by_rewind", async |a, b| {
        protected(&a, &b).await;
        let tls = a.sql("select string_agg(ssl::text || version, ',') from pg_stat_ssl join pg_stat_replication using (pid)");
        assert_eq!(tls, "trueTLSv1.3");
        // What the other node logs in as may do that and nothing else.
        let may = "select rolname, rolreplication, rolsuper or rolcreaterole or rolcreatedb or rolbypassrls, \
                   exists (select from pg_auth_members where member = r.oid) \
                   from pg_roles r where rolname like 'dyad\\_%' order by 1";
        assert_eq!(a.sql(may), "dyad_replication|t|f|f\ndyad_rewind|f|f|f");
        // Queries on the standby are not cancelled by what the primary cleans up.
        until(&a, "the standby's feedback", async || {
            (a.sql("select count(xmin) from pg_replication_slots where active") == "1").then_some(())
        })
        .await;
        a.sql("insert into ledger select generate_series(1, 100)");
        // One more that the standby never gets: it is not acknowledged.
        b.server.stop_following().await.unwrap();
        let mut lost = a.begin("insert into ledger values (101)");
        until(&a, "the wait for the standby", async || {
            (a.sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'") == "1").then_some(())
        })
        .await;
        a.crash().await;
        assert!(!lost.wait().unwrap().success(), "never acknowledged");

        b.server.promote().await.unwrap();
        assert_eq!(b.sql("select count(*), max(id) from ledger"), "100|100");
        assert_eq!(known!(b.server.look()).timeline, 2);
        // Segments that were made for later are empty, and may be the first that a directory lists.
        for number in 0x20..0x30 {
            let path = a.path(&format!("data/pg/main/pg_wal/0000000100000000000000{number:02X}"));
            fs::File::create(path).unwrap().set_len(16 << 20).unwrap();
        }
        let early = known!(a.server.inspect());
        assert!([Relation::TooEarly, Relation::Diverged].contains(&early), "{early:?}");
        known!(b.server.checkpoint());
        b.sql("insert into ledger values (200)");
        assert_eq!(known!(a.server.inspect()), Relation::Diverged);
        let before = known!(a.server.control()).unwrap();
        let kept = rewound_while_away(&a, &b).await;
        let after = known!(a.server.control()).unwrap();
        assert_eq!(before.system, after.system);
        assert_ne!(before.generation, after.generation, "other data");
        a.server.follow().await.unwrap();
        protect(&b, &a).await;
        b.sql("insert into ledger values (201)");
        let same = "select count(*), sum(id) from ledger";
        until(&a, "replay", async || (a.sql(same) == b.sql(same)).then_some(())).await;
        assert_eq!(a.sql("select count(*) from ledger where id = 101"), "0");

        // The tail is exactly the commit that nobody was told of.
        assert_eq!(kept, a.path("data/pg/quarantine-7"));
        let tail: serde_json::Value =
            serde_json::from_slice(&fs::read(kept.join("tail.json")).unwrap()).unwrap();
        assert_eq!(tail["system_identifier"].as_u64(), Some(after.system));
        let output = Command::new("/usr/lib/postgresql/15/bin/pg_waldump")
            .args(["-t", "1", "-s", tail["from"].as_str().unwrap(), "-p"])
            .arg(&kept)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let of = |kind: &str| text.lines().filter(|line| line.contains(kind)).count();
        assert_eq!((of("desc: COMMIT"), of("rmgr: Heap")), (1, 1), "{text}");
    });
}

#[test]
fn without_its_standby_a_primary_goes_on_only_when_told_and_holds_back_after_a_restart() {
    story(
        "without_its_standby_a_primary_goes_on_only_when_told_and_holds_back_after_a_restart",
        async |a, b| {
            protected(&a, &b).await;
            b.server.kill().await.unwrap();
            let mut waits = a.begin("insert into ledger values (1)");
            until(&a, "the wait for the standby", async || {
                (a.sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'") == "1")
                    .then_some(())
            })
            .await;
            assert!(waits.try_wait().unwrap().is_none());
            known!(a.server.drop_sync());
            assert!(waits.wait().unwrap().success(), "let go");
            a.sql("insert into ledger values (2)");

            assert_eq!(known!(b.server.inspect()), Relation::Streams);
            b.server.follow().await.unwrap();
            protect(&a, &b).await;

            // A restart in Sync: the standby is away, and nobody is let in.
            b.server.kill().await.unwrap();
            a.crash().await;
            a.server.serve(true).await.unwrap();
            assert!(a.client("select 1").unwrap_err().contains("pg_hba.conf rejects connection"));
            assert!(matches!(a.server.canary().await, Err(PgError::Late { .. })));
            b.server.follow().await.unwrap();
            known!(a.server.canary());
            known!(a.server.admit());
            until(&a, "a client", async || a.client("select 1").ok()).await;

            known!(a.server.limit_writes(true));
            until(&a, "read only", async || a.client("create table x (id int)").err()).await;
            known!(a.server.limit_writes(false));
            until(&a, "writes", async || a.client("create table y (id int)").ok()).await;
        },
    );
}

#[test]
fn a_standby_that_was_away_for_too_long_is_copied_anew_and_fills_no_volume() {
    let name = "a_standby_that_was_away_for_too_long_is_copied_anew_and_fills_no_volume";
    story(name, async |a, b| {
        protected(&a, &b).await;
        b.server.kill().await.unwrap();
        known!(a.server.drop_sync());
        // 20 segments of 16 MiB, and 64 MiB are kept.
        for id in 0..20 {
            a.sql(&format!("insert into ledger values ({id})"));
            a.sql("select pg_switch_wal()");
        }
        a.sql("checkpoint");
        let slot = "select wal_status from pg_replication_slots where slot_name = 'dyad_node_b'";
        assert_eq!(a.sql(slot), "lost");
        let kept: u64 = a.sql("select sum(size) from pg_ls_waldir()").parse().unwrap();
        assert!(kept <= 128 << 20, "{kept} bytes of log are kept");

        let done = known!(a.server.repair_contents());
        assert_eq!(done, ["slot dyad_node_b for the other node"]);
        assert_eq!(known!(a.server.repair_contents()), [""; 0]);
        assert_eq!(a.sql(slot), "reserved");
        assert_eq!(known!(b.server.inspect()), Relation::Unusable);
        let old = b.server.clone_peer("3").await.unwrap();
        assert_eq!(old, Some(b.path("data/pg/quarantine-3")), "what was here is kept");
        b.server.follow().await.unwrap();
        protect(&a, &b).await;
        until(&b, "replay", async || (b.sql("select count(*) from ledger") == "20").then_some(())).await;
    });
}

#[test]
fn a_planned_move_loses_nothing_and_the_old_primary_streams() {
    story("a_planned_move_loses_nothing_and_the_old_primary_streams", async |a, b| {
        protected(&a, &b).await;
        a.sql("insert into ledger values (1)");
        a.server.stop_clean().await.unwrap();
        b.server.stop_following().await.unwrap();
        b.server.promote().await.unwrap();
        assert!(b.client("create table x (id int)").is_ok(), "it takes writes at once");
        assert_eq!(b.sql("select count(*) from ledger"), "1");
        known!(b.server.checkpoint());
        assert_eq!(known!(a.server.inspect()), Relation::Streams);
        a.server.follow().await.unwrap();
        protect(&b, &a).await;
        until(&a, "the new timeline", async || (known!(a.server.look()).timeline == 2).then_some(())).await;
        a.server.advance_slot().await.unwrap();
    });
}

#[test]
fn two_histories_on_one_timeline_are_copied_anew_and_other_systems_are_refused() {
    story("two_histories_on_one_timeline_are_copied_anew_and_other_systems_are_refused", async |a, b| {
        protected(&a, &b).await;
        known!(a.server.drop_sync());
        b.server.kill().await.unwrap();
        // What must never be done: a standby that goes on as primary on the same timeline.
        fs::remove_file(b.path("data/pg/main/standby.signal")).unwrap();
        b.server.serve(false).await.unwrap();
        assert_eq!(known!(b.server.look()).timeline, 1);
        b.sql("insert into ledger select generate_series(1, 5000)");
        a.sql("insert into ledger select generate_series(5001, 20000)");
        b.server.kill().await.unwrap();
        assert_eq!(known!(b.server.inspect()), Relation::Unusable);
        let kept = b.server.clone_peer("3").await.unwrap().unwrap();
        assert!(kept.join("PG_VERSION").is_file() && kept.ends_with("quarantine-3"));
        b.server.follow().await.unwrap();
        protect(&a, &b).await;
        assert_eq!(b.sql("select min(id) from ledger"), "5001");

        b.server.kill().await.unwrap();
        fs::rename(b.path("data/pg/main"), b.path("data/pg/aside")).unwrap();
        assert!(b.server.found().await.unwrap());
        assert_eq!(known!(b.server.inspect()), Relation::Foreign);
        assert!(matches!(b.server.clone_peer("4").await, Err(PgError::Foreign { .. })));
        assert!(b.path("data/pg/main/PG_VERSION").is_file() && !b.path("data/pg/quarantine-4").exists());
    });
}

/// The program of a rewind, stopped as soon as it runs.
async fn stopped_rewind(of: &Half) -> Pid {
    let data = of.path("data/pg/main").display().to_string();
    until(of, "a rewind", async || {
        let running = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let words = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (words.contains("bin/pg_rewind\0") && words.contains(&data)).then_some(())?;
            Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)
        });
        running.inspect(|pid| kill_process(*pid, Signal::STOP).unwrap())
    })
    .await
}

#[test]
fn nothing_is_copied_beside_a_rewind_that_was_given_up() {
    story("nothing_is_copied_beside_a_rewind_that_was_given_up", async |a, b| {
        protected(&a, &b).await;
        b.sql("select pg_promote()");
        b.server.kill().await.unwrap();
        assert_eq!(known!(b.server.inspect()), Relation::Diverged);
        let program = tokio::select! {
            done = b.server.rewind("5") => panic!("{done:?} before it was stopped"),
            program = stopped_rewind(&b) => program,
        };
        let main = || fs::metadata(b.path("data/pg/main")).unwrap().ino();
        let before = main();
        let ends = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(main(), before, "it writes where the copy would be");
            kill_process(program, Signal::KILL).unwrap();
        };
        let (kept, ()) = tokio::join!(b.server.clone_peer("6"), ends);
        assert_eq!(kept.unwrap(), Some(b.path("data/pg/quarantine-6")));
        assert_ne!(main(), before);
        b.server.follow().await.unwrap();
        protect(&a, &b).await;
    });
}

#[test]
fn what_is_stopped_or_changed_by_hand_is_noticed() {
    story("what_is_stopped_or_changed_by_hand_is_noticed", async |a, b| {
        protected(&a, &b).await;
        let mut probes = Probes::new(&a.server, dyad_spec::site::Profile::Lan);
        let first = probes.round().await;
        assert!(first.serving && !first.unhealthy, "{first:?}");
        let checkpointer = a.process("checkpointer");
        kill_process(checkpointer, Signal::STOP).unwrap();
        let found = until(&a, "the stopped checkpointer", async || {
            Some(probes.round().await).filter(|it| it.unhealthy)
        })
        .await;
        assert!(found.note.contains("the checkpointer is stopped"), "{}", found.note);
        // With it stopped the setting never reaches those who wait: that must not look done.
        b.server.kill().await.unwrap();
        let error = a.server.drop_sync().await.unwrap_err();
        assert!(error.is_unknown(), "{error}");
        kill_process(checkpointer, Signal::CONT).unwrap();
        known!(a.server.drop_sync());
        until(&a, "health", async || Some(probes.round().await).filter(|it| it.serving)).await;

        a.sql("alter system set synchronous_standby_names = 'mine'");
        a.sql("select pg_reload_conf()");
        until(&a, "the foreign setting", async || known!(a.server.look()).contradiction).await;
        let repaired = known!(a.server.repair());
        assert!(repaired.iter().any(|what| what.contains("synchronous_standby_names")), "{repaired:?}");
        until(&a, "the repair", async || known!(a.server.look()).contradiction.is_none().then_some(())).await;

        b.server.follow().await.unwrap();
        assert!(known!(b.server.look()).contradiction.is_none());
        b.sql("select pg_promote()");
        let seen = known!(b.server.look());
        assert!(seen.contradiction.unwrap().contains("promoted by hand, to timeline 2"));
        let refused = b.client("create table x (id int)").unwrap_err();
        assert!(refused.contains("read-only transaction"), "{refused}");
        b.server.kill().await.unwrap();
        assert_eq!(known!(b.server.inspect()), Relation::Diverged, "its own timeline, past the fork");
        b.server.rewind("hand").await.unwrap();
        b.server.follow().await.unwrap();
        protect(&a, &b).await;
        let room = a.server.room().unwrap();
        assert!(room.full_percent <= 100);
    });
}

#[test]
fn a_standby_keeps_up_with_the_settings_of_its_primary() {
    story("a_standby_keeps_up_with_the_settings_of_its_primary", async |mut a, mut b| {
        protected(&a, &b).await;
        let has = |half: &Half, wanted: &str| assert_eq!(half.sql("show max_connections"), wanted);
        // Less than its primary has: it would not even start.
        b.server.kill().await.unwrap();
        b.with("max_connections", "20").await;
        b.server.follow().await.unwrap();
        has(&b, "30");
        assert!(!known!(b.server.must_restart()));
        protect(&a, &b).await;

        // The primary has more after a restart: the standby receives, and replays nothing until it has as much.
        a.crash().await;
        a.with("max_connections", "40").await;
        a.server.serve(false).await.unwrap();
        assert!(!known!(a.server.must_restart()));
        until(&b, "the pause of its replay", async || known!(b.server.must_restart()).then_some(())).await;
        b.server.kill().await.unwrap();
        b.server.follow().await.unwrap();
        has(&b, "40");
        protect(&a, &b).await;
        a.sql("insert into ledger values (1)");

        // As primary it goes on with what it has, and with what it is told from its own next start on.
        a.crash().await;
        b.server.promote().await.unwrap();
        has(&b, "40");
        assert_eq!(b.sql("select count(*) from ledger"), "1");
        b.crash().await;
        b.server.serve(false).await.unwrap();
        has(&b, "20");
    });
}
