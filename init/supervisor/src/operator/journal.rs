//! The end of the journal, read by journalctl that PID 1 runs: page by page backwards, because a one-shot gives back a
//! bounded end of its output.

use dyad_api::control::{ExitStatus, Oneshot};
use dyad_api::operator::{Failure, FailureKind, LogLine};
use serde_json::Value;

use crate::pid1::Pid1;
use crate::status::exit_text;

/// Entries asked for at once: with usual lines they fit the capture.
const PAGE: u32 = 30;
/// For one page.
const DEADLINE_MS: u32 = 20_000;
/// Only these fields: all of them would be a kilobyte an entry.
const FIELDS: &str = "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,_COMM";

/// The last `lines` entries, oldest first.
pub(crate) async fn tail(pid1: &Pid1, lines: u32, service: Option<&str>) -> Result<Vec<LogLine>, Failure> {
    let mut entries: Vec<LogLine> = Vec::new();
    let mut cursor: Option<String> = None;
    while entries.len() < lines as usize {
        let page = PAGE.min(lines - entries.len() as u32);
        let text = run(pid1, page, service, cursor.as_deref()).await?;
        let parsed: Vec<_> = text.lines().filter_map(parse).collect();
        let Some((_, oldest)) = parsed.last() else { break };
        cursor = Some(oldest.clone());
        entries.extend(parsed.into_iter().map(|(line, _)| line));
    }
    entries.reverse();
    Ok(entries)
}

async fn run(pid1: &Pid1, lines: u32, service: Option<&str>, after: Option<&str>) -> Result<String, Failure> {
    let mut exec: Vec<String> =
        ["/usr/bin/journalctl", "--no-pager", "--quiet", "--reverse", "--output=json", FIELDS]
            .map(str::to_owned)
            .into();
    exec.push(format!("--lines={lines}"));
    exec.extend(service.map(|name| format!("--unit={name}.service")));
    exec.extend(after.map(|cursor| format!("--after-cursor={cursor}")));
    let oneshot = Oneshot::as_root("journalctl", exec, DEADLINE_MS);
    let failed = |message: String| Failure::new(FailureKind::Failed, message);
    let finished = pid1.run(oneshot).await.map_err(|error| failed(format!("journalctl: {error}")))?;
    match finished.status {
        ExitStatus::Exited(0) => Ok(String::from_utf8_lossy(&finished.stdout).into_owned()),
        status => Err(failed(format!(
            "journalctl: {}: {}",
            exit_text(&status),
            String::from_utf8_lossy(&finished.stderr).trim()
        ))),
    }
}

/// One entry and its cursor; `None` for the entry that the capture cut.
fn parse(line: &str) -> Option<(LogLine, String)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| entry.get(field).and_then(Value::as_str);
    // A message that is no UTF-8 comes as a list of bytes, an empty one as null.
    let message = match entry.get("MESSAGE") {
        Some(Value::String(message)) => message.clone(),
        Some(Value::Array(bytes)) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    let unit = text("_SYSTEMD_UNIT").map(|unit| unit.trim_end_matches(".service"));
    let source = unit.or(text("SYSLOG_IDENTIFIER")).or(text("_COMM")).unwrap_or("unknown").to_owned();
    let line = LogLine {
        realtime_us: text("__REALTIME_TIMESTAMP")?.parse().ok()?,
        priority: text("PRIORITY").and_then(|text| text.parse().ok()).unwrap_or(6),
        source,
        message,
    };
    Some((line, text("__CURSOR")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_a_cut_one_is_skipped() {
        let entry = r#"{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1700000000000000","PRIORITY":"4","_SYSTEMD_UNIT":"postgresql.service","MESSAGE":"hi"}"#;
        let (line, cursor) = parse(entry).unwrap();
        assert_eq!(cursor, "s=1;i=2");
        let expected = LogLine {
            realtime_us: 1_700_000_000_000_000,
            priority: 4,
            source: "postgresql".into(),
            message: "hi".into(),
        };
        assert_eq!(line, expected);
        assert!(parse(&entry[20..]).is_none());
        let bytes = entry.replace("\"hi\"", "[104,255]").replace("_SYSTEMD_UNIT", "X");
        let (line, _) = parse(&bytes).unwrap();
        assert_eq!((&*line.message, &*line.source), ("h\u{fffd}", "unknown"));
    }
}
