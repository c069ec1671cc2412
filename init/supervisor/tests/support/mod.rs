//! A PID 1 for tests: it speaks the real protocol on a real socket and runs the real programs, without cgroups.
//!
//! Supervisor and PostgreSQL run as the system user `postgres` inside user and network namespaces of their own, so
//! that the tests need no root, share no port and see nothing of the machine's own PostgreSQL.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::disallowed_methods,
    reason = "this is the tests' own PID 1: it starts processes and reads the clock"
)]

pub(crate) mod cluster;
pub(crate) mod init;
pub(crate) mod lan;
#[path = "../../../guard/tests/support/library.rs"]
pub(crate) mod library;
pub(crate) mod pair;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dyad_api::client::Client;
use dyad_api::operator::{Call, Credentials, Protection, Status};

use init::TestInit;
use lan::Machine;

/// For anything that must happen: a loaded machine may take long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Set in a test that runs as `postgres` itself; its value is the guard library's path.
pub(crate) const INSIDE: &str = "DYAD_TEST_INSIDE";

/// A site of one node with a role, a database and settings.
pub(crate) const SITE: &str = r#"
cluster = "test"
[nodes.node-a]
[postgresql]
max_connections = 50
work_mem = "7MiB"
[postgresql.settings]
enable_seqscan = "off"
[postgresql.roles.app]
[postgresql.databases.shop]
owner = "app"
"#;

/// `program` as the system user `postgres` in a network of its own, or in that of a machine.
pub(crate) fn as_postgres(machine: Option<&Machine>, program: &str) -> Command {
    if let Some(machine) = machine {
        return machine.command(program);
    }
    if std::env::var_os(INSIDE).is_some() {
        return Command::new(program);
    }
    let (uid, gid) = postgres_ids();
    let mut command = Command::new("/usr/bin/unshare");
    command.args([
        "--user",
        &format!("--map-user={uid}"),
        &format!("--map-group={gid}"),
        "--net",
        "--",
        program,
    ]);
    command
}

/// User and group number of `postgres` on this machine.
pub(crate) fn postgres_ids() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("the package postgresql-15 is installed");
    let field = |at| line.split(':').nth(at).unwrap().parse().unwrap();
    (field(2), field(3))
}

/// One appliance: a root directory, its PID 1, and a supervisor that can be killed and started.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) init: TestInit,
    pub(crate) supervisor: Option<Child>,
    machine: Option<Machine>,
}

impl Node {
    /// With this site file; nothing runs yet.
    pub(crate) fn new(site: Option<&str>) -> Self {
        Self::on(None, site)
    }

    /// On a machine with a network of its own.
    pub(crate) fn on(machine: Option<Machine>, site: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in ["run/dyad", "state", "data/pg", "efi/dyad", "etc", "usr/lib/dyad", "dev"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::copy("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        let guard = std::env::var_os(INSIDE).map_or_else(library::library, PathBuf::from);
        fs::create_dir_all(dir.path().join("usr/lib/postgresql/15/lib")).unwrap();
        fs::copy(guard, dir.path().join("usr/lib/postgresql/15/lib/dyad_guard.so")).unwrap();
        if let Some(site) = site {
            fs::write(dir.path().join("efi/dyad/site.toml"), site).unwrap();
        }
        if machine.is_some() {
            fs::create_dir_all(dir.path().join("usr/sbin")).unwrap();
            std::os::unix::fs::symlink("/usr/sbin/nft", dir.path().join("usr/sbin/nft")).unwrap();
        }
        let init = TestInit::start(dir.path(), machine.clone());
        Self { dir, init, supervisor: None, machine }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Starts a supervisor.
    pub(crate) fn start(&mut self) {
        assert!(self.supervisor.is_none());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("supervisor.log")).unwrap();
        let child = as_postgres(self.machine.as_ref(), env!("CARGO_BIN_EXE_supervisor"))
            .args(["--root".as_ref(), self.dir.path().as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
    }

    /// kill -9 of the supervisor.
    pub(crate) fn kill(&mut self) {
        let mut child = self.supervisor.take().expect("a supervisor runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A connection to the supervisor, once it listens.
    pub(crate) fn client(&self) -> Client<UnixStream> {
        let path = self.path("run/dyad/supervisor.sock");
        let stream = self.wait("the operator socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::new(stream, 1)
    }

    pub(crate) fn status(&self) -> Status {
        self.client().call(Call::Status).unwrap()
    }

    /// Waits until the node serves.
    pub(crate) fn wait_serving(&self) -> Status {
        let mut client = self.client();
        self.wait("serving", || {
            let status: Status = client.call(Call::Status).unwrap();
            (status.protection == Protection::Single).then_some(status)
        })
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.client().call(Call::Credentials).unwrap()
    }

    /// Waits for something to be there; panics with the supervisor's log.
    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if start.elapsed() > PATIENCE {
                panic!("{what}: not within {PATIENCE:?}; log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        let text = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}--- postgresql ---\n{}", text("supervisor.log"), text("postgresql.log"))
    }

    /// What psql prints for a statement: as the superuser, or as a role with its password.
    pub(crate) fn psql(
        &self,
        role: Option<(&str, &str)>,
        database: &str,
        statement: &str,
    ) -> Result<String, String> {
        let mut command = as_postgres(self.machine.as_ref(), "/usr/lib/postgresql/15/bin/psql");
        command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement, "-h"]);
        command.arg(self.path("run/postgresql"));
        match role {
            Some((role, password)) => command.args(["-w", "-U", role]).env("PGPASSWORD", password),
            None => command.args(["-w", "-U", "postgres"]),
        };
        let output = command.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// As the superuser, must work.
    pub(crate) fn sql(&self, statement: &str) -> String {
        self.psql(None, "postgres", statement).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.supervisor.is_some() {
            self.kill();
        }
        self.init.kill_all();
    }
}

/// Files below a directory with their bytes.
pub(crate) fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    found.sort();
    found
}
