//! Against a real etcd on loopback.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dyad_channel::ArbiterLink;
use dyad_channel::conformance::{self, Subject};
use dyad_cluster::message::{Answer, Refusal, ToArbiter};
use dyad_cluster::types::{BootId, ClusterId, Node};
use dyad_etcd::{EtcdArbiter, Settings};

struct Etcd {
    child: Child,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Etcd {
    async fn start(dir: &Path, client: SocketAddr, peer: SocketAddr, more: &[&str]) -> Self {
        let child = start(dir, client, peer, more);
        let etcd = Etcd { child, client, peer };
        for _ in 0..600 {
            let link = etcd.link(ClusterId(0), Node::A);
            let boot = BootId { count: 1, nonce: 0 };
            if link.ask(ToArbiter::Hello { boot, incarnation: None, mirror: None }).await.is_ok() {
                return etcd;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd (Debian package etcd-server) does not answer on {client}");
    }

    fn link(&self, cluster: ClusterId, node: Node) -> EtcdArbiter {
        EtcdArbiter::new(Settings {
            endpoints: vec![self.client],
            cluster,
            node,
            lease_ms: 2_000,
            call_ms: 20_000,
        })
    }
}

#[allow(clippy::disallowed_methods, reason = "a test starts the real etcd")]
fn start(dir: &Path, client: SocketAddr, peer: SocketAddr, more: &[&str]) -> Child {
    Command::new("etcd")
        .args(["--name", "one", "--data-dir"])
        .arg(dir)
        .args(["--listen-client-urls", &format!("http://{client}")])
        .args(["--advertise-client-urls", &format!("http://{client}")])
        .args(["--listen-peer-urls", &format!("http://{peer}")])
        .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
        .args(["--initial-cluster", &format!("one=http://{peer}")])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is on PATH (Debian package etcd-server)")
}

struct Fresh {
    etcd: Etcd,
    clusters: u128,
}

impl Subject for Fresh {
    type Link = EtcdArbiter;

    async fn fresh(&mut self) -> [EtcdArbiter; 2] {
        self.clusters += 1;
        Node::BOTH.map(|node| self.etcd.link(ClusterId(self.clusters), node))
    }
}

#[tokio::test]
async fn etcd_keeps_every_promise_of_an_arbiter() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("data"), free(), free(), &[]).await;
    conformance::run(&mut Fresh { etcd, clusters: 0 }).await;
}

async fn hello(link: &EtcdArbiter, count: u64) -> Answer {
    let boot = BootId { count, nonce: 0 };
    let ask = |incarnation| ToArbiter::Hello { boot, incarnation, mirror: Some(vec![]) };
    let first = link.ask(ask(None)).await.unwrap();
    assert_eq!(first.answer, Answer::Refused(Refusal::Incarnation));
    link.ask(ask(Some(first.incarnation))).await.unwrap().answer
}

/// SIGKILL of etcd: asked meanwhile the outcome is unknown, and afterwards all that was heard is still known.
#[tokio::test]
async fn a_killed_etcd_is_unknown_and_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let etcd = Etcd::start(&data, free(), free(), &[]).await;
    let links = Node::BOTH.map(|node| etcd.link(ClusterId(1), node));
    for link in &links {
        assert_eq!(hello(link, 1).await, Answer::Welcome);
    }
    let (client, peer) = (etcd.client, etcd.peer);
    drop(etcd);
    let boot = BootId { count: 1, nonce: 0 };
    let unknown = links[0].ask(ToArbiter::Hello { boot, incarnation: None, mirror: None }).await.unwrap_err();
    assert!(unknown.to_string().starts_with("outcome unknown: etcd: "), "{unknown}");
    let _etcd = Etcd::start(&data, client, peer, &[]).await;
    let told = links[1].ask(ToArbiter::Hello { boot, incarnation: None, mirror: None }).await.unwrap();
    assert!(told.heard_both, "an etcd that was restarted, not restored, is the same run");
}

/// An etcd that was put back to an earlier copy: a node that was there notices by the revision, one that starts anew by
/// another run of the arbiter.
#[tokio::test]
async fn a_restored_etcd_is_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let (data, snapshot, restored) =
        (dir.path().join("data"), dir.path().join("snapshot"), dir.path().join("restored"));
    let etcd = Etcd::start(&data, free(), free(), &[]).await;
    let links = Node::BOTH.map(|node| etcd.link(ClusterId(1), node));
    for link in &links {
        assert_eq!(hello(link, 1).await, Answer::Welcome);
    }
    ctl(&["--endpoints", &etcd.client.to_string(), "snapshot", "save", snapshot.to_str().unwrap()]);
    for count in 2..20 {
        assert_eq!(hello(&links[0], count).await, Answer::Welcome);
    }
    let (client, peer) = (etcd.client, etcd.peer);
    let before = links[1].ask(ToArbiter::Hello {
        boot: BootId { count: 1, nonce: 0 },
        incarnation: None,
        mirror: None,
    });
    let before = before.await.unwrap().incarnation;
    drop(etcd);
    let url = format!("http://{peer}");
    ctl(&[
        "snapshot",
        "restore",
        snapshot.to_str().unwrap(),
        "--name",
        "one",
        "--data-dir",
        restored.to_str().unwrap(),
        "--initial-cluster",
        &format!("one={url}"),
        "--initial-advertise-peer-urls",
        &url,
        "--initial-cluster-token",
        "restored",
    ]);
    let etcd = Etcd::start(&restored, client, peer, &[]).await;
    let boot = BootId { count: 20, nonce: 0 };
    let unknown = links[0].ask(ToArbiter::Hello { boot, incarnation: None, mirror: None }).await.unwrap_err();
    assert!(unknown.to_string().contains("it was restored to an earlier time"), "{unknown}");
    let anew = etcd.link(ClusterId(1), Node::B);
    let told = anew.ask(ToArbiter::Hello { boot, incarnation: None, mirror: None }).await.unwrap();
    assert_ne!(told.incarnation, before);
    assert!(!told.heard_both, "what was heard before the restore does not count");
}

#[allow(clippy::disallowed_methods, reason = "a test drives the real etcd")]
fn ctl(args: &[&str]) {
    let out = Command::new("etcdctl").env("ETCDCTL_API", "3").args(args).output();
    let out = out.expect("etcdctl is on PATH (Debian package etcd-client)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
