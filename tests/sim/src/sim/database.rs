//! A model of PostgreSQL's part: a log of writes, timelines, the synchronous setting and when it reaches the backends.

use dyad_cluster::types::Tick;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Stopped,
    Following,
    Serving,
}

/// One resource's data on one node, and its service.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) generation: u64,
    pub(crate) timeline: u32,
    /// The data was last a standby's: serving it makes a new timeline.
    pub(crate) in_recovery: bool,
    pub(crate) log: Vec<u64>,
    pub(crate) service: Service,
    /// The setting in the file.
    pub(crate) armed: bool,
    /// What the backends go by: only a checkpoint publishes a setting that was switched on.
    pub(crate) published: bool,
    pub(crate) admitted: bool,
    /// Writes that wait for the standby: index in the log.
    pub(crate) waiting: Vec<usize>,
    /// Raised by every kill: what was under way before has failed.
    pub(crate) kills: u64,
    /// When the stream last moved or was seen to be up, on the true clock.
    pub(crate) streamed: Option<u64>,
    pub(crate) link_told: Option<bool>,
}

impl Database {
    pub(crate) fn new(generation: u64) -> Database {
        Database {
            generation,
            timeline: 1,
            in_recovery: false,
            log: Vec::new(),
            service: Service::Stopped,
            armed: false,
            published: false,
            admitted: false,
            waiting: Vec::new(),
            kills: 0,
            streamed: None,
            link_told: None,
        }
    }

    pub(crate) fn serve(&mut self, sync: bool) {
        if self.in_recovery {
            self.timeline += 1;
            self.in_recovery = false;
        }
        self.service = Service::Serving;
        (self.armed, self.published, self.admitted) = (sync, sync, !sync);
        self.link_told = None;
    }

    pub(crate) fn stop(&mut self) {
        self.service = Service::Stopped;
        self.admitted = false;
        self.waiting.clear();
        self.streamed = None;
        self.link_told = None;
        self.kills += 1;
    }

    pub(crate) fn drop_sync(&mut self) {
        (self.armed, self.published, self.admitted) = (false, false, true);
    }

    /// A write is only ever copied together with all before it, so equal writes in one place mean equal pasts.
    pub(crate) fn is_prefix_of(&self, other: &Database) -> bool {
        self.log.last().is_none_or(|last| other.log.get(self.log.len() - 1) == Some(last))
    }

    /// Follows: forgets a tail that is not the holder's and takes what is. Returns the dropped tail.
    pub(crate) fn rewind_to(&mut self, holder: &[u64], generation: u64) -> Vec<u64> {
        let common = self.log.iter().zip(holder).take_while(|(a, b)| a == b).count();
        self.generation = generation;
        self.in_recovery = true;
        self.log.split_off(common)
    }
}

/// A clock that runs a little fast or slow and began at its own moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) offset_ms: u64,
    /// Parts per million, off by 1000.
    pub(crate) rate_ppm: u64,
}

impl Clock {
    pub(crate) fn read(self, true_ms: u64) -> Tick {
        Tick(self.offset_ms + true_ms * (1_000_000 - 1_000 + self.rate_ppm) / 1_000_000)
    }

    /// First moment on the true clock at which this one shows `tick` or more.
    pub(crate) fn when(self, tick: Tick) -> u64 {
        let mut at = tick.0.saturating_sub(self.offset_ms) * 1_000_000 / (1_000_000 - 1_000 + self.rate_ppm);
        while self.read(at) < tick {
            at += 1;
        }
        at
    }
}
