//! `/metrics`: Prometheus' text format.

use std::fmt::Write as _;

use dyad_api::operator::Protection;

use super::answer::Facts;

const LEVELS: [(Protection, &str); 5] = [
    (Protection::Protected, "PROTECTED"),
    (Protection::Synced, "SYNCED"),
    (Protection::Exposed, "EXPOSED"),
    (Protection::Single, "SINGLE"),
    (Protection::Down, "DOWN"),
];

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP dyad_{name} {help}\n# TYPE dyad_{name} {kind}")
            .expect("writing to a String does not fail");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "dyad_{name}{labels} {value}").expect("writing to a String does not fail");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }
}

/// All of them.
pub(super) fn text(facts: &Facts) -> String {
    let status = &facts.status;
    let mut out = Text(String::new());
    out.head("protection", "gauge", "1 for the present level: what losing a node now would cost");
    for (level, name) in LEVELS {
        out.sample("protection", &[("level", name)], u8::from(level == status.protection));
    }
    out.gauge("primary", "Clients are served here as primary", u8::from(facts.primary));
    out.gauge("standby", "This node follows its primary", u8::from(facts.standby));
    out.gauge("synchronous", "Commits wait for this standby", u8::from(facts.synchronous));
    out.gauge("streaming", "Replication is connected", u8::from(facts.streams));
    if let Some(lag) = facts.lag_bytes {
        out.gauge("lag_bytes", "WAL that the standby has not replayed (on the primary: not flushed)", lag);
    }
    if let Some(position) = facts.position {
        out.gauge("wal_position_bytes", "WAL flushed by the primary or replayed by the standby", position);
    }
    if let Some(held_back) = facts.held_back {
        let help = "Transactions whose dead rows stay, because the standby's oldest query may need them";
        out.gauge("feedback_age_transactions", help, held_back);
    }
    out.head("node_up", "gauge", "Each node, as this one sees it");
    for node in &status.nodes {
        out.sample("node_up", &[("node", &node.name), ("role", &node.role)], u8::from(node.up));
    }
    if let Some(timeline) =
        status.nodes.iter().find(|row| row.name == status.node.name).and_then(|row| row.timeline)
    {
        out.gauge("timeline", "PostgreSQL timeline", timeline);
    }
    out.head("epoch", "gauge", "Changes of authority so far");
    for resource in &status.resources {
        out.sample("epoch", &[("resource", &resource.name)], resource.epoch);
    }
    out.head("vip_here", "gauge", "This node answers for the virtual address");
    for vip in &status.vips {
        let here = vip.holder.as_ref() == Some(&status.node.name);
        out.sample("vip_here", &[("address", &vip.address)], u8::from(here));
    }
    out.head("way_up", "gauge", "The other node answers on this address");
    for way in &status.node.ways {
        let labels = [("address", &*way.address), ("interface", &*way.interface)];
        out.sample("way_up", &labels, u8::from(way.up == Some(true)));
    }
    out.head("storage_free_bytes", "gauge", "Free for services");
    for fs in &status.node.storage {
        out.sample("storage_free_bytes", &[("path", &fs.path)], fs.free_bytes);
    }
    out.head("storage_total_bytes", "gauge", "Size of the file system, without what it keeps back");
    for fs in &status.node.storage {
        out.sample("storage_total_bytes", &[("path", &fs.path)], fs.total_bytes);
    }
    out.head("service_restarts_total", "counter", "Restarts that nobody asked for");
    for service in &status.node.services {
        out.sample("service_restarts_total", &[("service", &service.name)], service.restarts);
    }
    out.0
}
