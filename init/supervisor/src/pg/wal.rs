//! The log on disk of a stopped server: where it ends, its pages, its histories.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use dyad_api::control::ExitStatus;

use crate::files::{self, At};
use crate::pg::adapter::{PgError, Server};
use crate::pg::history::History;
use crate::pg::lsn::{Lsn, PAGE_BYTES, SEGMENT_BYTES};

/// Reading the log since the last checkpoint.
const READ: Duration = Duration::from_secs(60);

impl Server {
    /// Where the log of this timeline ends, read from `from` on: the start of its last whole record, or the last byte of its
    /// last segment when that is full to its end. `None`: there is no such log, or it cannot be read.
    pub(crate) async fn last_record(&self, timeline: u32, from: Lsn) -> Result<Option<Lsn>, PgError> {
        let log = self.paths.pg_main().join("pg_wal");
        let Some((first, end)) = segments(&log, timeline, from)? else { return Ok(None) };
        // Named, since the program takes the size of segments from the first file that it finds in the directory: one that
        // was made for later and is still empty would end it.
        let names = [first, Lsn(end.0 - 1)].map(|lsn| lsn.segment(timeline));
        let mut arguments = vec!["-q".into(), "-p".into(), log.display().to_string()];
        arguments.extend(["-s".into(), from.max(first).to_string()]);
        arguments.extend(names);
        let finished = self.tools().finish("pg_waldump", arguments, READ).await?;
        let said = String::from_utf8_lossy(&finished.stderr);
        match (last_record(&said), &finished.status) {
            (Some(last), _) => Ok(Some(last)),
            (None, ExitStatus::Exited(0)) => Ok(Some(Lsn(end.0 - 1))),
            (None, ExitStatus::Exited(_)) => {
                tracing::warn!(said = said.trim(), "no end of the own log was found");
                Ok(None)
            }
            (None, _) => Err(PgError::Strange { what: "the end of its log", found: format!("{finished:?}") }),
        }
    }

    /// Own history of this timeline.
    pub(crate) fn own_history(&self, timeline: u32) -> Result<History, PgError> {
        let path = self.paths.pg_main().join("pg_wal").join(format!("{timeline:08X}.history"));
        let text = if timeline == 1 { None } else { files::read_plain(&path)? };
        Ok(History::parse(timeline, &text.unwrap_or_default())?)
    }

    /// A page of the own log; `None` when it is gone.
    pub(crate) fn own_page(&self, timeline: u32, at: Lsn) -> Result<Option<Vec<u8>>, PgError> {
        let path = self.paths.pg_main().join("pg_wal").join(at.segment(timeline));
        let mut page = vec![0; PAGE_BYTES as usize];
        match File::open(&path).and_then(|file| file.read_exact_at(&mut page, at.offset())) {
            Ok(()) => Ok(Some(page)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Ok(Err(error).at("read", &path)?),
        }
    }
}

/// Where the segments of a timeline begin that follow each other from the one with `from` on, or from the first one after
/// it, and where they end.
fn segments(log: &Path, timeline: u32, from: Lsn) -> Result<Option<(Lsn, Lsn)>, PgError> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(log).at("list", log)? {
        let name = entry.at("list", log)?.file_name().to_string_lossy().into_owned();
        numbers.extend(Lsn::of_segment(&name).filter(|(of, _)| *of == timeline).map(|(_, start)| start));
    }
    let wanted = Lsn(from.0 - from.offset());
    let Some(first) = numbers.range(wanted..).next().copied() else { return Ok(None) };
    let mut end = first;
    while numbers.contains(&end) {
        end = Lsn(end.0 + SEGMENT_BYTES);
    }
    Ok(Some((first, end)))
}

/// What `pg_waldump` says when it stops before the end of the last segment: with an error, at the end of what is whole.
fn last_record(stderr: &str) -> Option<Lsn> {
    let (_, rest) = stderr.split_once("error in WAL record at ")?;
    rest.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_one_timeline_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "000000020000000000000003",
            "000000030000000000000004",
            "0000000300000000000000FF",
            "000000030000000100000000",
            "000000030000000100000002",
            "00000003.history",
            "000000030000000100000001.partial",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let of = |timeline, from: &str| segments(dir.path(), timeline, from.parse().unwrap()).unwrap();
        let at = |text: &str| text.parse::<Lsn>().unwrap();
        assert_eq!(of(3, "0/4000028"), Some((at("0/4000000"), at("0/5000000"))));
        assert_eq!(of(3, "0/3000028"), Some((at("0/4000000"), at("0/5000000"))), "begun after a switch");
        assert_eq!(of(3, "0/FF001234"), Some((at("0/FF000000"), at("1/1000000"))));
        assert_eq!(of(2, "0/4000000"), None);
    }

    #[test]
    fn the_last_whole_record_is_read_from_the_complaint() {
        let text = "pg_waldump: error: error in WAL record at 0/30001A8: invalid record length at 0/3000220: wanted 24, got 0\n";
        assert_eq!(last_record(text), Some(Lsn(0x30001A8)));
        assert_eq!(last_record("pg_waldump: error: could not find a valid record after 0/3000000\n"), None);
    }
}
