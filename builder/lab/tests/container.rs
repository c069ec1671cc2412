//! A lab of containers from `up` to `down`, with a shell script as the image's PID 1: what the lab does for nodes shows
//! in a second. The real image runs in tests/vm. Only root may run it without preparation; for all others there is the
//! refusal.

#![allow(clippy::disallowed_methods, reason = "a test drives programs and waits for them")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod support;

use std::fs;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use dyad_formats::squashfs;
use dyad_formats::tree::{Inode, Kind, Meta, Tree};
use dyad_gpt::{Guid, Partition, Table, types};
use support::{User, example, wait};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives the links addresses by the node's number, counts its boots, and pings its peer on every network for ever.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
number=$((0x$($b cut -d: -f5 /sys/class/net/lan0/address) + 1))
peer=$((23 - number))
for link in lo lan0 lan1 repl0 repl1; do $b ip link set $link up; done
$b ip addr add 10.77.0.$number/24 dev lan0
$b ip addr add 10.77.1.$number/24 dev repl0
$b ip addr add 10.77.2.$number/24 dev repl1
boots=$(($($b cat /state/boots 2>/dev/null || echo 0) + 1))
echo $boots > /state/boots
for network in 0 1 2; do $b ping -q 10.77.$network.$peer >/dev/null 2>&1 & done
$b stat -c '%u:%g %a' /owned
$b touch /usr/written 2>&1
echo 0 2>&1 > /proc/sys/kernel/panic || echo settings are safe
echo "dyad: boot $boots of $container"
trap '$b poweroff -f' TERM
trap '$b reboot -f' USR1
while :; do $b sleep 1000 & wait $!; done
"#;

fn image(path: &Path) {
    let mut tree = Tree::new(0);
    let mut add = |path: &str, kind: Kind, mode: u16, owner: u32| {
        let meta = Meta { mode, uid: owner, gid: owner, ..Meta::default() };
        tree.insert(path.as_bytes(), Inode { meta, kind, origin: "test".into() }).unwrap();
    };
    for dir in ["proc", "sys", "dev", "run", "tmp", "var", "state", "data", "efi", "bin", "usr", "usr/lib"] {
        add(&format!("/{dir}"), Kind::Dir, 0o755, 0);
    }
    add("/usr/lib/dyad", Kind::Dir, 0o755, 0);
    add("/usr/lib/dyad/init", Kind::File(INIT.into()), 0o755, 0);
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    add("/bin/busybox", Kind::File(busybox.into()), 0o755, 0);
    add("/owned", Kind::File("".into()), 0o2640, 200);
    let mut root = Cursor::new(Vec::new());
    squashfs::write(&tree, &squashfs::Options::default(), &mut root).unwrap();
    const MIB: u64 = 1 << 20;
    let mut table = Table::new(512, 64 * 2048, Guid::from_u128(1)).unwrap();
    let (type_guid, guid, name) = (types::ROOT_X86_64, Guid::from_u128(2), "root".to_owned());
    let partition = Partition { type_guid, guid, first_lba: 0, last_lba: 0, attributes: 0, name };
    table.add(1, Some(40 * MIB), partition).unwrap();
    let (offset, _) = table.byte_range(1).unwrap();
    let encoded = table.encode();
    let mut file = fs::File::create(path).unwrap();
    file.set_len(64 * MIB).unwrap();
    for (at, bytes) in [(0, &encoded.head), (encoded.tail_offset, &encoded.tail), (offset, root.get_ref())] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
    }
}

#[test]
fn a_life_as_root_and_a_refusal_for_all_others() {
    let ordinary = User::ordinary();
    refusal(&ordinary);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let user = User::root();
    let disk = user.home.path().join("image.raw");
    image(&disk);
    up(&user, &disk);
    boots(&user, 1);
    cuts(&user);
    cables(&user);
    pauses(&user);
    ends_and_starts(&user);
    witness(&user);
    a_killed_lab_leaves_nothing(&user, &disk);
    let group = group(&user);
    user.ok("one", &["down"]);
    assert_eq!(user.processes("one"), [], "down leaves no process");
    assert!(!user.state("one").exists() && !Path::new(&group).exists(), "down leaves nothing");
}

fn refusal(user: &User) {
    let text = user.refused("poor", &["up", "--backend", "container", "--image", "/nonexistent.raw"]);
    let (_, missing) = text.split_once("Missing for ").unwrap_or_else(|| panic!("{text}"));
    let (name, missing) = missing.split_once(": ").unwrap_or_else(|| panic!("{text}"));
    assert!(missing.contains("cgroup2"), "{text}");
    // What a machine lacks is told, and what it has is not.
    for file in ["/etc/subuid", "/etc/subgid"] {
        let ranges = fs::read_to_string(file).unwrap_or_default();
        let there = ranges.lines().any(|line| line.starts_with(&format!("{name}:")));
        let told = missing.contains(&format!("a range of 65536 numbers in {file} (a line like `"));
        assert_eq!(told, !there, "{file}: {text}");
    }
    assert!(!user.state("poor").exists(), "nothing was made");
}

fn up(user: &User, disk: &Path) {
    let (image, witness) = (disk.to_str().unwrap(), example("witness"));
    let what = ["up", "--backend", "container", "--image", image, "--no-site", "--no-wait", "--nodes", "2"];
    user.ok("one", &[&what[..], &["--witness", witness.to_str().unwrap()]].concat());
}

fn status(user: &User) -> serde_json::Value {
    serde_json::from_str(&user.ok("one", &["status", "--json"])).unwrap()
}

fn log_says(user: &User, node: &str, words: &str) {
    wait(&format!("{node} says {words:?}"), PATIENCE, || user.ok("one", &["logs", node]).contains(words));
}

fn boots(user: &User, number: u32) {
    for node in ["node-a", "node-b"] {
        log_says(user, node, &format!("dyad: boot {number} of dyad"));
    }
    let log = user.ok("one", &["logs", "node-a"]);
    assert!(log.contains("200:200 2640"), "owners and modes are the image's: {log}");
    assert!(log.contains("/usr/written: Read-only file system"), "{log}");
    assert!(log.contains("settings are safe"), "{log}");
}

/// Frames that went from the network into a member's NIC.
fn into(user: &User, port: &str) -> u64 {
    let table = user.ok("one", &["exec", "--", "cat", "/proc/net/dev"]);
    let line = table.lines().find_map(|l| l.trim().strip_prefix(&format!("{port}:")).map(str::to_owned));
    let line = line.unwrap_or_else(|| panic!("no {port} in {table}"));
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}

fn pings(user: &User, address: &str) -> bool {
    user.run("one", &["exec", "--", "ping", "-c", "1", "-W", "2", address]).status.success()
}

/// Frames go on into `open` and none goes into `shut`.
fn one_way(user: &User, open: &str, shut: &str) {
    let (before_open, before_shut) = (into(user, open), into(user, shut));
    wait(&format!("frames into {open}"), PATIENCE, || into(user, open) >= before_open + 3);
    assert_eq!(into(user, shut), before_shut, "nothing comes to {shut}");
}

fn both_ways(user: &User, ports: [&str; 2]) {
    for port in ports {
        let before = into(user, port);
        wait(&format!("frames into {port}"), PATIENCE, || into(user, port) >= before + 3);
    }
}

fn cuts(user: &User) {
    let wires = [["node-a-repl0", "node-b-repl0"], ["node-a-repl1", "node-b-repl1"]];
    wires.iter().for_each(|wire| both_ways(user, *wire));
    user.ok("one", &["cut", "node-a", "node-b", "--one-way"]);
    assert_eq!(status(user)["cuts"], serde_json::json!([{"from": "node-a", "to": "node-b"}]));
    wires.iter().for_each(|[a, b]| one_way(user, a, b));
    assert!(pings(user, "10.77.0.12") && pings(user, "10.77.0.11"), "others still reach both");
    user.ok("one", &["heal", "node-b", "node-a"]);
    wires.iter().for_each(|wire| both_ways(user, *wire));

    for pair in [["host", "node-b"], ["node-b", "host"]] {
        user.ok("one", &["cut", pair[0], pair[1], "--one-way"]);
        assert!(!pings(user, "10.77.0.12"), "{pair:?}");
        assert!(pings(user, "10.77.0.11") && pings(user, "10.77.0.2"), "{pair:?}");
        user.ok("one", &["heal"]);
        wait("healed", PATIENCE, || pings(user, "10.77.0.12"));
    }
    user.ok("one", &["cut", "witness", "host"]);
    assert!(!pings(user, "10.77.0.2") && pings(user, "10.77.0.11"));
    user.ok("one", &["heal"]);
    assert!(user.refused("one", &["cut", "node-a", "node-z"]).contains("node-a, node-b, witness, host"));
}

/// One that is pulled, and one that carries nothing.
fn cables(user: &User) {
    let ways = [
        (&["unplug", "node-b", "lan0"][..], "unplugged"),
        (&["unplug", "node-b", "lan0", "--silent"], "silent"),
    ];
    for (how, shown) in ways {
        user.ok("one", how);
        assert_eq!(status(user)["nodes"][1]["cables"], serde_json::json!([{"nic": "lan0", "cable": shown}]));
        assert!(!pings(user, "10.77.0.12") && pings(user, "10.77.0.11"), "{how:?}");
        user.ok("one", &["plug", "node-b", "lan0"]);
        wait("plugged in", PATIENCE, || pings(user, "10.77.0.12"));
        assert_eq!(status(user)["nodes"][1]["cables"], serde_json::json!([]));
    }
    assert!(user.refused("one", &["unplug", "node-b", "lan7"]).contains("lan0, lan1, repl0, repl1"));
    assert!(user.refused("one", &["unplug", "witness", "lan0"]).contains("dyad lab cut"));
}

fn pauses(user: &User) {
    for (member, address) in [("node-a", "10.77.0.11"), ("witness", "10.77.0.2")] {
        user.ok("one", &["pause", member]);
        assert!(!pings(user, address), "{member} stands still");
        assert!(user.refused("one", &["stop", member]).contains("resume"));
        user.ok("one", &["resume", member]);
        wait("resumed", PATIENCE, || pings(user, address));
        assert!(user.refused("one", &["pause", member, "--stop-clock"]).contains("the host's"));
    }
    assert_eq!(status(user)["nodes"][0]["power"], "on");
}

fn ends_and_starts(user: &User) {
    user.ok("one", &["kill", "node-a"]);
    assert_eq!(status(user)["nodes"][0]["power"], "off");
    assert!(!pings(user, "10.77.0.11"));
    user.ok("one", &["start", "node-a"]);
    log_says(user, "node-a", "dyad: boot 2 of dyad");
    user.ok("one", &["stop", "node-b"]);
    assert_eq!(status(user)["nodes"][1]["power"], "off");
    user.ok("one", &["start", "node-b"]);
    log_says(user, "node-b", "dyad: boot 2 of dyad");
    wait("the peer is there again", PATIENCE, || pings(user, "10.77.0.12"));
    let group = fs::read_to_string(format!("{}/node-b/cgroup.procs", group(user))).unwrap();
    let init = group.lines().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGUSR1).unwrap();
    log_says(user, "node-b", "dyad: boot 3 of dyad");
    wait("it booted again", PATIENCE, || status(user)["nodes"][1]["power"] == "on");
}

fn witness(user: &User) {
    assert_eq!(status(user)["witness"]["power"], "on");
    log_says(user, "witness", "listening on 10.77.0.2:7400");
    let identity = |user: &User| {
        let log = user.ok("one", &["logs", "witness"]);
        let found =
            log.lines().rev().find_map(|l| Some(l.split_once("identity ")?.1.split(',').next()?.to_owned()));
        found.unwrap_or_else(|| panic!("{log}"))
    };
    let before = identity(user);
    user.ok("one", &["kill", "witness"]);
    assert_eq!(status(user)["witness"]["power"], "off");
    assert!(!pings(user, "10.77.0.2"));
    user.ok("one", &["start", "witness"]);
    wait("the witness is back", PATIENCE, || pings(user, "10.77.0.2"));
    wait("it listens again", PATIENCE, || {
        user.ok("one", &["logs", "witness"]).matches("listening on").count() == 2
    });
    assert_eq!(identity(user), before, "its state lasts");
    assert!(user.ok("one", &["watch"]).contains("witness    on         third vote"));
}

/// The control group of the lab, as its members' processes tell.
fn group(user: &User) -> String {
    let keeper = user.processes("one").into_iter().find(|(_, command)| command.contains("\0keep\0")).unwrap();
    let spec = keeper.1.split('\0').find(|word| word.starts_with('{')).unwrap().to_owned();
    let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    let own = spec["cgroup"].as_str().unwrap();
    Path::new(own).parent().unwrap().to_str().unwrap().to_owned()
}

fn a_killed_lab_leaves_nothing(user: &User, disk: &Path) {
    let before = user.processes("one");
    let daemon = before.iter().find(|(_, command)| command.contains("\0daemon\0")).unwrap().0;
    let procs = || {
        let group = group(user);
        ["node-a", "node-b"].map(|n| format!("{group}/{n}/cgroup.events"))
    };
    let events = procs();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).unwrap();
    let empty = |path: &String| fs::read_to_string(path).is_ok_and(|text| text.contains("populated 0"));
    wait("the containers die with the daemon", PATIENCE, || events.iter().all(empty));
    wait("nothing is left of a killed lab", PATIENCE, || user.processes("one").is_empty());
    up(user, disk);
    log_says(user, "node-a", "dyad: boot 3 of dyad");
}
