//! The witness on a disk that forgets what was not flushed: after thousands of power cuts no grant is lost, none comes
//! back in another order, and none is given twice.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dyad_channel::PublicKey;
use dyad_channel::secret::{Code, Exporter, Proof, Secret, Side};
use dyad_channel::witness::{Call, Enroll, Refused, Reply, Statement};
use dyad_cluster::message::{Answer, Cas, FromArbiter, Refusal, Registers, ToArbiter, Verdict};
use dyad_cluster::register::{Change, Mode, Register, apply};
use dyad_cluster::types::{BootId, ClusterId, Epoch, Incarnation, Node, Pact, RequestId, ResourceId, Tick};
use dyad_witness::disk::Disk;
use dyad_witness::witness::{Settings, Witness};
use support::Chance;
use support::forgetful::Forgetful;

const LEASE_MS: u64 = 3_000;
const CLUSTER: ClusterId = ClusterId(42);
const RESOURCES: u16 = 3;
const HISTORIES: u64 = 10_000;
const MOVES: u64 = 60;

fn keys() -> [PublicKey; 2] {
    [PublicKey([1; 32]), PublicKey([2; 32])]
}

/// A node: what it keeps on its own, honest disk.
#[derive(Debug, Default)]
struct Member {
    boot: u64,
    request: u64,
    mirror: BTreeMap<ResourceId, Register>,
    incarnation: Option<Incarnation>,
    /// Sent, and no answer seen.
    open: Option<(RequestId, Vec<Cas>)>,
}

/// What the histories are judged by.
#[derive(Debug, Default)]
struct Judge {
    /// Everything that was ever in force, by epoch.
    seen: BTreeMap<(ResourceId, Epoch), Register>,
    newest: BTreeMap<ResourceId, Epoch>,
    /// Who was told of winning what.
    won: BTreeMap<(ResourceId, Epoch), (Node, RequestId)>,
    answered: BTreeMap<(usize, RequestId), Vec<Verdict>>,
    cuts: u64,
    grants: u64,
}

impl Judge {
    fn registers(&mut self, registers: &Registers) {
        for (id, register) in registers {
            let before = self.seen.insert((*id, register.epoch), *register);
            assert!(before.is_none_or(|b| b == *register), "epoch {:?} changed its content", register.epoch);
            let newest = self.newest.entry(*id).or_default();
            assert!(register.epoch >= *newest, "{id:?} went back from {newest:?} to {:?}", register.epoch);
            *newest = register.epoch;
        }
        for id in self.newest.keys() {
            assert!(registers.iter().any(|(known, _)| known == id), "{id:?} was lost");
        }
    }

    fn verdicts(&mut self, from: Node, request: RequestId, items: &[Cas], verdicts: &[Verdict]) {
        let first = self.answered.entry((from.index(), request)).or_insert_with(|| verdicts.to_vec());
        assert_eq!(first, verdicts, "a repeated request has the first answer");
        for (item, verdict) in items.iter().zip(verdicts) {
            if *verdict == Verdict::Won {
                let epoch = item.expect.next();
                let winner = self.won.insert((item.resource, epoch), (from, request));
                assert!(
                    winner.is_none_or(|w| w == (from, request)),
                    "{epoch:?} was granted twice: {winner:?}"
                );
                self.grants += 1;
                let newest = self.newest.get(&item.resource).copied().unwrap_or_default();
                assert!(newest >= epoch, "a grant of {epoch:?} is not in the registers");
                let before = self.seen.get(&(item.resource, item.expect));
                if let (Some(now), true) =
                    (self.seen.get(&(item.resource, epoch)), before.is_some() || item.expect == Epoch(0))
                {
                    assert_eq!(apply(before, item.expect, from, item.change).as_ref(), Ok(now));
                }
            }
        }
    }
}

struct World {
    chance: Chance,
    disk: Forgetful,
    clock: Arc<AtomicU64>,
    witness: Witness<Forgetful>,
    members: [Member; 2],
    code: Secret,
    judge: Judge,
}

fn open(disk: &Forgetful, clock: &Arc<AtomicU64>) -> Witness<Forgetful> {
    let clock = clock.clone();
    let settings =
        Settings { storage_is_durable: false, clock: Arc::new(move || Tick(clock.load(Ordering::Relaxed))) };
    Witness::open(disk.clone(), settings).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Forgetful::new(seed ^ 0xd15c);
        let clock = Arc::new(AtomicU64::new(1_000));
        let witness = open(&disk, &clock);
        let (members, code) = (Default::default(), Code::draw().secret());
        World { chance: Chance(seed), disk, clock, witness, members, code, judge: Judge::default() }
    }

    fn restart_if_off(&mut self) {
        if self.disk.is_off() {
            self.judge.cuts += 1;
            self.disk.restart();
            self.witness = open(&self.disk, &self.clock);
        }
    }

    async fn call(&mut self, from: Node, call: Call) -> Result<Reply, Refused> {
        let key = keys()[from.index()];
        let done = self.witness.call(&key, &Exporter::simulated([9; 32]), call).await;
        if let Err(refused) = &done {
            let expected = matches!(
                refused,
                Refused::Storage(_) | Refused::Waiting | Refused::NotEnrolled | Refused::Code
            );
            assert!(expected, "{refused}");
        }
        done
    }

    fn enrolment(&self, from: Node) -> Call {
        let member = &self.members[from.index()];
        let statement = Statement {
            cluster: CLUSTER,
            members: keys(),
            lease_ms: LEASE_MS,
            boot: BootId { count: member.boot, nonce: 0 },
            mirror: member.mirror.iter().map(|(id, r)| (*id, *r)).collect(),
        };
        let proof = statement.prove(&self.code, Side::Asking, &Exporter::simulated([9; 32]));
        Call::Enroll(Enroll { statement, proof })
    }

    /// Both nodes bring the cluster, with power cuts at any step; each repeats until it is told that it is done.
    async fn enroll(&mut self) {
        let mut complete = [false; 2];
        for attempt in 0.. {
            assert!(attempt < 200, "enrolment does not come to an end");
            if self.chance.one_in(2) {
                let steps = 1 + self.chance.below(12);
                self.disk.cut_after(steps);
            }
            // Opening a code twice is opening it once; a spent one stays spent.
            let _ = self.witness.open_code(&self.code).await;
            for from in Node::BOTH {
                if let Ok(Reply::Enrolled { complete: done, .. }) =
                    self.call(from, self.enrolment(from)).await
                {
                    complete[from.index()] |= done;
                }
            }
            if self.disk.is_off() {
                self.restart_if_off();
            } else {
                self.disk.cut_after(u64::MAX);
            }
            if complete == [true; 2] {
                return;
            }
        }
    }

    fn absorb(&mut self, from: Node, answer: &FromArbiter) {
        assert_ne!(answer.answer, Answer::Refused(Refusal::Amnesia), "an answered grant was lost");
        self.judge.registers(&answer.registers);
        let member = &mut self.members[from.index()];
        member.incarnation = Some(answer.incarnation);
        for (id, register) in &answer.registers {
            member.mirror.insert(*id, *register);
        }
    }

    async fn ask(&mut self, from: Node, message: ToArbiter) -> Option<FromArbiter> {
        match self.call(from, Call::Arbiter { cluster: CLUSTER, message }).await {
            Ok(Reply::Arbiter(answer)) => {
                self.absorb(from, &answer);
                Some(answer)
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    async fn hello(&mut self, from: Node) {
        let member = &mut self.members[from.index()];
        member.boot += self.chance.below(2);
        let boot = BootId { count: member.boot, nonce: 0 };
        let mirror = Some(member.mirror.iter().map(|(id, r)| (*id, *r)).collect());
        let incarnation = member.incarnation;
        self.ask(from, ToArbiter::Hello { boot, incarnation, mirror }).await;
    }

    fn wish(&mut self, from: Node, resource: ResourceId) -> Cas {
        let member = &self.members[from.index()];
        let Some(now) = member.mirror.get(&resource) else {
            return Cas { resource, expect: Epoch(0), change: Change::Found };
        };
        let change = match (now.holder == from, now.mode, self.chance.below(4)) {
            (true, _, 0) => Change::Resume,
            (true, Mode::Sync(_), _) => Change::Degrade,
            (true, Mode::Solo, n) => {
                Change::Protect(Pact { epoch: now.epoch, attempt: 1 + n as u32, nonce: member.request })
            }
            (false, Mode::Sync(pact), _) => Change::TakeOver(pact),
            (false, Mode::Solo, _) => Change::Force,
        };
        Cas { resource, expect: now.epoch, change }
    }

    async fn batch(&mut self, from: Node) {
        let Some(incarnation) = self.members[from.index()].incarnation else { return };
        if self.members[from.index()].open.is_none() {
            self.members[from.index()].request += 1;
            let request = RequestId(self.members[from.index()].request);
            let count = 1 + self.chance.below(u64::from(RESOURCES)) as u16;
            let items = (0..count).map(|r| self.wish(from, ResourceId(r))).collect();
            self.members[from.index()].open = Some((request, items));
        }
        let member = &self.members[from.index()];
        let (request, items) = member.open.clone().unwrap();
        let boot = BootId { count: member.boot, nonce: 0 };
        let message = ToArbiter::Batch { boot, incarnation, request, items: items.clone() };
        let Some(answer) = self.ask(from, message).await else { return };
        if let Answer::Verdicts { request: answered, verdicts } = &answer.answer {
            assert_eq!(*answered, request);
            self.judge.verdicts(from, request, &items, verdicts);
            // Now and then the answer is lost on its way, and the question comes again.
            if !self.chance.one_in(3) {
                self.members[from.index()].open = None;
            }
        }
    }

    async fn history(&mut self) {
        self.enroll().await;
        for _ in 0..MOVES {
            let from = Node::BOTH[self.chance.below(2) as usize];
            let span = self.chance.below(2 * LEASE_MS);
            self.clock.fetch_add(span, Ordering::Relaxed);
            match self.chance.below(12) {
                0 => {
                    let steps = 1 + self.chance.below(8);
                    self.disk.cut_after(steps);
                }
                1 => {
                    let n = [0, 0, 2, 5][self.chance.below(4) as usize];
                    self.disk.fail_one_in(n);
                }
                2 | 3 => self.hello(from).await,
                4 => {
                    if let Ok(Reply::Registers { registers, .. }) =
                        self.call(from, Call::Read { cluster: CLUSTER }).await
                    {
                        self.judge.registers(&registers);
                    }
                }
                5 => {
                    if let Ok(Reply::Enrolled { complete, .. }) = self.call(from, self.enrolment(from)).await
                    {
                        assert!(complete, "a spent code begins nothing anew");
                    }
                }
                _ => self.batch(from).await,
            }
            self.restart_if_off();
        }
    }
}

fn in_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap().block_on(future)
}

/// A second file made under a temporary name, after a write of the first one had failed, is what its rename puts in place,
/// also when the power goes before the directory is flushed: never the first one, which is empty.
#[test]
fn a_rename_that_outlives_a_power_cut_is_of_the_file_that_was_renamed() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..200 {
        let disk = Forgetful::new(seed);
        disk.fail_one_in(2);
        // Made, and its flush fails.
        while disk.make("x.new", b"first").map_err(|e| e.raw_os_error()) != Err(Some(5)) {}
        disk.fail_one_in(0);
        disk.make("x.new", b"second").unwrap();
        disk.rename("x.new", "x").unwrap();
        disk.restart();
        match disk.read("x") {
            Ok(content) => {
                assert_eq!(content, b"second", "seed {seed}");
                kept += 1;
            }
            Err(_) => lost += 1,
        }
    }
    assert!(kept > 50 && lost > 50, "{kept} {lost}");
    let mut world = World::new(1515);
    in_runtime(world.history());
}

#[test]
fn no_grant_is_lost_reordered_or_duplicated() {
    let (mut cuts, mut grants) = (0, 0);
    in_runtime(async {
        for seed in 0..HISTORIES {
            let mut world = World::new(seed);
            // The seed is the story: run it alone to see it again.
            eprintln!("seed {seed}");
            world.history().await;
            cuts += world.judge.cuts;
            grants += world.judge.grants;
        }
    });
    println!("{HISTORIES} histories, {cuts} power cuts, {grants} grants");
    assert!(cuts > 3 * HISTORIES && grants > 3 * HISTORIES, "{cuts} cuts and {grants} grants are too few");
}

/// The same judge, and a disk whose flush does nothing: it must find fault, or it judges nothing.
#[test]
fn the_judge_notices_a_disk_that_lies() {
    let noticed = std::panic::catch_unwind(|| {
        in_runtime(async {
            for seed in 0..50 {
                let mut world = World::new(seed);
                world.enroll().await;
                for _ in 0..20 {
                    for from in Node::BOTH {
                        world.hello(from).await;
                        world.hello(from).await;
                        world.batch(from).await;
                    }
                    let kept = world.disk.content();
                    for from in Node::BOTH {
                        world.batch(from).await;
                    }
                    // The writes since `kept` were answered, and are gone.
                    world.disk = Forgetful::holding(seed, kept);
                    world.witness = open(&world.disk, &world.clock);
                }
            }
        });
    });
    assert!(noticed.is_err(), "lost writes went unnoticed");
}

/// A full disk, and one that fails: named, nothing changed, and all is well again when the disk is.
#[test]
fn a_full_disk_is_named_and_changes_nothing() {
    in_runtime(async {
        let mut world = World::new(7);
        world.enroll().await;
        for from in [Node::A, Node::B, Node::A, Node::B] {
            world.hello(from).await;
        }
        world.batch(Node::A).await;
        world.members[0].open = None;
        let before = world.disk.content();
        world.disk.set_full(true);
        let key = keys()[0];
        let found = Cas { resource: ResourceId(9), expect: Epoch(0), change: Change::Found };
        let message = ToArbiter::Batch {
            boot: BootId { count: world.members[0].boot, nonce: 0 },
            incarnation: world.members[0].incarnation.unwrap(),
            request: RequestId(1_000),
            items: vec![found],
        };
        let call = Call::Arbiter { cluster: CLUSTER, message };
        for _ in 0..2 {
            let refused =
                world.witness.call(&key, &Exporter::simulated([9; 32]), call.clone()).await.unwrap_err();
            assert!(matches!(&refused, Refused::Storage(why) if why.contains("storage")), "{refused}");
        }
        let mirror = Call::Read { cluster: CLUSTER };
        let refused = world.witness.call(&key, &Exporter::simulated([9; 32]), mirror.clone()).await;
        assert!(
            matches!(refused, Err(Refused::Storage(_))),
            "nothing is answered while the disk is in doubt"
        );
        assert_eq!(world.disk.content(), before);
        world.disk.set_full(false);
        let Ok(Reply::Registers { registers, .. }) = world.call(Node::A, mirror).await else {
            panic!("the disk has room again")
        };
        assert!(registers.iter().all(|(id, _)| *id != ResourceId(9)), "what was refused did not happen");
        let Ok(Reply::Arbiter(answer)) = world.call(Node::A, call).await else { panic!("asked again") };
        assert_eq!(
            answer.answer,
            Answer::Verdicts { request: RequestId(1_000), verdicts: vec![Verdict::Won] }
        );
    });
}

/// A code lets one cluster in, and a wrong proof none.
#[test]
fn a_code_is_good_for_one_cluster() {
    in_runtime(async {
        let mut world = World::new(1);
        let exporter = Exporter::simulated([9; 32]);
        let enroll = world.enrolment(Node::A);
        let refused = world.witness.call(&keys()[0], &exporter, enroll.clone()).await;
        assert_eq!(refused, Err(Refused::Code), "not open yet");
        world.witness.open_code(&world.code).await.unwrap();
        let Call::Enroll(good) = enroll.clone() else { unreachable!() };
        let forged = Enroll { proof: Proof([0; 32]), ..good.clone() };
        let refused = world.witness.call(&keys()[0], &exporter, Call::Enroll(forged)).await;
        assert_eq!(refused, Err(Refused::Code), "a wrong proof");
        let refused = world.witness.call(&keys()[0], &Exporter::simulated([8; 32]), enroll.clone()).await;
        assert_eq!(refused, Err(Refused::Code), "carried over from another channel");
        let refused = world.witness.call(&PublicKey([5; 32]), &exporter, enroll).await;
        assert_eq!(refused, Err(Refused::Members), "sent by somebody who is no member");
        assert!(world.disk.content().keys().all(|name| name == "codes.state"), "nothing changed");
        world.enroll().await;

        let other = Statement { cluster: ClusterId(43), ..good.statement };
        let proof = other.prove(&world.code, Side::Asking, &exporter);
        let second = Call::Enroll(Enroll { statement: other, proof });
        let refused = world.witness.call(&keys()[0], &exporter, second).await;
        assert_eq!(refused, Err(Refused::Code), "the code is spent");
    });
}

/// A disk that was restored from a copy: nothing is granted until both nodes have enrolled again, and then all that they
/// know is there.
#[test]
fn amnesia_ends_with_a_new_enrolment_of_both() {
    in_runtime(async {
        let mut world = World::new(3);
        world.enroll().await;
        let copy = world.disk.content();
        for from in [Node::A, Node::B, Node::A, Node::B] {
            world.hello(from).await;
        }
        world.batch(Node::A).await;
        world.hello(Node::B).await;
        let truth = world.members[1].mirror.clone();
        assert!(!truth.is_empty());
        world.disk = Forgetful::holding(3, copy);
        world.witness = open(&world.disk, &world.clock);

        let hello = |world: &World, from: Node, incarnation| {
            let member = &world.members[from.index()];
            let mirror = Some(member.mirror.iter().map(|(id, r)| (*id, *r)).collect());
            let boot = BootId { count: member.boot, nonce: 0 };
            Call::Arbiter { cluster: CLUSTER, message: ToArbiter::Hello { boot, incarnation, mirror } }
        };
        let Ok(Reply::Arbiter(answer)) = world.call(Node::A, hello(&world, Node::A, None)).await else {
            panic!()
        };
        let Ok(Reply::Arbiter(answer)) =
            world.call(Node::A, hello(&world, Node::A, Some(answer.incarnation))).await
        else {
            panic!()
        };
        assert_eq!(answer.answer, Answer::Refused(Refusal::Amnesia));

        world.code = Code::draw().secret();
        world.enroll().await;
        for member in &mut world.members {
            member.incarnation = None;
        }
        for from in [Node::A, Node::B, Node::A, Node::B] {
            world.hello(from).await;
        }
        assert_eq!(world.members[0].mirror, truth);
        let Ok(Reply::Registers { grants, .. }) = world.call(Node::B, Call::Read { cluster: CLUSTER }).await
        else {
            panic!()
        };
        assert!(grants);
    });
}
