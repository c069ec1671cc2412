//! The answer to `status`, put together from what PID 1, PostgreSQL and the network last showed.

use dyad_api::control::{BootInfo, ExitStatus, Phase, PhaseState, ServiceState, ServiceStatus, Slot};
use dyad_api::operator::{
    BootMark, ImageSection, InitSection, NetworkSection, NodeRow, NodeSection, PhaseRow, Protection,
    ResourceRow, ServiceRow, Status, StorageRow,
};

use crate::driver::Shown;
use crate::files::{self, Extent};
use crate::paths::Paths;
use crate::pg::manager::PgState;
use crate::pid1::View;

/// Who this node is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) name: String,
    /// Cluster name of the site file.
    pub(crate) cluster: Option<String>,
    /// Its public key, once it has one.
    pub(crate) key: Option<String>,
    /// What the site file is, or that there is none.
    pub(crate) site: String,
}

/// Everything shown.
pub(crate) struct Sources<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) view: &'a View,
    pub(crate) boot: Option<BootInfo>,
    pub(crate) pg: &'a PgState,
    /// `None`: not paired.
    pub(crate) pair: Option<&'a Shown>,
    pub(crate) network: NetworkSection,
    pub(crate) storage: Vec<StorageRow>,
}

/// The status of a node.
pub(crate) fn status(sources: Sources<'_>) -> Status {
    let Sources { identity, view, boot, pg, pair, network, storage } = sources;
    let (protection, reason) = pair.map_or_else(|| protection(pg), Shown::protection);
    let name = &identity.name;
    let alone = || NodeRow {
        name: name.clone(),
        role: if pg.serving { "primary" } else { "none" }.into(),
        up: pg.serving,
        timeline: pg.section.timeline,
        lag_bytes: pg.serving.then_some(0),
    };
    let own = || ResourceRow { name: "pg/main".into(), epoch: 0, mode: "Solo".into(), holder: name.clone() };
    Status {
        protection,
        reason,
        nodes: pair.map_or_else(|| vec![alone()], Shown::nodes),
        resources: pair.map_or_else(|| vec![own()], Shown::resources),
        vips: pair.map_or_else(Vec::new, Shown::vip_rows),
        node: NodeSection {
            name: name.clone(),
            cluster: identity.cluster.clone(),
            key: identity.key.clone(),
            site: identity.site.clone(),
            image: boot.map(image),
            phases: view.phases.iter().map(phase_row).collect(),
            services: view.services.iter().map(service_row).collect(),
            storage,
            network,
            ways: pair.map_or_else(Vec::new, Shown::way_rows),
            postgresql: pg.section.clone(),
        },
    }
}

/// PostgreSQL's state while its node pairs.
pub(crate) const PAIRING: &str = "pairing";

fn protection(pg: &PgState) -> (Protection, String) {
    if !pg.serving && pg.section.state == PAIRING {
        return (Protection::Down, format!("not paired yet: {}", pg.section.note));
    }
    if !pg.serving {
        return (Protection::Down, format!("PostgreSQL is {}: {}", pg.section.state, pg.section.note));
    }
    let reason = "one node by design: losing it loses the service, and data unless backed up";
    (Protection::Single, reason.into())
}

fn image(boot: BootInfo) -> ImageSection {
    let slot = match boot.slot {
        Slot::A => "A",
        Slot::B => "B",
        Slot::Network => "network",
        Slot::Other => "other",
    };
    ImageSection {
        name: boot.name,
        version: boot.version,
        slot: slot.into(),
        root_hash: boot.root_hash.map(|hash| hex(&hash)),
        kernel: boot.kernel,
        boot_id: hex(&boot.boot_id),
        boot: boot.marks.into_iter().map(|(name, at_ms)| BootMark { name, at_ms }).collect(),
        previous: boot.previous,
        init: InitSection {
            reexecs: boot.stats.reexecs,
            recovery_us_max: boot.stats.recovery_us_max,
            turn_us_half: boot.stats.turn_us(0.5),
            turn_us_99: boot.stats.turn_us(0.99),
            turn_us_max: boot.stats.turn_us_max,
            allocations: boot.stats.allocations,
        },
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn phase_row(phase: &Phase) -> PhaseRow {
    let state = match phase.state {
        PhaseState::Waiting => "waiting",
        PhaseState::Running => "running",
        PhaseState::Unchanged => "unchanged",
        PhaseState::Changed => "changed",
        PhaseState::Failed => "failed",
    };
    PhaseRow {
        name: phase.name.clone(),
        state: state.into(),
        took_ms: phase.took_ms,
        note: phase.note.clone(),
    }
}

/// A service as operators see it.
pub(crate) fn service_row(service: &ServiceStatus) -> ServiceRow {
    let state = match service.state {
        ServiceState::Stopped => "stopped",
        ServiceState::Waiting => "waiting",
        ServiceState::Starting => "starting",
        ServiceState::Ready => "ready",
        ServiceState::Done => "done",
        ServiceState::Stopping => "stopping",
        ServiceState::BackOff => "backoff",
        ServiceState::Failed => "failed",
    };
    ServiceRow {
        name: service.name.clone(),
        state: state.into(),
        pid: service.pid,
        ready_after_ms: service.ready_after_ms,
        restarts: service.restarts,
        last_exit: service.last_exit.as_ref().map(exit_text),
        note: service.note.clone(),
    }
}

/// How a process ended, in words.
pub(crate) fn exit_text(exit: &ExitStatus) -> String {
    match exit {
        ExitStatus::Exited(status) => format!("exit status {status}"),
        ExitStatus::Signaled(signal) => format!("signal {signal}"),
        ExitStatus::DeadlinePassed => "killed at its deadline".into(),
        ExitStatus::NotStarted(why) => format!("not started: {why}"),
    }
}

/// Sizes of the file systems that hold what must last.
pub(crate) fn storage(paths: &Paths) -> Vec<StorageRow> {
    let row = |path: &str| {
        let Extent { total_bytes, free_bytes } = files::extent(&paths.at(path)).ok()?;
        Some(StorageRow { path: path.into(), total_bytes, free_bytes })
    };
    ["/data/pg", "/state"].into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_a_pair_that_is_not_paired_says_why() {
        let serving = PgState { serving: true, ..PgState::default() };
        assert_eq!(protection(&serving).0, Protection::Single);
        let mut pg = PgState::default();
        let text = "PostgreSQL is waiting: bring-up has not begun";
        assert_eq!(protection(&pg), (Protection::Down, text.to_owned()));
        (pg.section.state, pg.section.note) = (PAIRING.to_owned(), "nobody is heard".to_owned());
        assert_eq!(protection(&pg), (Protection::Down, "not paired yet: nobody is heard".to_owned()));
    }
}
