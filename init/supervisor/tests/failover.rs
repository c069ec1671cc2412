//! Two paired nodes as real processes with a real witness: protected, one lost, taken over, and protected again.

#![allow(clippy::disallowed_methods, reason = "tests start programs and wait")]

mod support;

use std::net::IpAddr;
use std::time::Duration;

use dyad_api::control::{self, ServiceState};
use dyad_api::operator::{Call, Code, Protection, TakeOver};
use support::cluster::{Cluster, VIPS, story, story_without_witness};
use support::lan::{Lan, Watch};

fn ids(cluster: &Cluster, at: usize) -> Vec<u64> {
    let text = cluster.sql(at, "select id from ledger order by id").unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_node_is_lost_and_comes_back_and_nothing_acknowledged_is_lost() {
    story("a_node_is_lost_and_comes_back_and_nothing_acknowledged_is_lost", "wan", |cluster| {
        cluster.start();
        let mut holder = cluster.wait_for(Protection::Protected);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let watch = Watch::start(VIPS);
        let mut holders = vec![Lan::mac(holder)];
        let mut acknowledged = standby_lost(cluster, holder);
        // The second time the other one is lost: each has been primary and standby, and each comes back.
        for round in 0..2_u64 {
            cluster.wait_vips(holder);
            let writer = cluster.writer(holder, round * 1_000_000);
            cluster.wait("acknowledged writes", || (writer.count() >= 100).then_some(()));
            cluster.power_cut(holder);
            acknowledged.extend(writer.end());
            let other = 1 - holder;
            cluster.wait("the take-over", || {
                let status = cluster.nodes[other].status();
                let here = status.resources.first().is_some_and(|row| Cluster::index(&row.holder) == other);
                (here && status.protection == Protection::Exposed).then_some(())
            });
            cluster.wait_vips(other);
            cluster.wait("the writer among several hosts", || {
                (cluster.writer_among_hosts().ok()? == Lan::address(other).to_string()).then_some(())
            });
            holders.push(Lan::mac(other));
            let there = ids(cluster, other);
            let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
            assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
            let alone = cluster.writer(other, round * 1_000_000 + 500_000);
            cluster.wait("writes of the new primary", || (alone.count() >= 20).then_some(()));
            acknowledged.extend(alone.end());
            cluster.power_on(holder);
            assert_eq!(cluster.wait_for(Protection::Protected), other, "nothing moves back");
            holder = other;
        }
        VIPS.iter().for_each(|vip| assert_eq!(watch.holders(*vip), holders, "one after another, never two"));
        let all = ids(cluster, holder);
        assert!(acknowledged.iter().all(|id| all.contains(id)));
        cluster.wait("the same on both", || (ids(cluster, 1 - holder) == all).then_some(()));
        let steps = cluster.replay();
        assert!(steps > 200, "only {steps} steps");
    });
}

/// Commits wait for a standby that is gone until its holder goes on alone, by itself. What was acknowledged.
fn standby_lost(cluster: &mut Cluster, holder: usize) -> Vec<u64> {
    cluster.wait_vips(holder);
    let writer = cluster.writer(holder, 10_000_000);
    cluster.wait("acknowledged writes", || (writer.count() >= 20).then_some(()));
    cluster.power_cut(1 - holder);
    cluster.wait("that the holder is alone", || {
        (cluster.nodes[holder].status().protection == Protection::Exposed).then_some(())
    });
    let before = writer.count();
    cluster.wait("writes without a standby", || (writer.count() > before + 20).then_some(()));
    cluster.power_on(1 - holder);
    assert_eq!(cluster.wait_for(Protection::Protected), holder);
    writer.end()
}

#[test]
fn a_strict_pair_acknowledges_nothing_that_one_node_alone_has() {
    let name = "a_strict_pair_acknowledges_nothing_that_one_node_alone_has";
    story_without_witness(name, "strict", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Synced);
        cluster.wait_vips(holder);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let writer = cluster.writer(holder, 0);
        cluster.wait("acknowledged writes", || (writer.count() >= 20).then_some(()));
        cluster.power_cut(1 - holder);
        cluster.wait("that the loss is told", || {
            let status = cluster.nodes[holder].status();
            (status.protection == Protection::Exposed).then_some(())
        });
        // Several times what any other pair waits for before it goes on alone.
        let before = writer.count();
        std::thread::sleep(Duration::from_secs(12));
        assert_eq!(writer.count(), before, "it waits");
        assert!(cluster.sql(holder, "select count(*) from ledger").is_ok(), "and can be read");
        cluster.power_on(1 - holder);
        assert_eq!(cluster.wait_for(Protection::Synced), holder);
        cluster.wait("writes that go on", || (writer.count() > before + 20).then_some(()));
        let acknowledged = writer.end();
        for at in [holder, 1 - holder] {
            cluster.wait("every acknowledged write", || {
                let there = ids(cluster, at);
                acknowledged.iter().all(|id| there.contains(id)).then_some(())
            });
        }
        cluster.replay();
    });
}

#[test]
fn a_holder_that_stands_still_loses_its_addresses_by_the_kernels_own_clock() {
    story("a_holder_that_stands_still_loses_its_addresses_by_the_kernels_own_clock", "medium", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        let watch = Watch::start(VIPS);
        cluster.wait_vips(holder);
        let pid = cluster.nodes[holder].supervisor.as_ref().unwrap().id();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // The address is still on its link, and nobody of that node is there to close anything.
        for vip in VIPS {
            cluster.wait("the other node's claim", || {
                (watch.holders(vip).last() == Some(&Lan::mac(other))).then_some(())
            });
            let words = format!("-o address show to {vip}");
            let words: Vec<&str> = words.split(' ').collect();
            let left = cluster.lan.machine(holder).command("/usr/sbin/ip").args(words).output().unwrap();
            assert!(!left.stdout.is_empty(), "the gate alone keeps {vip} from answering");
        }
        let claims = VIPS.map(|vip| watch.count(vip));
        cluster.wait("more answers", || (watch.count(VIPS[0]) > claims[0] + 20).then_some(()));
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        cluster.wait_vips(other);
        for vip in VIPS {
            assert_eq!(watch.holders(vip), [holder, other].map(Lan::mac), "one after another, never two");
        }
    });
}

#[test]
fn a_holder_whose_clients_are_cut_off_hands_over() {
    story("a_holder_whose_clients_are_cut_off_hands_over", "wan", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        cluster.wait_vips(holder);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let writer = cluster.writer(holder, 0);
        cluster.wait("acknowledged writes", || (writer.count() >= 20).then_some(()));
        cluster.lan.machine(holder).cable(false);
        cluster.wait_vips(other);
        let acknowledged = writer.end();
        let there = ids(cluster, other);
        assert!(acknowledged.iter().all(|id| there.contains(id)));
        cluster.lan.machine(holder).cable(true);
        assert_eq!(cluster.wait_for(Protection::Protected), other, "nothing moves back");

        // A service that clients need fails for good: the same. Where it is down on both, nothing is gained by moving.
        let writer = cluster.writer(other, 1_000_000);
        cluster.wait("more acknowledged writes", || (writer.count() >= 20).then_some(()));
        cluster.nodes[other].init.other("app", ServiceState::Failed);
        cluster.wait_vips(holder);
        assert_eq!(cluster.wait_for(Protection::Protected), holder);
        let acknowledged = writer.end();
        let there = ids(cluster, holder);
        assert!(acknowledged.iter().all(|id| there.contains(id)));
        cluster.nodes[holder].init.other("app", ServiceState::Failed);
        let writer = cluster.writer(holder, 2_000_000);
        // Three times what a move waits for.
        std::thread::sleep(Duration::from_secs(6));
        let before = writer.count();
        cluster.wait("writes where they were", || (writer.count() > before + 20).then_some(()));
        writer.end();
        for node in &cluster.nodes {
            node.init.other("app", ServiceState::Ready);
        }
        assert_eq!(cluster.wait_for(Protection::Protected), holder);
        let (holder, other) = (other, holder);
        let there = ids(cluster, other);

        // Somebody promotes the standby behind the cluster's back: it is stopped, rewound and follows again.
        let standby = cluster.nodes[holder].init.postmaster();
        assert_eq!(cluster.sql(holder, "select pg_promote()").as_deref(), Ok("t"));
        cluster.wait("the end of what was promoted", || {
            let now = cluster.nodes[holder].init.postmaster();
            (now != 0 && now != standby).then_some(())
        });
        cluster.wait("a standby again", || {
            (cluster.sql(holder, "select pg_is_in_recovery()").ok()? == "t").then_some(())
        });
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        cluster.wait("the same on both", || (ids(cluster, holder) == there).then_some(()));
        cluster.replay();
    });
}

/// By which of the holder's addresses a standby receives; nothing while it does not.
fn receives_from(cluster: &Cluster, standby: usize) -> Option<IpAddr> {
    let query = "select sender_host from pg_stat_wal_receiver where status = 'streaming'";
    cluster.sql(standby, query).ok()?.parse().ok()
}

#[test]
fn replication_goes_another_way_when_its_network_is_lost() {
    let name = "replication_goes_another_way_when_its_network_is_lost";
    story(name, "wan", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        let ways = |up: [bool; 2]| {
            for node in &cluster.nodes {
                cluster.wait(&format!("{up:?} of repl0 and lan0"), || {
                    let rows = node.status().node.ways;
                    let links: Vec<_> = rows.iter().map(|row| &*row.interface).collect();
                    assert!(links.is_empty() || links == ["repl0", "lan0"], "{links:?}");
                    rows.iter().map(|row| row.up).eq(up.map(Some)).then_some(())
                });
            }
        };
        let by = |address: fn(usize) -> IpAddr| {
            cluster.wait("replication by another way", || {
                (receives_from(cluster, other)? == address(holder)).then_some(())
            });
            assert_eq!(cluster.wait_for(Protection::Protected), holder);
        };
        ways([true, true]);
        by(Lan::replication);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let servers = cluster.nodes.each_ref().map(|node| (node.init.postmaster(), node.init.fenced()));
        let writer = cluster.writer(holder, 0);
        cluster.wait("acknowledged writes", || (writer.count() >= 20).then_some(()));

        cluster.lan.machine(other).replication_cable(false);
        ways([false, true]);
        by(Lan::address);
        let so_far = writer.count();
        cluster.wait("writes by the other way", || (writer.count() > so_far + 20).then_some(()));

        cluster.lan.machine(other).replication_cable(true);
        ways([true, true]);
        by(Lan::replication);
        let now = cluster.nodes.each_ref().map(|node| (node.init.postmaster(), node.init.fenced()));
        assert_eq!(now, servers, "no server was ended, none was fenced");
        let acknowledged = writer.end();
        let all = ids(cluster, holder);
        assert!(acknowledged.iter().all(|id| all.contains(id)));
        cluster.wait("the same on both", || (ids(cluster, other) == all).then_some(()));
        cluster.replay();
    });
}

#[test]
fn a_changed_site_file_reaches_the_standby_before_the_primary_hands_over() {
    let name = "a_changed_site_file_reaches_the_standby_before_the_primary_hands_over";
    story(name, "wan", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let writer = cluster.writer(holder, 0);
        let servers = cluster.nodes.each_ref().map(|node| node.init.postmaster());
        for node in &mut cluster.nodes {
            let file = node.path("efi/dyad/site.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            let changed = text.replace("shared_buffers = \"32MiB\"", "shared_buffers = \"48MiB\"");
            assert_ne!(changed, text);
            std::fs::write(&file, changed).unwrap();
            node.kill();
            node.start();
        }
        let has = |at: usize| cluster.sql(at, "show shared_buffers").ok().filter(|size| size == "48MB");
        cluster.wait("the setting on the standby", || has(other));
        assert_ne!(cluster.nodes[other].init.postmaster(), servers[other]);
        assert_eq!(cluster.nodes[holder].init.postmaster(), servers[holder], "the primary still serves");
        cluster.wait("the setting on both", || has(holder));
        assert_eq!(cluster.wait_for(Protection::Protected), other, "by a planned move");
        let acknowledged = writer.end();
        let all = ids(cluster, other);
        assert!(acknowledged.iter().all(|id| all.contains(id)));
        // It has moved once, and stays.
        let served = cluster.nodes[other].init.postmaster();
        std::thread::sleep(Duration::from_secs(10));
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        assert_eq!(cluster.nodes[other].init.postmaster(), served);
        cluster.replay();
    });
}

/// By an operator, who is told the price first; by itself the node does nothing.
fn taken_by_force(cluster: &Cluster, other: usize) {
    let take = |peer_is_off| {
        let call = Call::TakeOver(TakeOver { resource: None, peer_is_off });
        cluster.nodes[other].client().call::<serde_json::Value>(call)
    };
    let price = take(false).unwrap_err().to_string();
    assert!(price.contains("may lose"), "{price}");
    // Twice what a take-over by itself takes.
    std::thread::sleep(Duration::from_secs(30));
    let status = cluster.nodes[other].status();
    assert_eq!(status.protection, Protection::Down, "{}: nobody takes over by itself", status.reason);
    take(true).unwrap();
    cluster.wait("the take-over", || {
        let status = cluster.nodes[other].status();
        let here = status.resources.first().is_some_and(|row| Cluster::index(&row.holder) == other);
        (here && status.protection == Protection::Exposed).then_some(())
    });
}

/// A holder that restarts with nobody left to ask: it says so, and goes on when an operator says that it may. What it
/// acknowledges then.
fn left_alone(cluster: &mut Cluster, at: usize) -> Vec<u64> {
    let there = ids(cluster, at);
    let take = |cluster: &Cluster, peer_is_off| {
        let call = Call::TakeOver(TakeOver { resource: None, peer_is_off });
        cluster.nodes[at].client().call::<serde_json::Value>(call)
    };
    cluster.power_cut(at);
    cluster.power_on(at);
    cluster.wait("that the witness is waited for", || {
        let early = take(cluster, true).unwrap_err().to_string();
        early.contains("the witness is asked who goes on").then_some(())
    });
    cluster.wait("that an operator is asked", || {
        let status = cluster.nodes[at].status();
        assert_eq!(status.protection, Protection::Down, "{}: it goes on by itself", status.reason);
        status.reason.contains("`dyadctl takeover`").then_some(())
    });
    let price = take(cluster, false).unwrap_err().to_string();
    assert!(price.contains("if it went on since it was last heard; everything else is here"), "{price}");
    take(cluster, true).unwrap();
    cluster.wait("that it serves again", || {
        (cluster.nodes[at].status().protection == Protection::Exposed).then_some(())
    });
    cluster.wait_vips(at);
    assert_eq!(ids(cluster, at), there);
    let alone = cluster.writer(at, 600_000);
    cluster.wait("writes after its restart", || (alone.count() >= 20).then_some(()));
    alone.end()
}

#[test]
fn a_lost_holder_is_replaced_by_an_operators_word_alone_without_a_witness() {
    story("a_lost_holder_is_replaced_by_an_operators_word_alone_without_a_witness", "wan", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        cluster.wait_vips(holder);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        // Another witness in its place has a key of its own. An order that reached one node only is given again.
        cluster.witness.replace();
        assert_eq!(cluster.wait_for(Protection::Synced), holder);
        let code = String::from_utf8(cluster.witness.code()).unwrap();
        cluster.nodes[other].kill();
        let half = enroll(cluster, holder, &code).unwrap_err().to_string();
        assert!(half.contains("does not answer"), "{half}");
        cluster.nodes[other].start();
        cluster.wait("both enrolled", || enroll(cluster, holder, &code).is_ok().then_some(()));
        for at in [holder, other] {
            // This PID 1 only notes what it is asked for.
            let again = |call: &control::Call| matches!(call, control::Call::Restart { name } if name == "supervisor");
            cluster.wait("the restart", || cluster.nodes[at].init.calls().iter().any(again).then_some(()));
            cluster.nodes[at].kill();
            cluster.nodes[at].start();
        }
        assert_eq!(cluster.wait_for(Protection::Protected), holder);
        let watch = Watch::start(VIPS);
        cluster.witness.end();
        let writer = cluster.writer(holder, 0);
        // The witness alone moves nothing, and both say what that means.
        assert_eq!(cluster.wait_for(Protection::Synced), holder);
        let before = writer.count();
        cluster.wait("writes without a witness", || (writer.count() > before + 50).then_some(()));
        cluster.power_cut(holder);
        let acknowledged = writer.end();
        cluster.wait("the loss", || {
            let status = cluster.nodes[other].status();
            (status.protection == Protection::Down).then_some(())
        });
        taken_by_force(cluster, other);
        cluster.wait_vips(other);
        let there = ids(cluster, other);
        let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
        assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
        let alone = cluster.writer(other, 500_000);
        cluster.wait("writes of the new primary", || (alone.count() >= 20).then_some(()));
        let acknowledged = [acknowledged, alone.end()].concat();
        let acknowledged = [acknowledged, left_alone(cluster, other)].concat();
        // The witness comes back before the lost node, which must not go on where it was. The word went past the witness: it
        // grants nothing until somebody enrols it again, and both nodes say so.
        cluster.witness.restart();
        cluster.power_on(holder);
        for at in [holder, other] {
            cluster.wait("what is left to be done", || {
                let status = cluster.nodes[at].status();
                let exposed = status.protection == Protection::Exposed;
                (exposed && status.reason.contains("knows less than the nodes: enrol it again")).then_some(())
            });
        }
        let wrong = enroll(cluster, other, "7K3MQ-0RT5W-9XBDA-HJ2CP").unwrap_err().to_string();
        assert!(wrong.contains("the witness: "), "{wrong}");
        enroll(cluster, other, &String::from_utf8(cluster.witness.code()).unwrap()).unwrap();
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        let all = ids(cluster, other);
        assert!(acknowledged.iter().all(|id| all.contains(id)));
        cluster.wait("the same on both", || (ids(cluster, holder) == all).then_some(()));
        let holders = [holder, other].map(Lan::mac);
        VIPS.iter().for_each(|vip| assert_eq!(watch.holders(*vip), holders, "one after another, never two"));
        cluster.replay();
    });
}

/// `dyadctl enroll CODE` at a node.
fn enroll(
    cluster: &Cluster,
    at: usize,
    code: &str,
) -> Result<serde_json::Value, impl std::error::Error + use<>> {
    cluster.nodes[at].client().call(Call::Enroll(Code { code: Some(code.to_owned()) }))
}

#[test]
fn a_supervisor_that_is_killed_moves_nothing() {
    story("a_supervisor_that_is_killed_moves_nothing", "wan", |cluster| {
        cluster.start();
        let mut holder = cluster.wait_for(Protection::Protected);
        assert!(cluster.sql(holder, "create table ledger (id bigint primary key)").is_ok());
        let servers = |cluster: &Cluster| {
            cluster.nodes.each_ref().map(|node| (node.init.postmaster(), node.init.fenced()))
        };
        // On a machine that stands still for longer than the lease a server is rightly ended; not every time.
        for attempt in 0..3_u64 {
            let before = servers(cluster);
            let writer = cluster.writer(holder, attempt * 1_000_000);
            cluster.wait("a write", || (writer.count() > 0).then_some(()));
            for at in [holder, 1 - holder] {
                cluster.nodes[at].kill();
                cluster.nodes[at].start();
                holder = cluster.wait_for(Protection::Protected);
            }
            let unmoved = servers(cluster) == before;
            let so_far = writer.count();
            if unmoved {
                cluster.wait("more writes", || (writer.count() > so_far + 20).then_some(()));
            }
            let acknowledged = writer.end();
            let all = ids(cluster, holder);
            assert!(acknowledged.iter().all(|id| all.contains(id)));
            cluster.replay();
            if unmoved {
                return;
            }
        }
        panic!("each restart of a supervisor ended a server: {}", cluster.nodes[holder].log());
    });
}
