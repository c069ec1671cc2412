//! What PID 1 measures of itself. Counting costs nothing that could be noticed and allocates nothing.

use dyad_api::control::{Fault, Stats, TURN_BUCKETS};
use dyad_sys::fault::{self, Injection};

use super::{Core, bound, clients, jobs};
use crate::clock;

/// Counters of this image of PID 1.
#[derive(Debug, Default)]
pub(super) struct Meter {
    turns: [u32; TURN_BUCKETS],
    turn_us_max: u32,
    pub(super) events: u64,
    /// When the fault happened from which this image has not yet recovered.
    pub(super) fault_ns: Option<u64>,
    recovery_us: u32,
    /// A fault that a test asked for, and how many more passages until it happens.
    pub(super) injection: Option<(Fault, u32)>,
}

impl Meter {
    /// One turn of the loop that woke up at this time.
    pub(super) fn turned(&mut self, woke_ns: u64) {
        let us = clock::boot_ns().saturating_sub(woke_ns) / 1000;
        let us = u32::try_from(us).unwrap_or(u32::MAX);
        let bucket = (u32::BITS - us.leading_zeros()) as usize;
        let bucket = &mut self.turns[bucket.min(TURN_BUCKETS - 1)];
        *bucket = bucket.saturating_add(1);
        self.turn_us_max = self.turn_us_max.max(us);
    }

    /// Before there is a socket to ask for it, a container's host can say that a fault is to happen after so many passages.
    pub(super) fn inject_into_boot(&mut self, container: bool) {
        let after = std::env::var("DYAD_INJECT").ok().filter(|_| container);
        self.injection = after.and_then(|text| text.parse().ok()).map(|after| (Fault::Abort, after));
    }

    /// A place between writing down and doing, where the next line may be the last of this image.
    pub(super) fn passage(&mut self) {
        match &mut self.injection {
            None => {}
            Some((_, left)) if *left > 0 => *left -= 1,
            Some((fault, _)) => {
                let injection = match *fault {
                    Fault::Panic => Injection::Panic,
                    Fault::Abort => Injection::Abort,
                    Fault::StackOverflow => Injection::StackOverflow,
                    Fault::NullWrite => Injection::NullWrite,
                    Fault::IllegalInstruction => Injection::IllegalInstruction,
                    Fault::Allocation => Injection::Allocation,
                    Fault::Freeze => Injection::Freeze,
                };
                fault::inject(injection);
            }
        }
    }
}

impl Core {
    /// A whole turn went well: the fault before it is over.
    pub(super) fn recovered(&mut self) {
        let Some(fault_ns) = self.meter.fault_ns.take() else { return };
        let us = clock::boot_ns().saturating_sub(fault_ns) / 1000;
        self.meter.recovery_us = u32::try_from(us).unwrap_or(u32::MAX);
        self.book.recovery_us_max = self.book.recovery_us_max.max(self.meter.recovery_us);
        self.save();
    }

    pub(super) fn stats(&self) -> Stats {
        let limit = |max: usize| u16::try_from(max).unwrap_or(u16::MAX);
        Stats {
            reexecs: self.book.reexecs,
            recovery_us: self.meter.recovery_us,
            recovery_us_max: self.book.recovery_us_max,
            allocations: dyad_sys::heap::allocations(),
            events: self.meter.events,
            turns: self.meter.turns,
            turn_us_max: self.meter.turn_us_max,
            clients: (limit(self.clients.count()), limit(clients::CLIENTS_MAX)),
            jobs: (limit(self.jobs.count()), limit(jobs::JOBS_MAX)),
            stored: (limit(self.bound.stored.iter().flatten().count()), limit(bound::STORED_MAX)),
            fence: self.book.fence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_by_length() {
        let mut meter = Meter::default();
        meter.turned(clock::boot_ns() - 100_000_000);
        meter.turned(u64::MAX);
        assert_eq!(meter.turns[0], 1, "time does not go backwards");
        assert_eq!(meter.turns[17], 1, "{:?}", meter.turns);
        assert!((100_000..131_072).contains(&meter.turn_us_max));
        let stats = Stats { turns: meter.turns, ..Stats::default() };
        assert_eq!((stats.turn_us(0.5), stats.turn_us(0.99)), (1, 1 << 17));
    }
}
