//! A PostgreSQL server in a directory of its own, reachable over a unix socket alone, and clients that wait.

#![allow(clippy::disallowed_methods, reason = "tests start processes and read the clock")]

mod library;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub(crate) use library::library;

/// For anything that must happen: a loaded machine may take long.
const PATIENCE: Duration = Duration::from_secs(120);
const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Ends an answer; psql prints it after the statement.
const MARK: &str = "--answered--";

/// As the system user `postgres`, whoever runs the test, in a network of its own: a server needs a user with a name.
fn command(program: &str) -> Command {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let ids: Vec<&str> =
        line.expect("the package postgresql-15 is installed").split(':').skip(2).take(2).collect();
    let (user, group) = (format!("--map-user={}", ids[0]), format!("--map-group={}", ids[1]));
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--user", &user, &group, "--net", "--", program]);
    command.env("LC_ALL", "C");
    command
}

pub(crate) struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    /// `guard`: with the library and these `async_roles`. Then runs the statements.
    pub(crate) fn start(guard: Option<&str>, setup: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let made = command(&format!("{BIN}/initdb"))
            .args(["--no-sync", "--auth=trust", "--username=postgres", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut conf = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_prepared_transactions = 5\nfsync = off\n",
            dir.path().display()
        );
        if let Some(roles) = guard {
            conf += &format!(
                "shared_preload_libraries = '{}'\ndyad_guard.async_roles = '{roles}'\n",
                library().display()
            );
        }
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = command(&format!("{BIN}/postgres"))
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { dir, child };
        server.until("the server", || server.psql("select 1").is_ok());
        server.run("create role app login superuser");
        for statement in setup {
            server.run(statement);
        }
        server
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn psql(&self, statement: &str) -> Result<String, String> {
        let output = command(&format!("{BIN}/psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"])
            .arg(self.dir.path())
            // What is one string is one transaction.
            .args(statement.split(";; ").flat_map(|one| ["-c", one]))
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub(crate) fn value(&self, query: &str) -> String {
        self.psql(query).unwrap_or_else(|error| panic!("{query}: {error}\n{}", self.log()))
    }

    pub(crate) fn run(&self, statement: &str) {
        self.value(statement);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Commits wait for a standby that is not there, or no longer do.
    pub(crate) fn require_standby(&self, required: bool) {
        let name = if required { "absent" } else { "" };
        self.run(&format!("alter system set synchronous_standby_names = '{name}';; select pg_reload_conf()"));
        self.until("the setting", || self.value("show synchronous_standby_names") == name);
        // The checkpointer publishes it.
        self.run("checkpoint;; checkpoint");
    }

    /// Waits until the session waits for this.
    pub(crate) fn wait_event(&self, pid: u32, event: &str) {
        let query = format!("select wait_event from pg_stat_activity where pid = {pid}");
        self.until(event, || self.value(&query) == event);
    }

    pub(crate) fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        let start = Instant::now();
        while !look() {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A fast shutdown, to its end.
    pub(crate) fn stop_fast(&self) {
        let stopped = command(&format!("{BIN}/pg_ctl"))
            .args(["stop", "-m", "fast", "-t", "60", "-D"])
            .arg(self.dir.path().join("data"))
            .output()
            .unwrap();
        assert!(stopped.status.success(), "{}\n{}", String::from_utf8_lossy(&stopped.stderr), self.log());
    }

    /// A session that stays.
    pub(crate) fn client(&self, user: &str) -> Client {
        let mut child = command(&format!("{BIN}/psql"))
            .args(["-XAt", "-d", "postgres", "-U", user, "-h"])
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, answers) = channel();
        let (errors, stdin) = (lines.clone(), child.stdin.take().unwrap());
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        std::thread::spawn(move || forward(stdout, lines));
        std::thread::spawn(move || forward(stderr, errors));
        Client { child, stdin, answers }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.dir.path().join("data");
        let _ = command(&format!("{BIN}/pg_ctl")).args(["stop", "-m", "immediate", "-D"]).arg(data).output();
        let _ = self.child.wait();
    }
}

fn forward(stream: impl std::io::Read, lines: std::sync::mpsc::Sender<String>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if lines.send(line).is_err() {
            return;
        }
    }
}

pub(crate) struct Client {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Client {
    /// Sends a statement and does not wait.
    pub(crate) fn send(&mut self, statement: &str) {
        // A client whose session is lost may be gone: that shows in its answer.
        let _ = writeln!(self.stdin, "{statement};\n\\echo {MARK}\n\\warn {MARK}");
    }

    /// Everything printed for the statement sent last, on both streams.
    pub(crate) fn answer(&mut self) -> String {
        let (mut text, mut marks) = (String::new(), 0);
        while marks < 2 {
            let line = self.answers.recv_timeout(PATIENCE).expect("an answer");
            match line == MARK {
                true => marks += 1,
                false => text += &format!("{line}\n"),
            }
        }
        text
    }

    pub(crate) fn ask(&mut self, statement: &str) -> String {
        self.send(statement);
        self.answer()
    }

    /// Whether anything at all was answered since; leaves nothing behind.
    pub(crate) fn has_answer(&mut self) -> bool {
        self.answers.try_recv().is_ok()
    }

    /// Process of the session in the server.
    pub(crate) fn pid(&mut self) -> u32 {
        self.ask("select pg_backend_pid()").trim().parse().unwrap()
    }

    /// Everything printed until the session was lost, which ends the client.
    pub(crate) fn ended(&mut self) -> String {
        let mut text = String::new();
        loop {
            match self.answers.recv_timeout(PATIENCE) {
                Ok(line) => text += &format!("{line}\n"),
                Err(RecvTimeoutError::Disconnected) => return text,
                Err(RecvTimeoutError::Timeout) => panic!("the session is not lost: {text}"),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
