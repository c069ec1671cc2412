//! What a site file means.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use dyad_spec::site::{
    BondMode, HashPolicy, LacpRate, LinkMatch, Pairing, Profile, Site, Vlan, WithoutWitness,
};
use dyad_spec::{Mac, Source};

fn parse(text: &str) -> Site {
    Site::parse(Source::new("site.toml", text)).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_part_is_read() {
    let site = parse(include_str!("site/full.toml"));
    assert_eq!((site.profile, site.profile.t_ms()), (Profile::Wan, 15_000));
    assert_eq!(site.pairing, Pairing::Code);
    assert_eq!(site.witness.unwrap().to_string(), "[2001:db8::50]:7400");
    let names: Vec<&str> = site.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["node-a", "node-b"]);
    let links: Vec<(&str, &LinkMatch)> =
        site.nodes[1].links.iter().map(|l| (l.role.as_str(), &l.matches)).collect();
    assert_eq!(
        links,
        [
            ("lan0", &LinkMatch::Mac(Mac([0x52, 0x54, 0, 0, 0x0b, 0]))),
            ("lan1", &LinkMatch::Mac(Mac([0x52, 0x54, 0, 0, 0x0b, 1]))),
            ("repl0", &LinkMatch::Pci("0000:00:06.0".into())),
            ("repl1", &LinkMatch::Pci("0000:00:07.0".into())),
        ]
    );
    let addresses: Vec<String> =
        site.nodes[0].addresses.iter().map(|a| format!("{} {}", a.interface, a.address)).collect();
    assert_eq!(
        addresses,
        ["bond1 198.51.100.1/30", "br0 192.0.2.11/24", "br0 2001:db8::11/64", "vlan20 203.0.113.11/24"]
    );
    assert_eq!((site.bonds[0].mode, site.bonds[0].miimon_ms), (BondMode::ActiveBackup, 80));
    let lacp = BondMode::Lacp { rate: LacpRate::Slow, hash: HashPolicy::Layer23 };
    assert_eq!(site.bonds[1].mode, lacp);
    let vlan = Vlan { name: "vlan20".into(), link: "bond1".into(), id: 20 };
    assert_eq!(site.vlans, [vlan]);
    assert_eq!(site.bridges[0].members, ["bond0"]);
    assert_eq!(site.routes[0].to.to_string(), "0.0.0.0/0");
    assert_eq!(site.vips[1].address.to_string(), "2001:db8::100/64");
    let settings: Vec<String> = site.postgresql.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        settings,
        [
            "log_min_duration_statement=250ms",
            "max_connections=200",
            "random_page_cost=1.1",
            "shared_buffers=262144kB",
            "track_io_timing=on"
        ]
    );
    assert_eq!((site.postgresql.port, site.postgresql.roles[0].create_db), (5433, true));
    let access = &site.postgresql.access;
    assert_eq!((access[0].role.as_str(), access[0].tls), ("app", true), "over TLS unless told otherwise");
    assert_eq!((access[1].role.as_str(), access[1].tls), ("all", false));
    assert_eq!((site.vms[0].memory.bytes(), site.vms[0].priority), (512 << 20, 200));
    assert_eq!(site.operators[0].key[31], 0x1f);
}

#[test]
fn a_machine_knows_which_node_it_is() {
    let site = parse(include_str!("site/full.toml"));
    let mac = |last: [u8; 2]| Mac([0x52, 0x54, 0, 0, last[0], last[1]]);
    let name = |macs: &[Mac]| site.identify(macs).map(|n| n.name.as_str());
    assert_eq!(name(&[mac([9, 9]), mac([0x0b, 1])]), Some("node-b"));
    assert_eq!(name(&[mac([9, 9])]), None);
    let single = parse("cluster = \"one\"\n[nodes.node-a]\n");
    assert_eq!(single.identify(&[]).unwrap().name, "node-a");
    let strict = parse("cluster = \"one\"\nwithout_witness = \"strict\"\n[nodes.node-a]\n");
    assert_eq!(strict.without_witness, WithoutWitness::Strict);
    let named = parse("cluster = \"one\"\n[nodes.node-a.links]\nlan0 = { mac = \"52:54:00:00:00:01\" }\n");
    assert_eq!(named.identify(&[mac([9, 9])]), None);
}

#[test]
fn defaults_are_the_safe_ones() {
    let site = parse(
        "cluster = \"one\"\n[nodes.node-a.links]\nlan0 = { pci = \"0000:00:04.0\" }\n[bonds.bond0]\nmode = \"802.3ad\"\nmembers = [\"lan0\"]\n",
    );
    assert_eq!((site.profile, site.pairing), (Profile::Lan, Pairing::Key));
    assert_eq!(site.without_witness, WithoutWitness::PrimaryBiased);
    assert_eq!(site.postgresql.port, 5432);
    assert_eq!(site.bonds[0].mode, BondMode::Lacp { rate: LacpRate::Fast, hash: HashPolicy::Layer34 });
    assert_eq!(site.bonds[0].miimon_ms, 100);
}
