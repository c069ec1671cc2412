//! Two nodes with the real adapter and the real PostgreSQL 15, over loopback.
//!
//! The test runs a second time as the system user `postgres` in a user namespace of its own: adapter and servers then
//! are one user, and the tests need no root.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use dyad_spec::site::{Database, Postgresql, SqlRole};
use supervisor::paths::Paths;
use supervisor::pg::{Owner, Pair, Peer, PgError, Relation, Server};
use supervisor::pid1::Pid1;

use super::{INSIDE, Node, PATIENCE, library, postgres_ids};

/// What an action that can be repeated comes to: on a busy machine its deadline may pass, and then nothing is known.
macro_rules! known {
    ($action:expr) => {{
        let start = std::time::Instant::now();
        loop {
            match $action.await {
                Err(error) if error.is_unknown() && start.elapsed() < $crate::support::PATIENCE => {}
                outcome => break outcome.unwrap(),
            }
        }
    }};
}
#[allow(unused_imports, reason = "not every test tells of pairs")]
pub(crate) use known;

/// One node with its adapter.
pub(crate) struct Half {
    pub(crate) server: Server,
    pub(crate) node: Node,
    pub(crate) site: Postgresql,
    anew: Box<dyn Fn(Postgresql) -> Server>,
}

/// Runs a story on two blank nodes.
pub(crate) fn story(name: &str, tell: impl AsyncFnOnce(Half, Half)) {
    if std::env::var_os(INSIDE).is_none() {
        let (uid, gid) = postgres_ids();
        let status = Command::new("/usr/bin/unshare")
            .args(["--user", &format!("--map-user={uid}"), &format!("--map-group={gid}"), "--"])
            .arg(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(INSIDE, library::library())
            .status()
            .unwrap();
        assert!(status.success(), "{name}, as postgres: {status}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (a, b) = blank().await;
        tell(a, b).await;
    });
}

async fn blank() -> (Half, Half) {
    let nodes = [Node::new(None), Node::new(None)];
    // Both held until both are known, so that they differ.
    let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
    let paths = nodes.each_ref().map(|node| Rc::new(Paths::new(node.dir.path())));
    let sites = ports.map(|port| Postgresql {
        port,
        // So fast that it takes no time, and the program gets it all the same.
        copy_rate_kib: Some(1 << 20),
        settings: [
            ("shared_buffers", "32MB"),
            ("max_connections", "30"),
            // What is kept for a peer that is away is soon too much.
            ("max_slot_wal_keep_size", "64MB"),
            ("wal_keep_size", "32MB"),
            ("max_wal_size", "64MB"),
            ("min_wal_size", "32MB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        roles: vec![SqlRole { name: "app".into(), create_db: false }],
        databases: vec![Database { name: "shop".into(), owner: "app".into() }],
        access: Vec::new(),
    });
    let secrets = Server::secrets(&paths[0], &sites[0]).unwrap();
    Server::adopt_secrets(&paths[1], &secrets).unwrap();
    let names = ["node-a", "node-b"];
    let [first, second] = [(0, 1), (1, 0)].map(|(own, peer): (usize, usize)| {
        let peer = Peer {
            name: names[peer].into(),
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            port: ports[peer],
        };
        let (uid, gid) = postgres_ids();
        let paths = Rc::clone(&paths[own]);
        let anew: Box<dyn Fn(Postgresql) -> Server> = Box::new(move |site| {
            let pid1 = Pid1::start(paths.init_socket());
            let pair = Pair { own: names[own].into(), peer: peer.clone() };
            let names = supervisor::pg::certificate::names(None);
            Server::new(pid1, Rc::clone(&paths), site, Owner { uid, gid }, pair, names).unwrap()
        });
        anew
    });
    let half = |anew: Box<dyn Fn(Postgresql) -> Server>, node, site: Postgresql| Half {
        server: anew(site.clone()),
        node,
        site,
        anew,
    };
    let [site_a, site_b] = sites;
    let [node_a, node_b] = nodes;
    let (a, b) = (half(first, node_a, site_a), half(second, node_b, site_b));
    for half in [&a, &b] {
        until(half, "PID 1", async || (!half.server.runs()).then_some(())).await;
    }
    (a, b)
}

/// Waits for something to be there; panics with the node's log.
pub(crate) async fn until<T>(half: &Half, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", half.node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Half {
    fn psql(&self, role: &str, database: &str, statement: &str) -> Command {
        let mut command = Command::new("/usr/lib/postgresql/15/bin/psql");
        command.args(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-U", role, "-d", database]);
        command.args(["-c", statement, "-p", &self.site.port.to_string(), "-h"]);
        command.arg(self.node.path("run/postgresql"));
        command
    }

    /// As the superuser; what psql prints.
    pub(crate) fn sql(&self, statement: &str) -> String {
        let output = self.psql("postgres", "postgres", statement).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {stderr}\n{}", self.node.log());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// As a client: the role `app`, on its database.
    pub(crate) fn client(&self, statement: &str) -> Result<String, String> {
        let secrets = std::fs::read_to_string(self.node.path("state/supervisor/credentials")).unwrap();
        let secrets: serde_json::Value = serde_json::from_str(&secrets).unwrap();
        let password = secrets["roles"]["app"]["password"].as_str().unwrap();
        let output = self.psql("app", "shop", statement).env("PGPASSWORD", password).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A superuser's statement that is waited for later.
    pub(crate) fn begin(&self, statement: &str) -> Child {
        // The superuser is exempt from nothing unless it asks.
        self.psql("postgres", "postgres", statement)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.node.path(path)
    }

    /// A process of the server, by its kind.
    pub(crate) fn process(&self, kind: &str) -> rustix::process::Pid {
        let pid = self.sql(&format!("select pid from pg_stat_activity where backend_type = '{kind}'"));
        rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap()
    }

    /// Another supervisor, whose site file says something else, of a server that is stopped.
    pub(crate) async fn with(&mut self, setting: &str, value: &str) {
        self.site.settings.retain(|(name, _)| name != setting);
        self.site.settings.push((setting.to_owned(), value.to_owned()));
        self.server = (self.anew)(self.site.clone());
        until(self, "PID 1", async || (!self.server.runs()).then_some(())).await;
    }

    /// kill -9 of every process at once.
    pub(crate) async fn crash(&self) {
        self.node.init.kill_all();
        until(self, "the end", async || (!self.server.runs()).then_some(())).await;
    }
}

/// A founds, B copies and follows, and both are synchronous.
pub(crate) async fn protected(a: &Half, b: &Half) {
    assert!(a.server.found().await.unwrap());
    a.server.serve(false).await.unwrap();
    a.sql("create table ledger (id int primary key)");
    assert_eq!(b.server.clone_peer("first").await.unwrap(), None, "nothing was there");
    assert_eq!(known!(b.server.inspect()), Relation::Streams, "a fresh copy is not copied again");
    b.server.follow().await.unwrap();
    protect(a, b).await;
}

/// The steps to synchronous replication, with the holder first.
pub(crate) async fn protect(a: &Half, b: &Half) {
    // Between the look and the arming the standby may be away for a moment: it changes over to a new timeline.
    until(a, "the link and its arming", async || {
        if !known!(a.server.look()).link {
            return None;
        }
        match a.server.arm_sync().await {
            Err(PgError::Standbys(0)) => None,
            Err(error) if error.is_unknown() => None,
            armed => {
                armed.unwrap();
                Some(())
            }
        }
    })
    .await;
    known!(a.server.barrier());
    let generation = std::fs::read_to_string(b.path("data/pg/generation")).unwrap();
    assert_eq!(format!("{:016x}\n", known!(a.server.canary())), generation);
    assert!(known!(a.server.look()).contradiction.is_none());
}
