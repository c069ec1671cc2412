//! The cache of compressed data: what did not change since the last build is not compressed again.
//!
//! One file an entry below `blocks/`, named by what decides its bytes (content, settings, version of the compressor),
//! with a checksum in front: a damaged or cut entry counts as absent. Files come into being under their final name by
//! rename, so a killed build leaves nothing half-written that could be read.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dyad_formats::squashfs::{BlockCache, BlockKey};
use dyad_formats::verity::hex;
use dyad_formats::zstd_version;
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

    fn path(&self, kind: &str, level: i32, sha256: &[u8]) -> PathBuf {
        let name = hex(sha256);
        self.dir.join(format!("{kind}-zstd-{}-{level}", zstd_version())).join(&name[..2]).join(&name[2..])
    }

    fn read(path: &Path) -> Option<Bytes> {
        let data = Bytes::from(fs::read(path).ok()?);
        let body = data.slice(CHECKSUM_BYTES.min(data.len())..);
        (data[..data.len() - body.len()] == checksum(&body)).then_some(body)
    }

    fn write(&self, path: &Path, compressed: &[u8]) -> io::Result<()> {
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&checksum(compressed))?;
        file.write_all(compressed)?;
        file.persist(path)?;
        Ok(())
    }

    /// [`dyad_formats::zstd_frame`] of the data, remembered.
    pub(crate) fn frame(&self, data: &[u8], level: i32) -> io::Result<Bytes> {
        let path = self.path("frame", level, &Sha256::digest(data));
        if let Some(known) = Self::read(&path) {
            return Ok(known);
        }
        let frame = dyad_formats::zstd_frame(data, level)?;
        // A cache that cannot be written costs time, never a build.
        let _ = self.write(&path, &frame);
        Ok(frame.into())
    }
}

impl BlockCache for DiskBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        Self::read(&self.path("squashfs", key.level, &key.sha256))
    }

    fn put(&self, key: &BlockKey, compressed: &[u8]) {
        let _ = self.write(&self.path("squashfs", key.level, &key.sha256), compressed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] })
            .collect()
    }

    #[test]
    fn an_entry_with_any_byte_changed_or_cut_off_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskBlocks::at(&dir.path().join("not/there/yet"));
        let key = BlockKey { sha256: [7; 32], level: 6 };
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"compressed");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"compressed"[..]));
        assert_eq!(cache.get(&BlockKey { level: 7, ..key }), None);
        let [file] = &files(dir.path())[..] else { panic!("one entry, one file") };
        let good = fs::read(file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(file, &bad).unwrap();
            assert_eq!(cache.get(&key), None, "byte {at} changed");
            fs::write(file, &good[..at]).unwrap();
            assert_eq!(cache.get(&key), None, "cut at byte {at}");
        }
    }

    #[test]
    fn a_remembered_frame_is_the_frame() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskBlocks::at(dir.path());
        let data = vec![b'x'; 10_000];
        let fresh = dyad_formats::zstd_frame(&data, 3).unwrap();
        assert_eq!(cache.frame(&data, 3).unwrap(), fresh);
        assert_eq!(files(dir.path()).len(), 1);
        assert_eq!(cache.frame(&data, 3).unwrap(), fresh);
        let [file] = &files(dir.path())[..] else { panic!("one frame, one file") };
        fs::write(file, b"damaged entry").unwrap();
        assert_eq!(cache.frame(&data, 3).unwrap(), fresh, "damage costs time, not the build");
    }
}
