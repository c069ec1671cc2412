//! HAProxy in a lab's network, as Debian packages it, with a configuration made for Patroni.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Lab;

/// What users are given to begin with; the addresses are a lab's.
const CONFIGURATION: &str = include_str!("../../../docs/haproxy.cfg");
/// The lab's own address among the clients.
const HOST: &str = "10.77.0.1";
const NODES: [(&str, &str); 2] = [("10.77.0.11", "node-a"), ("10.77.0.12", "node-b")];

/// HAProxy under way; ended when dropped, before its lab.
pub struct Balancer {
    child: Child,
    password: String,
}

impl Balancer {
    /// Unpacks HAProxy from its package, into the cache and without installing it, and starts it in front of both nodes.
    #[allow(clippy::disallowed_methods, reason = "it goes on beside the test")]
    pub fn start(lab: &Lab) -> Self {
        let unpacked = crate::run(&["tools", "haproxy"], &[]);
        let tools = crate::stdout("dyad tools haproxy", &unpacked).trim().to_owned();
        let file = lab.state().join("haproxy.cfg");
        fs::write(&file, CONFIGURATION).expect("a file can be written");
        let at = |path: &str| Path::new(&tools).join(path);
        let child = Command::new(crate::dyad())
            .args(["lab", "--state"])
            .arg(lab.state())
            .args(["exec", "--"])
            // With the libraries that were unpacked beside it.
            .arg(at("lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(at("usr/lib/x86_64-linux-gnu"))
            .arg(at("usr/sbin/haproxy"))
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("dyad can be started");
        let credentials = lab.ask("node-a", &["credentials"]);
        let password = credentials["roles"][0]["password"].as_str().expect("the lab has a role").to_owned();
        Self { child, password }
    }

    /// Whether the writers' port leads to this node, which takes writes, and the readers' port to that standby, or to
    /// nobody. So does libpq when it is given both nodes and wants to write. HAProxy needs three checks of 3 s each to see a
    /// change: a primary that comes back as a standby sooner stays behind the writers' port for so long, and refuses them.
    pub fn leads_to(&self, lab: &Lab, writer: &str, reader: Option<&str>) -> bool {
        // Connections go to its servers by turns: of two, one would meet a server that should not be there.
        let twice = |port: u16| [0, 1].map(|_| self.behind(lab, &format!("host={HOST} port={port}")));
        let (primary, replica) = (twice(5000), twice(5001));
        let both = self.behind(lab, "host=10.77.0.11,10.77.0.12 target_session_attrs=read-write");
        let reader = reader.and_then(known).map(|name| (name, true));
        let writer = known(writer).map(|name| (name, false));
        let reads = replica == [reader; 2];
        let writes = primary == [writer; 2] && both == writer;
        reads && writes
    }

    /// The node that answers, and whether it is a standby.
    fn behind(&self, lab: &Lab, target: &str) -> Option<(&'static str, bool)> {
        let target = format!("{target} dbname=lab user=lab connect_timeout=3");
        let question = "select host(inet_server_addr()), pg_is_in_recovery()";
        let state = lab.state().to_str().expect("test paths are UTF-8");
        let words = ["lab", "--state", state, "exec", "--", "psql", "-w", "-XAtqc", question, "-d", &target];
        let answer = crate::run(&words, &[("PGPASSWORD", &self.password)]);
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        let (address, standby) = text.trim().split_once('|')?;
        let (_, name) = NODES.into_iter().find(|(known, _)| *known == address)?;
        Some((name, standby == "t"))
    }
}

fn known(name: &str) -> Option<&'static str> {
    NODES.into_iter().map(|(_, node)| node).find(|node| *node == name)
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have ended with its lab.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
