//! How long nobody can write when something is lost: this program's pair beside Patroni, and keepalived for the address alone,
//! seen by one and the same client, in one run on one machine.

mod client;
mod keepalived;
mod ours;
mod patroni;
mod story;
pub(crate) mod table;
pub(crate) mod world;

use std::path::Path;

use crate::{Lab, root};

/// How often.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Losses of a node of ours; of everything else a tenth.
    pub ours: usize,
    /// Losses of a node of each of the others.
    pub peers: usize,
}

/// Measures everything and prints a table. Debian's packages of the others are unpacked in `packages`; needs root.
pub fn run(rounds: Rounds, packages: &Path) {
    let before = table::load();
    let ours = {
        let lab = Lab::up_with(&root().join("images/lab.toml"), 2, &["--backend", "container"]);
        ours::Ours::with(&lab).run(rounds.ours)
    };
    let middle = table::load();
    let patroni = [patroni::DEFAULT, patroni::FASTEST]
        .map(|pace| (pace, patroni::node_losses(packages, pace, rounds.peers)));
    let vrrp = [keepalived::DEFAULT, keepalived::FAST]
        .map(|advert| (advert, keepalived::node_losses(packages, advert, rounds.peers)));
    println!("\nload before ours: {before}, after: {middle}, at the end: {}\n", table::load());
    table::head();
    ours.rows();
    let ms = |gaps: &[client::Gap]| gaps.iter().map(|gap| gap.ms()).collect::<Vec<_>>();
    for (pace, gaps) in &patroni {
        let patroni::Pace { ttl, loop_wait, retry_timeout } = pace;
        let name =
            format!("Patroni, node lost (ttl {ttl}, loop_wait {loop_wait}, retry_timeout {retry_timeout})");
        table::row(&name, &ms(gaps));
    }
    for (advert, gaps) in &vrrp {
        table::row(&format!("keepalived, the address alone (advert_int {advert})"), &ms(gaps));
    }
}

/// Writes and tells, until it is killed: what [`run`] starts among the clients.
pub fn client(user: &str, database: &str, hosts: &[&str]) -> std::io::Result<()> {
    client::run(user, database, hosts)
}

/// Prints the status with which the HTTP server of a machine answers.
pub fn ask(address: &str, path: &str) {
    println!("{}", patroni::http_status(address, path).unwrap_or(0));
}
