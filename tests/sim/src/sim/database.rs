//! A model of what keeps one resource's data: PostgreSQL (WAL, timelines, the synchronous setting and when it reaches the
//! backends, rewind's blind spot, cancels) or a DRBD volume. `calibrate` runs the same scripts against it and against the
//! real server.

use dyad_cluster::types::Tick;

/// What keeps the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// A DRBD volume, written by a virtual machine.
    Volume,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Nothing.
    Stopped,
    /// A standby; secondary.
    Following,
    /// Takes writes; primary.
    Serving,
}

/// What became of a client's write at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Acknowledged: this index of the log.
    Acknowledged(usize),
    /// Waits for the standby.
    Waits,
    /// Not accepted: nothing serves, nobody is let in, or new clients hang.
    Refused,
}

/// What `pg_rewind` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewound {
    /// "no rewind required": both control files name one timeline. Nothing was changed, whatever the logs hold.
    NotRequired,
    /// Rewound; these writes were dropped from the log (and are in quarantine).
    Done(Vec<u64>),
}

/// One resource's data on one node, and its service.
#[derive(Debug, Clone)]
pub struct Database {
    /// What it is.
    pub kind: Kind,
    /// A disk with nothing on it: no server's data yet.
    pub blank: bool,
    /// Which copy: new after every rewind and clone.
    pub generation: u64,
    /// Timeline of the end of the log.
    pub timeline: u32,
    /// Timeline of the last checkpoint, which is what the control file names.
    pub control_timeline: u32,
    /// Earlier timelines and the length of the log where each ended.
    pub history: Vec<(u32, usize)>,
    /// The data was last a standby's: serving it makes a new timeline.
    pub in_recovery: bool,
    /// Writes, in order.
    pub log: Vec<u64>,
    /// What runs.
    pub service: Service,
    /// The setting in the file.
    pub armed: bool,
    /// What the backends go by: only the checkpointer publishes the setting, first when it starts.
    pub published: bool,
    /// Clients are let in.
    pub admitted: bool,
    /// False: SIGSTOP.
    pub checkpointer_runs: bool,
    /// False: SIGSTOP. New connections hang, old ones go on.
    pub postmaster_runs: bool,
    /// The guard library is loaded: a cancelled commit goes on waiting.
    pub guarded: bool,
    /// Writes that wait for the standby: index in the log.
    pub waiting: Vec<usize>,
    /// Raised by every kill: what was under way before has failed.
    pub kills: u64,
    /// When the stream was last seen to be up, on the true clock.
    pub streamed: Option<u64>,
    /// What the core was told last of the link.
    pub link_told: Option<bool>,
    /// Since when it was killed and still lives.
    pub killing_since: Option<u64>,
    /// Since when it hangs.
    pub sick_since: Option<u64>,
}

impl Database {
    /// Empty, on timeline 1.
    pub fn new(kind: Kind, generation: u64) -> Database {
        Database {
            kind,
            blank: false,
            generation,
            timeline: 1,
            control_timeline: 1,
            history: Vec::new(),
            in_recovery: false,
            log: Vec::new(),
            service: Service::Stopped,
            armed: false,
            published: false,
            admitted: false,
            checkpointer_runs: true,
            postmaster_runs: true,
            guarded: true,
            waiting: Vec::new(),
            kills: 0,
            streamed: None,
            link_told: None,
            killing_since: None,
            sick_since: None,
        }
    }

    /// Starts it as the holder's.
    pub fn serve(&mut self, sync: bool) {
        if self.in_recovery && self.kind == Kind::Postgres {
            self.history.push((self.timeline, self.log.len()));
            self.timeline += 1;
        }
        self.in_recovery = false;
        self.killing_since = None;
        self.service = Service::Serving;
        (self.armed, self.published, self.admitted) = (sync, sync, !sync);
        self.link_told = None;
    }

    /// Starts it as a standby.
    pub fn follow(&mut self) {
        self.service = Service::Following;
        self.in_recovery = true;
        self.link_told = None;
    }

    /// It ends without a shutdown checkpoint.
    pub fn stop(&mut self) {
        self.service = Service::Stopped;
        self.admitted = false;
        (self.checkpointer_runs, self.postmaster_runs, self.sick_since) = (true, true, None);
        self.waiting.clear();
        self.killing_since = None;
        (self.streamed, self.link_told) = (None, None);
        self.kills += 1;
    }

    /// A shutdown with its checkpoint.
    pub fn stop_clean(&mut self) {
        self.checkpoint();
        self.stop();
    }

    /// False: the checkpointer does not run.
    pub fn checkpoint(&mut self) -> bool {
        if self.checkpointer_runs {
            self.control_timeline = self.timeline;
        }
        self.checkpointer_runs
    }

    /// The setting and a reload.
    pub fn arm(&mut self, sync: bool) {
        self.armed = sync;
        self.publish();
    }

    /// The checkpointer tells the backends. Those that wait for nobody any more are let go: their indices.
    pub fn publish(&mut self) -> Vec<usize> {
        if self.checkpointer_runs {
            self.published = self.armed;
        }
        if self.published { Vec::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// A write on a connection that is `fresh` or was there before.
    pub fn write(&mut self, write: u64, fresh: bool) -> Written {
        if self.service != Service::Serving || !self.admitted || (fresh && !self.postmaster_runs) {
            return Written::Refused;
        }
        self.log.push(write);
        let at = self.log.len() - 1;
        if self.published {
            self.waiting.push(at);
            Written::Waits
        } else {
            Written::Acknowledged(at)
        }
    }

    /// Cancels every waiting write. Without the guard each is answered as committed, though only this node has it.
    pub fn cancel(&mut self) -> Vec<usize> {
        if self.guarded { Vec::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// The standby's receiver finds its place in the holder's log. On one timeline only positions are compared, never
    /// contents; from an older timeline it may go on up to the fork.
    pub fn may_stream_from(&self, holder: &Database) -> bool {
        if self.service != Service::Following || holder.service != Service::Serving {
            return false;
        }
        if self.kind == Kind::Volume {
            return self.is_prefix_of(holder);
        }
        self.may_go_on(holder)
    }

    /// By timelines and positions alone.
    fn may_go_on(&self, holder: &Database) -> bool {
        if self.timeline == holder.timeline {
            return self.log.len() <= holder.log.len();
        }
        let fork = holder.history.iter().find(|(timeline, _)| *timeline == self.timeline);
        fork.is_some_and(|(_, end)| self.log.len() <= *end)
    }

    /// Takes what the holder has; what waited there is acknowledged: its indices.
    pub fn stream_from(&mut self, holder: &mut Database) -> Vec<usize> {
        let have = self.log.len();
        self.log.extend_from_slice(&holder.log[have..]);
        self.timeline = holder.timeline;
        self.history.clone_from(&holder.history);
        std::mem::take(&mut holder.waiting)
    }

    /// What comparing the logs' contents says. A write is only ever copied together with all before it, so equal writes
    /// in one place mean equal pasts.
    pub fn is_prefix_of(&self, other: &Database) -> bool {
        self.log.last().is_none_or(|last| other.log.get(self.log.len() - 1) == Some(last))
    }

    /// `pg_rewind` of this stopped data to the holder's; for a volume the resync that follows `invalidate`.
    pub fn rewind_to(&mut self, holder: &Database, generation: u64) -> Rewound {
        if self.kind == Kind::Postgres && self.control_timeline == holder.control_timeline {
            return Rewound::NotRequired;
        }
        let common = self.log.iter().zip(&holder.log).take_while(|(a, b)| a == b).count();
        if self.kind == Kind::Postgres && common == self.log.len() && self.may_go_on(holder) {
            return Rewound::NotRequired;
        }
        let tail = self.log.split_off(common);
        self.copied(holder, generation);
        Rewound::Done(tail)
    }

    /// A base backup into a new place; the old log is quarantined.
    pub fn clone_of(&mut self, holder: &Database, generation: u64) -> Vec<u64> {
        let common = self.log.iter().zip(&holder.log).take_while(|(a, b)| a == b).count();
        let tail = self.log.split_off(common);
        self.blank = false;
        self.log.clone_from(&holder.log);
        self.copied(holder, generation);
        tail
    }

    fn copied(&mut self, holder: &Database, generation: u64) {
        self.generation = generation;
        self.in_recovery = true;
        (self.timeline, self.control_timeline) = (holder.timeline, holder.control_timeline);
        self.history.clone_from(&holder.history);
        self.history.retain(|(_, end)| *end <= self.log.len());
        if self.history.len() < holder.history.len() {
            self.timeline = holder.history[self.history.len()].0;
        }
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
