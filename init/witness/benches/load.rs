//! What a witness costs: resident memory, renewals on one core, and the time of a change with its flush.
//!
//! `load PROGRAM`: started by `cargo xtask bench witness`, which builds the program as it is carried to machines.
#![allow(clippy::disallowed_methods, reason = "a stopwatch, and a subject to start")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dyad_channel::Identity;
use dyad_channel::client::{Client, Limits};
use dyad_channel::secret::{Code, Side};
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::witness::{Call, Enroll, FRAME_BYTES_MAX, Reply, Statement};
use dyad_cluster::message::{Answer, Cas, ToArbiter, Verdict};
use dyad_cluster::register::Change;
use dyad_cluster::types::{BootId, ClusterId, Epoch, Incarnation, RequestId, ResourceId};

const CLUSTERS: usize = 1_000;
const RENEWALS_EACH: u64 = 40;
/// Nodes that ask at the same moment.
const AT_ONCE: usize = 64;
const CHANGES: u64 = 2_000;
const BOOT: BootId = BootId { count: 1, nonce: 1 };

type Res<T> = Result<T, Box<dyn std::error::Error>>;

struct Subject {
    child: Child,
    address: SocketAddr,
    state: PathBuf,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Subject {
    fn start(program: &str, state: &Path) -> Res<Self> {
        let mut child = Command::new(program)
            .args(["run", "--listen", "127.0.0.1:0", "--state"])
            .arg(state)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
        let said = lines.next().ok_or("the witness ended at once")??;
        let address = said
            .strip_prefix("dyad-witness: listening on ")
            .and_then(|rest| rest.split(',').next())
            .ok_or_else(|| format!("the witness said {said:?}"))?
            .parse()?;
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Subject { child, address, state: state.to_owned() })
    }

    /// (resident, anonymous) KiB.
    fn memory_kib(&self) -> Res<(u64, u64)> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> Res<u64> {
            let line = text.lines().find(|l| l.starts_with(name)).ok_or("no such field")?;
            Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse()?)
        };
        Ok((field("VmRSS:")?, field("RssAnon:")?))
    }

    /// User and system time, in seconds.
    fn cpu_seconds(&self) -> Res<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = text.rsplit(')').next().ok_or("no stat")?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / 100.0)
    }

    fn open(&self, code: &Code) -> Res<()> {
        let mut stream = UnixStream::connect(self.state.join("control.sock"))?;
        stream.write_all(format!("{{\"enroll\":{{\"code\":\"{code}\"}}}}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer.trim() == "\"opened\"" { Ok(()) } else { Err(answer.into()) }
    }
}

struct Node {
    client: Client<Call, Reply>,
    cluster: ClusterId,
    incarnation: Incarnation,
}

impl Node {
    async fn ask(&self, message: ToArbiter) -> Res<dyad_cluster::message::FromArbiter> {
        match self.client.call(&Call::Arbiter { cluster: self.cluster, message }).await? {
            Reply::Arbiter(answer) => Ok(answer),
            other => Err(format!("{other:?}").into()),
        }
    }

    async fn renew(&self) -> Res<()> {
        let renew = ToArbiter::Renew { boot: BOOT, incarnation: self.incarnation, sequence: 1 };
        match self.ask(renew).await?.answer {
            Answer::Renewed { .. } => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    }
}

/// A cluster, enrolled and with a session of both nodes.
async fn cluster(subject: &Subject, number: u128) -> Res<[Node; 2]> {
    let code = Code::draw();
    subject.open(&code)?;
    let mut identities = [Identity::draw()?, Identity::draw()?];
    identities.sort_by_key(Identity::public);
    let members = [identities[0].public(), identities[1].public()];
    let statement =
        Statement { cluster: ClusterId(number), members, lease_ms: 3_000, boot: BOOT, mirror: vec![] };
    let limits = Limits { call_ms: 60_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 1 };
    let mut nodes = Vec::new();
    for identity in &identities {
        let tls = tls::client(identity, Trust::AnyKey, Speaks::Witness)?;
        let client = Client::new(subject.address, tls, limits);
        let reply = client.call_proving(|_, exporter| {
            let proof = statement.prove(&code.secret(), Side::Asking, exporter);
            Call::Enroll(Enroll { statement: statement.clone(), proof })
        });
        let Reply::Enrolled { .. } = reply.await? else { return Err("not enrolled".into()) };
        nodes.push(Node { client, cluster: statement.cluster, incarnation: Incarnation(0) });
    }
    for node in &mut nodes {
        let hello = |incarnation| ToArbiter::Hello { boot: BOOT, incarnation, mirror: Some(vec![]) };
        node.incarnation = node.ask(hello(None)).await?.incarnation;
        node.ask(hello(Some(node.incarnation))).await?;
    }
    nodes.try_into().map_err(|_| "two nodes".into())
}

fn row(what: &str, figure: String) {
    println!("| {what} | {figure} |");
}

fn memory(subject: &Subject, what: &str) -> Res<()> {
    let (resident, anonymous) = subject.memory_kib()?;
    let (resident, anonymous) = (resident as f64 / 1024.0, anonymous as f64 / 1024.0);
    row(
        &format!("resident, {what}"),
        format!("{resident:.1} MiB, of it {anonymous:.1} MiB not backed by the program's file"),
    );
    Ok(())
}

async fn renewals(subject: &Subject, nodes: Vec<Node>) -> Res<Vec<Node>> {
    let (began, cpu) = (Instant::now(), subject.cpu_seconds()?);
    let nodes = Arc::new(nodes);
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        let nodes = nodes.clone();
        tasks.spawn(async move {
            for _ in 0..RENEWALS_EACH {
                for node in nodes.iter().skip(first).step_by(AT_ONCE) {
                    node.renew().await.map_err(|error| error.to_string())?;
                }
            }
            Ok::<(), String>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), subject.cpu_seconds()? - cpu);
    let count = nodes.len() as f64 * RENEWALS_EACH as f64;
    row(
        "renewals, 1,000 clusters",
        format!(
            "{:.0} a second of one core ({:.0} a second of wall time beside the load generator)",
            count / cpu,
            count / wall
        ),
    );
    Ok(Arc::into_inner(nodes).ok_or("a task is left")?)
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100))
}

async fn changes(node: &Node) -> Res<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let change = if number == 0 { Change::Found } else { Change::Resume };
        let items = vec![Cas { resource: ResourceId(0), expect: Epoch(number), change }];
        let request = RequestId(number + 1);
        let began = Instant::now();
        let batch = ToArbiter::Batch { boot: BOOT, incarnation: node.incarnation, request, items };
        let answer = node.ask(batch).await?.answer;
        times.push(began.elapsed());
        if answer != (Answer::Verdicts { request, verdicts: vec![Verdict::Won] }) {
            return Err(format!("{answer:?}").into());
        }
    }
    Ok(times)
}

/// What the disk alone takes for the same: 16 KiB over an existing file, flushed.
fn floor(dir: &Path) -> Res<Vec<Duration>> {
    let path = dir.join("floor");
    let file = File::create(&path)?;
    file.write_all_at(&[1; 32 << 10], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let began = Instant::now();
        file.write_all_at(&[number as u8; 16 << 10], (number % 2) * (16 << 10))?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    fs::remove_file(path)?;
    Ok(times)
}

async fn measure(program: &str) -> Res<()> {
    let dir = tempfile::tempdir()?;
    let subject = Subject::start(program, &dir.path().join("state"))?;
    println!("| what | figure |\n|---|---|");
    row("program, static", format!("{:.1} MiB", fs::metadata(program)?.len() as f64 / 1048576.0));
    memory(&subject, "no cluster")?;
    let mut nodes: Vec<Node> = cluster(&subject, 0).await?.into();
    memory(&subject, "1 cluster, 2 nodes connected")?;
    row("change of one register, flushed", spread(changes(&nodes[0]).await?));
    row("the same 16 KiB written and flushed by nobody's order", spread(floor(dir.path())?));
    for number in 1..CLUSTERS as u128 {
        nodes.extend(cluster(&subject, number).await?);
    }
    memory(&subject, "1,000 clusters, 2,000 nodes connected")?;
    let nodes = renewals(&subject, nodes).await?;
    memory(&subject, "the same after the renewals")?;
    row("change of one register, flushed, 2,000 nodes connected", spread(changes(&nodes[2]).await?));
    Ok(())
}

fn main() -> Res<()> {
    let program = std::env::args().nth(1).ok_or("usage: load PROGRAM")?;
    // Four thousand sockets: both ends are on this machine.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(&program))
}
