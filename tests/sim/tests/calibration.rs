//! The model of PostgreSQL against PostgreSQL 15: the same scripts, the same outcomes. What the real server did is
//! recorded in calibration/postgres.expect, so that the model is held against it everywhere, and the record itself is
//! held against the server wherever the tests run.

#![allow(clippy::disallowed_methods, reason = "tests drive outside tools, and wait for them")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dyad_sim::calibrate::{EXPECT, Model, SCRIPTS, Script, all, run, scripts};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// PostgreSQL refuses root: there, everything runs as nobody.
const NOBODY: u32 = 65_534;
/// Looks, one every 20 ms, before a wait is given up.
const LOOKS_MAX: u32 = 500;
const SCRIPTS_MIN: usize = 30;
/// Pairs at a time.
const WORKERS: usize = 4;

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

fn command(program: &str) -> Command {
    let mut command = Command::new(format!("{BIN}/{program}"));
    command.env_clear().env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "2").current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS_MAX {
        if let Some(seen) = look() {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited in vain: {what}");
}

/// Every commit waits for a moment while its standby writes: what waits longer waits for something that does not come.
const STANDS_STILL: Duration = Duration::from_secs(3);

/// The same as a condition on `pg_stat_activity`.
fn still() -> String {
    format!("query_start < clock_timestamp() - interval '{} s'", STANDS_STILL.as_secs())
}

struct Server {
    name: &'static str,
    data: PathBuf,
    port: u16,
}

struct Pair {
    home: PathBuf,
    servers: [Server; 2],
    pending: BTreeMap<u64, (usize, Child)>,
    ended: BTreeMap<u64, &'static str>,
    kept: Option<(Child, ChildStdin, BufReader<ChildStdout>, i32)>,
    stopped: Vec<i32>,
    /// Those of them that receive what another server sends.
    receivers: Vec<i32>,
}

fn run_ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// An initialised holder and its copy, made once.
fn template(home: &Path) {
    let p = home.join("p");
    run_ok(
        command("initdb")
            .args(["-U", "dyad", "-A", "trust", "--wal-segsize=1", "--no-sync", "-k", "-D"])
            .arg(&p),
    );
    let settings = format!(
        "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nfull_page_writes = on\nwal_log_hints = on\n\
         hot_standby = on\nwal_sender_timeout = 0\nwal_receiver_timeout = 0\nwal_retrieve_retry_interval = 100ms\n\
         wal_keep_size = 64MB\nmax_wal_senders = 4\nshared_buffers = 4MB\ncluster_name = ''\nrestart_after_crash = off\n\
         autovacuum = off\ncheckpoint_timeout = 1h\nlog_min_messages = info\n",
        home.display()
    );
    let conf = p.join("postgresql.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(conf, before + &settings).unwrap();
    let pair = Pair::over(home);
    pair.start(0);
    pair.sql(0, "create table t (id int)");
    pair.base_backup();
    pair.stop(0, "fast");
}

impl Pair {
    fn over(home: &Path) -> Pair {
        let server = |name, port| Server { name, data: home.join(name), port };
        Pair {
            home: home.to_owned(),
            servers: [server("p", 5501), server("s", 5502)],
            pending: BTreeMap::new(),
            ended: BTreeMap::new(),
            kept: None,
            stopped: Vec::new(),
            receivers: Vec::new(),
        }
    }

    fn base_backup(&self) {
        let (p, s) = (&self.servers[0], &self.servers[1]);
        let mut copy = command("pg_basebackup");
        copy.args(["-U", "dyad", "-X", "stream", "-c", "fast", "--no-sync", "-h"]).arg(&self.home);
        run_ok(copy.args(["-p", &p.port.to_string(), "-D"]).arg(&s.data));
    }

    fn conninfo(&self, own: usize) -> String {
        let peer = &self.servers[1 - own];
        format!("host={} port={} user=dyad application_name=standby", self.home.display(), peer.port)
    }

    fn start(&self, own: usize) {
        let server = &self.servers[own];
        let log = self.home.join(format!("{}.log", server.name));
        let mut start = command("pg_ctl");
        start.args(["start", "-w", "-t", "60", "-D"]).arg(&server.data).arg("-l").arg(log);
        run_ok(start.args(["-o", &format!("-p {} -k {}", server.port, self.home.display())]));
    }

    fn stop(&self, own: usize, mode: &str) {
        let mut stop = command("pg_ctl");
        run_ok(stop.args(["stop", "-w", "-t", "60", "-m", mode, "-D"]).arg(&self.servers[own].data));
    }

    fn psql(&self, own: usize) -> Command {
        let mut psql = command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-U", "dyad", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-h"]);
        psql.arg(&self.home).args(["-p", &self.servers[own].port.to_string()]);
        psql
    }

    fn sql(&self, own: usize, text: &str) -> String {
        let output = run_ok(self.psql(own).args(["-c", text]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Backends of a kind.
    fn pids(&self, own: usize, backend: &str) -> Vec<i32> {
        let query = format!("select pid from pg_stat_activity where backend_type = '{backend}'");
        self.sql(own, &query).lines().map(|pid| pid.parse().unwrap()).collect()
    }

    fn signal(&mut self, pid: i32, name: &str) {
        let mut kill = Command::new("/bin/kill");
        assert!(kill.args(["-s", name, &pid.to_string()]).status().unwrap().success());
        match name {
            "STOP" => self.stopped.push(pid),
            _ => self.stopped.retain(|stopped| *stopped != pid),
        }
    }

    fn postmaster(&self, own: usize) -> i32 {
        let file = std::fs::read_to_string(self.servers[own].data.join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    fn parent(&self, pid: i32) -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent.unwrap_or_default()
    }

    /// Backends that wait for the standby. Nobody new gets in to count them while the postmaster stands still.
    fn waiting(&self, own: usize) -> usize {
        // Where the server has ended its clients are about to.
        let ended = !self.servers[own].data.join("postmaster.pid").exists();
        if ended || self.stopped.contains(&self.postmaster(own)) {
            return 0;
        }
        let query =
            format!("select count(*) from pg_stat_activity where wait_event = 'SyncRep' and {}", still());
        self.sql(own, &query).parse().unwrap()
    }

    /// How a write stands, once it stands still: its client ended, or its backend waits for the standby.
    fn outcome(&mut self, write: u64) -> &'static str {
        let Some((own, mut child)) = self.pending.remove(&write) else {
            return self.ended.get(&write).copied().unwrap_or("never");
        };
        let running = self.pending.values().filter(|(other, _)| *other == own).count() + 1;
        let asked = Instant::now();
        let ended = wait("a write's end", || match child.try_wait().unwrap() {
            Some(status) => Some(Some(status.code())),
            // It may have waited for long already: what happened just now must have had its time too.
            None => (asked.elapsed() > STANDS_STILL && self.waiting(own) >= running).then_some(None),
        });
        let how = match ended {
            None => {
                self.pending.insert(write, (own, child));
                return "waits";
            }
            Some(Some(0)) => "acknowledged",
            // psql: 1 or 3 refused by the server, 2 the connection was lost or never made.
            Some(_) => {
                let mut said = String::new();
                let mut stderr = BufReader::new(child.stderr.take().unwrap());
                while stderr.read_line(&mut said).unwrap() > 0 {}
                let refused = said.contains("read-only") || said.contains("timeout expired");
                if refused { "refused" } else { "lost" }
            }
        };
        self.ended.insert(write, how);
        how
    }

    fn write(&mut self, own: usize, write: u64) -> &'static str {
        let mut psql = self.psql(own);
        psql.args(["-c", &format!("insert into t values ({write})")]);
        let child = psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        self.pending.insert(write, (own, child));
        self.outcome(write)
    }

    fn keep(&mut self, own: usize) {
        let mut child = self
            .psql(own)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut stdin, mut stdout) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        writeln!(stdin, "select pg_backend_pid();").unwrap();
        let mut pid = String::new();
        stdout.read_line(&mut pid).unwrap();
        self.kept = Some((child, stdin, stdout, pid.trim().parse().unwrap()));
    }

    /// Whether a kept connection's commit came back; a second way in tells that it waits.
    fn write_kept(&mut self, own: usize, write: u64) -> &'static str {
        let (_, stdin, _, pid) = self.kept.as_mut().unwrap();
        let pid = *pid;
        writeln!(stdin, "insert into t values ({write});\nselect 'committed';").unwrap();
        let stdout = &mut self.kept.as_mut().unwrap().2;
        let hung = self.stopped.contains(&pid);
        assert!(!hung);
        if self.stopped.is_empty() {
            let query = format!(
                "select wait_event || ': ' || query from pg_stat_activity \
                 where pid = {pid} and (wait_event <> 'SyncRep' or {})",
                still()
            );
            return wait("a kept connection's commit", || {
                let seen = self.sql(own, &query);
                let over = seen.starts_with("ClientRead: select 'committed'");
                seen.starts_with("SyncRep").then_some("waits").or(over.then_some("acknowledged"))
            });
        }
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.trim() == "committed" { "acknowledged" } else { "lost" }
    }

    fn become_standby(&self, own: usize) {
        let data = &self.servers[own].data;
        std::fs::write(data.join("standby.signal"), "").unwrap();
        let line = format!("primary_conninfo = '{}'\n", self.conninfo(own));
        std::fs::write(data.join("postgresql.auto.conf"), line).unwrap();
        if is_root() {
            chown(data.join("standby.signal"), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// Streams and has everything, or the log says why it never will.
    fn streams(&self, own: usize) -> &'static str {
        let log = self.home.join(format!("{}.log", self.servers[own].name));
        let query = "select count(*) from pg_stat_replication where state = 'streaming' and flush_lsn >= pg_current_wal_flush_lsn()";
        wait("the stream", || {
            let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let never = [
                "forked off current database system timeline",
                "forked off before",
                "is ahead of the WAL flush position",
                "is not in this server's history",
            ];
            if never.iter().any(|text| said.contains(text)) {
                return Some("refused");
            }
            (self.sql(1 - own, query) == "1").then_some("streams")
        })
    }

    fn settle(&self) {
        let up = |own: usize| self.servers[own].data.join("postmaster.pid").exists();
        if up(0)
            && up(1)
            && self.stopped.is_empty()
            && self.sql(0, "select pg_is_in_recovery()") == "f"
            && self.sql(1, "select pg_is_in_recovery()") == "t"
        {
            self.streams(1);
            let position = self.sql(0, "select pg_current_wal_flush_lsn()");
            let query = format!("select pg_last_wal_replay_lsn() >= '{position}'");
            wait("replay", || (self.sql(1, &query) == "t").then_some(()));
        }
    }

    fn operate(&mut self, line: &str) -> String {
        let mut words = line.split(' ');
        let (op, server, last) = (words.next().unwrap(), words.next().unwrap_or(""), words.next());
        let own = usize::from(server == "s");
        let number = || last.unwrap_or(server).parse::<u64>().unwrap();
        match op {
            "write" => return self.write(own, number()).into(),
            "write-kept" => return self.write_kept(own, number()).into(),
            "outcome" => return self.outcome(number()).into(),
            "read" => {
                self.settle();
                return self.sql(own, "select coalesce(string_agg(id::text, ' ' order by id), '') from t");
            }
            "follow" => {
                self.become_standby(own);
                let log = self.home.join(format!("{}.log", self.servers[own].name));
                std::fs::remove_file(log).ok();
                self.start(own);
                return self.streams(own).into();
            }
            "rewind" => return self.rewind(own),
            "control" => {
                let output = run_ok(command("pg_controldata").arg(&self.servers[own].data)).stdout;
                let text = String::from_utf8(output).unwrap();
                let line = text.lines().find(|l| l.starts_with("Latest checkpoint's TimeLineID:")).unwrap();
                return format!("timeline {}", line.split(':').nth(1).unwrap().trim());
            }
            "promote" => {
                self.sql(own, "select pg_promote(true, 60)");
                return format!(
                    "timeline {}",
                    self.sql(own, "select substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)::int")
                );
            }
            _ => self.quietly(op, own, last),
        }
        "done".into()
    }

    fn quietly(&mut self, op: &str, own: usize, last: Option<&str>) {
        match op {
            "start" => self.start(own),
            "stop" => {
                let how = last.unwrap();
                let postmaster = self.postmaster(own);
                for pid in self.stopped.clone() {
                    // What stands still must not go on before its server is told to end at once, which kills it after 5 s;
                    // nor because another server ends, which waits for the receiver elsewhere only.
                    let waited_for = self.parent(pid) == postmaster || self.receivers.contains(&pid);
                    if pid == postmaster || how != "immediate" && waited_for {
                        self.signal(pid, "CONT");
                    }
                }
                self.stop(own, how);
                self.stopped.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
            }
            "clone" => {
                std::fs::remove_dir_all(&self.servers[own].data).unwrap();
                self.base_backup();
                self.become_standby(own);
                self.start(own);
            }
            "arm" | "disarm" => {
                let value = if op == "arm" { "standby" } else { "" };
                self.sql(own, &format!("alter system set synchronous_standby_names = '{value}'"));
                self.sql(own, "select pg_reload_conf()");
                wait("the setting", || {
                    (self.sql(own, "show synchronous_standby_names") == value).then_some(())
                });
            }
            "checkpoint" => {
                self.sql(own, "checkpoint");
                self.sql(own, "checkpoint");
            }
            "cancel" | "terminate" => {
                let query =
                    format!("select pg_{op}_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
                self.sql(own, &query);
                wait("the end of all waiting", || (self.waiting(own) == 0).then_some(()));
            }
            "keep" => self.keep(own),
            "hang-checkpointer" => {
                self.pids(own, "checkpointer").into_iter().for_each(|pid| self.signal(pid, "STOP"))
            }
            "hang-receiver" => {
                self.settle();
                self.receivers = self.pids(own, "walreceiver");
                self.receivers.clone().into_iter().for_each(|pid| self.signal(pid, "STOP"));
            }
            "hang-postmaster" => {
                let pid = self.postmaster(own);
                self.signal(pid, "STOP");
            }
            "wake-checkpointer" | "wake-receiver" | "wake-postmaster" => self.let_go(),
            "kill-sender" => self.pids(own, "walsender").into_iter().for_each(|pid| self.signal(pid, "TERM")),
            "kill-receiver" => {
                self.pids(own, "walreceiver").into_iter().for_each(|pid| self.signal(pid, "TERM"))
            }
            other => panic!("no operation {other:?}"),
        }
    }

    fn rewind(&self, own: usize) -> String {
        let data = &self.servers[own].data;
        let peer = &self.servers[1 - own];
        let source = format!("host={} port={} user=dyad dbname=postgres", self.home.display(), peer.port);
        let mut rewind = command("pg_rewind");
        let output = rewind.args(["--no-sync", "--source-server", &source, "-D"]).arg(data).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        if said.contains("no rewind required") { "no rewind required" } else { "rewound" }.into()
    }

    fn let_go(&mut self) {
        for pid in self.stopped.clone() {
            self.signal(pid, "CONT");
        }
    }

    fn finish(&mut self) {
        self.let_go();
        for own in [0, 1] {
            if self.servers[own].data.join("postmaster.pid").exists() {
                self.stop(own, "immediate");
            }
        }
        if let Some((mut child, stdin, _, _)) = self.kept.take() {
            drop(stdin);
            child.wait().unwrap();
        }
        for (_, (_, mut child)) in std::mem::take(&mut self.pending) {
            child.wait().unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).ok();
    let mut copy = Command::new("/bin/cp");
    assert!(copy.arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn the_model_does_what_was_recorded() {
    let recorded = std::fs::read_to_string(EXPECT).unwrap();
    assert_eq!(all(SCRIPTS, SCRIPTS_MIN, Model::operate), recorded);
}

/// One script on a fresh pair.
fn on_postgresql(home: &Path, template: &Path, script: &Script) -> String {
    for name in ["p", "s"] {
        copy(&template.join(name), &home.join(name));
        std::fs::remove_file(home.join(format!("{name}.log"))).ok();
    }
    let mut pair = Pair::over(home);
    pair.start(0);
    pair.become_standby(1);
    pair.start(1);
    pair.settle();
    let seen = run(script, |line| pair.operate(line));
    pair.finish();
    seen
}

fn private(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn postgresql_does_what_was_recorded() {
    let home = tempfile::Builder::new().prefix("dyadcal").tempdir_in("/tmp").unwrap();
    private(home.path());
    template(home.path());
    // They spend their time waiting for servers to start and stop.
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let all = scripts(SCRIPTS);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let own = home.path().join(worker.to_string());
            private(&own);
            let (all, next, seen, home) = (&all, &next, &seen, home.path());
            scope.spawn(move || {
                while let at = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(script) = all.get(at)
                {
                    let outcome = on_postgresql(&own, home, script);
                    seen.lock().unwrap().insert(at, outcome);
                }
            });
        }
    });
    let seen: Vec<String> = seen.into_inner().unwrap().into_values().collect();
    let seen = seen.join("\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(EXPECT, &seen).unwrap();
    }
    assert_eq!(seen, std::fs::read_to_string(EXPECT).unwrap());
}
