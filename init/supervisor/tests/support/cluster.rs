//! Two paired nodes with real supervisors and servers, and a real witness, in a network of their own.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dyad_api::operator::{Protection, Status};
use dyad_channel::Identity;
use dyad_cluster::types::ClusterId;
use dyad_spec::Source;
use dyad_spec::site::{Pairing, Postgresql, Site};
use supervisor::driver::{Member, Membership};
use supervisor::paths::Paths;
use supervisor::pg::Server;

use super::lan::Lan;
use super::{INSIDE, Node, library, postgres_ids};

/// How long a supervisor is up before the volume.
const AHEAD_OF_DATA: Duration = Duration::from_secs(2);
/// For anything that must happen to two nodes: hundreds of processes, on a machine that may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(900);
/// Where the other programs are, in a test that runs as `postgres`.
const PROGRAMS: &str = "DYAD_TEST_PROGRAMS";
/// The virtual addresses of the site.
pub(crate) const VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100))];
pub(crate) const NAMES: [&str; 2] = ["node-a", "node-b"];

/// A program of the workspace.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(&std::env::var_os(PROGRAMS).unwrap()).join(name)
}

/// Witness and dyadctl, compiled if need be, from where this test's own program comes.
fn programs() -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_supervisor")).parent().unwrap();
    let release = directory.ends_with("release");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--offline", "--package", "dyad-witness", "--bin", "dyad-witness"])
        .args(["--package", "dyadctl", "--bin", "dyadctl"])
        .args(release.then_some("--release"))
        .arg("--target-dir")
        .arg(directory.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    directory.to_owned()
}

/// Runs a story of two members in user and network namespaces of its own, as `postgres`.
pub(crate) fn story(name: &str, profile: &str, tell: impl FnOnce(&mut Cluster)) {
    within_namespaces(name, || tell(&mut Cluster::paired(profile, None)));
}

/// The same of two that have no witness, and do so when one of them is lost.
pub(crate) fn story_without_witness(name: &str, alone: &str, tell: impl FnOnce(&mut Cluster)) {
    let word = format!("without_witness = \"{alone}\"");
    within_namespaces(name, || tell(&mut Cluster::paired("lan", Some(&word))));
}

/// The same of two blank nodes.
pub(crate) fn story_of_blank_nodes(name: &str, how: Pairing, tell: impl FnOnce(&mut Cluster)) {
    within_namespaces(name, || tell(&mut Cluster::blank(how)));
}

pub(crate) fn within_namespaces(name: &str, tell: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_none() {
        let (uid, gid) = postgres_ids();
        let status = Command::new("/usr/bin/unshare")
            .args(["--user", &format!("--map-user={uid}"), &format!("--map-group={gid}")])
            .args(["--net", "--keep-caps", "--", "/bin/sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(INSIDE, library::library())
            .env(PROGRAMS, programs())
            .status()
            .unwrap();
        assert!(status.success(), "{name}, as postgres: {status}");
        return;
    }
    tell();
}

/// The witness's process; killed when dropped.
pub(crate) struct Witness {
    child: Child,
    address: SocketAddr,
    state: tempfile::TempDir,
}

impl Witness {
    pub(crate) fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let (child, address) = Self::run(state.path(), "10.77.0.254:0");
        Witness { child, address, state }
    }

    /// SIGKILL, and a new one with what the old one left.
    pub(crate) fn restart(&mut self) {
        self.end();
        let listen = self.address.to_string();
        self.child = Self::run(self.state.path(), &listen).0;
    }

    /// SIGKILL, and one that has never run in its place.
    pub(crate) fn replace(&mut self) {
        self.end();
        self.state = tempfile::tempdir().unwrap();
        self.restart();
    }

    /// SIGKILL.
    pub(crate) fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn run(state: &Path, listen: &str) -> (Child, SocketAddr) {
        let mut child = Command::new(program("dyad-witness"))
            .args(["run", "--listen", listen, "--state"])
            .arg(state)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the witness listens").unwrap();
            if let Some(rest) = line.strip_prefix("dyad-witness: listening on ") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        (child, address)
    }

    /// How a site file names it.
    fn named(&self) -> String {
        format!("witness = \"{}\"", self.address)
    }

    /// A new one for an enrolment.
    pub(crate) fn code(&self) -> Vec<u8> {
        let made = Command::new(program("dyad-witness"))
            .args(["enroll", "--state"])
            .arg(self.state.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        made.stdout
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end();
    }
}

/// All of it.
pub(crate) struct Cluster {
    pub(crate) nodes: [Node; 2],
    pub(crate) lan: Lan,
    /// Holds the key of the site's operator.
    operator: tempfile::TempDir,
    pub(crate) witness: Witness,
}

/// `votes` is the line that names a witness, or says what is done without one.
fn site(votes: &str, operator: &Identity, profile: &str) -> String {
    let operator: String = operator.public().0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        r#"
cluster = "test"
profile = "{profile}"
client_services = ["app"]
{votes}
[nodes.node-a.links.lan0]
mac = "02:00:00:00:00:01"
[nodes.node-a.links.repl0]
mac = "06:00:00:00:00:01"
[nodes.node-a.addresses]
lan0 = ["10.77.0.1/24", "fd77::1/64"]
repl0 = ["10.78.0.1/24"]
[nodes.node-b.links.lan0]
mac = "02:00:00:00:00:02"
[nodes.node-b.links.repl0]
mac = "06:00:00:00:00:02"
[nodes.node-b.addresses]
lan0 = ["10.77.0.2/24", "fd77::2/64"]
repl0 = ["10.78.0.2/24"]
[[routes]]
to = "default"
via = "10.77.0.254"
[vips.four]
address = "10.77.0.100/24"
interface = "lan0"
[vips.six]
address = "fd77::100/64"
interface = "lan0"
[postgresql]
max_connections = 30
shared_buffers = "32MiB"
[postgresql.roles.app]
[postgresql.databases.shop]
owner = "app"
[operators]
ann = "ed25519:{operator}"
"#
    )
}

/// The site of nodes that find each other.
pub(crate) fn blank_site(witness: &Witness, profile: &str) -> String {
    site(&witness.named(), &Identity::draw().unwrap(), profile)
}

fn postgresql(text: &str) -> Postgresql {
    Site::parse(Source::new("site.toml", text.to_owned()))
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .postgresql
}

impl Cluster {
    /// What pairing leaves: identities, a membership each, common passwords; and a code for the witness, unless the site
    /// file has something else `instead`.
    fn paired(profile: &str, instead: Option<&str>) -> Self {
        let lan = Lan::new();
        let witness = Witness::start();
        let code = witness.code();
        let operator = tempfile::tempdir().unwrap();
        let key = Identity::load_or_make(&operator.path().join("key")).unwrap();
        let text = site(instead.unwrap_or(&witness.named()), &key, profile);
        let nodes = [0, 1].map(|at| Node::on(Some(lan.machine(at)), Some(&text)));
        let paths = nodes.each_ref().map(|node| Paths::new(node.dir.path()));
        let mut keys = Vec::new();
        for node in &nodes {
            std::fs::create_dir(node.path("state/identity")).unwrap();
            keys.push(Identity::load_or_make(&node.path("state/identity/node.key")).unwrap().public());
            if instead.is_none() {
                std::fs::write(node.path("efi/dyad/witness.code"), &code).unwrap();
            }
        }
        let secrets = Server::secrets(&paths[0], &postgresql(&text)).unwrap();
        Server::adopt_secrets(&paths[1], &secrets).unwrap();
        for (own, peer) in [(0, 1), (1, 0)] {
            let member = Membership {
                cluster: ClusterId(0xc1),
                name: NAMES[own].into(),
                listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), supervisor::driver::PORT),
                peer: Member {
                    name: NAMES[peer].into(),
                    key: keys[peer].0,
                    addresses: vec![Lan::replication(peer), Lan::address(peer)],
                    port: supervisor::driver::PORT,
                    postgresql: 5432,
                },
                witness: None,
            };
            member.store(&paths[own]).unwrap();
        }
        Cluster { nodes, lan, operator, witness }
    }

    /// What an installer leaves: the site file, a code for the witness, and one site key unless a code is to be typed: of
    /// that kind there is no address that moves.
    fn blank(how: Pairing) -> Self {
        let lan = Lan::new();
        let witness = Witness::start();
        let (code, operator) = (witness.code(), tempfile::tempdir().unwrap());
        let site = blank_site(&witness, "wan");
        let text = match how {
            Pairing::Key => site,
            // Without an address that moves, too.
            Pairing::Code => {
                let (before, rest) = site.split_once("[vips.four]").unwrap();
                let (_, after) = rest.split_once("[postgresql]").unwrap();
                format!("pairing = \"code\"{before}[postgresql]{after}")
            }
        };
        let nodes = [0, 1].map(|at| {
            let node = Node::on(Some(lan.machine(at)), Some(&text));
            if how == Pairing::Key {
                std::fs::write(node.path("efi/dyad/site.key"), "5e".repeat(32)).unwrap();
            }
            std::fs::write(node.path("efi/dyad/witness.code"), &code).unwrap();
            node
        });
        Cluster { nodes, lan, operator, witness }
    }

    /// A key of the site's operator, or one that nobody knows.
    pub(crate) fn key(&self, known: bool) -> PathBuf {
        self.operator.path().join(if known { "key" } else { "stranger" })
    }

    pub(crate) fn start(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
    }

    /// Which node's name this is.
    pub(crate) fn index(name: &str) -> usize {
        NAMES.iter().position(|known| *known == name).unwrap()
    }

    /// Waits until both nodes say this, and name the same holder; its index.
    pub(crate) fn wait_for(&self, wanted: Protection) -> usize {
        let says = |node: &Node| {
            self.wait(&format!("{wanted:?}"), || {
                let status: Status = node.status();
                (status.protection == wanted).then(|| status.resources[0].holder.clone())
            })
        };
        let [a, b] = self.nodes.each_ref().map(says);
        assert_eq!(a, b, "both name the same holder");
        Self::index(&a)
    }

    /// Waits for something to be there; panics with both nodes' logs.
    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let start = std::time::Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if start.elapsed() > PATIENCE {
                let [a, b] = self.nodes.each_ref().map(Node::log);
                panic!("{what}: not within {:?}; node-a:\n{a}\nnode-b:\n{b}", PATIENCE);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn psql(&self, at: usize) -> Command {
        let mut command = Command::new("/usr/lib/postgresql/15/bin/psql");
        command.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-w",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            "postgres",
        ]);
        command.arg("-h").arg(self.nodes[at].path("run/postgresql"));
        command
    }

    /// As the superuser; what psql prints, or its error. Its commits wait for the standby, as a client's do.
    pub(crate) fn sql(&self, at: usize, statement: &str) -> Result<String, String> {
        let output =
            self.psql(at).args(["-c", "set synchronous_commit = on", "-c", statement]).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// As a client of the virtual addresses: the role `app`, on its database.
    pub(crate) fn client(&self, address: IpAddr, statement: &str) -> Result<String, String> {
        self.client_at(address, 5432, statement)
    }

    /// The same through another port.
    pub(crate) fn client_at(&self, address: IpAddr, port: u16, statement: &str) -> Result<String, String> {
        self.app(&format!("host={address} port={port}"), statement)
    }

    /// Which node `libpq` finds by itself when it is told both and wants to write.
    pub(crate) fn writer_among_hosts(&self) -> Result<String, String> {
        let hosts = [0, 1].map(|at| Lan::address(at).to_string()).join(",");
        let target = format!("host={hosts} target_session_attrs=read-write");
        self.app(&target, "select host(inet_server_addr())")
    }

    /// The certificate that clients of this cluster believe.
    pub(crate) fn authority(&self) -> String {
        self.secrets()["authority"]["certificate"].as_str().unwrap().to_owned()
    }

    fn secrets(&self) -> serde_json::Value {
        let secrets = std::fs::read(self.nodes[0].path("state/supervisor/credentials")).unwrap();
        serde_json::from_slice(&secrets).unwrap()
    }

    fn app(&self, target: &str, statement: &str) -> Result<String, String> {
        self.believing(&self.authority(), target, statement)
    }

    /// As `app`, on its database; a client that believes this authority and nobody else, for the name or address that it was given.
    pub(crate) fn believing(&self, authority: &str, target: &str, statement: &str) -> Result<String, String> {
        let secrets = self.secrets();
        let password = secrets["roles"]["app"]["password"].as_str().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), authority).unwrap();
        let trust = format!("sslmode=verify-full sslrootcert={}", file.path().display());
        let output = Command::new("/usr/lib/postgresql/15/bin/psql")
            .args(["-X", "-A", "-t", "-q", "-w", "-c", statement])
            // What the target says itself comes last, and counts.
            .arg(format!("user=app dbname=shop connect_timeout=5 {trust} {target}"))
            .env("PGPASSWORD", password)
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Waits until both virtual addresses lead to this node, for clients and on its own and the other's status.
    pub(crate) fn wait_vips(&self, at: usize) {
        for vip in VIPS {
            self.wait(&format!("{vip} at {}", NAMES[at]), || {
                let there = self.client(vip, "select inet_server_addr(), pg_is_in_recovery()").ok()?;
                (there == format!("{vip}|f")).then_some(())
            });
        }
        self.wait("the addresses in the status", || {
            let says =
                |node: &Node| node.status().vips.iter().all(|row| row.holder.as_deref() == Some(NAMES[at]));
            self.nodes.iter().filter(|node| node.supervisor.is_some()).all(says).then_some(())
        });
    }

    /// A client that writes numbers into `ledger` for as long as its server answers, and notes each that was
    /// acknowledged.
    pub(crate) fn writer(&self, at: usize, from: u64) -> Writer {
        // What ends it is seen in the test's output.
        let mut child = self.psql(at).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let mut input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let noted = Arc::clone(&acknowledged);
        let thread = std::thread::spawn(move || {
            let mut lines = lines;
            let mut next = from;
            while ask(&mut input, next).is_ok() {
                let Some(Ok(line)) = lines.next() else { return };
                noted.lock().unwrap().push(line.parse::<u64>().unwrap());
                next += 1;
            }
        });
        Writer { child, thread: Some(thread), acknowledged }
    }

    /// SIGKILL of every process of a node, at once.
    pub(crate) fn power_cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        // Nothing is said any more from this moment on.
        self.lan.machine(at).power_off();
        node.kill();
        node.init.kill_all();
    }

    /// The node starts again. The supervisor is up before PostgreSQL's volume is there, as in a boot.
    pub(crate) fn power_on(&mut self, at: usize) {
        self.lan.machine(at).power_on();
        let node = &mut self.nodes[at];
        node.init.reboot();
        node.init.take_data_away();
        node.start();
        std::thread::sleep(AHEAD_OF_DATA);
        node.init.bring_data_back();
    }

    /// Whatever both nodes were told, the core answers it again as it did then; the steps played.
    pub(crate) fn replay(&self) -> usize {
        let mut steps = 0;
        for node in &self.nodes {
            for entry in std::fs::read_dir(node.path("state/supervisor/events")).unwrap() {
                let path = entry.unwrap().path();
                let entries = dyad_cluster::eventlog::decode(&std::fs::read(&path).unwrap())
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                steps += dyad_cluster::eventlog::replay(&entries)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
        steps
    }
}

fn ask(input: &mut ChildStdin, number: u64) -> std::io::Result<()> {
    // The superuser may choose not to wait; this one waits.
    writeln!(input, "set synchronous_commit = on; insert into ledger values ({number}) returning id;")?;
    input.flush()
}

/// A client under way.
pub(crate) struct Writer {
    child: Child,
    thread: Option<std::thread::JoinHandle<()>>,
    acknowledged: Arc<Mutex<Vec<u64>>>,
}

impl Writer {
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Ends it; what was acknowledged.
    pub(crate) fn end(mut self) -> Vec<u64> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.thread.take().unwrap().join().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.clone()
    }
}
