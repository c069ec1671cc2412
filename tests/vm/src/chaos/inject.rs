//! Faults carried out on a lab, and undone.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::clock;
use super::ledger::Access;
use super::plan::{Fault, Process, Who};
use crate::Lab;

/// Both nodes, and the address of each on the clients' network.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
pub(crate) const ADDRESSES: [&str; 2] = ["10.77.0.11", "10.77.0.12"];
const WITNESS: &str = "witness";
const HOST: &str = "host";
/// Between the return of the first node and that of the second.
const LATER: Duration = Duration::from_secs(3);
const FLAP: Duration = Duration::from_millis(700);
const FLAPS: u32 = 4;
/// Looks for work to cancel this often, in seconds.
const STORM: &str = "\\watch 0.05";

/// What the witness knew once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// When the seed began.
    Old,
    /// When its old copy took its place.
    Newest,
}

impl Knowledge {
    fn name(&self) -> &'static str {
        match self {
            Knowledge::Old => "witness.old",
            Knowledge::Newest => "witness.newest",
        }
    }
}

/// What is done when a fault ends.
pub(crate) type Undo = Box<dyn FnOnce(&Injector<'_>)>;

/// The hands of a run.
pub(crate) struct Injector<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) access: Access,
    /// The control group of a lab of containers.
    cgroup: Option<String>,
}

impl<'a> Injector<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let text = fs::read(lab.state().join("lab.json")).expect("the lab says what it is made of");
        let made: Value = serde_json::from_slice(&text).expect("lab.json is JSON");
        let cgroup = made["backend"]["container"]["cgroup"].as_str();
        let cgroup = cgroup.and_then(|path| Some(Path::new(path).file_name()?.to_str()?.to_owned()));
        Injector { lab, access: Access::of(lab), cgroup }
    }

    /// Begins a fault; `None`: there was nothing to do it to (no such process, a node that is off).
    pub(crate) fn begin(&self, fault: Fault, holder: usize) -> Option<Undo> {
        let at = |who: Who| if who == Who::Holder { holder } else { 1 - holder };
        let one = |who| NODES[at(who)];
        let other = |who| NODES[1 - at(who)];
        let heal: Undo = Box::new(|hands| hands.must(&["heal"]));
        match fault {
            Fault::Kill(who) => self.power_cut(&[one(who)], &[]),
            Fault::BothDown { first_back } => self.power_cut(&[one(first_back), other(first_back)], &[LATER]),
            Fault::AllDown => self.power_cut(&[NODES[0], NODES[1], WITNESS], &[]),
            Fault::WitnessKill => self.power_cut(&[WITNESS], &[]),
            Fault::WitnessOldCopy => {
                let _starts_as_it_was = self.power_cut(&[WITNESS], &[])?;
                self.save_witness(&Knowledge::Newest);
                Some(Box::new(|hands| hands.restore_witness(&Knowledge::Old)))
            }
            Fault::Pause(who) => self.pause(one(who)),
            Fault::WitnessPause => self.pause(WITNESS),
            Fault::CutNodes => self.cut(&[&NODES]).then_some(heal),
            Fault::CutOneWay(who) => self.cut_one_way(&[(one(who), other(who))]).then_some(heal),
            Fault::CutWitness(who) => self.cut(&[&[one(who), WITNESS]]).then_some(heal),
            Fault::Isolated(who) => {
                let pairs = [other(who), WITNESS, HOST].map(|far| [one(who), far]);
                self.cut(&pairs.each_ref()).then_some(heal)
            }
            Fault::Deaf(who) => {
                self.cut_one_way(&[other(who), WITNESS, HOST].map(|far| (far, one(who)))).then_some(heal)
            }
            Fault::Flapping => {
                for _ in 0..FLAPS {
                    self.cut(&[&NODES]);
                    clock::pause(FLAP);
                    self.must(&["heal"]);
                    clock::pause(FLAP);
                }
                Some(Box::new(|_| {}))
            }
            Fault::ClientLan(who) => {
                self.cable(one(who), false);
                let node = one(who);
                Some(Box::new(move |hands| hands.cable(node, true)))
            }
            Fault::Ends(who, process) => {
                self.signal(one(who), process, Signal::KILL)?;
                Some(Box::new(|_| {}))
            }
            Fault::Stops(who, process) => {
                let pids = self.signal(one(who), process, Signal::STOP)?;
                Some(Box::new(move |_| send(&pids, Signal::CONT)))
            }
            Fault::CancelStorm => {
                let mut storm = self.storm(ADDRESSES[holder]);
                self.cut(&[&NODES]);
                Some(Box::new(move |hands| {
                    hands.must(&["heal"]);
                    let _ = storm.kill();
                    let _ = storm.wait();
                }))
            }
        }
    }

    /// Whatever is still wrong is put right.
    pub(crate) fn heal(&self) {
        self.must(&["heal"]);
        let groups = NODES.iter().flat_map(|node| self.processes(node));
        send(&groups.map(|(pid, _)| pid).collect::<Vec<_>>(), Signal::CONT);
        for member in [NODES[0], NODES[1], WITNESS] {
            // Refused for what runs, which is as it shall be.
            self.lab.run(&["resume", member]);
            self.lab.run(&["start", member]);
        }
    }

    /// The witness goes back to what it knew at an earlier time.
    pub(crate) fn restore_witness(&self, copy: &Knowledge) {
        self.lab.run(&["kill", WITNESS]);
        copy_dir(&self.lab.state().join(copy.name()), &self.witness_state());
        self.must(&["start", WITNESS]);
    }

    /// Keeps what the witness knows now.
    pub(crate) fn save_witness(&self, copy: &Knowledge) {
        copy_dir(&self.witness_state(), &self.lab.state().join(copy.name()));
    }

    fn witness_state(&self) -> PathBuf {
        self.lab.state().join("nodes").join(WITNESS).join("state")
    }

    /// A verb of the lab that is not refused.
    fn must(&self, words: &[&str]) {
        let output = self.lab.run(words);
        crate::stdout(&format!("dyad lab {}", words.join(" ")), &output);
    }

    /// All at once; they return in this order, each after its wait.
    fn power_cut(&self, members: &[&'static str], later: &[Duration]) -> Option<Undo> {
        let killed: Vec<_> =
            members.iter().copied().filter(|m| self.lab.run(&["kill", m]).status.success()).collect();
        if killed.is_empty() {
            return None;
        }
        let later = later.to_vec();
        Some(Box::new(move |hands| {
            for (at, member) in killed.iter().enumerate() {
                if let Some(wait) = at.checked_sub(1).and_then(|at| later.get(at)) {
                    clock::pause(*wait);
                }
                // Somebody else's fault may have started it.
                hands.lab.run(&["start", member]);
            }
        }))
    }

    fn pause(&self, member: &'static str) -> Option<Undo> {
        let stands = self.lab.run(&["pause", member]).status.success();
        stands.then(|| -> Undo {
            Box::new(move |hands| {
                hands.lab.run(&["resume", member]);
            })
        })
    }

    fn cut(&self, pairs: &[&[&str; 2]]) -> bool {
        pairs.iter().for_each(|[a, b]| self.must(&["cut", a, b]));
        true
    }

    fn cut_one_way(&self, pairs: &[(&str, &str)]) -> bool {
        pairs.iter().for_each(|(from, to)| self.must(&["cut", from, to, "--one-way"]));
        true
    }

    fn cable(&self, node: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        for link in ["lan0", "lan1"] {
            // A node that is off has no cables.
            self.lab.run(&["exec", "--", "/usr/sbin/ip", "link", "set", &format!("{node}-{link}"), state]);
        }
    }

    fn storm(&self, host: &str) -> Child {
        let mut psql = self.access.psql(host, &[]);
        let mut child =
            psql.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("dyad can be started");
        let mut input = child.stdin.take().expect("standard input is a pipe");
        // A client that does not get through has ended, and so has its pipe.
        let _ = writeln!(
            input,
            "select count(pg_cancel_backend(pid)) from pg_stat_activity where usename = current_user \
             and pid <> pg_backend_pid() {STORM}"
        );
        child
    }

    /// Processes of a container with their command lines, seen from outside.
    pub(crate) fn processes(&self, node: &str) -> Vec<(Pid, String)> {
        let Some(group) = &self.cgroup else { return Vec::new() };
        let place = format!("/{group}/{node}/");
        let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found = numbers.filter_map(|number: i32| {
            let read = |file: &str| fs::read(format!("/proc/{number}/{file}")).ok();
            let inside = String::from_utf8(read("cgroup")?).ok()?.contains(&place);
            let words = String::from_utf8_lossy(&read("cmdline")?).replace('\0', " ");
            inside.then_some((Pid::from_raw(number)?, words))
        });
        found.collect()
    }

    /// Sends a signal to every process of this kind; `None`: there is none.
    pub(crate) fn signal(&self, node: &str, process: Process, signal: Signal) -> Option<Vec<Pid>> {
        let is = |words: &str| match process {
            Process::Postmaster => words.contains("bin/postgres "),
            Process::Checkpointer => words.contains(": checkpointer"),
            Process::WalSender => words.contains(": walsender"),
            Process::WalReceiver => words.contains(": walreceiver"),
            Process::Supervisor => words.contains("dyad/supervisor"),
        };
        let all = self.processes(node);
        let pids: Vec<Pid> = all.into_iter().filter(|(_, words)| is(words)).map(|(pid, _)| pid).collect();
        send(&pids, signal);
        (!pids.is_empty()).then_some(pids)
    }
}

/// To processes that may be gone already.
pub(crate) fn send(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill_process(*pid, signal);
    }
}

/// The files of a directory, in place of what was there.
fn copy_dir(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("an old copy can be removed");
    }
    fs::create_dir_all(to).expect("a directory can be made");
    fs::set_permissions(to, fs::metadata(from).expect("it is there").permissions()).expect("a mode is set");
    for entry in fs::read_dir(from).expect("the directory can be read").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a file can be copied");
        }
    }
}
