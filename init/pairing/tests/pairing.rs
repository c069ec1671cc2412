//! Two nodes in a world that loses, repeats and reorders beacons, breaks channels, and cuts nodes off at every step.

use std::rc::Rc;

use dyad_channel::secret::{Proof, Secret};
use dyad_channel::{Identity, PublicKey};
use dyad_cluster::types::{ClusterId, Node, Tick};
use dyad_pairing::beacon::{BYTES_MAX, Beacon, VERSION};
use dyad_pairing::{Action, Durable, Event, Key, Keys, Machine, Message, Own, Refusal, SETTLE_MS};
use proptest::prelude::*;

/// Real keys.
#[derive(Clone)]
struct Real {
    identity: Rc<Identity>,
    site: Secret,
}

impl Keys for Real {
    fn public(&self) -> Key {
        Key(self.identity.public().0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.identity.sign(message)
    }

    fn verify(&self, key: &Key, message: &[u8], signature: &[u8; 64]) -> bool {
        PublicKey(key.0).verify(message, signature)
    }

    fn site_mac(&self, message: &[u8]) -> [u8; 32] {
        self.site.seal(message).0
    }

    fn site_accepts(&self, message: &[u8], mac: &[u8; 32]) -> bool {
        self.site.sealed(&Proof(*mac), message)
    }
}

/// Keys in order, all with the same site key.
fn keys(count: usize) -> Vec<Real> {
    let mut identities: Vec<_> = (0..count).map(|_| Rc::new(Identity::draw().unwrap())).collect();
    identities.sort_by_key(|identity| identity.public());
    let site = Secret::from_bytes(b"the site key of these tests: 32 bytes or more");
    identities.into_iter().map(|identity| Real { identity, site: site.clone() }).collect()
}

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

struct Machines {
    keys: Real,
    machine: Machine<Real>,
    disk: Durable,
    writing: Option<Durable>,
    told: Option<(ClusterId, Key, Node)>,
    refused: Vec<Refusal>,
}

/// Two ends, and what is under way to each.
struct Channel {
    ends: [usize; 2],
    to: [Vec<Message>; 2],
}

struct World {
    chance: Chance,
    now: u64,
    nodes: Vec<Machines>,
    beacons: Vec<(usize, Vec<u8>)>,
    channel: Option<Channel>,
    /// The first id that anybody was a member of.
    minted: Option<ClusterId>,
    crashes: u64,
}

fn own(chance: &mut Chance) -> Own {
    Own { nonce: chance.next(), fresh_id: ClusterId(u128::from(chance.next())), foreign: None }
}

impl World {
    fn new(seed: u64, keys: &[Real]) -> Self {
        let mut chance = Chance(seed);
        let nodes = keys.iter().map(|keys| Machines {
            keys: keys.clone(),
            machine: Machine::new(keys.clone(), own(&mut chance), Durable::Blank),
            disk: Durable::Blank,
            writing: None,
            told: None,
            refused: Vec::new(),
        });
        let nodes = nodes.collect();
        World { chance, now: 0, nodes, beacons: Vec::new(), channel: None, minted: None, crashes: 0 }
    }

    fn give(&mut self, node: usize, event: Event) {
        let actions = self.nodes[node].machine.step(Tick(self.now), event);
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Announce(bytes) => {
                assert!(bytes.len() <= BYTES_MAX);
                // Every link brings it to everybody, its sender too.
                self.beacons.extend((0..self.nodes.len()).map(|to| (to, bytes.clone())));
            }
            Action::Connect(key) => {
                let to = self.nodes.iter().position(|n| n.keys.public() == key).unwrap();
                self.hang_up();
                self.channel = Some(Channel { ends: [node, to], to: [Vec::new(), Vec::new()] });
                let mut exporter = [0; 32];
                exporter[..8].copy_from_slice(&self.chance.next().to_le_bytes());
                for (end, other) in [(node, to), (to, node)] {
                    let key = self.nodes[other].keys.public();
                    self.give(end, Event::Opened { key, exporter });
                }
            }
            Action::Send(message) => {
                if let Some(channel) = &mut self.channel {
                    if let Some(end) = channel.ends.iter().position(|end| *end == node) {
                        channel.to[1 - end].push(message);
                    }
                }
            }
            Action::Close => self.hang_up_after_delivery(node),
            Action::Store(durable) => self.nodes[node].writing = Some(durable),
            Action::Report(refusal) => self.nodes[node].refused.push(refusal),
            Action::Paired { cluster, peer, role } => self.nodes[node].told = Some((cluster, peer, role)),
        }
    }

    fn hang_up(&mut self) {
        if let Some(channel) = self.channel.take() {
            for end in channel.ends {
                self.give(end, Event::Closed);
            }
        }
    }

    /// What was said before hanging up still arrives.
    fn hang_up_after_delivery(&mut self, node: usize) {
        let Some(mut channel) = self.channel.take() else { return };
        let Some(end) = channel.ends.iter().position(|end| *end == node) else { return };
        let other = channel.ends[1 - end];
        for message in std::mem::take(&mut channel.to[1 - end]) {
            self.give(other, Event::Message(message));
        }
        for end in channel.ends {
            self.give(end, Event::Closed);
        }
    }

    fn flush(&mut self, node: usize) {
        if let Some(durable) = self.nodes[node].writing.take() {
            self.nodes[node].disk = durable;
            self.check();
            self.give(node, Event::Stored);
        }
    }

    fn crash(&mut self, node: usize) {
        self.crashes += 1;
        if let Some(durable) = self.nodes[node].writing.take() {
            if self.chance.below(2) == 0 {
                self.nodes[node].disk = durable;
            }
        }
        let own = own(&mut self.chance);
        let (keys, disk) = (self.nodes[node].keys.clone(), self.nodes[node].disk);
        self.nodes[node].machine = Machine::new(keys, own, disk);
        self.nodes[node].told = None;
        if self.channel.as_ref().is_some_and(|c| c.ends.contains(&node)) {
            self.hang_up();
        }
        self.check();
    }

    fn tick(&mut self, span_ms: u64) {
        self.now += span_ms;
        for node in 0..self.nodes.len() {
            self.give(node, Event::Tick);
        }
    }

    fn beacon(&mut self, keep: bool) {
        if self.beacons.is_empty() {
            return;
        }
        let at = self.chance.below(self.beacons.len());
        let (to, bytes) = if keep { self.beacons[at].clone() } else { self.beacons.swap_remove(at) };
        self.give(to, Event::Beacon(bytes));
    }

    fn message(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        let end = self.chance.below(2);
        if !channel.to[end].is_empty() {
            let (node, message) = (channel.ends[end], channel.to[end].remove(0));
            self.give(node, Event::Message(message));
        }
    }

    fn chaos(&mut self, moves: usize) {
        for _ in 0..moves {
            match self.chance.below(20) {
                0..=3 => {
                    let span = 100 + self.chance.below(1_500) as u64;
                    self.tick(span);
                }
                4..=7 => self.beacon(false),
                8 => self.beacon(true),
                9 => {
                    if !self.beacons.is_empty() {
                        let at = self.chance.below(self.beacons.len());
                        self.beacons.swap_remove(at);
                    }
                }
                10..=14 => self.message(),
                15..=17 => {
                    let node = self.chance.below(self.nodes.len());
                    self.flush(node);
                }
                18 => {
                    if self.chance.below(3) == 0 {
                        self.hang_up();
                    }
                }
                _ => {
                    if self.chance.below(2) == 0 {
                        let node = self.chance.below(self.nodes.len());
                        self.crash(node);
                    }
                }
            }
            self.check();
        }
    }

    fn calm(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.tick(500);
            while !self.beacons.is_empty() {
                self.beacon(false);
            }
            for _ in 0..20 {
                self.message();
                for node in 0..self.nodes.len() {
                    self.flush(node);
                }
            }
            self.check();
        }
    }

    /// One cluster in all of history, of two members that name each other.
    fn check(&mut self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let Durable::Paired { cluster, peer } = node.disk else { continue };
            assert_eq!(*self.minted.get_or_insert(cluster), cluster, "the id was minted twice");
            let other = self.nodes.iter().find(|n| n.keys.public() == peer).expect("a node of this world");
            let back = match other.disk {
                Durable::Blank => panic!("node {number} is paired with one that knows nothing of it"),
                Durable::Minted { cluster, peer } | Durable::Paired { cluster, peer } => (cluster, peer),
            };
            assert_eq!(back, (cluster, node.keys.public()));
        }
    }

    fn paired(&self) -> bool {
        self.nodes.iter().all(|n| matches!(n.disk, Durable::Paired { .. }) && n.told.is_some())
    }
}

#[test]
fn two_blank_nodes_pair_whatever_happens_on_the_way() {
    let keys = keys(2);
    let mut crashes = 0;
    for seed in 0..3_000 {
        eprintln!("seed {seed}");
        let mut world = World::new(seed, &keys);
        let moves = world.chance.below(300);
        world.chaos(moves);
        world.calm(60);
        assert!(world.paired(), "seed {seed}: not paired when the faults were over");
        let [a, b] = [0, 1].map(|n| world.nodes[n].told.unwrap());
        assert_eq!((a.0, a.1, a.2), (b.0, keys[1].public(), Node::A));
        assert_eq!((b.1, b.2), (keys[0].public(), Node::B));
        crashes += world.crashes;
    }
    assert!(crashes > 3_000, "{crashes} crashes are too few");
}

#[test]
fn of_three_nodes_no_two_pair_and_each_is_told() {
    let keys = keys(3);
    let mut world = World::new(1, &keys);
    world.calm(60);
    for node in &world.nodes {
        assert_eq!(node.disk, Durable::Blank);
        assert!(node.refused.iter().any(|r| matches!(r, Refusal::ThirdNode { .. })));
    }
}

/// Whatever is lost on the way, three nodes never make more than one cluster of two.
#[test]
fn three_nodes_never_make_two_clusters() {
    let keys = keys(3);
    for seed in 0..1_000 {
        eprintln!("seed {seed}");
        let mut world = World::new(seed, &keys);
        world.chaos(300);
        world.calm(20);
    }
}

#[test]
fn a_node_that_comes_later_is_the_third() {
    let keys = keys(3);
    let mut world = World::new(2, &keys[..2]);
    world.calm(60);
    assert!(world.paired());
    let late = World::new(3, &keys[2..]).nodes.remove(0);
    world.nodes.push(late);
    world.calm(40);
    let third = Refusal::ThirdNode { key: keys[2].public() };
    assert!(world.nodes[0].refused.contains(&third) && world.nodes[1].refused.contains(&third));
    assert_eq!(world.nodes[2].disk, Durable::Blank);
    assert!(world.nodes[2].refused.iter().any(|r| matches!(r, Refusal::OtherCluster { .. })));
}

#[test]
fn a_clone_a_stranger_foreign_data_and_another_version_are_named() {
    let keys = keys(2);
    let mut chance = Chance(5);
    let mut machine = Machine::new(keys[0].clone(), own(&mut chance), Durable::Blank);
    let mut told = |bytes: Vec<u8>| machine.step(Tick(0), Event::Beacon(bytes));
    let announce = |keys: &Real, own: Own| {
        let mut machine = Machine::new(keys.clone(), own, Durable::Blank);
        match machine.step(Tick(0), Event::Tick).remove(0) {
            Action::Announce(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    };
    let own = own(&mut chance);
    assert_eq!(told(announce(&keys[0], own)), [Action::Report(Refusal::Cloned)]);
    let key = keys[1].public();
    let stranger = Real { site: Secret::from_bytes(b"another site key"), ..keys[1].clone() };
    assert_eq!(told(announce(&stranger, own)), [Action::Report(Refusal::Stranger { key })]);
    let foreign = Own { foreign: Some(77), ..own };
    assert_eq!(told(announce(&keys[1], foreign)), [Action::Report(Refusal::ForeignData { key, system: 77 })]);
    let mut newer = announce(&keys[1], own);
    newer[0] = VERSION + 1;
    assert_eq!(told(newer), [Action::Report(Refusal::Version { ours: VERSION, theirs: VERSION + 1 })]);
    let mut forged = announce(&keys[1], own);
    forged[40] ^= 1;
    assert_eq!(told(forged), [], "a beacon without its sender's signature is noise");
    assert_eq!(told(vec![VERSION; BYTES_MAX + 1]), []);
}

#[test]
fn a_node_with_foreign_data_pairs_with_nobody() {
    let keys = keys(2);
    let mut world = World::new(4, &keys);
    let own = Own { foreign: Some(9), ..own(&mut world.chance) };
    world.nodes[1].machine = Machine::new(keys[1].clone(), own, Durable::Blank);
    world.calm(60);
    assert!(world.nodes.iter().all(|n| n.disk == Durable::Blank));
    let named = Refusal::ForeignData { key: keys[1].public(), system: 9 };
    assert!(world.nodes.iter().all(|n| n.refused.contains(&named)));
}

/// The site key is proven on the channel itself: a proof that was made on another one, or by somebody else, is none.
#[test]
fn a_proof_is_good_on_its_own_channel_only() {
    let keys = keys(2);
    let mut chance = Chance(6);
    let mut machine = Machine::new(keys[0].clone(), own(&mut chance), Durable::Blank);
    let mut other = Machine::new(keys[1].clone(), own(&mut chance), Durable::Blank);
    let (me, peer) = (keys[0].public(), keys[1].public());
    let mut proof_on = |exporter| match other.step(Tick(0), Event::Opened { key: me, exporter }).remove(0) {
        Action::Send(message) => message,
        action => panic!("{action:?}"),
    };
    let (elsewhere, here) = (proof_on([1; 32]), proof_on([2; 32]));
    let stranger = Refusal::Stranger { key: peer };
    let no = [Action::Send(Message::Refuse(stranger)), Action::Close, Action::Report(stranger)];
    let mine = machine.step(Tick(0), Event::Opened { key: peer, exporter: [2; 32] }).remove(0);
    assert_eq!(machine.step(Tick(0), Event::Message(elsewhere)), no);
    machine.step(Tick(0), Event::Opened { key: peer, exporter: [2; 32] });
    let Action::Send(reflected) = mine else { panic!("{mine:?}") };
    assert_eq!(machine.step(Tick(0), Event::Message(reflected)), no, "its own proof sent back");
    machine.step(Tick(0), Event::Opened { key: peer, exporter: [2; 32] });
    let offer = Message::Offer { cluster: ClusterId(1) };
    assert_eq!(machine.step(Tick(0), Event::Message(offer)), no, "not a word before the proof");
    machine.step(Tick(0), Event::Opened { key: peer, exporter: [2; 32] });
    let stored = machine.step(Tick(0), Event::Message(here));
    assert!(matches!(stored[..], [Action::Store(Durable::Minted { .. })]), "{stored:?}");
}

#[test]
fn a_third_node_must_be_heard_before_anybody_settles() {
    let keys = keys(2);
    let mut world = World::new(8, &keys);
    world.tick(0);
    while !world.beacons.is_empty() {
        world.beacon(false);
    }
    world.tick(SETTLE_MS - 1);
    assert!(world.channel.is_none());
    world.tick(1);
    assert!(world.channel.is_some());
}

proptest! {
    #[test]
    fn any_datagram_is_a_beacon_or_nothing(bytes: Vec<u8>) {
        let keys = keys(1);
        let mut versioned = vec![VERSION];
        versioned.extend(&bytes);
        prop_assert!(!matches!(Beacon::open(&versioned, &keys[0]), Some(Ok(_))));
        let _ = Beacon::open(&bytes, &keys[0]);
    }
}
