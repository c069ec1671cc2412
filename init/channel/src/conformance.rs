//! What every arbiter must do, as one story after another. Each backend's tests run these against the real thing; a
//! broken promise panics and says which.

use std::time::Duration;

use dyad_cluster::message::{Answer, Cas, FromArbiter, Refusal, Registers, ToArbiter, Verdict};
use dyad_cluster::register::{Change, Conflict, Mode, Reason, Register};
use dyad_cluster::types::{BootId, Epoch, Incarnation, Node, Pact, RequestId, ResourceId};

use crate::link::ArbiterLink;

const R: ResourceId = ResourceId(0);
/// For a silent node to count as silent: many times any lease that a subject uses.
const SILENCE_TRIES: u32 = 300;
const SILENCE_PAUSE: Duration = Duration::from_millis(100);

/// An arbiter under test.
pub trait Subject {
    /// How a node reaches it.
    type Link: ArbiterLink;
    /// Links of the two members of a new cluster.
    fn fresh(&mut self) -> impl Future<Output = [Self::Link; 2]>;
}

struct Member<L> {
    link: L,
    boot: BootId,
    incarnation: Option<Incarnation>,
    request: u64,
    mirror: Registers,
}

impl<L: ArbiterLink> Member<L> {
    fn new(link: L) -> Self {
        let boot = BootId { count: 1, nonce: 1 };
        Member { link, boot, incarnation: None, request: 0, mirror: Vec::new() }
    }

    async fn ask(&mut self, message: ToArbiter) -> FromArbiter {
        let answer = self.link.ask(message).await.expect("the arbiter answers");
        self.incarnation = Some(answer.incarnation);
        answer
    }

    async fn hello(&mut self) -> FromArbiter {
        for _ in 0..2 {
            let (boot, incarnation) = (self.boot, self.incarnation);
            let mirror = Some(self.mirror.clone());
            let answer = self.ask(ToArbiter::Hello { boot, incarnation, mirror }).await;
            if answer.answer != Answer::Refused(Refusal::Incarnation) {
                return answer;
            }
        }
        panic!("a hello that names the incarnation it was told is refused for it");
    }

    async fn repeat(&mut self, items: Vec<Cas>) -> Answer {
        let incarnation = self.incarnation.expect("said hello");
        let request = RequestId(self.request);
        let answer = self.ask(ToArbiter::Batch { boot: self.boot, incarnation, request, items }).await;
        self.mirror = answer.registers;
        answer.answer
    }

    async fn batch(&mut self, items: Vec<Cas>) -> Vec<Verdict> {
        self.request += 1;
        match self.repeat(items).await {
            Answer::Verdicts { request, verdicts } if request == RequestId(self.request) => verdicts,
            other => panic!("a batch was answered by {other:?}"),
        }
    }

    async fn change(&mut self, expect: u64, change: Change) -> Verdict {
        self.batch(vec![cas(R, expect, change)]).await[0]
    }

    async fn renew(&mut self) -> Answer {
        let incarnation = self.incarnation.expect("said hello");
        self.ask(ToArbiter::Renew { boot: self.boot, incarnation, sequence: 5 }).await.answer
    }
}

fn cas(resource: ResourceId, expect: u64, change: Change) -> Cas {
    Cas { resource, expect: Epoch(expect), change }
}

fn pact(epoch: u64) -> Pact {
    Pact { epoch: Epoch(epoch), attempt: 1, nonce: 9 }
}

async fn pair<S: Subject>(subject: &mut S) -> [Member<S::Link>; 2] {
    subject.fresh().await.map(Member::new)
}

/// Both said hello, A holds at epoch 2 with B as standby.
async fn protected<S: Subject>(subject: &mut S) -> [Member<S::Link>; 2] {
    let [mut a, mut b] = pair(subject).await;
    a.hello().await;
    b.hello().await;
    assert_eq!(a.change(0, Change::Found).await, Verdict::Won);
    assert_eq!(a.change(1, Change::Protect(pact(1))).await, Verdict::Won);
    [a, b]
}

/// Every story.
pub async fn run<S: Subject>(subject: &mut S) {
    nothing_before_both_are_heard(subject).await;
    changes_follow_the_table(subject).await;
    a_repeated_request_gets_its_first_answer(subject).await;
    verdicts_are_independent(subject).await;
    a_holder_that_renews_is_not_replaced(subject).await;
    what_was_released_is_taken_at_once(subject).await;
    a_holder_that_rebooted_must_resume(subject).await;
    old_boots_and_other_runs_are_ignored(subject).await;
    a_mirror_that_is_ahead_stops_everything(subject).await;
    of_two_at_once_one_wins(subject).await;
}

async fn nothing_before_both_are_heard<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = pair(subject).await;
    assert_eq!(a.hello().await.answer, Answer::Welcome);
    assert_eq!(a.change(0, Change::Found).await, Verdict::NotHeard);
    let unreadable = ToArbiter::Hello { boot: b.boot, incarnation: a.incarnation, mirror: None };
    b.ask(unreadable).await;
    assert_eq!(a.change(0, Change::Found).await, Verdict::NotHeard, "an unreadable mirror was not heard");
    assert!(b.hello().await.heard_both);
    assert_eq!(a.change(0, Change::Found).await, Verdict::Won);
}

async fn changes_follow_the_table<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    assert_eq!(b.change(1, Change::TakeOver(pact(1))).await, Verdict::Lost(Conflict::Epoch));
    assert_eq!(b.change(2, Change::TakeOver(pact(2))).await, Verdict::Lost(Conflict::Pact));
    assert_eq!(b.change(2, Change::Degrade).await, Verdict::Lost(Conflict::Party));
    assert_eq!(a.change(2, Change::Protect(pact(2))).await, Verdict::Lost(Conflict::Mode));
    let mode = Mode::Sync(pact(1));
    let register = Register { epoch: Epoch(2), mode, holder: Node::A, reason: Reason::Protected };
    assert_eq!(a.mirror, vec![(R, register)], "a refusal carries the register and leaves it");
    assert_eq!(a.change(2, Change::Degrade).await, Verdict::Won);
    assert_eq!(b.change(3, Change::TakeOver(pact(1))).await, Verdict::Lost(Conflict::Mode));
}

async fn a_repeated_request_gets_its_first_answer<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    let items = vec![cas(R, 2, Change::Degrade)];
    assert_eq!(a.batch(items.clone()).await, [Verdict::Won]);
    let request = RequestId(a.request);
    let first = Answer::Verdicts { request, verdicts: vec![Verdict::Won] };
    assert_eq!(a.repeat(items.clone()).await, first);
    a.request -= 1;
    assert_eq!(a.repeat(items).await, Answer::Refused(Refusal::Request));
    assert_eq!(b.hello().await.registers[0].1.epoch, Epoch(3), "it happened once");
}

async fn verdicts_are_independent<S: Subject>(subject: &mut S) {
    let [mut a, _b] = protected(subject).await;
    let items = vec![
        cas(ResourceId(1), 0, Change::Found),
        cas(R, 1, Change::Degrade),
        cas(ResourceId(2), 0, Change::Found),
    ];
    assert_eq!(a.batch(items).await, [Verdict::Won, Verdict::Lost(Conflict::Epoch), Verdict::Won]);
}

async fn a_holder_that_renews_is_not_replaced<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    for _ in 0..5 {
        assert_eq!(a.renew().await, Answer::Renewed { sequence: 5 });
        assert_eq!(b.change(2, Change::TakeOver(pact(1))).await, Verdict::HolderAlive);
    }
    for _ in 0..SILENCE_TRIES {
        if b.change(2, Change::TakeOver(pact(1))).await == Verdict::Won {
            assert_eq!(a.change(2, Change::Degrade).await, Verdict::Lost(Conflict::Epoch));
            assert_eq!(a.mirror[0].1.holder, Node::B);
            return;
        }
        tokio::time::sleep(SILENCE_PAUSE).await;
    }
    panic!("a silent holder is never replaced");
}

async fn what_was_released_is_taken_at_once<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    let incarnation = a.incarnation.expect("said hello");
    let boot = a.boot;
    let release = |epoch| ToArbiter::Release { boot, incarnation, resource: R, epoch: Epoch(epoch) };
    a.ask(release(1)).await;
    assert_eq!(b.change(2, Change::TakeOver(pact(1))).await, Verdict::HolderAlive, "another epoch's release");
    a.ask(release(2)).await;
    assert_eq!(b.change(2, Change::TakeOver(pact(1))).await, Verdict::Won);
}

async fn a_holder_that_rebooted_must_resume<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    a.boot.count += 1;
    assert_eq!(a.hello().await.answer, Answer::Welcome);
    assert_eq!(a.change(2, Change::Resume).await, Verdict::Won);
    assert_eq!(b.change(3, Change::TakeOver(pact(1))).await, Verdict::HolderAlive, "resumed");
    a.boot.count += 1;
    a.hello().await;
    assert_eq!(b.change(3, Change::TakeOver(pact(1))).await, Verdict::Won, "did not resume");
}

async fn old_boots_and_other_runs_are_ignored<S: Subject>(subject: &mut S) {
    let [mut a, _b] = protected(subject).await;
    let now = a.incarnation;
    let other = Incarnation(now.expect("said hello").0 ^ 1);
    let stale = ToArbiter::Renew { boot: a.boot, incarnation: other, sequence: 5 };
    assert_eq!(a.ask(stale).await.answer, Answer::Refused(Refusal::Incarnation));
    a.boot.count += 1;
    a.hello().await;
    a.boot.count -= 1;
    assert_eq!(a.hello().await.answer, Answer::Refused(Refusal::Boot));
    assert_eq!(a.renew().await, Answer::Refused(Refusal::Boot));
    a.boot.count += 2;
    assert_eq!(a.renew().await, Answer::Refused(Refusal::Session), "a boot that said no hello");
}

async fn a_mirror_that_is_ahead_stops_everything<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = protected(subject).await;
    let (id, register) = b.hello().await.registers[0];
    b.mirror = vec![(id, Register { epoch: register.epoch.next(), ..register })];
    assert_eq!(b.hello().await.answer, Answer::Refused(Refusal::Amnesia));
    assert_eq!(a.change(2, Change::Degrade).await, Verdict::NotHeard);
}

async fn of_two_at_once_one_wins<S: Subject>(subject: &mut S) {
    let [mut a, mut b] = pair(subject).await;
    a.hello().await;
    b.hello().await;
    for round in 0..20u16 {
        let items = |n| vec![cas(ResourceId(n), 0, Change::Found)];
        let (one, two) = tokio::join!(a.batch(items(round)), b.batch(items(round)));
        let won = [one, two].iter().filter(|v| v[0] == Verdict::Won).count();
        assert_eq!(won, 1, "round {round}");
    }
}
