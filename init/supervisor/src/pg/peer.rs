//! What the holder says of itself, asked over its own protocol.

use crate::pg::adapter::{PgError, Server};
use crate::pg::history::History;
use crate::pg::lsn::{Lsn, PAGE_BYTES};

/// Where the holder stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Whose data.
    pub(crate) system: u64,
    /// Its timelines.
    pub(crate) history: History,
    /// Its last checkpoint is on the timeline that it writes.
    pub(crate) checkpointed: bool,
    /// Up to here it is flushed.
    pub(crate) flushed: Lsn,
}

const FACTS: &str = "select s.system_identifier, c.timeline_id, \
     ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, \
     pg_catalog.pg_current_wal_flush_lsn() \
     from pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c";

impl Server {
    pub(crate) async fn holder(&self) -> Result<Holder, PgError> {
        let text = self.ask_peer(FACTS).await?;
        let strange = || PgError::Strange { what: "where it stands", found: text.clone() };
        let fields: Vec<&str> = text.trim().split('|').collect();
        let [system, checkpoint, timeline, flushed] = fields[..] else { return Err(strange()) };
        let timeline: u32 = timeline.parse().map_err(|_| strange())?;
        let history = match timeline {
            1 => String::new(),
            _ => self.ask_peer(&file(&format!("{timeline:08X}.history"), "")).await?,
        };
        Ok(Holder {
            system: system.parse().map_err(|_| strange())?,
            history: History::parse(timeline, &unescape(&history).ok_or_else(strange)?)?,
            checkpointed: checkpoint.parse() == Ok(timeline),
            flushed: flushed.parse()?,
        })
    }

    /// A page of the holder's log; `None` when it no longer has it.
    pub(crate) async fn holder_page(&self, timeline: u32, at: Lsn) -> Result<Option<Vec<u8>>, PgError> {
        let range = format!(", {}, {PAGE_BYTES}", at.offset());
        let text = self.ask_peer(&file(&at.segment(timeline), &range)).await?;
        Ok(bytes(text.trim()).filter(|page| page.len() as u64 == PAGE_BYTES))
    }
}

/// Reads a file of the log; nothing when there is none. With a range a third argument forgives a missing file.
fn file(name: &str, range: &str) -> String {
    let forgive = if range.is_empty() { "" } else { ", true" };
    format!(
        "select pg_catalog.encode(pg_catalog.pg_read_binary_file('pg_wal/{name}'{range}{forgive}), 'hex')"
    )
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn unescape(hex: &str) -> Option<String> {
    String::from_utf8(bytes(&hex.split_whitespace().collect::<String>())?).ok()
}
