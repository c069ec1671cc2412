//! Faults carried out on a lab, and undone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::clock;
use super::ledger::Access;
use super::plan::{Cable, Fault, Process, Room, Who};
use super::volumes::Volumes;
use crate::{Lab, processes};

/// Both nodes, and the address of each on the clients' network.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
pub(crate) const ADDRESSES: [&str; 2] = ["10.77.0.11", "10.77.0.12"];
const WITNESS: &str = "witness";
const HOST: &str = "host";
/// Between the return of the first node and that of the second.
const LATER: Duration = Duration::from_secs(3);
const FLAP: Duration = Duration::from_millis(700);
const FLAPS: u32 = 4;
/// The cables of a node: to its clients, and to the other node.
const LAN: [&str; 2] = ["lan0", "lan1"];
const WIRES: [&str; 2] = ["repl0", "repl1"];
/// The kernel stands still for ever, and only the watchdog's hardware ends that.
const HANGS: &str = "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger";
/// Every fifth frame from and to a node (`NODE` stands for it) is lost.
const LOSSY: &str = "add table bridge noise; add chain bridge noise frames \
     { type filter hook forward priority 10; policy accept; }; \
     add rule bridge noise frames iifname \"NODE-*\" numgen random mod 5 == 0 drop; \
     add rule bridge noise frames oifname \"NODE-*\" numgen random mod 5 == 0 drop";
/// A line on which a queue builds up: frames wait up to 600 ms, and beyond that they are lost.
const THIN: &str = "root tbf rate 256kbit burst 2kb latency 600ms";
/// In a node.
const PG_CTL: &str = "/usr/lib/postgresql/15/bin/pg_ctl";
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
    /// Of containers.
    volumes: Option<&'a Volumes>,
    /// The control group of a lab of containers.
    group: Option<String>,
}

impl<'a> Injector<'a> {
    /// Of a lab whose volumes are nobody's.
    pub(crate) fn new(lab: &'a Lab) -> Self {
        Self::with(lab, None, Access::of(lab))
    }

    pub(crate) fn with(lab: &'a Lab, volumes: Option<&'a Volumes>, access: Access) -> Self {
        Injector { lab, access, volumes, group: processes::group(lab) }
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
            Fault::AllDown(order) => {
                self.power_cut(&order.of(one(Who::Holder), one(Who::Standby), WITNESS), &[LATER, LATER])
            }
            Fault::WitnessKill => self.power_cut(&[WITNESS], &[]),
            Fault::WitnessOldCopy => {
                let _starts_as_it_was = self.power_cut(&[WITNESS], &[])?;
                self.save_witness(&Knowledge::Newest);
                Some(Box::new(|hands| hands.restore_witness(&Knowledge::Old)))
            }
            Fault::Pause(who) | Fault::Stall(who) => self.pause(one(who)),
            Fault::HandPromote => self.promote(one(Who::Standby)),
            Fault::DiskFull(who, room) => self.fill(one(who), room),
            Fault::DiskSlow(who) => {
                let brake = self.volumes?.slow(one(who));
                Some(Box::new(move |_| drop(brake)))
            }
            Fault::DiskHangs(who) => self.hang(one(who)),
            Fault::Lossy(who) => self.lossy(one(who)),
            Fault::Late(who) => self.late(one(who)),
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
            Fault::Flapping => self.flap(),
            Fault::ClientLan(who) => self.unplug(one(who), &LAN, &[]),
            Fault::Member(who, Cable::Lan) => self.unplug(one(who), &LAN[..1], &[]),
            Fault::Member(who, Cable::Wire) => self.unplug(one(who), &WIRES[..1], &[]),
            Fault::Partner(who) => self.unplug(one(who), &WIRES, &["--silent"]),
            Fault::KernelHangs(who) => self.kernel_hangs(one(who)),
            Fault::Ends(who, process) => {
                self.signal(one(who), process, Signal::KILL)?;
                Some(Box::new(|_| {}))
            }
            Fault::Stops(who, process) => {
                let pids = self.signal(one(who), process, Signal::STOP)?;
                Some(Box::new(move |_| send(&pids, Signal::CONT)))
            }
            Fault::CancelStorm => self.cancel(ADDRESSES[holder]),
        }
    }

    fn flap(&self) -> Option<Undo> {
        for _ in 0..FLAPS {
            self.cut(&[&NODES]);
            clock::pause(FLAP);
            self.must(&["heal"]);
            clock::pause(FLAP);
        }
        Some(Box::new(|_| {}))
    }

    fn cancel(&self, host: &str) -> Option<Undo> {
        let mut storm = self.storm(host);
        self.cut(&[&NODES]);
        Some(Box::new(move |hands| {
            hands.must(&["heal"]);
            let _ = storm.kill();
            let _ = storm.wait();
        }))
    }

    fn fill(&self, node: &'static str, room: Room) -> Option<Undo> {
        self.volumes?.fill(node, room.percent());
        Some(Box::new(move |hands| {
            if let Some(volumes) = hands.volumes {
                volumes.free(node);
            }
        }))
    }

    fn hang(&self, node: &'static str) -> Option<Undo> {
        self.volumes?.freeze(node);
        Some(Box::new(move |hands| {
            if let Some(volumes) = hands.volumes {
                volumes.thaw(node);
            }
        }))
    }

    fn lossy(&self, node: &str) -> Option<Undo> {
        self.must(&["exec", "--", "/usr/sbin/nft", &LOSSY.replace("NODE", node)]);
        Some(Box::new(|hands| hands.quiet()))
    }

    fn late(&self, node: &'static str) -> Option<Undo> {
        let set = |link: &str| {
            let port = format!("{node}-{link}");
            let words = ["exec", "--", "/usr/sbin/tc", "qdisc", "replace", "dev", &port];
            let all: Vec<&str> = words.into_iter().chain(THIN.split(' ')).collect();
            self.lab.run(&all).status.success()
        };
        // A node that is off has no cables.
        cables().all(set).then(|| -> Undo { Box::new(|hands| hands.quiet()) })
    }

    /// Frames are neither lost nor late any more.
    fn quiet(&self) {
        // Refused where nothing was: a node that is off, a table that is not there.
        let ports = NODES.iter().flat_map(|node| cables().map(move |link| format!("{node}-{link}")));
        let script: String = ports.map(|port| format!("/usr/sbin/tc qdisc del dev {port} root; ")).collect();
        let script = script + "/usr/sbin/nft delete table bridge noise";
        self.lab.run(&["exec", "--", "/bin/sh", "-c", &script]);
    }

    /// `pg_ctl promote` by hand, in the node, as the user that the server runs as.
    fn promote(&self, node: &str) -> Option<Undo> {
        let words = |words: &str| words.contains("bin/postgres ");
        let (pid, _) = self.processes(node).into_iter().find(|(_, line)| words(line))?;
        let owner = fs::metadata(format!("/proc/{}", pid.as_raw_nonzero())).ok()?;
        let target = pid.as_raw_nonzero().to_string();
        let (uid, gid) = (owner.uid().to_string(), owner.gid().to_string());
        let into = ["--target", &target, "--user", "--mount", "--pid", "--setuid", &uid, "--setgid", &gid];
        let what = ["--", PG_CTL, "promote", "--no-wait", "-D", "/data/pg/main"];
        let done = crate::program("nsenter", &[&into[..], &what[..]].concat());
        // Refused by a server that is no standby any more.
        done.status.success().then(|| -> Undo { Box::new(|_| {}) })
    }

    /// Nothing is cut and nothing stands still any more.
    pub(crate) fn heal(&self) {
        self.must(&["heal"]);
        let groups = NODES.iter().flat_map(|node| self.processes(node));
        send(&groups.map(|(pid, _)| pid).collect::<Vec<_>>(), Signal::CONT);
    }

    /// Whatever an undone fault may have left is put right.
    pub(crate) fn sweep(&self) {
        self.quiet();
        for (volumes, node) in self.volumes.iter().flat_map(|volumes| NODES.map(|node| (volumes, node))) {
            volumes.thaw(node);
            volumes.free(node);
        }
        for node in NODES {
            self.plug(node, cables());
        }
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

    fn unplug(&self, node: &'static str, cables: &'static [&'static str], how: &[&str]) -> Option<Undo> {
        // A node that is off has no cables.
        let pulled = cables
            .iter()
            .filter(|nic| self.lab.run(&[&["unplug", node, nic], how].concat()).status.success());
        (pulled.count() > 0)
            .then(|| -> Undo { Box::new(move |hands| hands.plug(node, cables.iter().copied())) })
    }

    fn plug(&self, node: &str, cables: impl Iterator<Item = &'static str>) {
        for nic in cables {
            self.lab.run(&["plug", node, nic]);
        }
    }

    /// Of a machine. It comes back by itself.
    fn kernel_hangs(&self, node: &str) -> Option<Undo> {
        let words = ["ctl", node, "--", "exec", "--deadline-ms", "1000", "--", "/bin/sh", "-ec", HANGS];
        // Nobody answers any more.
        let done = self.lab.run(&words);
        (!done.status.success()).then(|| -> Undo { Box::new(|_| {}) })
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

    /// Processes of a container with their command lines.
    pub(crate) fn processes(&self, node: &str) -> Vec<(Pid, String)> {
        let all = self.group.iter().flat_map(|group| processes::of(group, node));
        all.map(|process| (process.pid, process.words)).collect()
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

/// All cables of a node.
fn cables() -> impl Iterator<Item = &'static str> {
    LAN.into_iter().chain(WIRES)
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
