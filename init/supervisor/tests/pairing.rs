//! Blank nodes as real processes in network namespaces of their own: they find each other and become protected, killed at
//! every step, and what must not pair is refused by name.

#![allow(clippy::disallowed_methods, reason = "tests start programs and wait")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::Duration;

use dyad_api::control;
use dyad_api::operator::{Call, Code, Credentials, Protection, ResourceName};
use dyad_spec::site::Pairing;
use support::Node;
use support::cluster::{Cluster, Witness, blank_site, story_of_blank_nodes, within_namespaces};
use support::lan::Lan;

/// What a node writes on its way from blank to member, in no order. Every new one is a step.
const WATCHED: [&str; 4] = ["state/identity", "state/supervisor", "data/pg", "run/dyad/postgresql"];

/// Everything that a node has written so far: paths, and for the files that say how far it is their content.
fn written(node: &Node) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for dir in WATCHED {
        for entry in std::fs::read_dir(node.path(dir)).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let content = match name.as_str() {
                "pairing.json" | "membership.json" => {
                    std::fs::read_to_string(entry.path()).unwrap_or_default()
                }
                _ => String::new(),
            };
            all.insert(format!("{dir}/{name} {content}"));
        }
    }
    all
}

/// Kills the supervisor of one node whenever it has written something new, until both are protected; the kills.
fn kill_at_every_step(cluster: &mut Cluster, at: usize) -> usize {
    let mut kills = 0;
    let mut seen = written(&cluster.nodes[at]);
    loop {
        let wait = |cluster: &Cluster| {
            cluster.wait("a step or protection", || {
                let now = written(&cluster.nodes[at]);
                if !now.is_subset(&seen) {
                    return Some(Some(now));
                }
                let done = cluster.nodes.iter().all(|node| node.status().protection == Protection::Protected);
                done.then_some(None)
            })
        };
        let Some(now) = wait(cluster) else { return kills };
        seen.extend(now);
        cluster.nodes[at].kill();
        cluster.nodes[at].start();
        kills += 1;
    }
}

fn pairs(name: &str, victim: usize) {
    story_of_blank_nodes(name, Pairing::Key, |cluster| {
        cluster.start();
        let kills = kill_at_every_step(cluster, victim);
        assert!(kills >= 6, "only {kills} steps were seen");
        let holder = cluster.wait_for(Protection::Protected);
        cluster.sql(holder, "create table ledger (id int); insert into ledger values (1)").unwrap();
        let there = |cluster: &Cluster| cluster.sql(1 - holder, "select id from ledger").ok();
        cluster.wait("the row on the standby", || there(cluster).filter(|text| text == "1"));
        // Whoever was killed is the member that it was.
        let member = |cluster: &Cluster, at: usize| {
            std::fs::read_to_string(cluster.nodes[at].path("state/supervisor/membership.json")).unwrap()
        };
        let before = [member(cluster, 0), member(cluster, 1)];
        cluster.witness.restart();
        for at in [0, 1] {
            cluster.power_cut(at);
        }
        for at in [0, 1] {
            cluster.power_on(at);
        }
        cluster.wait_for(Protection::Protected);
        assert_eq!([member(cluster, 0), member(cluster, 1)], before);
    });
}

#[test]
fn node_a_is_killed_at_every_step_and_the_pair_is_protected() {
    pairs("node_a_is_killed_at_every_step_and_the_pair_is_protected", 0);
}

#[test]
fn node_b_is_killed_at_every_step_and_the_pair_is_protected() {
    pairs("node_b_is_killed_at_every_step_and_the_pair_is_protected", 1);
}

#[test]
fn a_code_that_is_typed_pairs_two_nodes() {
    story_of_blank_nodes("a_code_that_is_typed_pairs_two_nodes", Pairing::Code, |cluster| {
        cluster.start();
        let pair = |cluster: &Cluster, at: usize, code: Option<&str>| {
            let call = Call::Pair(Code { code: code.map(str::to_owned) });
            let told: Result<Code, _> = cluster.nodes[at].client().call(call);
            told.map(|told| told.code.unwrap()).map_err(|error| error.to_string())
        };
        cluster.nodes.iter().for_each(|node| says(node, "a code is to be typed"));
        let code = pair(cluster, 0, None).unwrap();
        assert_eq!(pair(cluster, 0, None).unwrap(), code, "it is shown again, not made anew");
        let mistyped = pair(cluster, 1, Some("7K3MQ")).unwrap_err();
        assert!(mistyped.contains("a code has 20 letters and digits"), "{mistyped}");
        says(&cluster.nodes[1], "a code is to be typed");
        // Another one is a stranger's; the right one takes its place.
        pair(cluster, 1, Some("7K3MQ-0RT5W-9XBDA-HJ2CP")).unwrap();
        says(&cluster.nodes[0], "does not have this");
        assert_eq!(pair(cluster, 1, Some(&code.to_lowercase())).unwrap(), code);
        let again =
            |call: &control::Call| matches!(call, control::Call::Restart { name } if name == "supervisor");
        cluster.wait("the restart", || cluster.nodes[1].init.calls().iter().any(again).then_some(()));
        cluster.nodes[1].kill();
        cluster.nodes[1].start();
        let holder = cluster.wait_for(Protection::Protected);
        // This site has no address that moves: who wants the writer asks each node, for instance a balancer.
        for at in [0, 1] {
            let told: Credentials = cluster.nodes[at].client().call(Call::Credentials).unwrap();
            assert!(told.addresses.contains(&Lan::address(at).to_string()), "{:?}", told.addresses);
            let mut stream = TcpStream::connect(SocketAddr::new(Lan::address(at), 8008)).unwrap();
            stream.write_all(b"GET /primary HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(
                answer.starts_with(if at == holder { "HTTP/1.1 200 " } else { "HTTP/1.1 503 " }),
                "{answer}"
            );
        }
        let late = pair(cluster, 0, None).unwrap_err();
        assert!(late.contains("a member of a pair already"), "{late}");
    });
}

/// A machine with a site key.
fn machine(lan: &Lan, site: &str, at: usize, key: &str) -> Node {
    let node = Node::on(Some(lan.machine(at)), Some(site));
    std::fs::write(node.path("efi/dyad/site.key"), key.repeat(32)).unwrap();
    node
}

fn says(node: &Node, words: &str) {
    node.wait(words, || {
        let status = node.status();
        assert_eq!(status.protection, Protection::Down, "{}", status.reason);
        status.reason.contains(words).then_some(())
    });
}

fn stop(nodes: Vec<Node>) {
    // Nothing was begun with anybody.
    for node in &nodes {
        assert!(!node.path("state/supervisor/membership.json").exists(), "{}", node.log());
    }
}

#[test]
fn what_must_not_pair_is_refused_by_name() {
    within_namespaces("what_must_not_pair_is_refused_by_name", refusals);
}

fn refusals() {
    let lan = Lan::of(3);
    let witness = Witness::start();
    let site = blank_site(&witness, "lan");
    let start = |at: usize, key: &str, prepare: &dyn Fn(&Node)| {
        let mut node = machine(&lan, &site, at, key);
        prepare(&node);
        node.start();
        node
    };
    let nothing = |_: &Node| {};

    let alone = start(0, "5e", &nothing);
    says(&alone, "looks for the other one on lan0, repl0");
    let why: Vec<String> = alone.client().call(Call::Why(ResourceName::default())).unwrap();
    assert!(why[0].contains("looks for the other one"), "{why:?}");
    for link in ["lan0 up ", "repl0 up "] {
        assert!(why.iter().any(|line| line.starts_with(link) && line.contains("mac ")), "{link}: {why:?}");
    }
    let stranger = start(1, "0f", &nothing);
    says(&alone, "does not have this site key");
    says(&stranger, "does not have this site key");
    another_version();
    says(&alone, "speaks pairing version 2");
    stop(vec![stranger]);

    let identity = std::fs::read(alone.path("state/identity/node.key")).unwrap();
    let clone = start(1, "5e", &|node| {
        std::fs::create_dir(node.path("state/identity")).unwrap();
        let path = node.path("state/identity/node.key");
        std::fs::write(&path, &identity).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    });
    says(&clone, "another machine has this node's identity");
    says(&alone, "another machine has this node's identity");
    stop(vec![clone]);

    let used = start(1, "5e", &|node| {
        std::fs::create_dir_all(node.path("data/pg/main/global")).unwrap();
        std::fs::write(node.path("data/pg/main/PG_VERSION"), "15\n").unwrap();
        std::fs::write(node.path("data/pg/main/global/pg_control"), 4711_u64.to_ne_bytes()).unwrap();
    });
    says(&used, "holds data of a cluster that it does not belong to (system identifier 4711)");
    says(&alone, "(system identifier 4711)");
    stop(vec![used, alone]);

    // Two are members, and have no code for the witness yet; a third one comes.
    let two: Vec<Node> = (0..2).map(|at| start(at, "5e", &nothing)).collect();
    two.iter().for_each(|node| says(node, "witness.code is not there"));
    let third = start(2, "5e", &nothing);
    says(&third, "is a member of another cluster");
    two.iter().for_each(|node| says(node, "has the site key too, but a cluster has two members"));
    stop(vec![third]);
}

/// A beacon of a version to come, on the bridge.
fn another_version() {
    let index: u32 = std::fs::read_to_string("/proc/self/net/if_inet6")
        .unwrap()
        .lines()
        .find(|line| line.ends_with(" lan"))
        .map(|line| u32::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap())
        .unwrap();
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let group = "ff12::dad:7402".parse().unwrap();
    for _ in 0..3 {
        socket.send_to(&[2; 100], SocketAddrV6::new(group, supervisor::pairing::PORT, 0, index)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}
