//! Leases: while somebody else could be granted the database, its address is closed by the time that the grant is
//! possible: the standby's promise and the arbiter's silence must both have run out.

use dyad_cluster::event::Timer;
use dyad_cluster::register::Mode;
use dyad_cluster::types::{Node, Tick};

use crate::sim::cluster::{Cluster, DATABASE};
use crate::sim::execute::gate_until;

pub(crate) fn gate_ends_before_grant(cluster: &Cluster) -> Option<String> {
    let (arbiter, register) = (cluster.arbiter.as_ref()?, cluster.arbiter_disk.registers.get(&DATABASE)?);
    let Mode::Sync(pact) = register.mode else { return None };
    let (holder, standby) = (register.holder, register.holder.peer());
    let peer = &cluster.machines[standby.index()];
    let marker = peer.markers.get(&DATABASE).and_then(|file| file.marker)?;
    let state = peer.state.as_ref()?;
    let usable = marker.pact == pact && arbiter.heard() == [true; 2] && !arbiter.has_amnesia();
    let awake =
        |n: Node| cluster.stalled(n).is_none() && cluster.machines[n.index()].hung_until <= cluster.now;
    if !usable || !awake(standby) || !awake(holder) {
        return None;
    }
    let promised = state.timers().get(&Timer::Promise).map_or(0, |at| peer.clock.when(*at));
    let silent_ms = arbiter.silent_ms(holder, Tick(cluster.now));
    let silence_ends = cluster.now + cluster.plan.lease_ms.saturating_sub(silent_ms);
    let gate = gate_until(cluster, holder);
    (gate > promised.max(silence_ends) && gate > cluster.now).then(|| {
        format!(
            "lease: {holder:?}'s address answers until {gate}, a grant is possible from {}",
            promised.max(silence_ends)
        )
    })
}
