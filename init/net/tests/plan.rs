//! Plans as text: what there is, what is wanted, which steps lead there.
#![allow(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use dyad_net::{
    BondSettings, BondWay, LinkKind, Names, Network, Observed, ObservedLink, ObservedRoute, Plan, PlanError,
    plan,
};
use dyad_spec::site::Site;
use dyad_spec::{IpNet, Mac, Source};

const SITE: &str = r#"
cluster = "test"
dns = ["10.0.0.53"]

[nodes.node-a.links.lan0]
mac = "52:54:00:00:00:0a"
[nodes.node-a.links.lan1]
mac = "52:54:00:00:00:0b"
[nodes.node-a.links.repl0]
pci = "0000:00:05.0"
[nodes.node-a.links.repl1]
pci = "0000:00:06.0"
[nodes.node-a.addresses]
br0 = ["10.0.0.1/24"]
bond1 = ["10.1.0.1/24", "fd00::1/64"]

[nodes.node-b.links.lan0]
mac = "52:54:00:00:01:0a"
[nodes.node-b.links.lan1]
mac = "52:54:00:00:01:0b"
[nodes.node-b.links.repl0]
pci = "0000:00:05.0"
[nodes.node-b.links.repl1]
pci = "0000:00:06.0"
[nodes.node-b.addresses]
br0 = ["10.0.0.2/24"]
bond1 = ["10.1.0.2/24", "fd00::2/64"]

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

[vips.db]
address = "10.0.0.100/24"
interface = "br0"
"#;

fn site() -> Site {
    Site::parse(Source::new("site.toml", SITE)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn network() -> Network {
    let site = site();
    Network::of(&site, &site.nodes[0])
}

fn link(index: u32, name: &str, kind: LinkKind) -> ObservedLink {
    ObservedLink {
        index,
        name: name.to_owned(),
        altnames: Vec::new(),
        kind,
        mac: None,
        permanent_mac: None,
        pci: None,
        up: false,
        controller: None,
        in_bond: false,
        bond: None,
        vlan: None,
    }
}

fn card(index: u32, name: &str, mac: u8, pci: &str) -> ObservedLink {
    let mac = Some(Mac([0x52, 0x54, 0, 0, 0, mac]));
    ObservedLink {
        mac,
        permanent_mac: mac,
        pci: Some(format!("0000:00:{pci}")),
        ..link(index, name, LinkKind::Physical)
    }
}

/// A machine as the kernel leaves it: four cards, in an order of their own.
fn fresh() -> Observed {
    Observed {
        links: vec![
            link(1, "lo", LinkKind::Loopback),
            card(2, "eth0", 0x0b, "04.0"),
            card(3, "eth1", 0x0a, "03.0"),
            card(4, "eth2", 0x0c, "05.0"),
            card(5, "eth3", 0x0d, "06.0"),
        ],
        addresses: Vec::new(),
        routes: Vec::new(),
    }
}

fn net(address: &str, prefix: u8) -> IpNet {
    IpNet { address: address.parse().unwrap(), prefix }
}

/// The same machine after the plan for it was done.
fn finished() -> Observed {
    let mut observed = fresh();
    let names = ["lo", "lan1", "lan0", "repl0", "repl1"];
    for (link, name) in observed.links.iter_mut().zip(names) {
        link.name = name.to_owned();
        link.up = true;
    }
    for (member, bond) in [(1, 6), (2, 6), (3, 7), (4, 7)] {
        observed.links[member].controller = Some(bond);
        observed.links[member].in_bond = true;
        // Every member of a bond has the address of the first.
        observed.links[member].mac = Some(Mac([0x52, 0x54, 0, 0, 0, if bond == 6 { 0x0a } else { 0x0c }]));
    }
    let network = network();
    for (index, bond) in [(6, &network.bonds[0]), (7, &network.bonds[1])] {
        observed.links.push(ObservedLink {
            up: true,
            bond: Some(BondSettings::from(bond)),
            controller: (index == 6).then_some(8),
            ..link(index, &bond.name, LinkKind::Bond)
        });
    }
    observed.links.push(ObservedLink { up: true, ..link(8, "br0", LinkKind::Bridge) });
    observed.addresses = vec![(8, net("10.0.0.1", 24)), (7, net("10.1.0.1", 24)), (7, net("fd00::1", 64))];
    observed.routes = vec![ObservedRoute { to: net("0.0.0.0", 0), via: Some("10.0.0.254".parse().unwrap()) }];
    observed
}

fn text(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn steps(observed: &Observed) -> Vec<String> {
    text(&plan(observed, &network()).unwrap())
}

#[test]
fn from_nothing() {
    assert_eq!(
        steps(&fresh()),
        [
            "lo: up",
            "eth1: rename to lan0",
            "lan0: also called eth1",
            "eth0: rename to lan1",
            "lan1: also called eth0",
            "eth2: rename to repl0",
            "repl0: also called eth2",
            "eth3: rename to repl1",
            "repl1: also called eth3",
            "bond0: create bond, ActiveBackup, miimon 100 ms",
            "lan0: join bond0",
            "lan1: join bond0",
            "bond1: create bond, Lacp, miimon 100 ms, rate Fast, hash Layer34",
            "repl0: join bond1",
            "repl1: join bond1",
            "br0: create bridge 52:54:00:00:00:0a",
            "bond0: join br0",
            "bond0: up",
            "bond1: up",
            "br0: up",
            "bond1: add 10.1.0.1/24",
            "bond1: add fd00::1/64",
            "br0: add 10.0.0.1/24",
            "route 0.0.0.0/0 via 10.0.0.254",
        ]
    );
}

#[test]
fn nothing_to_do() {
    assert_eq!(plan(&finished(), &network()).unwrap(), Plan::default());
}

#[test]
fn what_the_site_does_not_know_stays() {
    let mut observed = finished();
    observed.addresses.push((8, net("10.0.0.100", 24)));
    observed.routes.push(ObservedRoute { to: net("10.9.0.0", 16), via: Some("10.0.0.9".parse().unwrap()) });
    observed.links.push(ObservedLink { controller: Some(8), up: true, ..link(9, "tap0", LinkKind::Other) });
    observed.links.push(card(10, "eth4", 0x77, "07.0"));
    assert_eq!(steps(&observed), [""; 0]);
}

#[test]
fn without_a_site_every_card_comes_up() {
    let steps = text(&plan(&fresh(), &Network::unconfigured()).unwrap());
    assert_eq!(steps, ["lo: up", "eth0: up", "eth1: up", "eth2: up", "eth3: up"]);
}

#[test]
fn drift_is_repaired_and_the_rest_is_left_alone() {
    let mut observed = finished();
    observed.addresses.remove(0);
    assert_eq!(steps(&observed), ["br0: add 10.0.0.1/24"]);

    let mut observed = finished();
    observed.links[1].up = false;
    assert_eq!(steps(&observed), ["lan1: up"]);

    let mut observed = finished();
    observed.links[4].controller = None;
    assert_eq!(steps(&observed), ["repl1: down", "repl1: join bond1"]);

    let mut observed = finished();
    observed.links[3].name = "eth2".to_owned();
    assert_eq!(
        steps(&observed),
        ["eth2: down", "eth2: rename to repl0", "repl0: also called eth2", "repl0: up"]
    );

    let mut observed = finished();
    observed.routes.clear();
    assert_eq!(steps(&observed), ["route 0.0.0.0/0 via 10.0.0.254"]);

    let mut observed = finished();
    observed.links[5].up = false;
    assert_eq!(steps(&observed), ["bond0: up"]);
}

#[test]
fn a_bond_is_disturbed_no_more_than_the_kernel_demands() {
    let changed = |change: fn(&mut BondSettings)| {
        let mut observed = finished();
        change(observed.links[6].bond.as_mut().unwrap());
        steps(&observed)
    };
    assert_eq!(changed(|bond| bond.miimon_ms = 0), ["bond1: change bond, miimon 100 ms"]);
    assert_eq!(changed(|bond| bond.hash = None), ["bond1: change bond, hash Layer34"]);
    let slow = ["bond1: down", "bond1: change bond, rate Fast", "bond1: up"];
    assert_eq!(changed(|bond| bond.lacp_rate = None), slow);
    assert_eq!(
        changed(|bond| bond.mode = BondWay::Other(0)),
        [
            "repl0: leave",
            "repl1: leave",
            "bond1: down",
            "bond1: change bond, Lacp, miimon 100 ms, rate Fast, hash Layer34",
            "repl0: join bond1",
            "repl1: join bond1",
            "bond1: up"
        ]
    );
}

#[test]
fn a_bond_that_the_module_made_by_itself_is_taken_over() {
    let mut observed = fresh();
    let settings = BondSettings { mode: BondWay::Other(0), miimon_ms: 0, lacp_rate: None, hash: None };
    observed.links.push(ObservedLink { bond: Some(settings), ..link(6, "bond0", LinkKind::Bond) });
    let steps = steps(&observed);
    let of_bond0: Vec<_> = steps.iter().filter(|step| step.contains("bond0")).collect();
    assert_eq!(
        of_bond0,
        [
            "bond0: change bond, ActiveBackup, miimon 100 ms",
            "lan0: join bond0",
            "lan1: join bond0",
            "bond0: join br0",
            "bond0: up"
        ]
    );
}

const TAGGED: &str = r#"
cluster = "test"

[nodes.node-a.links.lan0]
mac = "52:54:00:00:00:0a"
[nodes.node-a.links.lan1]
mac = "52:54:00:00:00:0b"
[nodes.node-a.addresses]
vlan20 = ["10.20.0.1/24"]
br0 = ["10.30.0.1/24"]

[vlans.vlan20]
link = "bond0"
id = 20
[vlans.vlan30]
link = "lan1"
id = 30

[bonds.bond0]
mode = "active-backup"
members = ["lan0"]
[bridges.br0]
members = ["vlan30"]
"#;

#[test]
fn a_vlan_is_made_after_what_carries_it_and_anew_when_it_is_another() {
    let site = Site::parse(Source::new("site.toml", TAGGED)).unwrap_or_else(|errors| panic!("{errors:?}"));
    let network = Network::of(&site, &site.nodes[0]);
    let steps = |observed: &Observed| plan(observed, &network).unwrap();
    let named = |name: &str, mac, index| ObservedLink { up: true, ..card(index, name, mac, "04.0") };
    let mut there =
        Observed { links: vec![named("lan0", 0x0a, 2), named("lan1", 0x0b, 3)], ..Observed::default() };
    there.links[0].up = false;
    assert_eq!(
        text(&steps(&there)),
        [
            "bond0: create bond, ActiveBackup, miimon 100 ms",
            "lan0: join bond0",
            "vlan20: create VLAN 20 of bond0",
            "vlan30: create VLAN 30 of lan1",
            "br0: create bridge 52:54:00:00:00:0b",
            "vlan30: join br0",
            "bond0: up",
            "vlan20: up",
            "vlan30: up",
            "br0: up",
            "br0: add 10.30.0.1/24",
            "vlan20: add 10.20.0.1/24"
        ]
    );
    // Without its card, neither it nor what is on it.
    let alone = Observed { links: vec![there.links[0].clone()], ..Observed::default() };
    let plan = steps(&alone);
    assert_eq!(plan.missing, ["lan1", "vlan30"]);
    assert!(!text(&plan).iter().any(|step| step.contains("vlan30")), "{plan:?}");

    there.links[0] = ObservedLink { controller: Some(4), in_bond: true, ..named("lan0", 0x0a, 2) };
    let settings = BondSettings::from(&network.bonds[0]);
    let up = |index, name, kind| ObservedLink { up: true, ..link(index, name, kind) };
    there.links.extend([
        ObservedLink { bond: Some(settings), ..up(4, "bond0", LinkKind::Bond) },
        ObservedLink { vlan: Some((4, 20)), ..up(5, "vlan20", LinkKind::Vlan) },
        ObservedLink { vlan: Some((3, 30)), controller: Some(7), ..up(6, "vlan30", LinkKind::Vlan) },
        up(7, "br0", LinkKind::Bridge),
    ]);
    there.addresses = vec![(5, net("10.20.0.1", 24)), (7, net("10.30.0.1", 24))];
    assert_eq!(text(&steps(&there)), [""; 0]);
    // Another number, another carrier: neither can be changed, and what was on it is gone.
    there.links[3].vlan = Some((4, 21));
    let anew =
        ["vlan20: delete", "vlan20: create VLAN 20 of bond0", "vlan20: up", "vlan20: add 10.20.0.1/24"];
    assert_eq!(text(&steps(&there)), anew);
    there.links[3].vlan = Some((4, 20));
    there.links[4].vlan = Some((4, 30));
    let anew = ["vlan30: delete", "vlan30: create VLAN 30 of lan1", "vlan30: join br0", "vlan30: up"];
    assert_eq!(text(&steps(&there)), anew);
    // A bond of that name is not ours to remove.
    there.links[3].kind = LinkKind::Bond;
    let taken = dyad_net::plan(&there, &network).unwrap_err();
    assert_eq!(taken.to_string(), "the name vlan20 is needed for a VLAN but belongs to link vlan20 (Bond)");
}

#[test]
fn a_stranger_in_a_bond_is_sent_out() {
    let mut observed = finished();
    observed.links.push(ObservedLink { controller: Some(7), up: true, ..card(9, "eth4", 0x0e, "07.0") });
    assert_eq!(steps(&observed), ["eth4: leave"]);
}

#[test]
fn a_bonds_borrowed_address_names_nobody() {
    // lan1 shows lan0's address while both are in the bond; only the permanent one counts.
    let mut observed = finished();
    observed.links[1].mac = observed.links[2].permanent_mac;
    assert_eq!(steps(&observed), [""; 0]);
    // A driver that states no permanent address: a member of a bond cannot be told then.
    observed.links[1].permanent_mac = None;
    assert_eq!(plan(&observed, &network()).unwrap().missing, ["lan1"]);
}

#[test]
fn a_machine_is_known_by_its_cards_before_and_after() {
    let site = site();
    for observed in [fresh(), finished()] {
        assert_eq!(site.identify(&observed.identities()).unwrap().name, "node-a");
    }
}

#[test]
fn two_links_exchange_their_names() {
    let mut observed = finished();
    observed.links[3].name = "repl1".to_owned();
    observed.links[4].name = "repl0".to_owned();
    for link in &mut observed.links[3..5] {
        link.up = false;
        link.controller = None;
        link.in_bond = false;
    }
    assert_eq!(
        steps(&observed)[..3],
        ["repl1: rename to dyadtmp1", "repl0: rename to repl1", "dyadtmp1: rename to repl0"]
    );
}

#[test]
fn a_missing_card_keeps_nobody_else_down() {
    let mut observed = fresh();
    observed.links.remove(4);
    let plan = plan(&observed, &network()).unwrap();
    assert_eq!(plan.missing, ["repl1"]);
    let steps = text(&plan);
    assert!(
        steps.contains(&"repl0: join bond1".to_owned()) && !steps.iter().any(|step| step.contains("repl1"))
    );
}

#[test]
fn contradictions_are_refused_by_name() {
    let refused = |observed: &Observed| plan(observed, &network()).unwrap_err();

    let mut observed = fresh();
    observed.links.push(link(9, "lan0", LinkKind::Other));
    assert_eq!(
        refused(&observed).to_string(),
        "the name lan0 is needed for the link of role lan0 but belongs to link lan0"
    );

    let mut observed = fresh();
    observed.links.push(ObservedLink { altnames: vec!["bond0".into()], ..card(9, "eth9", 0x55, "09.0") });
    assert!(matches!(refused(&observed), PlanError::Taken { name, .. } if name == "bond0"));

    let mut observed = fresh();
    observed.links.push(card(9, "eth9", 0x0a, "09.0"));
    assert_eq!(
        refused(&observed).to_string(),
        "role lan0 matches both links eth1 and eth9: a permanent MAC address or PCI address names one"
    );

    let mut observed = fresh();
    observed.links[1].pci = Some("0000:00:05.0".to_owned());
    observed.links.remove(3);
    assert!(matches!(refused(&observed), PlanError::TwoRoles { link, .. } if link == "eth0"));
}

#[test]
fn names_of_a_node() {
    let site = site();
    let names = Names::of(&site, &site.nodes[0]);
    assert_eq!(names.hostname, "node-a");
    assert_eq!(names.resolv_conf, "nameserver 10.0.0.53\n");
    for line in ["127.0.1.1 node-a", "10.0.0.1 node-a", "fd00::2 node-b", "10.0.0.100 db"] {
        assert!(names.hosts.lines().any(|other| other == line), "{line} not in {}", names.hosts);
    }
}
