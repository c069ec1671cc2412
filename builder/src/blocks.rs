//! The cache of compressed squashfs blocks: what did not change since the last build is not compressed again.
//!
//! One file a block below `blocks/`, named by the key that the writer gives (it covers content and settings), with a
//! checksum in front: a damaged or cut entry counts as absent. Files come into being under their final name by rename,
//! so a killed build leaves nothing half-written that could be read.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dyad_formats::squashfs::{BlockCache, BlockKey};
use sha2::{Digest, Sha256};

/// Bytes of the checksum in front of an entry.
const CHECKSUM_BYTES: usize = 8;

/// A directory of compressed blocks.
#[derive(Debug)]
pub(crate) struct DiskBlocks {
    dir: PathBuf,
}

fn checksum(data: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut short = [0; CHECKSUM_BYTES];
    short.copy_from_slice(&Sha256::digest(data)[..CHECKSUM_BYTES]);
    short
}

impl DiskBlocks {
    /// Uses the directory, which need not exist yet.
    pub(crate) fn at(dir: &Path) -> Self {
        DiskBlocks { dir: dir.to_owned() }
    }

    fn path(&self, key: &BlockKey) -> PathBuf {
        let hex = dyad_formats::verity::hex(&key.sha256);
        self.dir.join(format!("zstd-{}", key.level)).join(&hex[..2]).join(&hex[2..])
    }

    fn write(&self, path: &Path, compressed: &[u8]) -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&checksum(compressed))?;
        file.write_all(compressed)?;
        file.persist(path)?;
        Ok(())
    }
}

impl BlockCache for DiskBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        let data = Bytes::from(fs::read(self.path(key)).ok()?);
        let body = data.slice(CHECKSUM_BYTES.min(data.len())..);
        (data[..data.len() - body.len()] == checksum(&body)).then_some(body)
    }

    fn put(&self, key: &BlockKey, compressed: &[u8]) {
        // A cache that cannot be written costs time, never a build.
        let _ = self.write(&self.path(key), compressed);
    }
}
