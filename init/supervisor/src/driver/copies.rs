//! The other node's event log, kept here as it comes, so that what it did can be read while it is away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use dyad_channel::client::Client;
use dyad_channel::operator::{Ask, Told};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::journal;
use crate::files::{self, Access};
use crate::paths::Paths;

/// Between two looks at the own log.
const LOOK: Duration = Duration::from_secs(2);
/// Sent at once at most.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// Where copies are.
pub(crate) fn copies_dir(paths: &Paths) -> PathBuf {
    paths.at("/state/supervisor/events-peer")
}

/// Appends a piece if it goes on where the copy ends; how long the copy is then. The log explains, it decides nothing: it
/// is not flushed.
pub(crate) fn keep_copy(dir: &Path, file: u64, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    files::ensure_dir(dir, Access::own(0o700)).map_err(io::Error::other)?;
    let path = dir.join(format!("{file:010}.log"));
    if !path.exists() {
        let old = journal::all(dir)?;
        let surplus = (old.len() + 1).saturating_sub(journal::FILES_MAX);
        for path in &old[..surplus] {
            fs::remove_file(path)?;
        }
    }
    let mut copy = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let length = copy.seek(SeekFrom::End(0))?;
    // The last file of the limit's length, and no more: what is sent is another machine's word.
    if offset != length || length >= 2 * journal::FILE_BYTES_MAX {
        return Ok(length);
    }
    copy.write_all(bytes)?;
    Ok(length + bytes.len() as u64)
}

/// Sends the own log on for ever.
pub(crate) async fn send(dir: PathBuf, peer: Rc<Client<Ask, Told>>) {
    let mut place = (0, 0);
    loop {
        sleep(LOOK).await;
        while let Some(next) = piece(&dir, place, &peer).await {
            place = next;
        }
    }
}

/// One piece; where to go on, or `None` when nothing is left or nobody answers.
async fn piece(dir: &Path, (file, offset): (u64, u64), peer: &Client<Ask, Told>) -> Option<(u64, u64)> {
    let dir = dir.to_owned();
    let found = spawn_blocking(move || read(&dir, file, offset)).await.ok()?;
    let (number, from, bytes) =
        found.inspect_err(|error| tracing::debug!(%error, "read the event log")).ok()??;
    let sent = bytes.len() as u64;
    match peer.call(&Ask::Log { file: number, offset: from, bytes }).await {
        Ok(Told::Has(known)) if known >= from + sent => Some((number, from + sent)),
        // It knows another part: on from where it ends.
        Ok(Told::Has(known)) if known != from => Some((number, known)),
        Ok(Told::Has(_) | Told::Refused | Told::Line(_)) | Err(_) => None,
    }
}

/// What is there behind this place, in this file or the next; nothing when all was read.
fn read(dir: &Path, file: u64, offset: u64) -> io::Result<Option<(u64, u64, Vec<u8>)>> {
    for path in journal::all(dir)? {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()).unwrap_or(0);
        if number < file {
            continue;
        }
        let from = if number == file { offset } else { 0 };
        let mut log = File::open(path)?;
        log.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        log.take(PIECE_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        if !bytes.is_empty() {
            return Ok(Some((number, from, bytes)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_grows_only_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(keep_copy(dir.path(), 1, 0, b"abc").unwrap(), 3);
        assert_eq!(keep_copy(dir.path(), 1, 0, b"abc").unwrap(), 3, "again: nothing new");
        assert_eq!(keep_copy(dir.path(), 1, 5, b"x").unwrap(), 3, "a hole");
        assert_eq!(keep_copy(dir.path(), 1, 3, b"def").unwrap(), 6);
        assert_eq!(read(dir.path(), 0, 0).unwrap(), Some((1, 0, b"abcdef".to_vec())));
        assert_eq!(read(dir.path(), 1, 4).unwrap(), Some((1, 4, b"ef".to_vec())));
        assert_eq!(read(dir.path(), 1, 6).unwrap(), None);
        for file in 2..20 {
            keep_copy(dir.path(), file, 0, b"x").unwrap();
        }
        assert_eq!(journal::all(dir.path()).unwrap().len(), journal::FILES_MAX);
        assert_eq!(read(dir.path(), 1, 6).unwrap().unwrap().0, 12, "older ones are gone");
    }
}
