//! Asking for changes (rules 6, 8 and 9): one batch at a time, on disk before it is sent, open until it is answered or
//! can no longer happen.

use crate::action::{Action, Actions, Need, Outcome};
use crate::disk::Intent;
use crate::event::Timer;
use crate::message::{Answer, Cas, FromArbiter, Refusal, Registers, ToArbiter, Verdict};
use crate::mutation::Mutation;
use crate::phase::Phase;
use crate::register::{self, Change, Mode, Reason, Register};
use crate::state::{ARBITER_GONE_MS, RETRY_MS, State, Voting};
use crate::types::{Epoch, Generation, Greeting, Incarnation, Observed, RequestId, ResourceId, Tick};

/// Without an arbiter, a change that was made after the other node was switched off goes this far ahead of the epoch that it
/// knows: whatever the other node did by itself in the meantime (resume after a restart) comes before it.
const JUMP: u64 = 1 << 20;
/// An operator's word counts more than what either node did by itself, also what both have forgotten: its epoch is the second in
/// which it was given, above so many bits.
const SECOND_BITS: u32 = 20;
/// No clock is believed that says more; the epochs of so many seconds still are exact in JSON.
const SECONDS_MAX: u64 = 1 << 33;

/// An unanswered batch is sent again after this long.
const RESEND_MS: u64 = 500;

impl State {
    /// `asked`: how often the arbiter had been greeted when this was asked. What was asked before the last greeting says
    /// nothing about who is the arbiter now.
    pub(crate) fn hear_arbiter(
        &mut self,
        now: Tick,
        asked: Greeting,
        message: &FromArbiter,
        out: &mut Actions,
    ) {
        if message.boot != self.boot || self.config.voting != Voting::Arbiter {
            return;
        }
        let gullible = self.broken(Mutation::IncarnationIgnored);
        let established = self.arbiter.session == Some(message.incarnation) || gullible;
        match &message.answer {
            Answer::Refused(Refusal::Incarnation | Refusal::Session) if asked != self.arbiter.greetings => {
                return;
            }
            Answer::Refused(Refusal::Incarnation | Refusal::Session) => {
                return self.greet(now, message.incarnation, out);
            }
            Answer::Refused(Refusal::Amnesia) => {
                self.arbiter.amnesia = true;
                return;
            }
            // An older boot than the newest known: this node's counter went back, and only its next boot can help.
            Answer::Refused(Refusal::Boot | Refusal::TooLarge) => return,
            Answer::Welcome if self.arbiter.greeting == Some(message.incarnation) || gullible => {
                self.arbiter.session = Some(message.incarnation);
                self.arbiter.amnesia = false;
            }
            Answer::Welcome => return,
            Answer::Refused(Refusal::Request)
            | Answer::Renewed { .. }
            | Answer::Verdicts { .. }
            | Answer::Released => {
                if !established {
                    return;
                }
            }
        }
        self.arbiter.silent = false;
        self.arbiter.gone = false;
        self.arbiter.heard_both = message.heard_both;
        // What an arbiter says that has heard both nodes is the truth, also to a node that lost its own record.
        self.mirror_readable |= message.heard_both;
        self.arm(Timer::ArbiterSilent, now.plus(self.config.lease_ms));
        self.arm(Timer::ArbiterGone, now.plus(ARBITER_GONE_MS));
        self.adopt(&message.registers);
        self.learn();
        self.mirror.request = self.mirror.request.max(message.answered);
        match &message.answer {
            Answer::Renewed { sequence } => self.extend_lease(now, *sequence, out),
            Answer::Verdicts { request, verdicts } => {
                self.verdicts(now, *request, verdicts, &message.registers);
            }
            Answer::Refused(Refusal::Request) => self.close_superseded(message.answered),
            Answer::Welcome | Answer::Released => {}
            Answer::Refused(
                Refusal::Incarnation
                | Refusal::Session
                | Refusal::Amnesia
                | Refusal::Boot
                | Refusal::TooLarge,
            ) => {}
        }
    }

    /// Who holds what has been told by an arbiter.
    fn learn(&mut self) {
        let out = self.arbiter_is_out();
        for r in self.config.resources.clone() {
            self.seat_mut(r).learned = true;
            if !out {
                // Whom an operator's word was to do without is here.
                self.void_word(r);
            }
        }
    }

    /// The arbiter runs as this incarnation. It answered what was asked after the one greeted before had answered, so it is
    /// the later one: nobody comes back (rule 9).
    fn greet(&mut self, now: Tick, incarnation: Incarnation, out: &mut Actions) {
        let arbiter = &mut self.arbiter;
        arbiter.greetings.0 += 1;
        arbiter.greeting = Some(incarnation);
        arbiter.session = None;
        arbiter.heard_both = false;
        self.hello(now, out);
    }

    pub(crate) fn hello(&mut self, now: Tick, out: &mut Actions) {
        let hello = ToArbiter::Hello {
            boot: self.boot,
            incarnation: self.arbiter.greeting,
            mirror: self.mirror_readable.then(|| self.registers()),
        };
        self.tell(now, out, Action::ToArbiter(self.arbiter.greetings, hello), vec![]);
    }

    pub(crate) fn registers(&self) -> Registers {
        self.mirror.registers.iter().map(|(id, r)| (*id, *r)).collect()
    }

    /// Takes what is newer. Epochs only rise, so an old message teaches nothing.
    pub(crate) fn adopt(&mut self, registers: &Registers) {
        for (resource, register) in registers {
            let old = self.mirror.registers.get(resource);
            if !self.seats.contains_key(resource) || old.is_some_and(|old| old.epoch >= register.epoch) {
                continue;
            }
            let newly_mine =
                register.holder == self.config.me && old.is_none_or(|old| old.holder != self.config.me);
            if newly_mine {
                let claimed =
                    self.mirror.intent.iter().flat_map(|i| &i.items).find(|(c, _)| c.resource == *resource);
                // Without a claim of ours there is no record of the data it was won with, and none is made up.
                match claimed.map(|(_, generation)| *generation) {
                    Some(generation) => self.mirror.won.insert(*resource, generation),
                    None => self.mirror.won.remove(resource),
                };
            }
            // The price was told for another register.
            self.void_word(*resource);
            self.mirror.registers.insert(*resource, *register);
            self.mirror.no_arbiter.remove(resource);
        }
        self.close_overtaken();
    }

    fn close_overtaken(&mut self) {
        let overtaken = |(cas, _): &(Cas, Generation)| {
            self.mirror.registers.get(&cas.resource).is_some_and(|r| r.epoch > cas.expect)
        };
        if self.mirror.intent.as_ref().is_some_and(|intent| intent.items.iter().all(overtaken)) {
            self.mirror.intent = None;
        }
    }

    /// A word went past the arbiter. It is greeted anew: before it may grant anything it finds itself behind.
    fn pass_the_arbiter(&mut self) {
        if self.config.voting == Voting::Arbiter {
            self.close_overtaken();
            self.arbiter.session = None;
        }
    }

    /// The epoch of an operator's word: of two the later one stands, and those of two nodes are never the same.
    fn word_epoch(&self, now: Epoch, second: u64) -> Epoch {
        let second = second.min(SECONDS_MAX).max((now.0 >> SECOND_BITS) + 1).min(u64::MAX >> SECOND_BITS);
        Epoch(second << SECOND_BITS | (self.config.me.index() as u64) << (SECOND_BITS - 1))
    }

    fn close_superseded(&mut self, answered: RequestId) {
        if self.mirror.intent.as_ref().is_some_and(|intent| intent.request < answered) {
            self.mirror.intent = None;
        }
    }

    fn verdicts(&mut self, now: Tick, request: RequestId, verdicts: &[Verdict], told: &Registers) {
        let Some(intent) = self.mirror.intent.take_if(|intent| intent.request == request) else { return };
        for ((cas, _), verdict) in intent.items.iter().zip(verdicts) {
            let r = cas.resource;
            if !self.seats.contains_key(&r)
                || self.register(r).map_or(Epoch(0), |reg| reg.epoch) != cas.expect
            {
                continue; // Won, or lost to something newer: the register itself says what follows.
            }
            match verdict {
                Verdict::Won => {}
                // What is refused is the claim that an operator's word has replaced; the word is asked next.
                Verdict::HolderAlive | Verdict::NotHeard
                    if self.seat(r).phase == Phase::Forcing && cas.change != Change::Force => {}
                Verdict::Lost(_) | Verdict::HolderAlive | Verdict::NotHeard => self.refused(now, r),
            }
            // It judged what this node already knew, and knew less itself: an operator's word went past it after the
            // greeting. It finds that out from the next one.
            let known = told.iter().find(|(id, _)| *id == r).map_or(Epoch(0), |(_, register)| register.epoch);
            if known < cas.expect {
                self.arbiter.session = None;
            }
        }
    }

    /// The change certainly did not happen.
    fn refused(&mut self, now: Tick, r: ResourceId) {
        self.arm(Timer::Retry(Some(r)), now.plus(RETRY_MS));
        match self.seat(r).phase {
            Phase::Claiming | Phase::Forcing => {
                self.seat_mut(r).forced = None;
                self.go(r, Phase::Attaching);
            }
            Phase::Protecting => self.give_up(now, r),
            Phase::Founding => self.go(r, Phase::Unlearned),
            // They ask again: nothing else can get them on.
            Phase::Resuming | Phase::Reporting | Phase::Degrading => {}
            // The asking was given up, or is from before a restart.
            Phase::Unlearned
            | Phase::Starting
            | Phase::HeldBack
            | Phase::Admitting
            | Phase::Alone
            | Phase::Arming
            | Phase::Barrier
            | Phase::Canary
            | Phase::Marking
            | Phase::Disarming
            | Phase::Sync
            | Phase::Recording
            | Phase::Dropping
            | Phase::HandingOver
            | Phase::Released
            | Phase::Fenced
            | Phase::Inspecting
            | Phase::Clearing
            | Phase::Rewinding
            | Phase::Cloning
            | Phase::Attaching
            | Phase::Following
            | Phase::Renouncing
            | Phase::Stopping
            | Phase::Checking
            | Phase::Promoting
            | Phase::Refused => {}
        }
    }

    /// What the phase asks for.
    fn wanted_change(&self, r: ResourceId) -> Option<Change> {
        let seat = self.seat(r);
        match seat.phase {
            Phase::Founding => Some(Change::Found),
            Phase::Resuming => Some(Change::Resume),
            Phase::Reporting | Phase::Degrading => Some(Change::Degrade),
            Phase::Protecting => seat.pact.map(Change::Protect),
            Phase::Claiming => seat.pact.map(Change::TakeOver),
            Phase::Forcing => Some(Change::Force),
            Phase::Unlearned
            | Phase::Starting
            | Phase::HeldBack
            | Phase::Admitting
            | Phase::Alone
            | Phase::Arming
            | Phase::Barrier
            | Phase::Canary
            | Phase::Marking
            | Phase::Disarming
            | Phase::Sync
            | Phase::Recording
            | Phase::Dropping
            | Phase::HandingOver
            | Phase::Released
            | Phase::Fenced
            | Phase::Inspecting
            | Phase::Clearing
            | Phase::Rewinding
            | Phase::Cloning
            | Phase::Attaching
            | Phase::Following
            | Phase::Renouncing
            | Phase::Stopping
            | Phase::Checking
            | Phase::Promoting
            | Phase::Refused => None,
        }
    }

    fn wanted_items(&self) -> Vec<(Cas, Generation)> {
        let item = |r: &ResourceId| {
            let change = self.wanted_change(*r).filter(|_| !self.armed(Timer::Retry(Some(*r))))?;
            let Observed::Known(control) = self.seat(*r).control else { return None };
            let expect = self.register(*r).map_or(Epoch(0), |reg| reg.epoch);
            Some((Cas { resource: *r, expect, change }, control.generation))
        };
        self.config.resources.iter().filter_map(item).collect()
    }

    /// Opens the next batch, and sends the open one once it is on disk. True: registers changed here and now.
    pub(crate) fn advance_intent(&mut self, now: Tick, out: &mut Actions) -> bool {
        if self.config.voting != Voting::Arbiter {
            return self.decide_alone(now, out);
        }
        // An operator's word does not wait for an arbiter that is gone: the arbiter will find itself behind and has to be
        // enrolled again. Nor does it wait for what was asked before and may be answered late: whatever of it happens for
        // this resource makes this node the holder, under an epoch that the word is far ahead of.
        let forced = |s: &State| s.seats.values().any(|seat| seat.phase == Phase::Forcing);
        if self.arbiter_is_out() && forced(self) {
            return self.decide_alone(now, out);
        }
        if self.mirror.intent.is_none() {
            let items = self.wanted_items();
            if items.is_empty() || !self.mirror_readable {
                return false;
            }
            self.mirror.request = RequestId(self.mirror.request.0 + 1);
            self.mirror.intent = Some(Intent { request: self.mirror.request, items });
            self.timers.remove(&Timer::Resend);
        }
        let Some(intent) = self.mirror.intent.clone() else { return false };
        let durable = self.durable.as_ref().is_some_and(|m| m.intent.as_ref() == Some(&intent));
        let (Some(incarnation), false) = (self.arbiter.session, self.armed(Timer::Resend)) else {
            return false;
        };
        if !durable && !self.broken(Mutation::IntentNotDurable) {
            return false;
        }
        self.arm(Timer::Resend, now.plus(RESEND_MS));
        let items = intent.items.iter().map(|(cas, _)| *cas).collect();
        let batch = ToArbiter::Batch { boot: self.boot, incarnation, request: intent.request, items };
        self.tell(
            now,
            out,
            Action::ToArbiter(self.arbiter.greetings, batch),
            vec![Need::IntentDurable(intent.request)],
        );
        false
    }

    /// Without an arbiter the two nodes' own files are all there is (section 5).
    fn decide_alone(&mut self, now: Tick, out: &mut Actions) -> bool {
        let mut changed = false;
        for (cas, generation) in self.wanted_items() {
            if self.config.voting == Voting::Arbiter && cas.change != Change::Force {
                continue;
            }
            // A standby that renounced cannot take over: nobody need be switched off for that.
            let renounced = cas.change == Change::Degrade && self.renounced_by_peer(cas.resource);
            let fences = self.config.voting == Voting::FenceDevice
                && matches!(cas.change, Change::Degrade | Change::TakeOver(_))
                && !renounced;
            if fences && !self.peer_off {
                self.issue(now, out, None, Action::FencePeer, vec![]);
                continue;
            }
            if self.config.voting == Voting::Arbiter && self.seat(cas.resource).free {
                // The holder may have gone on alone since that was said: it has to be said again, at another price.
                self.refused(now, cas.resource);
                continue;
            }
            let current = self.mirror.registers.get(&cas.resource);
            let Ok(mut next) = register::apply(current, cas.expect, self.config.me, cas.change) else {
                continue;
            };
            if cas.change == Change::Force {
                let second = self.seat(cas.resource).forced.unwrap_or(0);
                next.epoch = self.word_epoch(cas.expect, second);
            } else if fences {
                next.epoch.0 += JUMP;
            }
            if current.is_none_or(|old| old.holder != next.holder) {
                self.mirror.won.insert(cas.resource, generation);
            }
            self.mirror.registers.insert(cas.resource, next);
            if cas.change == Change::Force {
                self.pass_the_arbiter();
            }
            changed = true;
        }
        changed
    }

    /// Nobody but an operator can say which side goes on: two histories of one epoch (which only a fence device that lied
    /// can make; both sides have stopped), or a peer that cannot be consulted. The other side is then repaired like any
    /// diverged standby.
    pub(crate) fn keep_this_side(&mut self, r: ResourceId, second: u64) {
        let (Some(register), Observed::Known(control)) = (self.register(r), self.seat(r).control) else {
            return;
        };
        let kept = Register {
            epoch: self.word_epoch(register.epoch, second),
            mode: Mode::Solo,
            holder: self.config.me,
            reason: Reason::Forced,
        };
        self.mirror.registers.insert(r, kept);
        self.mirror.won.insert(r, control.generation);
        self.pass_the_arbiter();
        self.seat_mut(r).split = false;
        if self.seat(r).phase == Phase::Refused {
            self.forget(r);
        }
        self.seat_mut(r).learned = true;
    }

    pub(crate) fn peer_mirror(&mut self, registers: &Registers) {
        self.peer_consulted = true;
        for (r, theirs) in registers {
            let ours = self.register(*r);
            if let Some(seat) = self.seats.get_mut(r) {
                let alone = self.config.voting != Voting::Arbiter;
                seat.split |= alone && ours.is_some_and(|ours| ours.epoch == theirs.epoch && ours != *theirs);
                seat.split &= ours.is_none_or(|ours| ours.epoch >= theirs.epoch);
            }
        }
        self.adopt(registers);
        if self.config.voting != Voting::Arbiter && self.mirror_readable {
            for seat in self.seats.values_mut() {
                seat.learned = true;
            }
        }
    }

    pub(crate) fn advance_mirror(&mut self, now: Tick, out: &mut Actions) {
        if self.mirror_readable && self.writing.is_none() && self.durable.as_ref() != Some(&self.mirror) {
            let next = self.mirror.clone();
            if self.issue(now, out, None, Action::WriteMirror(next.clone()), vec![]) {
                self.writing = Some(next);
            }
        }
    }

    pub(crate) fn mirror_written(&mut self, now: Tick, outcome: Outcome) {
        let written = self.writing.take();
        match outcome {
            Outcome::Done(_) => self.durable = written,
            Outcome::Failed => self.arm(Timer::Retry(None), now.plus(RETRY_MS)),
            Outcome::TimedOut => {
                self.durable = None;
                self.arm(Timer::Retry(None), now.plus(RETRY_MS));
            }
        }
    }

    /// A change of this resource is open, or a crash now would open it again.
    pub(crate) fn intent_open(&self, r: ResourceId, which: fn(&Change) -> bool) -> bool {
        let holds = |mirror: &crate::disk::Mirror| {
            let mut items = mirror.intent.iter().flat_map(|i| &i.items);
            items.any(|(cas, _)| cas.resource == r && which(&cas.change))
        };
        holds(&self.mirror)
            || self.writing.as_ref().is_some_and(holds)
            || self.durable.as_ref().is_none_or(holds)
    }

    pub(crate) fn take_over_open(&self, r: ResourceId) -> bool {
        self.intent_open(r, |change| matches!(change, Change::TakeOver(_) | Change::Force))
    }

    /// What a changed register means for the phase.
    pub(crate) fn settle(&mut self, r: ResourceId) {
        let Some(register) = self.register(r) else { return };
        if register.epoch == self.seat(r).epoch {
            if self.seat(r).split && self.seat(r).phase.serves() {
                self.go(r, Phase::Fenced);
            }
            return;
        }
        let mine = register.holder == self.config.me;
        let solo = register.mode == Mode::Solo;
        let next = match self.seat(r).phase {
            // These look at the register when they go on.
            Phase::Unlearned | Phase::Fenced | Phase::Refused => return,
            Phase::Founding | Phase::Resuming if mine => Phase::Starting,
            Phase::Founding | Phase::Resuming => Phase::Unlearned,
            Phase::Reporting if mine && solo => Phase::Alone,
            Phase::Degrading if mine && solo => Phase::Dropping,
            Phase::Protecting
                if mine && register.mode == self.seat(r).pact.map_or(Mode::Solo, Mode::Sync) =>
            {
                Phase::Sync
            }
            Phase::Claiming if mine => {
                // What is on the disk is looked at again before it is promoted.
                self.seat_mut(r).control = Observed::Unknown;
                Phase::Checking
            }
            Phase::Forcing if mine => Phase::Promoting,
            Phase::Claiming | Phase::Forcing => Phase::Attaching,
            Phase::Released => return self.forget(r),
            Phase::Starting
            | Phase::HeldBack
            | Phase::Admitting
            | Phase::Alone
            | Phase::Reporting
            | Phase::Arming
            | Phase::Barrier
            | Phase::Canary
            | Phase::Marking
            | Phase::Protecting
            | Phase::Disarming
            | Phase::Sync
            | Phase::Degrading
            | Phase::Recording
            | Phase::Dropping
            | Phase::HandingOver
            | Phase::Checking
            | Phase::Promoting => Phase::Fenced,
            Phase::Inspecting
            | Phase::Clearing
            | Phase::Rewinding
            | Phase::Cloning
            | Phase::Attaching
            | Phase::Following
            | Phase::Renouncing
            | Phase::Stopping => {
                if !mine {
                    let seat = self.seat_mut(r);
                    seat.epoch = register.epoch;
                    // The price was told for another register.
                    seat.forced = None;
                    return;
                }
                Phase::Fenced
            }
        };
        self.seat_mut(r).forced = None;
        self.go(r, next);
    }
}
