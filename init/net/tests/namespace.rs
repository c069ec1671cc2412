//! The real kernel, in user, network, mount and UTS namespaces of its own: no root needed. `ip` (iproute2) makes the
//! cables and says what came of it.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use std::path::Path;
use std::process::{Child, Command};

use dyad_net::{Converged, Names, NetError, Netlink, Network, Step, converge};
use dyad_spec::Source;
use dyad_spec::site::Site;

const SITE: &str = r#"
cluster = "test"

[nodes.node-a.links.lan0]
mac = "52:54:00:00:00:0a"
[nodes.node-a.links.repl0]
mac = "52:54:00:00:00:0b"
[nodes.node-a.addresses]
br0 = ["10.0.0.1/24", "fd00::1/64"]
repl0 = ["10.1.0.1/24"]

[bridges.br0]
members = ["lan0"]

[[routes]]
to = "default"
via = "10.0.0.254"
[[routes]]
to = "fd01::/64"
via = "fd00::fe"
"#;

/// Runs one of the `inside_` tests of this file in fresh namespaces.
fn in_namespaces(test: &str) {
    #[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
    let mut unshare = Command::new("/usr/bin/unshare");
    let out = unshare
        .args(["--user", "--map-root-user", "--net", "--mount", "--uts"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads", "1", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

fn ip(command: &str) -> String {
    #[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
    let out = Command::new("/usr/sbin/ip").args(command.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// What the kernel does in the background takes milliseconds; ten seconds mean that it never happens.
fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "waits for the kernel of this machine")]
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("did not come to hold within 10 s");
}

/// sysfs shows the namespace in which it was mounted.
fn sysfs() {
    #[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
    let mut mount = Command::new("/usr/bin/mount");
    assert!(mount.args(["-t", "sysfs", "sysfs", "/sys"]).status().unwrap().success());
}

/// Two cables whose outer ends are in a bridge-like nowhere: up, without addresses.
fn cables() {
    for (name, mac) in [("eth7", "0a"), ("eth8", "0b")] {
        ip(&format!("link add {name} address 52:54:00:00:00:{mac} type veth peer name out-{name}"));
        ip(&format!("link set out-{name} up"));
    }
}

fn site() -> Site {
    Site::parse(Source::new("site.toml", SITE)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn bring(network: &Network) -> Result<Converged, NetError> {
    converge(&Netlink::open(Path::new("/sys")).unwrap(), network).await
}

fn text(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn carrier_changes(link: &str) -> String {
    std::fs::read_to_string(format!("/sys/class/net/{link}/carrier_changes")).unwrap()
}

#[test]
fn a_node_is_configured_once_and_repaired() {
    in_namespaces("inside_configure");
}

#[test]
#[ignore = "run by a_node_is_configured_once_and_repaired"]
fn inside_configure() {
    sysfs();
    cables();
    let site = site();
    let network = Network::of(&site, &site.nodes[0]);
    let first = run(bring(&network)).unwrap();
    assert_eq!(first.missing, [""; 0]);
    assert!(first.done.len() > 10, "{:?}", text(&first.done));

    // What the kernel has, in the words of another program.
    // A bridge has carrier, and with it a link-local address, a moment after its first member.
    eventually(|| ip("address show br0").contains("inet6 fe80::"));
    let bridge = ip("-d address show br0");
    assert!(bridge.contains("inet 10.0.0.1/24") && bridge.contains("inet6 fd00::1/64"), "{bridge}");
    assert!(bridge.contains("52:54:00:00:00:0a"), "{bridge}");
    assert!(bridge.contains("forward_delay 0") && bridge.contains("stp_state 0"), "{bridge}");
    let lan0 = ip("address show eth7");
    assert!(lan0.contains("lan0@") && lan0.contains("altname eth7") && lan0.contains("master br0"), "{lan0}");
    assert!(ip("address show repl0").contains("inet 10.1.0.1/24"));
    assert!(ip("route show").contains("default via 10.0.0.254 dev br0 proto static"));
    assert!(ip("-6 route show").contains("fd01::/64 via fd00::fe dev br0 proto static"));
    assert!(ip("link show lo").contains("UP"));

    // Again: nothing is touched, no carrier flaps.
    ip("address add 10.0.0.100/24 dev br0");
    let carrier = (carrier_changes("lan0"), carrier_changes("br0"));
    assert_eq!(run(bring(&network)).unwrap(), Converged::default());
    assert_eq!((carrier_changes("lan0"), carrier_changes("br0")), carrier);
    assert!(ip("address show br0").contains("10.0.0.100/24"), "a virtual address is somebody else's");

    repairs(&network);
    status();
}

fn repairs(network: &Network) {
    let repaired = |damage: &[&str], expected: &[&str]| {
        for command in damage {
            ip(command);
        }
        assert_eq!(text(&run(bring(network)).unwrap().done), expected, "after {damage:?}");
        assert_eq!(run(bring(network)).unwrap(), Converged::default(), "after {damage:?}");
    };
    repaired(&["address del fd00::1/64 dev br0"], &["br0: add fd00::1/64"]);
    repaired(&["link set lan0 nomaster"], &["lan0: join br0"]);
    repaired(&["route replace default via 10.0.0.253"], &["route 0.0.0.0/0 via 10.0.0.254"]);
    repaired(&["address del 10.1.0.1/24 dev repl0"], &["repl0: add 10.1.0.1/24"]);
    repaired(
        &["link set repl0 down", "link set repl0 name wrong0", "link set wrong0 up"],
        &["wrong0: down", "wrong0: rename to repl0", "repl0: also called wrong0", "repl0: up"],
    );
    // The link takes its addresses and the routes through it away; they come back with it.
    let done = {
        ip("link delete br0");
        text(&run(bring(network)).unwrap().done)
    };
    assert!(done.contains(&"br0: create bridge 52:54:00:00:00:0a".to_owned()), "{done:?}");
    assert!(done.contains(&"route 0.0.0.0/0 via 10.0.0.254".to_owned()), "{done:?}");
    assert_eq!(run(bring(network)).unwrap(), Converged::default());
}

fn status() {
    let links = run(async { Netlink::open(Path::new("/sys")).unwrap().status().await }).unwrap();
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&links).unwrap()).unwrap();
    let named =
        |name: &str| json.as_array().unwrap().iter().find(|link| link["name"] == name).unwrap().clone();
    let lan0 = named("lan0");
    assert_eq!(lan0["controller"], "br0");
    assert_eq!((&lan0["up"], &lan0["carrier"]), (&true.into(), &true.into()));
    assert_eq!(lan0["speed_mbps"], 10_000);
    assert!(named("br0")["addresses"].as_array().unwrap().contains(&"10.0.0.1/24".into()));
    assert!(!json.as_array().unwrap().iter().any(|link| link["name"] == "lo"));
    ip("link set out-eth8 down");
    let links = run(async { Netlink::open(Path::new("/sys")).unwrap().status().await }).unwrap();
    assert!(!links.iter().find(|link| link.name == "repl0").unwrap().carrier);
}

#[test]
fn without_a_site_links_have_link_local_addresses_only() {
    in_namespaces("inside_unconfigured");
}

#[test]
#[ignore = "run by without_a_site_links_have_link_local_addresses_only"]
fn inside_unconfigured() {
    sysfs();
    cables();
    let done = run(bring(&Network::unconfigured())).unwrap().done;
    let mut done = text(&done);
    done.sort_unstable();
    assert_eq!(done, ["eth7: up", "eth8: up", "lo: up"]);
    eventually(|| ip("-6 address show eth7").contains("fe80::"));
    assert_eq!(ip("-4 -o address show scope global"), "");
    assert_eq!(run(bring(&Network::unconfigured())).unwrap(), Converged::default());
}

#[test]
fn two_links_with_each_others_names_exchange_them() {
    in_namespaces("inside_exchange");
}

#[test]
#[ignore = "run by two_links_with_each_others_names_exchange_them"]
fn inside_exchange() {
    sysfs();
    cables();
    ip("link set eth7 name repl0");
    ip("link set eth8 name lan0");
    ip("link set lan0 up");
    let site = site();
    let network = Network::of(&site, &site.nodes[0]);
    run(bring(&network)).unwrap();
    assert!(ip("link show lan0").contains("52:54:00:00:00:0a"));
    assert!(ip("link show repl0").contains("52:54:00:00:00:0b"));
    assert_eq!(run(bring(&network)).unwrap(), Converged::default());
}

#[test]
fn a_name_that_is_taken_is_refused_and_nothing_changes() {
    in_namespaces("inside_taken");
}

#[test]
#[ignore = "run by a_name_that_is_taken_is_refused_and_nothing_changes"]
fn inside_taken() {
    sysfs();
    cables();
    ip("link add name lan0 type bridge");
    let before = ip("-o link show");
    let site = site();
    let error = run(bring(&Network::of(&site, &site.nodes[0]))).unwrap_err().to_string();
    assert_eq!(error, "the name lan0 is needed for the link of role lan0 but belongs to link lan0");
    assert_eq!(ip("-o link show"), before);
}

#[test]
fn names_are_written_once() {
    in_namespaces("inside_names");
}

#[test]
#[ignore = "run by names_are_written_once"]
fn inside_names() {
    let directory = tempfile::tempdir().unwrap();
    let site = site();
    let names = Names::of(&site, &site.nodes[0]);
    names.apply(directory.path()).unwrap();
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), "node-a\n");
    let hosts = directory.path().join("hosts");
    let written = std::fs::metadata(&hosts).unwrap().modified().unwrap();
    names.apply(directory.path()).unwrap();
    assert_eq!(std::fs::metadata(&hosts).unwrap().modified().unwrap(), written);
    assert!(std::fs::read_to_string(&hosts).unwrap().contains("10.0.0.1 node-a\n"));
}

const BONDS: &str = r#"
cluster = "test"

[nodes.node-a.links.lan0]
mac = "52:54:00:00:00:0a"
[nodes.node-a.links.lan1]
mac = "52:54:00:00:00:0b"
[nodes.node-a.links.repl0]
mac = "52:54:00:00:00:0c"
[nodes.node-a.links.repl1]
mac = "52:54:00:00:00:0d"
[nodes.node-a.addresses]
br0 = ["10.0.0.1/24"]
bond1 = ["10.1.0.1/24", "fd00::1/64"]
vlan20 = ["10.20.0.1/24"]

[vlans.vlan20]
link = "bond1"
id = 20

[bonds.bond0]
mode = "active-backup"
members = ["lan0", "lan1"]
[bonds.bond1]
mode = "802.3ad"
members = ["repl0", "repl1"]

[bridges.br0]
members = ["bond0"]

[[routes]]
to = "default"
via = "10.0.0.254"
"#;

#[test]
#[ignore = "run in a guest by tests/vm"]
fn bonds_are_made_and_repaired() {
    in_namespaces("inside_bonds");
}

fn link_status(name: &str) -> dyad_net::LinkStatus {
    let links = run(async { Netlink::open(Path::new("/sys")).unwrap().status().await }).unwrap();
    links.into_iter().find(|link| link.name == name).unwrap()
}

fn in_sync(member: &str) -> bool {
    link_status(member).member.is_some_and(|member| member.in_sync == Some(true))
}

#[test]
#[ignore = "run by bonds_are_made_and_repaired"]
fn inside_bonds() {
    sysfs();
    // Four cables; the outer ends of two are an LACP partner.
    for (name, mac) in [("eth0", "0b"), ("eth1", "0a"), ("eth2", "0d"), ("eth3", "0c")] {
        ip(&format!("link add {name} address 52:54:00:00:00:{mac} type veth peer name out-{name}"));
    }
    ip("link add peer type bond mode 802.3ad lacp_rate fast miimon 100");
    for outer in ["out-eth2", "out-eth3"] {
        ip(&format!("link set {outer} master peer"));
    }
    for outer in ["out-eth0", "out-eth1", "peer"] {
        ip(&format!("link set {outer} up"));
    }
    let site = Site::parse(Source::new("site.toml", BONDS)).unwrap_or_else(|errors| panic!("{errors:?}"));
    let network = Network::of(&site, &site.nodes[0]);
    let first = run(bring(&network)).unwrap();
    println!("{:#?}", text(&first.done));
    let again = || assert_eq!(run(bring(&network)).unwrap(), Converged::default());
    again();

    let bond1 = ip("-d link show bond1");
    for option in ["mode 802.3ad", "miimon 100", "lacp_rate fast", "xmit_hash_policy layer3+4"] {
        assert!(bond1.contains(option), "{option}: {bond1}");
    }
    assert!(ip("-d link show bond0").contains("mode active-backup"));
    assert!(ip("link show bond0").contains("master br0"));
    assert!(ip("link show eth1").contains("lan0@") && ip("link show eth3").contains("repl0@"));
    eventually(|| in_sync("repl0") && in_sync("repl1"));
    let partner = link_status("peer").mac;
    let status = link_status("bond1").bond.unwrap();
    assert_eq!((status.partner, status.aggregated, status.mode.as_str()), (partner, Some(2), "802.3ad"));
    assert!(ip("address show bond1").contains("inet6 fe80::"));

    // A healthy bond is never disturbed.
    let carrier = (carrier_changes("repl0"), carrier_changes("bond1"), carrier_changes("lan0"));
    again();
    assert_eq!((carrier_changes("repl0"), carrier_changes("bond1"), carrier_changes("lan0")), carrier);

    // Both members of bond0 show one address; each is still known by its own.
    assert_eq!(link_status("lan0").mac, link_status("lan1").mac);
    let failed = link_status("bond0").bond.unwrap().active.unwrap();
    assert_eq!(failed, "lan0");
    ip("link set out-eth1 down");
    eventually(|| link_status("bond0").bond.unwrap().active.as_deref() == Some("lan1"));
    again();
    ip("link set out-eth1 up");

    bond_repairs(&network);
    bond_without_a_partner(&network);
}

fn bond_repairs(network: &Network) {
    let repaired = |damage: &[&str], expected: &[&str]| {
        for command in damage {
            ip(command);
        }
        assert_eq!(text(&run(bring(network)).unwrap().done), expected, "after {damage:?}");
        assert_eq!(run(bring(network)).unwrap(), Converged::default(), "after {damage:?}");
    };
    repaired(&["link set bond1 type bond miimon 50"], &["bond1: change bond, miimon 100 ms"]);
    repaired(&["link set bond1 type bond xmit_hash_policy layer2"], &["bond1: change bond, hash Layer34"]);
    repaired(&["link set repl1 nomaster"], &["repl1: join bond1"]);
    repaired(&["link set vlan20 down"], &["vlan20: up"]);
    let anew =
        ["vlan20: delete", "vlan20: create VLAN 20 of bond1", "vlan20: up", "vlan20: add 10.20.0.1/24"];
    for other in
        ["link add link bond0 name vlan20 type vlan id 20", "link add link bond1 name vlan20 type vlan id 7"]
    {
        repaired(&["link delete vlan20", other], &anew);
    }
    for damage in [
        &["link set bond1 down", "link set bond1 type bond lacp_rate slow", "link set bond1 up"][..],
        &["link delete bond1", "link add bond1 type bond mode balance-rr"],
        &["link delete bond0"],
    ] {
        for command in damage {
            ip(command);
        }
        run(bring(network)).unwrap();
        assert_eq!(run(bring(network)).unwrap(), Converged::default(), "after {damage:?}");
        assert!(ip("-d link show bond1").contains("lacp_rate fast"));
        assert!(ip("address show bond1").contains("fd00::1/64"));
        assert!(ip("route show").contains("default via 10.0.0.254"));
    }
    eventually(|| in_sync("repl0") && in_sync("repl1"));
}

/// What answers at the other end of the cables, in a network of its own: a switch that never heard of LACP.
struct Switch(Child);

impl Switch {
    fn start() -> Self {
        #[allow(clippy::disallowed_methods, reason = "a process holds the other network")]
        let holder =
            Command::new("/usr/bin/unshare").args(["--net", "/usr/bin/sleep", "600"]).spawn().unwrap();
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        eventually(|| network(&holder.id().to_string()) != network("self"));
        Self(holder)
    }

    fn ip(&self, command: &str) {
        #[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
        let mut enter = Command::new("/usr/bin/nsenter");
        let target = self.0.id().to_string();
        let enter = enter.args(["--target", &target, "--net", "/usr/sbin/ip"]).args(command.split(' '));
        assert!(enter.status().unwrap().success(), "at the other end: ip {command}");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Already gone, or killed now.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The kernel then uses one member at a time, and the other when that one fails, without a word from us.
fn bond_without_a_partner(network: &Network) {
    ip("link delete peer");
    let switch = Switch::start();
    switch.ip("link add sw type bridge");
    for outer in ["out-eth2", "out-eth3"] {
        ip(&format!("link set {outer} netns {}", switch.0.id()));
        switch.ip(&format!("link set {outer} master sw"));
        switch.ip(&format!("link set {outer} up"));
    }
    switch.ip("address add fd00::99/64 dev sw nodad");
    switch.ip("link set sw up");
    switch.ip("link add link sw name office type vlan id 20");
    switch.ip("address add 10.20.0.99/24 dev office");
    switch.ip("link set office up");
    let ping = |address: &str| {
        #[allow(clippy::disallowed_methods, reason = "tests drive outside tools")]
        let mut ping = Command::new("/usr/bin/ping");
        ping.args(["-c", "1", "-W", "1", address]).output().unwrap().status.success()
    };
    // The bond itself, and a tagged network on it.
    let answers = || ping("fd00::99") && ping("10.20.0.99");
    eventually(answers);
    let bond = link_status("bond1").bond.unwrap();
    assert_eq!((bond.partner, bond.aggregated, bond.mode.as_str()), (None, Some(1), "802.3ad"));
    for (dead, other) in [("out-eth2", "out-eth3"), ("out-eth3", "out-eth2")] {
        switch.ip(&format!("link set {other} up"));
        switch.ip(&format!("link set {dead} down"));
        eventually(answers);
    }
    assert_eq!(run(bring(network)).unwrap(), Converged::default(), "it is still what the site wants");
}
