//! Answers in plain words.

use std::fmt::Write;

use dyad_api::operator::{
    CheckRow, Credentials, EventRow, ImageSection, LogLine, NodeRow, PolicyRow, Protection, RoundTripRow,
    ServiceRow, Status, Verdict, VipRow,
};

const MIB: u64 = 1024 * 1024;

/// Both members, and who may write; nothing of a node that is alone.
fn members(status: &Status) -> Vec<(&'static str, String)> {
    if status.nodes.len() < 2 {
        return Vec::new();
    }
    let up = |up: bool| if up { "" } else { ", not up" };
    let lag = |row: &NodeRow| match row.lag_bytes {
        Some(bytes) if row.role == "standby" => format!(", {bytes} bytes behind"),
        Some(_) | None => String::new(),
    };
    let member = |row: &NodeRow| format!("{} {}{}{}", row.name, row.role, up(row.up), lag(row));
    let nodes = status.nodes.iter().map(|row| ("member", member(row)));
    let vip = |row: &VipRow| {
        joined(&format!("{} at {}", row.address, row.holder.as_deref().unwrap_or("nobody")), &row.note)
    };
    let vips = status.vips.iter().map(|row| ("address", vip(row)));
    let of = |row: &dyad_api::operator::ResourceRow| {
        format!("{}: {} of {}, epoch {}", row.name, row.mode, row.holder, row.epoch)
    };
    nodes.chain(status.resources.iter().map(|row| ("authority", of(row)))).chain(vips).collect()
}

/// One step a line.
pub(crate) fn events(rows: &[EventRow]) -> String {
    let mut out = String::new();
    for row in rows {
        let seconds = row.at_ms as f64 / 1000.0;
        writeln!(out, "boot {} {seconds:>10.3} s  {} -> {}: {}", row.boot, row.from, row.to, row.cause)
            .expect("writing to a String does not fail");
    }
    out
}

/// Exit status of a monitoring plugin that could not find out.
pub(crate) const PLUGIN_UNKNOWN: u8 = 3;

/// One thing a line.
pub(crate) fn check(rows: &[CheckRow]) -> String {
    let mut out = String::new();
    for CheckRow { node, name, verdict, note } in rows {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "WARNING",
            Verdict::Critical => "CRITICAL",
        };
        writeln!(out, "{node:<12} {name:<22} {verdict:<9} {note}")
            .expect("writing to a String does not fail");
    }
    out
}

/// What happens, and below it what is done then.
pub(crate) fn policy(rows: &[PolicyRow]) -> String {
    rows.iter().map(|PolicyRow { when, then }| format!("{when}:\n    {then}\n")).collect()
}

/// One line: where, and how long it took.
pub(crate) fn round_trip(row: &RoundTripRow) -> String {
    let RoundTripRow { writer, reader, written_us, read_us } = row;
    let [written, read] = [written_us, read_us].map(|us| *us as f64 / 1000.0);
    format!(
        "written on {writer} in {written:.1} ms, read on {reader} {read:.1} ms later; nothing is left of it\n"
    )
}

/// One line, as monitoring plugins say it: the worst, and all that is not as it shall be.
pub(crate) fn plugin(rows: &[CheckRow], worst: Verdict) -> String {
    let level = match worst {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Critical => "CRITICAL",
    };
    let bad: Vec<_> = rows
        .iter()
        .filter(|row| row.verdict != Verdict::Ok)
        .map(|row| format!("{} {}: {}", row.node, row.name, row.note))
        .collect();
    let good = || rows.first().map_or_else(|| "nothing was looked at".to_owned(), |row| row.note.clone());
    let told = if bad.is_empty() { good() } else { bad.join("; ") };
    // A bar would begin figures.
    format!("DYAD {level} - {}\n", told.replace(['\n', '|'], " "))
}

/// The whole node on one screen; the first line says what losing it now would cost.
pub(crate) fn status(status: &Status) -> String {
    let level = match status.protection {
        Protection::Protected => "PROTECTED",
        Protection::Synced => "SYNCED",
        Protection::Exposed => "EXPOSED",
        Protection::Single => "SINGLE",
        Protection::Down => "DOWN",
    };
    let node = &status.node;
    let mut out = format!("{level}: {}\n\n", status.reason);
    let mut line = |name: &str, text: &str| {
        // A long reason (a refused site file) has lines of its own: they stay in the second column.
        let text = text.replace('\n', &format!("\n{:14}", ""));
        writeln!(out, "{name:<14}{text}").expect("writing to a String does not fail");
    };
    line("node", &node.name);
    if let Some(key) = &node.key {
        line("key", key);
    }
    line("cluster", node.cluster.as_deref().unwrap_or("none"));
    line("site file", &node.site);
    match &node.image {
        Some(image) => of_image(image).iter().for_each(|(name, text)| line(name, text)),
        None => line("image", "unknown, PID 1 does not answer"),
    }
    for (name, text) in members(status) {
        line(name, &text);
    }
    let pg = &node.postgresql;
    let version = pg.version.as_deref().unwrap_or("version unknown");
    line("postgresql", &format!("{} ({version}, restarts {})", joined(&pg.state, &pg.note), pg.restarts));
    for repaired in &pg.repaired {
        line("", &format!("put right: {repaired}"));
    }
    line("network", &joined(&node.network.state, &node.network.note));
    for link in &node.network.links {
        let state = if link.up { "up" } else { "down" };
        line("", &format!("{} {state} {} ({})", link.name, link.addresses.join(" "), link.note));
    }
    for way in &node.ways {
        let state = way.up.map_or("not looked at yet", |up| if up { "works" } else { "DOWN" });
        line("way", &format!("to {} by {} {state}", way.address, way.interface));
    }
    for fs in &node.storage {
        line(
            "storage",
            &format!("{} {} MiB, {} MiB free", fs.path, fs.total_bytes / MIB, fs.free_bytes / MIB),
        );
    }
    for phase in &node.phases {
        line(
            "phase",
            &joined(&format!("{} {} ({} ms)", phase.name, phase.state, phase.took_ms), &phase.note),
        );
    }
    for service in node.services.iter().filter(|service| !matches!(&*service.state, "ready" | "done")) {
        line("service", &joined(&format!("{} {}", service.name, service.state), &service.note));
    }
    out
}

/// What is booted, how that went, and how PID 1 does.
fn of_image(image: &ImageSection) -> Vec<(&'static str, String)> {
    let marks = image.boot.iter().map(|mark| format!("{} {:.1} s", mark.name, mark.at_ms as f64 / 1000.0));
    let mut rows = vec![
        ("image", format!("{} {} (slot {}, kernel {})", image.name, image.version, image.slot, image.kernel)),
        ("boot", marks.collect::<Vec<_>>().join(", ")),
    ];
    if !image.previous.is_empty() {
        rows.push(("boot before", image.previous.clone()));
    }
    let init = &image.init;
    rows.push((
        "init",
        format!(
            "turns of its loop: half below {} us, 99 % below {} us, longest {} us; {} re-execs",
            init.turn_us_half, init.turn_us_99, init.turn_us_max, init.reexecs
        ),
    ));
    rows
}

fn joined(state: &str, note: &str) -> String {
    if note.is_empty() { state.to_owned() } else { format!("{state}: {note}") }
}

/// One line a service.
pub(crate) fn services(rows: &[ServiceRow]) -> String {
    let mut out =
        format!("{:<20} {:<9} {:>7} {:>9} {:>8}  NOTE\n", "SERVICE", "STATE", "PID", "READY MS", "RESTARTS");
    for ServiceRow { name, state, pid, ready_after_ms, restarts, last_exit, note } in rows {
        let exit = last_exit.as_deref().map(|exit| format!("last: {exit}; ")).unwrap_or_default();
        let row = format!("{name:<20} {state:<9} {pid:>7} {ready_after_ms:>9} {restarts:>8}  {exit}{note}");
        out.push_str(row.trim_end_matches([' ', ';']));
        out.push('\n');
    }
    out
}

/// One line a role, as a connection URI where it has a database.
pub(crate) fn credentials(credentials: &Credentials) -> String {
    let mut out = format!("addresses {}\nport {}\n", credentials.addresses.join(" "), credentials.port);
    for row in &credentials.roles {
        writeln!(out, "role {} password {} databases {}", row.role, row.password, row.databases.join(" "))
            .expect("writing to a String does not fail");
    }
    out
}

/// What clients believe, and nothing else.
pub(crate) fn authority(credentials: &Credentials) -> String {
    credentials.authority.clone()
}

/// One line an entry, in the order of time.
pub(crate) fn logs(lines: &[LogLine]) -> String {
    let mut out = String::new();
    for LogLine { realtime_us, priority, source, message } in lines {
        let mark = match priority {
            0..=3 => "E",
            4 => "W",
            _ => "-",
        };
        let (seconds, micros) = (realtime_us / 1_000_000, realtime_us % 1_000_000);
        writeln!(out, "{} {mark} {source}: {message}", utc(seconds, micros))
            .expect("writing to a String does not fail");
    }
    out
}

/// `2026-01-01T00:00:00.000Z` of a time since 1970 (days to date after Howard Hinnant's `civil_from_days`).
fn utc(seconds: u64, micros: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", micros / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_399, 999_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(4_102_444_799, 0), "2099-12-31T23:59:59.000Z");
    }

    #[test]
    fn a_service_that_does_well_has_a_short_line() {
        let row = ServiceRow {
            name: "journald".into(),
            state: "ready".into(),
            pid: 7,
            ready_after_ms: 12,
            restarts: 0,
            last_exit: None,
            note: String::new(),
        };
        let text = services(&[row]);
        assert_eq!(text.lines().nth(1), Some("journald             ready           7        12        0"));
    }
}
