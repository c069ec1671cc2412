//! Debian's Patroni with an etcd: two machines, and clients that look for the primary by themselves.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::client::{Gap, Writer, now_us};
use super::world::{ADDRESSES, BIN, MACHINES, Machine, PATIENCE, USER, World};
use crate::chaos::clock;

const PASSWORD: &str = "bench";
/// Patroni's own deadlines may add up to this.
const TAKEOVER: Duration = Duration::from_secs(180);
/// Between two questions whether the pair is whole again.
const LOOK: Duration = Duration::from_millis(500);
const REST: u16 = 8008;
/// Where Patroni's etcd is: a machine of its own, which is never lost.
const ETCD: &str = "10.78.0.19";

/// Deadlines in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) ttl: u32,
    pub(crate) loop_wait: u32,
    pub(crate) retry_timeout: u32,
}

/// What Patroni has when nothing is said.
pub(crate) const DEFAULT: Pace = Pace { ttl: 30, loop_wait: 10, retry_timeout: 10 };
/// The least of each that Patroni takes.
pub(crate) const FASTEST: Pace = Pace { ttl: 20, loop_wait: 1, retry_timeout: 3 };

fn configuration(name: &str, address: &str, pace: Pace) -> String {
    let Pace { ttl, loop_wait, retry_timeout } = pace;
    format!(
        "scope: bench\nname: {name}\n\
         restapi:\n  listen: {address}:{REST}\n  connect_address: {address}:{REST}\n\
         etcd3:\n  host: {ETCD}:2379\n\
         bootstrap:\n  dcs:\n    ttl: {ttl}\n    loop_wait: {loop_wait}\n    retry_timeout: {retry_timeout}\n    \
         synchronous_mode: true\n    postgresql:\n      use_pg_rewind: true\n  \
         initdb:\n  - encoding: UTF8\n  - locale: C\n  - data-checksums\n\
         postgresql:\n  listen: {address}:5432\n  connect_address: {address}:5432\n  data_dir: /data/pg\n  \
         bin_dir: {BIN}\n  pgpass: /tmp/pgpass\n  parameters:\n    unix_socket_directories: /tmp\n  \
         pg_hba:\n  - local all all trust\n  - host all all 10.78.0.0/24 scram-sha-256\n  \
         - host replication all 10.78.0.0/24 scram-sha-256\n  authentication:\n    \
         superuser: {{username: postgres, password: {PASSWORD}}}\n    \
         replication: {{username: replicator, password: {PASSWORD}}}\n    \
         rewind: {{username: rewinder, password: {PASSWORD}}}\n"
    )
}

struct Patroni {
    machines: [Option<Machine>; 2],
    writer: Writer,
    _etcd: Machine,
    world: World,
}

/// The status with which a machine's REST interface answers; asked from this very program among the clients.
pub(crate) fn http_status(address: &str, path: &str) -> Option<u16> {
    let address = format!("{address}:{REST}").parse().ok()?;
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

impl Patroni {
    fn up(packages: &Path, pace: Pace) -> Self {
        let world = World::new(packages);
        let own = std::env::current_exe().expect("a program knows its file");
        let etcd = format!(
            "exec chroot --userspec={USER} $root /usr/bin/etcd --data-dir /data/etcd --log-level error \
             --listen-client-urls http://{ETCD}:2379 --advertise-client-urls http://{ETCD}:2379"
        );
        let etcd = world.start("etcd", ETCD, &etcd);
        for (name, address) in MACHINES.into_iter().zip(ADDRESSES) {
            let file = world.root(name).join("etc/patroni.yml");
            fs::write(file, configuration(name, address, pace)).expect("a file can be written");
        }
        let mut command =
            world.clients(&own, &["client", "postgres", "postgres", ADDRESSES[0], ADDRESSES[1]]);
        command.env("PGPASSWORD", PASSWORD);
        let writer = Writer::start(command);
        let mut all = Self { machines: [None, None], writer, _etcd: etcd, world };
        all.on(0);
        all.on(1);
        all
    }

    fn on(&mut self, at: usize) {
        let script =
            format!("exec chroot --userspec={USER} $root /usr/bin/python3 /usr/bin/patroni /etc/patroni.yml");
        self.machines[at] = Some(self.world.start(MACHINES[at], ADDRESSES[at], &script));
    }

    fn says(&self, at: usize, path: &str) -> bool {
        let own = std::env::current_exe().expect("a program knows its file");
        let asked = self.world.clients(&own, &["ask", ADDRESSES[at], path]).output();
        asked.expect("nsenter can be started").stdout.starts_with(b"200")
    }

    /// Waits for a primary with a synchronous standby; which one is the primary.
    fn ready(&self) -> usize {
        let pair = |at: &usize| self.says(*at, "/primary") && self.says(1 - at, "/sync");
        let begun = clock::now();
        while clock::now() - begun < PATIENCE {
            if let Some(primary) = [0, 1].into_iter().find(pair) {
                return primary;
            }
            clock::pause(LOOK);
        }
        let said = ["m1", "m2", "etcd"].map(|name| format!("--- {name}\n{}", self.world.said(name)));
        panic!("Patroni has no synchronous pair\n{}", said.join("\n"));
    }
}

/// Loses the primary so often, in turn; how long nobody acknowledged.
pub(crate) fn node_losses(packages: &Path, pace: Pace, rounds: usize) -> Vec<Gap> {
    let mut patroni = Patroni::up(packages, pace);
    let round = |_| {
        let primary = patroni.ready();
        assert!(patroni.writer.writes(PATIENCE), "clients of Patroni do not get through");
        let server = patroni.writer.server().unwrap_or_default();
        let lost = now_us();
        let machine = patroni.machines[primary].take().expect("the primary is on");
        patroni.world.power_cut(machine);
        let gap = patroni.writer.replaced(&server, lost, TAKEOVER);
        patroni.on(primary);
        let gap = gap.unwrap_or_else(|| panic!("Patroni does not take over in {TAKEOVER:?}"));
        println!("Patroni {pace:?}: {:.0} ms", gap.ms());
        gap
    };
    (0..rounds).map(round).collect()
}
