//! `check`: what must be true of a node in good order, each with what was seen. Asked of one node of a pair it looks at both,
//! and at the way between them from both ends.

use std::net::SocketAddr;
use std::time::Duration;

use dyad_api::operator::{Call, CheckRow, Protection, Status, Verdict};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::calls::{Caller, Context, Other};
use crate::driver::{Replication, Role, Shown};
use crate::paths::Paths;

/// A standby may be so far behind without a warning: 1 MiB.
const LAG_BYTES_MAX: u64 = 1 << 20;
/// So many transactions may go by without a warning while a query of the standby keeps their dead rows: tables grow meanwhile.
const HELD_BACK_MAX: u64 = 1_000_000;
/// How full a volume may be without a warning, in percent; what the cluster does by itself begins above.
const FULL_PERCENT_MAX: u64 = 90;
/// Connections that are tried to each port of the other node.
const TRIES: usize = 3;
/// For each of them.
const CONNECT: Duration = Duration::from_secs(1);
/// The first hardware watchdog, as the kernel shows it.
const WATCHDOG: &str = "/sys/class/watchdog/watchdog0";

/// Seen of one thing.
type Seen = (Verdict, String);

fn ok(note: impl Into<String>) -> Seen {
    (Verdict::Ok, note.into())
}

fn warning(note: impl Into<String>) -> Seen {
    (Verdict::Warning, note.into())
}

fn critical(note: impl Into<String>) -> Seen {
    (Verdict::Critical, note.into())
}

impl Context {
    /// This node, and unless the other one asks, that one too.
    pub(super) async fn check(&self, caller: &Caller) -> Vec<CheckRow> {
        let status = self.status().await;
        let pair = self.pair.borrow().clone();
        let other = self.peer.borrow().clone();
        let mut seen = vec![("protection", protection(&status)), ("database", database(&status))];
        if let Some(pair) = &pair {
            seen.push(("replication", replication(pair.role(), pair.replication)));
            seen.push(("witness", witness(pair)));
            seen.push(("addresses", addresses(&status)));
            seen.push(("ways", ways(pair)));
            seen.push(("hooks", pair.hook.clone().map_or_else(|| ok("none fails"), warning)));
        }
        seen.push(("links", links(&status)));
        if let Some(other) = &other {
            // All at once: a way that is down must not make this node late with its answer.
            let tries = other.ports.iter().map(|(name, address)| tokio::spawn(way(name, *address)));
            let tries: Vec<_> = tries.collect();
            for ((_, address), tried) in other.ports.iter().zip(tries) {
                let (verdict, note) = tried.await.unwrap_or_else(|error| critical(error.to_string()));
                let known = pair.as_ref().is_some_and(|pair| pair.is_down(address.ip()));
                // What its link says already is not worse for each port.
                let verdict = if known { verdict.min(Verdict::Warning) } else { verdict };
                seen.push(("way to the other node", (verdict, note)));
            }
        }
        seen.push(("fencing", fencing(&self.firewall.borrow().state, pair.as_ref())));
        seen.push(("watchdog", watchdog(&self.paths)));
        seen.push(("services", services(&status)));
        seen.push(("storage", storage(&status)));
        seen.push(("image", image(&status)));
        let own = &status.node.name;
        let mut rows: Vec<CheckRow> = seen.into_iter().map(|(name, seen)| row(own, name, seen)).collect();
        if let (Some(other), false) = (other, *caller == Caller::Peer) {
            rows.extend(self.check_other(&other, caller, &status).await);
        }
        rows
    }

    async fn check_other(&self, other: &Other, caller: &Caller, own: &Status) -> Vec<CheckRow> {
        let answer = self.forward(Call::Check, caller).await;
        let rows = answer.map_err(|failure| failure.message).and_then(|answer| {
            serde_json::from_value::<Vec<CheckRow>>(answer).map_err(|error| error.to_string())
        });
        match rows {
            Ok(mut rows) => {
                let (_, image) = image(own);
                for theirs in rows.iter_mut().filter(|row| row.name == "image" && row.note != image) {
                    theirs.verdict = theirs.verdict.max(Verdict::Warning);
                    theirs.note = format!("{}, and not the same as the other node's {image}", theirs.note);
                }
                rows
            }
            Err(why) => vec![row(&other.name, "node", critical(why))],
        }
    }
}

fn row(node: &str, name: &str, (verdict, note): Seen) -> CheckRow {
    CheckRow { node: node.to_owned(), name: name.to_owned(), verdict, note }
}

fn protection(status: &Status) -> Seen {
    let note = status.reason.clone();
    match status.protection {
        Protection::Protected | Protection::Single => ok(note),
        Protection::Synced => warning(note),
        Protection::Exposed | Protection::Down => critical(note),
    }
}

fn database(status: &Status) -> Seen {
    let own = status.nodes.iter().find(|row| row.name == status.node.name);
    let section = &status.node.postgresql;
    match own {
        Some(row) if row.up && row.role != "none" => ok(row.role.clone()),
        Some(_) | None => critical(format!("{}: {}", section.state, section.note)),
    }
}

fn replication(role: Role, replication: Replication) -> Seen {
    let lag = replication.lag_bytes.unwrap_or_default();
    match (role, replication.streams) {
        (Role::None, _) => critical("this node is neither primary nor standby"),
        (Role::Primary, false) => critical("no standby receives from here"),
        (Role::Standby, false) => critical("nothing is received from the primary"),
        (Role::Primary | Role::Standby, true) if lag > LAG_BYTES_MAX => {
            warning(format!("streams, {lag} bytes behind; up to {LAG_BYTES_MAX} are expected"))
        }
        (Role::Primary, true) if replication.held_back > Some(HELD_BACK_MAX) => warning(format!(
            "a query on the standby keeps the dead rows of {} transactions; up to {HELD_BACK_MAX} are expected",
            replication.held_back.unwrap_or_default()
        )),
        (Role::Primary | Role::Standby, true) => ok(format!("streams, {lag} bytes behind")),
    }
}

fn witness(pair: &Shown) -> Seen {
    match pair.no_vote() {
        Some(why) => warning(why),
        None => ok("there is a third vote"),
    }
}

fn addresses(status: &Status) -> Seen {
    let mut notes = Vec::new();
    for row in &status.vips {
        match &row.holder {
            Some(holder) if row.note.is_empty() => notes.push(format!("{} at {holder}", row.address)),
            Some(_) | None if !row.note.is_empty() => {
                return critical(format!("{}: {}", row.address, row.note));
            }
            Some(_) | None => return critical(format!("{} is at nobody", row.address)),
        }
    }
    ok(if notes.is_empty() { "the site file has none".to_owned() } else { notes.join(", ") })
}

fn links(status: &Status) -> Seen {
    let network = &status.node.network;
    if network.state != "applied" {
        return critical(format!("{}: {}", network.state, network.note));
    }
    let down: Vec<_> = network.links.iter().filter(|link| !link.up).map(|link| &*link.name).collect();
    match down[..] {
        [] => ok(format!("{} are up", network.links.len())),
        _ => warning(format!("down: {}", down.join(", "))),
    }
}

/// Each way to the other node by its own link.
fn ways(pair: &Shown) -> Seen {
    let down = pair.ways.iter().filter(|way| way.up == Some(false));
    let down: Vec<_> = down.map(|way| format!("{} by {}", way.address, way.interface)).collect();
    match (pair.ways.len(), down.len()) {
        (0, _) => warning("none is looked at"),
        (1, 0) => warning("there is one alone: its loss parts the nodes"),
        (all, 0) => ok(format!("{all} work")),
        (all, lost) if lost == all => critical("the other node answers on none"),
        _ => warning(format!("the other node does not answer at {}", down.join(", "))),
    }
}

/// How long connections take, and how many come to nothing.
async fn way(name: &'static str, address: SocketAddr) -> Seen {
    let mut took = Vec::new();
    let mut why = String::new();
    for _ in 0..TRIES {
        let begun = Instant::now();
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => took.push(begun.elapsed()),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no answer within {} s", CONNECT.as_secs()),
        }
    }
    let lost = TRIES - took.len();
    match took.into_iter().max() {
        Some(most) if lost == 0 => {
            ok(format!("{name} at {address} answers within {:.1} ms", most.as_secs_f64() * 1000.0))
        }
        Some(_) => warning(format!("{name} at {address}: {lost} of {TRIES} connections failed: {why}")),
        None => critical(format!("{name} at {address}: {why}")),
    }
}

/// Whether this node can shut itself off from its clients.
fn fencing(filter: &str, pair: Option<&Shown>) -> Seen {
    if filter != "applied" {
        return critical(format!(
            "the packet filter, which shuts the virtual addresses, is not there: {filter}"
        ));
    }
    match pair {
        Some(pair) if pair.lacks_lease() => critical("it serves without a lease, or would"),
        Some(_) | None => ok("packet filter loaded"),
    }
}

fn watchdog(paths: &Paths) -> Seen {
    let read = |name: &str| std::fs::read_to_string(paths.at(WATCHDOG).join(name)).ok();
    let Some(identity) = read("identity") else {
        return warning("no hardware watchdog: a machine that stands still is not reset");
    };
    let (identity, state) = (identity.trim(), read("state").unwrap_or_default());
    match state.trim() {
        "active" => ok(format!("{identity}, {} s", read("timeout").unwrap_or_default().trim())),
        _ => warning(format!("{identity} is not started")),
    }
}

fn services(status: &Status) -> Seen {
    let bad = |state: &str| matches!(state, "failed" | "backoff");
    let named = |service: &dyad_api::operator::ServiceRow| format!("{} {}", service.name, service.state);
    let bad: Vec<_> = status.node.services.iter().filter(|s| bad(&s.state)).map(named).collect();
    match bad[..] {
        [] => ok(format!("{} are as they shall be", status.node.services.len())),
        _ => critical(bad.join(", ")),
    }
}

fn storage(status: &Status) -> Seen {
    let full = |row: &dyad_api::operator::StorageRow| {
        let used = row.total_bytes.saturating_sub(row.free_bytes);
        (used.saturating_mul(100).div_ceil(row.total_bytes.max(1)), row.path.clone())
    };
    match status.node.storage.iter().map(full).max() {
        Some((percent, path)) if percent > FULL_PERCENT_MAX => warning(format!("{path} is {percent} % full")),
        Some((percent, path)) => ok(format!("{path} is the fullest, {percent} %")),
        None => ok("none of its own"),
    }
}

fn image(status: &Status) -> Seen {
    match &status.node.image {
        Some(image) => ok(format!("{} {}", image.name, image.version)),
        None => critical("PID 1 does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_way_is_measured_or_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(way("pair", address).await.0, Verdict::Ok);
        drop(listener);
        let (verdict, note) = way("pair", address).await;
        assert_eq!(verdict, Verdict::Critical);
        assert!(note.contains(&address.to_string()) && note.contains("refused"), "{note}");
    }

    #[test]
    fn a_standby_is_late_from_one_mebibyte_on() {
        for role in [Role::Primary, Role::Standby] {
            let of = |lag| Replication { streams: true, lag_bytes: Some(lag), ..Replication::default() };
            assert_eq!(replication(role, of(1 << 20)).0, Verdict::Ok);
            let (verdict, note) = replication(role, of((1 << 20) + 1));
            assert_eq!((verdict, note.contains("1048577 bytes behind")), (Verdict::Warning, true), "{note}");
            assert_eq!(replication(role, Replication::default()).0, Verdict::Critical);
        }
    }

    #[test]
    fn a_watchdog_that_runs_is_named_with_its_time() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        assert_eq!(watchdog(&paths).0, Verdict::Warning);
        let dir = paths.at(WATCHDOG);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("identity", "i6300ESB timer\n"), ("state", "inactive\n"), ("timeout", "30\n")] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        assert_eq!(watchdog(&paths), warning("i6300ESB timer is not started"));
        std::fs::write(dir.join("state"), "active\n").unwrap();
        assert_eq!(watchdog(&paths), ok("i6300ESB timer, 30 s"));
    }
}
