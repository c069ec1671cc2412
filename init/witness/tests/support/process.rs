//! The real program, and a node that speaks to it over real sockets.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use dyad_channel::client::{Client, Limits, Unknown};
use dyad_channel::secret::{Code, Secret, Side};
use dyad_channel::tls::{self, Speaks, Trust};
use dyad_channel::witness::{Call, Enroll, FRAME_BYTES_MAX, Reply, Statement};
use dyad_channel::{Identity, PublicKey};
use dyad_cluster::message::{Answer, Cas, FromArbiter, Registers, ToArbiter};
use dyad_cluster::types::{BootId, ClusterId, Incarnation, Node, RequestId};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_dyad-witness");
const LIMITS: Limits = Limits { call_ms: 20_000, frame_bytes_max: FRAME_BYTES_MAX, waiting_max: 4 };

/// A running witness; killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) state: PathBuf,
}

impl Running {
    pub(crate) fn start(state: &Path) -> Self {
        Self::start_at(state, "127.0.0.1:0", &[])
    }

    /// As `run --listen LISTEN --state STATE MORE`; returns when it listens.
    #[allow(clippy::disallowed_methods, reason = "a test starts its subject")]
    pub(crate) fn start_at(state: &Path, listen: &str, more: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["run", "--listen", listen, "--state"])
            .arg(state)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut told = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("ended: {told:?}")).unwrap();
            if let Some(rest) = line.strip_prefix("dyad-witness: listening on ") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
            told.push(line);
        };
        // What it says later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Running { child, address, state: state.to_owned() }
    }

    /// SIGKILL, and the same again.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let next = Running::start_at(&self.state, &self.address.to_string(), &[]);
        *self = next;
    }

    pub(crate) fn enroll(&self) -> Code {
        let made = ask(&["enroll", "--state", self.state.to_str().unwrap()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Code::parse(String::from_utf8(made.stdout).unwrap().trim()).unwrap()
    }

    pub(crate) fn status(&self) -> dyad_witness::status::Status {
        let told = ask(&["status", "--json", "--state", self.state.to_str().unwrap()]);
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        serde_json::from_slice(&told.stdout).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "a test starts its subject")]
pub(crate) fn ask(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

/// One member of a cluster.
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) node: Node,
    pub(crate) keys: [PublicKey; 2],
    pub(crate) cluster: ClusterId,
    pub(crate) boot: BootId,
    pub(crate) mirror: Registers,
    pub(crate) incarnation: Option<Incarnation>,
    client: Client<Call, Reply>,
}

/// Two members of a new cluster, not enrolled.
pub(crate) fn pair(cluster: u128, address: SocketAddr) -> [Member; 2] {
    let mut identities = [Identity::draw().unwrap(), Identity::draw().unwrap()];
    identities.sort_by_key(Identity::public);
    let keys = [identities[0].public(), identities[1].public()];
    let mut nodes = Node::BOTH.into_iter();
    identities.map(|identity| {
        let client = client(&identity, Trust::AnyKey, address);
        Member {
            identity,
            node: nodes.next().unwrap(),
            keys,
            cluster: ClusterId(cluster),
            boot: BootId { count: 1, nonce: 1 },
            mirror: Vec::new(),
            incarnation: None,
            client,
        }
    })
}

pub(crate) fn client(identity: &Identity, trust: Trust, address: SocketAddr) -> Client<Call, Reply> {
    Client::new(address, tls::client(identity, trust, Speaks::Witness).unwrap(), LIMITS)
}

impl Member {
    pub(crate) fn statement(&self) -> Statement {
        Statement {
            cluster: self.cluster,
            members: self.keys,
            lease_ms: 3_000,
            boot: self.boot,
            mirror: self.mirror.clone(),
        }
    }

    /// Enrols with the code, looks at the witness's proof, and from then on speaks to that key alone.
    pub(crate) async fn enroll(&mut self, code: &Secret, address: SocketAddr) -> Result<Reply, Unknown> {
        let statement = self.statement();
        let mut seen = None;
        let reply = self
            .client
            .call_proving(|key, exporter| {
                seen = Some((*key, *exporter));
                let proof = statement.prove(code, Side::Asking, exporter);
                Call::Enroll(Enroll { statement: statement.clone(), proof })
            })
            .await?;
        if let (Reply::Enrolled { proof, .. }, Some((key, exporter))) = (&reply, seen) {
            assert!(statement.accepts(code, proof, Side::Answering, &exporter), "the witness knows the code");
            self.client = client(&self.identity, Trust::Pinned(vec![key]), address);
        }
        Ok(reply)
    }

    pub(crate) async fn call(&self, call: &Call) -> Result<Reply, Unknown> {
        self.client.call(call).await
    }

    pub(crate) async fn ask(&mut self, message: ToArbiter) -> FromArbiter {
        let call = Call::Arbiter { cluster: self.cluster, message };
        match self.call(&call).await.unwrap() {
            Reply::Arbiter(answer) => {
                self.incarnation = Some(answer.incarnation);
                self.mirror = answer.registers.clone();
                answer
            }
            other => panic!("{other:?}"),
        }
    }

    /// Says hello, twice if the arbiter's run has to be learnt first.
    pub(crate) async fn hello(&mut self) -> FromArbiter {
        for _ in 0..2 {
            let mirror = Some(self.mirror.clone());
            let kept = self.mirror.clone();
            let hello = ToArbiter::Hello { boot: self.boot, incarnation: self.incarnation, mirror };
            let answer = self.ask(hello).await;
            if answer.answer == Answer::Welcome {
                return answer;
            }
            self.mirror = kept;
        }
        panic!("no welcome");
    }

    pub(crate) async fn batch(&mut self, request: u64, items: Vec<Cas>) -> FromArbiter {
        let incarnation = self.incarnation.unwrap();
        let request = RequestId(request);
        self.ask(ToArbiter::Batch { boot: self.boot, incarnation, request, items }).await
    }
}

/// A witness whose state is on a small tmpfs in a mount namespace of its own: the test needs no privilege.
pub(crate) struct Namespaced {
    witness: Running,
    /// The file system, as this process sees it.
    root: PathBuf,
}

impl Namespaced {
    #[allow(clippy::disallowed_methods, reason = "a test starts its subject")]
    pub(crate) fn start(dir: &Path, size: &str) -> Self {
        let script = format!(
            "mount -t tmpfs -o size={size} tmpfs \"$1\" && exec \"$2\" run --listen 127.0.0.1:0 --state \"$1/state\""
        );
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .arg(dir)
            .arg(PROGRAM)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut told = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("ended: {told:?}")).unwrap();
            if let Some(rest) = line.strip_prefix("dyad-witness: listening on ") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
            told.push(line);
        };
        std::thread::spawn(move || lines.for_each(drop));
        let root = PathBuf::from(format!("/proc/{}/root{}", child.id(), dir.display()));
        let state = root.join("state");
        Namespaced { witness: Running { child, address, state }, root }
    }

    pub(crate) fn witness(&self) -> &Running {
        &self.witness
    }

    /// Leaves no room for another byte.
    pub(crate) fn fill(&mut self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.root.join("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    pub(crate) fn make_room(&mut self) {
        std::fs::remove_file(self.root.join("ballast")).unwrap();
    }
}
