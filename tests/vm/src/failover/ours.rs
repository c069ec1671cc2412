//! A lab of two containers and a witness (T = 3 s), and clients of its virtual address.

use std::time::Duration;

use dyad_cluster::phase::Phase;
use rustix::process::Signal;

use super::client::{Gap, Writer, now_us};
use super::story::{self, Edge};
use super::table;
use crate::Lab;
use crate::chaos::inject::{Injector, NODES, send};
use crate::chaos::plan::Process;
use crate::chaos::{clock, holder, status, wait_protected, watch};

/// For whatever must come.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(250);
/// A holder's leases and promises are renewed meanwhile, as in a cluster that was left alone.
const QUIET: Duration = Duration::from_secs(4);

/// What a node that was lost and came back took, in milliseconds.
#[derive(Default)]
struct Loss {
    gaps: Vec<f64>,
    /// Last acknowledgement, standby stops, granted, promoted, address answers, first acknowledgement: the time before each
    /// but the first.
    noticed: Vec<f64>,
    granted: Vec<f64>,
    promoted: Vec<f64>,
    answered: Vec<f64>,
    written: Vec<f64>,
}

/// From a node's power on.
#[derive(Default)]
struct Return {
    follows: Vec<f64>,
    synchronous: Vec<f64>,
    protected: Vec<f64>,
}

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Figures {
    loss: Loss,
    back: Return,
    killed: Moves,
    stopped: Moves,
    checkpointer: Moves,
    switched: Moves,
    degraded: Vec<f64>,
    back_standby: Return,
}

/// Gaps, and how often the other node went on.
#[derive(Default)]
struct Moves {
    gaps: Vec<f64>,
    moved: usize,
}

/// A protected pair with a client.
pub(crate) struct Ours<'a> {
    writer: Writer,
    hands: Injector<'a>,
}

fn ms(from_us: u64, to_us: u64) -> f64 {
    (to_us as f64 - from_us as f64) / 1000.0
}

impl<'a> Ours<'a> {
    /// Starts the client of a lab that is protected.
    pub(crate) fn with(lab: &'a Lab) -> Self {
        let hands = Injector::new(lab);
        let own = std::env::current_exe().expect("a program knows its file");
        let own = own.to_str().expect("the target directory is UTF-8");
        let vip = watch::VIP.to_string();
        let mut command = hands.access.inside(&[own, "client", "lab", "lab", &vip]);
        let authority = lab.state().join("authority.pem");
        let credentials = lab.ask("node-a", &["credentials"]);
        let text = credentials["authority"].as_str().expect("a pair has an authority");
        std::fs::write(&authority, text).expect("a file can be written");
        command.env("PGPASSWORD", &hands.access.password).env("PGSSLROOTCERT", &authority);
        Self { writer: Writer::start(command), hands }
    }

    /// Waits until everything is well and clients write; the holder and its server.
    fn ready(&self, quiet: Duration) -> (usize, String) {
        let (protected, _) = wait_protected(&self.hands);
        assert!(protected.is_some(), "the pair does not become PROTECTED");
        clock::pause(quiet);
        assert!(self.writer.writes(PATIENCE), "clients do not get through");
        (holder(self.hands.lab).expect("somebody is primary"), self.writer.server().unwrap_or_default())
    }

    /// As when a plug is pulled: silent at once, and then gone.
    fn power_cut(&self, node: usize) {
        self.hands.lab.ok(&["pause", NODES[node]]);
        self.hands.lab.ok(&["kill", NODES[node]]);
    }

    fn replaced(&self, server: &str, from: u64) -> Gap {
        let gap = self.writer.replaced(server, from, PATIENCE);
        gap.unwrap_or_else(|| panic!("nobody acknowledges within {PATIENCE:?}"))
    }

    /// Switches a node on and measures its way back.
    fn back(&self, node: usize, figures: &mut Return) {
        let on = now_us();
        self.hands.lab.ok(&["start", NODES[node]]);
        self.ready(Duration::ZERO);
        figures.protected.push(ms(on, now_us()));
        let its = story::edges(self.hands.lab, NODES[node], on);
        let holders = story::edges(self.hands.lab, NODES[1 - node], on);
        let follows = its.iter().rfind(|edge| edge.to == Phase::Following).map(|edge| edge.at_us);
        let synchronous = holders.iter().rfind(|edge| edge.to == Phase::Sync).map(|edge| edge.at_us);
        figures.follows.extend(follows.map(|at| ms(on, at)));
        figures.synchronous.extend(follows.zip(synchronous).map(|(from, to)| ms(from, to)));
    }

    fn node_loss(&self, figures: &mut Figures) {
        let (lost, server) = self.ready(QUIET);
        let from = now_us();
        self.power_cut(lost);
        let gap = self.replaced(&server, from);
        figures.loss.add(gap, &story::edges(self.hands.lab, NODES[1 - lost], gap.last_us));
        println!("node loss: {:.0} ms", gap.ms());
        self.back(lost, &mut figures.back);
    }

    /// A process of the holder gets a signal; one that was stopped goes on when all is over.
    fn disturbed(&self, process: Process, signal: Signal, moves: &mut Moves) {
        let (at, server) = self.ready(QUIET);
        let from = now_us();
        let pids = self.hands.signal(NODES[at], process, signal).expect("the process is there");
        let gap = self.replaced(&server, from);
        println!("{process:?} {signal:?}: {:.0} ms", gap.ms());
        if signal == Signal::STOP {
            send(&pids, Signal::CONT);
        }
        moves.gaps.push(gap.ms());
        moves.moved += usize::from(self.ready(Duration::ZERO).0 != at);
    }

    fn switchover(&self, moves: &mut Moves) {
        let (at, server) = self.ready(QUIET);
        let from = now_us();
        let processes = self.hands.processes(NODES[at]);
        let supervisor = processes.iter().find(|(_, words)| words.contains("dyad/supervisor"));
        let (pid, _) = supervisor.expect("the holder has a supervisor");
        // As its operator would, on the node.
        let pid = pid.as_raw_nonzero().to_string();
        let inside = ["--all", "--target", &pid, "--", "/usr/bin/dyadctl", "switchover"];
        crate::stdout("dyadctl switchover", &crate::program("nsenter", &inside));
        let gap = self.replaced(&server, from);
        println!("switchover: {:.0} ms", gap.ms());
        moves.gaps.push(gap.ms());
        moves.moved += usize::from(self.ready(Duration::ZERO).0 != at);
    }

    fn standby_loss(&self, figures: &mut Figures) {
        let (at, _) = self.ready(QUIET);
        let from = now_us();
        self.power_cut(1 - at);
        let begun = clock::now();
        let solo =
            || status(self.hands.lab, NODES[at]).is_some_and(|it| it["resources"][0]["mode"] == "Solo");
        while !solo() {
            assert!(clock::now() - begun < PATIENCE, "the holder does not go on alone");
            clock::pause(LOOK);
        }
        assert!(self.writer.writes(PATIENCE), "clients do not get through");
        let gap = self.writer.longest(from).expect("there are acknowledgements");
        println!("standby loss: {:.0} ms", gap.ms());
        figures.degraded.push(gap.ms());
        self.back(1 - at, &mut figures.back_standby);
    }

    /// So many losses of the holder, and a tenth of that of everything else.
    pub(crate) fn run(&self, rounds: usize) -> Figures {
        let mut figures = Figures::default();
        for round in 0..rounds {
            self.node_loss(&mut figures);
            if round % 10 == 0 {
                self.disturbed(Process::Postmaster, Signal::KILL, &mut figures.killed);
                self.disturbed(Process::Postmaster, Signal::STOP, &mut figures.stopped);
                self.disturbed(Process::Checkpointer, Signal::STOP, &mut figures.checkpointer);
                self.switchover(&mut figures.switched);
                self.standby_loss(&mut figures);
            }
        }
        figures
    }
}

impl Loss {
    fn add(&mut self, gap: Gap, edges: &[Edge]) {
        self.gaps.push(gap.ms());
        let stops = story::left(edges, Phase::Following);
        let granted = story::came_to(edges, Phase::Promoting);
        let promoted = story::left(edges, Phase::Promoting);
        let steps = (stops, granted, promoted, gap.accepted_us);
        let (Some(stops), Some(granted), Some(promoted), Some(accepted)) = steps else {
            return println!("  (its phases are not known: {steps:?})");
        };
        self.noticed.push(ms(gap.last_us, stops));
        self.granted.push(ms(stops, granted));
        self.promoted.push(ms(granted, promoted));
        self.answered.push(ms(promoted, accepted));
        self.written.push(ms(accepted, gap.first_us));
    }
}

impl Moves {
    fn row(&self, what: &str) {
        let all = self.gaps.len();
        table::row(&format!("{what}; the other node went on in {} of {all}", self.moved), &self.gaps);
    }
}

impl Figures {
    /// Rows of the table.
    pub(crate) fn rows(&self) {
        let Loss { gaps, noticed, granted, promoted, answered, written } = &self.loss;
        table::row("**node lost, last to first acknowledged write**", gaps);
        table::row("— until the standby stops following: silence, and its lease over", noticed);
        table::row("— until the witness granted, and the standby looked at its data again", granted);
        table::row("— until PostgreSQL is promoted", promoted);
        table::row("— until a client's connection to the address is accepted", answered);
        table::row("— until its first write is acknowledged", written);
        self.killed.row("PostgreSQL killed");
        self.stopped.row("postmaster stopped");
        self.checkpointer.row("checkpointer stopped");
        self.switched.row("switchover");
        table::row("standby lost, until the holder acknowledges alone", &self.degraded);
        for (who, back) in [("old holder", &self.back), ("old standby", &self.back_standby)] {
            table::row(&format!("{who}'s power on until it follows"), &back.follows);
            table::row("— from there until writes are synchronous again", &back.synchronous);
            table::row(&format!("{who}'s power on until PROTECTED and written to"), &back.protected);
        }
    }
}
