//! A configuration of HAProxy that was written for Patroni, unchanged, in front of two nodes through a loss:
//! `DYAD_HAPROXY=/path/to/haproxy cargo bench -p supervisor --bench haproxy`. No test, because installing HAProxy's package
//! on a machine without systemd starts a service.

#![allow(clippy::disallowed_methods, reason = "starts programs and reads the clock")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::{Child, Command};
use std::time::Instant;

use dyad_api::operator::Protection;
use support::cluster::{Cluster, story};
use support::lan::Lan;

/// From Patroni's own `haproxy.cfg`, with the addresses of these nodes.
fn configuration() -> String {
    let servers = |at: usize| {
        format!("    server postgresql_{at} {}:5432 maxconn 100 check port 8008\n", Lan::address(at))
    };
    let servers = servers(0) + &servers(1);
    let listen = |name: &str, port: u16, path: &str| {
        format!(
            "listen {name}\n    bind *:{port}\n    option httpchk OPTIONS {path}\n    http-check expect status 200\n    \
             default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n{servers}\n"
        )
    };
    format!(
        "global\n    maxconn 100\n\ndefaults\n    log global\n    mode tcp\n    retries 2\n    timeout client 30m\n    \
         timeout connect 4s\n    timeout server 30m\n    timeout check 5s\n\n{}{}",
        listen("primary", 5000, "/primary"),
        listen("replicas", 5001, "/replica"),
    )
}

struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which node answers behind a port, and whether it is a standby.
fn behind(cluster: &Cluster, port: u16) -> Option<(usize, bool)> {
    let answer = cluster.client_at(
        "10.77.0.254".parse().ok()?,
        port,
        "select inet_server_addr(), pg_is_in_recovery()",
    );
    let answer = answer.ok()?;
    let (address, standby) = answer.split_once('|')?;
    let at = [0, 1].into_iter().find(|at| Lan::address(*at).to_string() == address)?;
    Some((at, standby == "t"))
}

fn main() {
    let program = std::env::var_os("DYAD_HAPROXY").expect("DYAD_HAPROXY names the program");
    story("haproxy", "medium", |cluster| {
        cluster.start();
        let holder = cluster.wait_for(Protection::Protected);
        let other = 1 - holder;
        let file = cluster.nodes[0].path("haproxy.cfg");
        std::fs::write(&file, configuration()).unwrap();
        let _haproxy = Haproxy(Command::new(program).arg("-f").arg(&file).spawn().unwrap());
        cluster.wait("the primary behind port 5000", || {
            (behind(cluster, 5000)? == (holder, false)).then_some(())
        });
        cluster
            .wait("the standby behind port 5001", || (behind(cluster, 5001)? == (other, true)).then_some(()));
        println!("before: port 5000 leads to node {holder}, port 5001 to node {other}");
        let lost = Instant::now();
        cluster.power_cut(holder);
        cluster.wait("the new primary behind port 5000", || {
            let found = behind(cluster, 5000)?;
            assert!(!found.1, "a standby behind the writers' port");
            (found.0 == other).then_some(())
        });
        println!("{:.1} s after the loss port 5000 leads to node {other}", lost.elapsed().as_secs_f64());
        cluster.power_on(holder);
        assert_eq!(cluster.wait_for(Protection::Protected), other);
        cluster.wait("the new standby behind port 5001", || {
            (behind(cluster, 5001)? == (holder, true)).then_some(())
        });
        assert_eq!(behind(cluster, 5000), Some((other, false)));
        println!("afterwards port 5001 leads to node {holder}");
    });
}
