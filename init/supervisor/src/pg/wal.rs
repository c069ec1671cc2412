//! The log on disk of a stopped server: where it ends, its pages, its histories.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::files::{self, At};
use crate::pg::adapter::{PgError, Server};
use crate::pg::history::History;
use crate::pg::lsn::{Lsn, PAGE_BYTES};

/// Reading the log since the last checkpoint.
const READ: Duration = Duration::from_secs(60);

impl Server {
    /// Start of the last whole record on this timeline at or behind `from`; `None`: there is none.
    pub(crate) async fn last_record(&self, timeline: u32, from: Lsn) -> Result<Option<Lsn>, PgError> {
        let log = self.paths.pg_main().join("pg_wal").display().to_string();
        let arguments = vec![
            "-q".into(),
            "-p".into(),
            log,
            "-t".into(),
            timeline.to_string(),
            "-s".into(),
            from.to_string(),
        ];
        let finished = self.tools().finish("pg_waldump", arguments, READ).await?;
        Ok(last_record(&String::from_utf8_lossy(&finished.stderr)))
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

/// What `pg_waldump` says when it stops: it always does with an error, at the end of what is whole.
fn last_record(stderr: &str) -> Option<Lsn> {
    let (_, rest) = stderr.split_once("error in WAL record at ")?;
    rest.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_record_is_read_from_the_complaint() {
        let text = "pg_waldump: error: error in WAL record at 0/30001A8: invalid record length at 0/3000220: wanted 24, got 0\n";
        assert_eq!(last_record(text), Some(Lsn(0x30001A8)));
        assert_eq!(last_record("pg_waldump: error: could not find a valid record after 0/3000000\n"), None);
    }
}
