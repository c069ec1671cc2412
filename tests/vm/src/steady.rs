//! What it costs that somebody watches: pgbench against a protected pair of containers, by turns with plain synchronous
//! replication between two servers with the same settings, and what a node does while nobody asks it anything.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;

use crate::boot::wait;
use crate::chaos::inject::{Injector, NODES};
use crate::chaos::ledger::Access;
use crate::chaos::{clock, wait_protected, watch};
use crate::failover::table::{load, spread};
use crate::failover::world::{ADDRESSES, MACHINES, Machine, PATIENCE, USER, World};
use crate::{Lab, root};

const PASSWORD: &str = "bench";
/// Rows of pgbench's tables, in its own measure.
const SCALE: &str = "10";
/// For the pair to come to rest, and for how long it is looked at then.
const REST: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(60);
/// Settings of a node that are about where it is and who it talks to: the servers beside it have their own.
const OWN: &str = "^(listen_addresses|port|unix_socket_.*|.*_file|data_directory|cluster_name|primary_.*|\
                   synchronous_standby_names|ssl.*|log_.*|shared_preload_libraries|dyad_guard.*|restore_command|archive_.*|\
                   lc_.*|logging_collector|hot_standby_feedback|recovery_.*|external_pid_file)$";

/// How much.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Runs of each, by turns.
    pub pairs: usize,
    /// Length of each run.
    pub seconds: u32,
    /// Clients of pgbench.
    pub clients: u32,
}

/// Measures and prints tables; Debian's packages are unpacked in `packages`. Needs root.
pub fn run(amount: Amount, packages: &Path) {
    let before = load();
    let lab = Lab::up_with(&root().join("images/lab.toml"), 2, &["--backend", "container"]);
    let hands = Injector::new(&lab);
    assert!(wait_protected(&hands).0.is_some(), "the pair does not become PROTECTED");
    idle(&hands);
    let access = Access::of(&lab);
    let vip = watch::VIP.to_string();
    let plain = Plain::up(packages, &settings(&lab));
    let ours = |args: &[&str]| {
        let target = ["chroot", text(packages), BENCH, "-h", &vip, "-U", "lab"];
        let mut command = access.inside(&[&target[..], args, &["lab"]].concat());
        measured(command.env("PGPASSWORD", &access.password))
    };
    let theirs = |args: &[&str]| {
        let target = [text(packages), BENCH, "-h", ADDRESSES[0], "-U", "postgres"];
        let mut command =
            plain.world.clients(Path::new("chroot"), &[&target[..], args, &["postgres"]].concat());
        measured(command.env("PGPASSWORD", PASSWORD))
    };
    let fill = ["-i", "-q", "-s", SCALE];
    ours(&fill);
    theirs(&fill);
    let (seconds, clients) = (amount.seconds.to_string(), amount.clients.to_string());
    let args = ["-n", "-T", &seconds, "-c", &clients, "-j", "2"];
    let mut pairs = Vec::new();
    for turn in 0..amount.pairs {
        // Whoever is first has the emptier machine: by turns.
        let (one, other) = if turn % 2 == 0 {
            let one = tps(&ours(&args));
            (one, tps(&theirs(&args)))
        } else {
            let other = tps(&theirs(&args));
            (tps(&ours(&args)), other)
        };
        println!("pair {turn}: {one:.0} and {other:.0} transactions a second");
        pairs.push((one, other));
    }
    assert!(wait_protected(&hands).0.is_some(), "the pair did not stay PROTECTED");
    println!("\nload before: {before}, at the end: {}; {amount:?}\n", load());
    println!("| transactions a second | min | median | max |\n|---|---|---|---|");
    print("watched and guarded", pairs.iter().map(|pair| pair.0).collect(), 0);
    print("plain synchronous replication", pairs.iter().map(|pair| pair.1).collect(), 0);
    print("ratio of each pair of runs", pairs.iter().map(|pair| pair.0 / pair.1).collect(), 3);
}

const BENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";

fn print(what: &str, values: Vec<f64>, digits: usize) {
    if let Some([min, median, _, max]) = spread(&values) {
        println!("| {what} | {min:.digits$} | {median:.digits$} | {max:.digits$} |");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the packages' directory is UTF-8")
}

/// Runs pgbench; what it says. Clients of both speak TLS.
fn measured(command: &mut std::process::Command) -> String {
    let output = command.env("PGSSLMODE", "require").output().expect("pgbench can be started");
    crate::stdout("pgbench", &output)
}

fn tps(said: &str) -> f64 {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "));
    let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("pgbench names no tps: {said}"))
}

/// What the site and the image set on the holder, as lines of `postgresql.conf`.
fn settings(lab: &Lab) -> String {
    lab.sql(&format!(
        "select string_agg(format('%s = %L', name, setting), E'\\n' order by name) from pg_settings \
         where source in ('configuration file', 'command line') and name !~ '{OWN}'"
    ))
}

/// Two servers, one of which waits for the other with every commit, and nobody who looks after them.
struct Plain {
    _machines: [Machine; 2],
    world: World,
}

impl Plain {
    fn up(packages: &Path, settings: &str) -> Self {
        let world = World::new(packages);
        for (at, own) in [
            "synchronous_standby_names = 'other'".to_owned(),
            format!(
                "primary_conninfo = 'host={} user=postgres password={PASSWORD} sslmode=require \
                 application_name=other'",
                ADDRESSES[0]
            ),
        ]
        .iter()
        .enumerate()
        {
            let etc = world.root(MACHINES[at]).join("etc");
            // Between the nodes of a pair WAL goes encrypted: here too.
            let conf = format!(
                "{settings}\n{own}\nlisten_addresses = '*'\nunix_socket_directories = '/tmp'\nwal_keep_size = 1GB\n\
                 ssl = on\nssl_cert_file = '/data/cert'\nssl_key_file = '/data/key'\n"
            );
            for (name, text) in [
                ("own.conf", conf.as_str()),
                ("password", PASSWORD),
                ("openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n"),
            ] {
                fs::write(etc.join(name), text).expect("a file can be written");
            }
        }
        let start = |at: usize, data: &str| {
            world.start(MACHINES[at], ADDRESSES[at], &format!("{KEY}\n{data}\n{SERVE}"))
        };
        let one = start(
            0,
            "$as $bin/initdb --no-sync --pwfile=/etc/password --auth=scram-sha-256 -U postgres -D /data/pg
             echo 'host all all 10.78.0.0/24 scram-sha-256' >> $root/data/pg/pg_hba.conf
             echo 'host replication all 10.78.0.0/24 scram-sha-256' >> $root/data/pg/pg_hba.conf
             echo \"include '/etc/own.conf'\" >> $root/data/pg/postgresql.conf",
        );
        wait("the first server", PATIENCE, || asked(&world, packages, "select 1") == "1");
        let other = start(
            1,
            &format!(
                "PGPASSWORD={PASSWORD} $as $bin/pg_basebackup -h {} -U postgres -D /data/pg -X stream -c fast
                 : > $root/data/pg/standby.signal; chown {USER} $root/data/pg/standby.signal",
                ADDRESSES[0]
            ),
        );
        let state = "select sync_state from pg_stat_replication";
        wait("a synchronous standby", PATIENCE, || asked(&world, packages, state) == "sync");
        Plain { _machines: [one, other], world }
    }
}

/// A machine's certificate, by itself; what follows uses the words of its first line.
const KEY: &str = "bin=/usr/lib/postgresql/15/bin; as=\"chroot --userspec=5432:5432 $root\"
    $as /usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=bench \
        -config /etc/openssl.cnf -keyout /data/key -out /data/cert";
const SERVE: &str = "exec $as $bin/postgres -D /data/pg";

/// The first server's answer to its superuser; empty when there is none.
fn asked(world: &World, packages: &Path, sql: &str) -> String {
    let psql = [text(packages), "/usr/lib/postgresql/15/bin/psql", "-XAtqc", sql, "-h", ADDRESSES[0]];
    let mut psql = world.clients(Path::new("chroot"), &[&psql[..], &["-U", "postgres"]].concat());
    let output = psql.env("PGPASSWORD", PASSWORD).output().expect("psql can be started");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a process of a node has used and has, added up over those of one kind.
#[derive(Default, Clone, Copy)]
struct Use {
    cpu_ns: u64,
    resident_kib: u64,
}

fn used(pid: Pid) -> Use {
    let dir = format!("/proc/{}", pid.as_raw_nonzero());
    let threads = fs::read_dir(format!("{dir}/task")).into_iter().flatten().flatten();
    let spent = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let status = fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    Use { cpu_ns: spent.sum(), resident_kib: resident.unwrap_or(0) }
}

/// Processes whose figures are shown by themselves; all others are one row.
const KINDS: [(&str, &str); 2] = [("supervisor", "dyad/supervisor"), ("PostgreSQL", "postgres")];

fn kind(pid: Pid, words: &str) -> &'static str {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    // It runs from memory: its command line names no file.
    if numbers.split_whitespace().last() == Some("1") {
        return "PID 1";
    }
    KINDS.iter().find(|(_, part)| words.contains(part)).map_or("all others", |(name, _)| name)
}

/// Prints what each kind of process does on a pair that nobody uses.
fn idle(hands: &Injector<'_>) {
    clock::pause(REST);
    println!("| node | processes | CPU ms per s | resident KiB |\n|---|---|---|---|");
    let before = NODES.map(|node| {
        hands.processes(node).into_iter().map(|(pid, _)| (pid, used(pid))).collect::<HashMap<_, _>>()
    });
    let begun = clock::now();
    clock::pause(LOOK);
    let seconds = (clock::now() - begun).as_secs_f64();
    for (node, before) in NODES.into_iter().zip(before) {
        let mut kinds = BTreeMap::<_, Use>::new();
        for (pid, words) in hands.processes(node) {
            let (now, then) = (used(pid), before.get(&pid).copied().unwrap_or_default());
            let sum = kinds.entry(kind(pid, &words)).or_default();
            sum.cpu_ns += now.cpu_ns.saturating_sub(then.cpu_ns);
            sum.resident_kib += now.resident_kib;
        }
        for (name, sum) in kinds {
            let ms_per_s = sum.cpu_ns as f64 / 1e6 / seconds;
            println!("| {node} | {name} | {ms_per_s:.2} | {} |", sum.resident_kib);
        }
    }
}
