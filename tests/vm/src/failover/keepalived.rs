//! A virtual address that Debian's keepalived moves between two servers that know nothing of each other: what an address costs
//! where no data has to follow it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::client::{Gap, Writer, now_us};
use super::world::{ADDRESSES, BIN, MACHINES, Machine, PATIENCE, USER, World};
use crate::boot::wait;
use crate::chaos::clock;

const VIP: &str = "10.78.0.100";
const TAKEOVER: Duration = Duration::from_secs(60);
/// For the one that came back to hear the other's advertisements.
const SETTLE: Duration = Duration::from_secs(5);

/// Seconds between advertisements: what keepalived has when nothing is said, and a tenth of it. Less is legal, and a
/// machine that is busy for a moment would lose the address.
pub(crate) const DEFAULT: &str = "1";
pub(crate) const FAST: &str = "0.1";

fn configuration(advert: &str, priority: u32) -> String {
    format!(
        "global_defs {{\n  vrrp_version 3\n}}\n\
         vrrp_instance V {{\n  state BACKUP\n  nopreempt\n  interface eth0\n  virtual_router_id 51\n  \
         priority {priority}\n  advert_int {advert}\n  virtual_ipaddress {{\n    {VIP}/24\n  }}\n}}\n"
    )
}

/// Makes a data directory where there is none, and runs a server on it beside keepalived.
fn script() -> String {
    format!(
        "[ -e $root/data/pg ] || {{
           chroot --userspec={USER} $root {BIN}/initdb --no-sync --auth=trust -U postgres -D /data/pg
           echo 'host all all 10.78.0.0/24 trust' >> $root/data/pg/pg_hba.conf
         }}
         chroot --userspec={USER} $root {BIN}/postgres -D /data/pg -k /tmp -c listen_addresses='*' &
         exec chroot $root /usr/sbin/keepalived --vrrp --dont-fork --log-console --use-file=/etc/keepalived.conf"
    )
}

/// Loses the machine with the address so often; how long nobody acknowledged.
pub(crate) fn node_losses(packages: &Path, advert: &str, rounds: usize) -> Vec<Gap> {
    let world = World::new(packages);
    let mut machines: [Option<Machine>; 2] = [0, 1].map(|at| {
        let priority = if at == 0 { 110 } else { 100 };
        let file = world.root(MACHINES[at]).join("etc/keepalived.conf");
        fs::write(file, configuration(advert, priority)).expect("a file can be written");
        Some(world.start(MACHINES[at], ADDRESSES[at], &script()))
    });
    let own = std::env::current_exe().expect("a program knows its file");
    let writer = Writer::start(world.clients(&own, &["client", "postgres", "postgres", VIP]));
    let reaches = |machine: &Machine, at: usize| {
        let command =
            format!("chroot {} {BIN}/pg_isready -h {}", world.root(MACHINES[at]).display(), ADDRESSES[at]);
        machine.look(&command).contains("accepting connections")
    };
    let round = |_| {
        for (at, machine) in machines.iter().enumerate() {
            let machine = machine.as_ref().expect("both are on");
            wait("a server", PATIENCE, || reaches(machine, at));
        }
        clock::pause(SETTLE);
        assert!(writer.writes(PATIENCE), "nobody has the address\n{}", world.said(MACHINES[0]));
        let has = |machine: &Option<Machine>| {
            machine.as_ref().is_some_and(|machine| machine.look("ip -4 -o address").contains(VIP))
        };
        let holder = machines.iter().position(has).expect("one of them has the address");
        let server = writer.server().unwrap_or_default();
        let lost = now_us();
        world.power_cut(machines[holder].take().expect("it is on"));
        let gap = writer.replaced(&server, lost, TAKEOVER);
        machines[holder] = Some(world.start(MACHINES[holder], ADDRESSES[holder], &script()));
        let gap = gap.unwrap_or_else(|| panic!("keepalived does not move the address in {TAKEOVER:?}"));
        println!("keepalived, advert_int {advert}: {:.0} ms", gap.ms());
        gap
    };
    (0..rounds).map(round).collect()
}
