//! The cache of work that was done before: compressed data, and packages that were unpacked.
//!
//! One file an entry below `blocks/`, named by what decides its bytes (content, settings, version of the compressor),
//! with a checksum in front: a damaged or cut entry counts as absent. Files come into being under their final name by
//! rename, so a killed build leaves nothing half-written that could be read. Entries that no build has used for the
//! longest time go when the whole grows past its bound.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dyad_archive::{Cache, clock};
use dyad_debian::Digest as DebDigest;
use dyad_formats::squashfs::{BlockCache, BlockKey};
use dyad_formats::verity::hex;
use dyad_formats::zstd_version;
use dyad_tree::PackageCache;
use sha2::{Digest, Sha256};

/// Bytes of the checksum in front of an entry.
const CHECKSUM_BYTES: usize = 8;
/// The cache is trimmed when it holds more than this.
const CACHE_BYTES_MAX: u64 = 4 << 30;
/// Trimming goes down to this share of the bound, so that it is not needed after every build.
const TRIMMED_PERCENT: u64 = 80;
/// An entry's time says when it was used last, to this precision: a build does not touch what one touched just before.
const USED_PRECISION: Duration = Duration::from_secs(3600);

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

    /// Beside the cache of packages, or where `DYAD_BLOCK_CACHE` says.
    pub(crate) fn beside(cache: &Cache) -> Self {
        let dir = std::env::var_os("DYAD_BLOCK_CACHE");
        DiskBlocks::at(&dir.map_or_else(|| cache.root().join("blocks"), PathBuf::from))
    }

    fn path(&self, kind: &str, level: i32, sha256: &[u8]) -> PathBuf {
        let name = hex(sha256);
        self.dir.join(format!("{kind}-zstd-{}-{level}", zstd_version())).join(&name[..2]).join(&name[2..])
    }

    /// The file of an entry, which counts as used now.
    fn raw(path: &Path) -> Option<Bytes> {
        let data = Bytes::from(fs::read(path).ok()?);
        let now = UNIX_EPOCH + Duration::from_secs(clock::unix_now());
        let used = fs::metadata(path).and_then(|m| m.modified()).unwrap_or(UNIX_EPOCH);
        if now.duration_since(used).is_ok_and(|age| age > USED_PRECISION) {
            // An entry that cannot be marked may be trimmed early: it costs time, never a build.
            let _ = File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_times(FileTimes::new().set_modified(now)));
        }
        Some(data)
    }

    fn read(path: &Path) -> Option<Bytes> {
        let data = Self::raw(path)?;
        let body = data.slice(CHECKSUM_BYTES.min(data.len())..);
        (data[..data.len() - body.len()] == checksum(&body)).then_some(body)
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.persist(path)?;
        Ok(())
    }

    /// Keeps the cache below its bound: what was not used for the longest time goes first. Failures cost room, never a
    /// build.
    pub(crate) fn trim(&self) {
        self.trim_to(CACHE_BYTES_MAX);
    }

    fn trim_to(&self, bytes_max: u64) {
        let mut entries = Vec::new();
        collect(&self.dir, &mut entries);
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        if total <= bytes_max {
            return;
        }
        entries.sort();
        for (_, bytes, path) in entries {
            if total <= bytes_max / 100 * TRIMMED_PERCENT {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= bytes;
            }
        }
    }

    fn package_path(&self, deb: &DebDigest) -> PathBuf {
        let name = deb.to_string();
        self.dir.join("packages").join(&name[..2]).join(&name[2..])
    }

    fn known_path(&self, kind: &str, key: &[u8; 32]) -> PathBuf {
        let name = hex(key);
        self.dir.join(kind).join(&name[..2]).join(&name[2..])
    }

    /// What was remembered under a key that names everything it was made from.
    pub(crate) fn recall(&self, kind: &str, key: &[u8; 32]) -> Option<Bytes> {
        Self::read(&self.known_path(kind, key))
    }

    /// Remembers a result.
    pub(crate) fn remember(&self, kind: &str, key: &[u8; 32], data: &[u8]) {
        let _ = self.write(&self.known_path(kind, key), &[&checksum(data), data]);
    }

    /// [`dyad_formats::zstd_frame`] of the data, remembered.
    pub(crate) fn frame(&self, data: &[u8], level: i32) -> io::Result<Bytes> {
        let path = self.path("frame", level, &Sha256::digest(data));
        if let Some(known) = Self::read(&path) {
            return Ok(known);
        }
        let frame = dyad_formats::zstd_frame(data, level)?;
        // A cache that cannot be written costs time, never a build.
        let _ = self.write(&path, &[&checksum(&frame), &frame]);
        Ok(frame.into())
    }
}

impl BlockCache for DiskBlocks {
    fn get(&self, key: &BlockKey) -> Option<Bytes> {
        Self::read(&self.path("squashfs", key.level, &key.sha256))
    }

    fn put(&self, key: &BlockKey, compressed: &[u8]) {
        let path = self.path("squashfs", key.level, &key.sha256);
        let _ = self.write(&path, &[&checksum(compressed), compressed]);
    }
}

/// Entries check themselves.
impl PackageCache for DiskBlocks {
    fn get(&self, deb: &DebDigest) -> Option<Bytes> {
        Self::raw(&self.package_path(deb))
    }

    fn put(&self, deb: &DebDigest, parts: &[Bytes]) {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        let _ = self.write(&self.package_path(deb), &parts);
    }
}

/// Every file below a directory: (when it was used, bytes, path).
fn collect(dir: &Path, into: &mut Vec<(SystemTime, u64, PathBuf)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            collect(&entry.path(), into);
        } else {
            into.push((meta.modified().unwrap_or(UNIX_EPOCH), meta.len(), entry.path()));
        }
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
        let get = |key: &BlockKey| BlockCache::get(&cache, key);
        assert_eq!(get(&key), None);
        BlockCache::put(&cache, &key, b"compressed");
        assert_eq!(get(&key).as_deref(), Some(&b"compressed"[..]));
        assert_eq!(get(&BlockKey { level: 7, ..key }), None);
        let [file] = &files(dir.path())[..] else { panic!("one entry, one file") };
        let good = fs::read(file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(file, &bad).unwrap();
            assert_eq!(get(&key), None, "byte {at} changed");
            fs::write(file, &good[..at]).unwrap();
            assert_eq!(get(&key), None, "cut at byte {at}");
        }
    }

    #[test]
    fn what_was_used_last_survives_trimming() {
        let dir = tempfile::tempdir().unwrap();
        let cache = DiskBlocks::at(dir.path());
        let digest = |n: u8| DebDigest([n; 32]);
        let hour = Duration::from_secs(3600);
        for n in 0..10 {
            PackageCache::put(&cache, &digest(n), &[Bytes::from(vec![n; 1000])]);
            let file = File::options().write(true).open(cache.package_path(&digest(n))).unwrap();
            file.set_times(FileTimes::new().set_modified(UNIX_EPOCH + hour * u32::from(n))).unwrap();
        }
        cache.trim_to(10_000);
        assert_eq!(files(dir.path()).len(), 10, "the bound itself is allowed");
        // The oldest is used, which makes it the youngest.
        assert!(PackageCache::get(&cache, &digest(0)).is_some());
        cache.trim_to(9_999);
        let left: Vec<u8> = (0..10).filter(|n| PackageCache::get(&cache, &digest(*n)).is_some()).collect();
        assert_eq!(left, [0, 4, 5, 6, 7, 8, 9], "80 % of the bound, the last used");
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
