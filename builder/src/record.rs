//! The build record beside the outputs: digests of everything that went in and came out, signed if there is a key.
//!
//! A disk is mostly zeros, so outputs are known by the SHA-256 of the SHA-256 digests of their 1 MiB chunks (the last may
//! be shorter): chunks are hashed on every core and holes are not read. The record holds no time and no path, so equal
//! builds have equal records and signatures.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dyad_debian::LockedPackage;
use dyad_formats::verity::hex;
use rayon::prelude::*;
use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::key;

const CHUNK_BYTES: u64 = 1 << 20;
/// The only format so far.
const FORMAT: u32 = 1;

/// A package that went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) sha256: String,
}

/// Something that went in, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    /// `definition`, `overlay NAME`, `program PATH` or `site file`.
    pub(crate) what: String,
    pub(crate) sha256: String,
}

/// A file that came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Made {
    /// Which format it is (part of).
    pub(crate) format: String,
    /// File name.
    pub(crate) file: String,
    /// Size, holes included.
    pub(crate) bytes: u64,
    /// See [`chunks_sha256`].
    pub(crate) chunks_sha256: String,
}

/// The whole record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildRecord {
    format: u32,
    /// Image name.
    pub(crate) name: String,
    /// Image version.
    pub(crate) version: String,
    /// dm-verity root hash.
    pub(crate) verity_root_hash: String,
    /// Version of the builder and of the compressor in it: another one may give other bytes.
    pub(crate) builder: String,
    pub(crate) inputs: Vec<Input>,
    pub(crate) packages: Vec<Package>,
    pub(crate) outputs: Vec<Made>,
}

/// The builder as the record names it.
fn builder() -> String {
    format!("dyad {}, zstd {}", env!("CARGO_PKG_VERSION"), dyad_formats::zstd_version())
}

impl BuildRecord {
    pub(crate) fn new(
        (name, version): (&str, &str),
        root_hash: &[u8; 32],
        inputs: Vec<Input>,
        bill: &[LockedPackage],
        outputs: Vec<Made>,
    ) -> Self {
        let package = |p: &LockedPackage| Package {
            name: p.name.clone(),
            version: p.version.clone(),
            arch: p.arch.clone(),
            sha256: p.sha256.to_string(),
        };
        BuildRecord {
            format: FORMAT,
            name: name.to_owned(),
            version: version.to_owned(),
            verity_root_hash: hex(root_hash),
            builder: builder(),
            inputs,
            packages: bill.iter().map(package).collect(),
            outputs,
        }
    }

    /// The text that is signed.
    pub(crate) fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("writing the build record")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Length and digest of a file: SHA-256 over the SHA-256 digests of its 1 MiB chunks.
pub(crate) fn chunks_sha256(path: &Path) -> Result<(u64, [u8; 32])> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let bytes = file.metadata().with_context(reading)?.len();
    let mut holes = vec![false; bytes.div_ceil(CHUNK_BYTES) as usize];
    let mut at = 0;
    while at < bytes {
        let Ok(hole) = seek(&file, SeekFrom::Hole(at)) else { break };
        // Behind the last data there is nothing but the end of the file.
        let data = seek(&file, SeekFrom::Data(hole)).unwrap_or(bytes).min(bytes);
        let last = if data == bytes { holes.len() as u64 } else { data / CHUNK_BYTES };
        for chunk in hole.div_ceil(CHUNK_BYTES)..last {
            holes[chunk as usize] = true;
        }
        at = data;
    }
    let zeros = vec![0; CHUNK_BYTES as usize];
    let hole: [u8; 32] = Sha256::digest(&zeros).into();
    let digests: Vec<[u8; 32]> = holes
        .par_iter()
        .enumerate()
        .with_min_len(4)
        .map_init(Vec::new, |buffer, (chunk, is_hole)| {
            let start = chunk as u64 * CHUNK_BYTES;
            let len = (bytes - start).min(CHUNK_BYTES) as usize;
            if *is_hole {
                return Ok(if len == zeros.len() { hole } else { Sha256::digest(&zeros[..len]).into() });
            }
            buffer.resize(len, 0);
            file.read_exact_at(buffer, start)?;
            Ok(Sha256::digest(&buffer[..]).into())
        })
        .collect::<std::io::Result<_>>()
        .with_context(reading)?;
    Ok((bytes, Sha256::digest(digests.as_flattened()).into()))
}

/// `DIR/NAME_VERSION.build.json` for an output `DIR/NAME_VERSION.SUFFIX`, and its signature.
fn beside(output: &Path) -> (PathBuf, PathBuf) {
    (output.with_extension("build.json"), output.with_extension("build.sig"))
}

/// Checks a file against the build record beside it, and the record against a key. Returns what was checked; without a
/// key a missing record is nothing to complain about.
pub(crate) fn check(file: &Path, key: Option<&Path>) -> Result<Option<String>> {
    let (path, signature) = beside(file);
    if key.is_none() && !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| {
        format!("reading {}: `dyad build` writes it beside the image, keep them together", path.display())
    })?;
    if let Some(key) = key {
        key::check(key, &text, &signature)?;
    }
    let record: BuildRecord =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a build record", path.display()))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(made) = record.outputs.iter().find(|made| made.file == name) else {
        // A later build of other formats in the same directory has written its own record.
        if key.is_none() {
            return Ok(None);
        }
        bail!("{} does not name {name} among what that build made", path.display());
    };
    let (bytes, digest) = chunks_sha256(file)?;
    if bytes != made.bytes {
        bail!("{}: {bytes} bytes, the build record says {}", file.display(), made.bytes);
    }
    if hex(&digest) != made.chunks_sha256 {
        bail!(
            "{} is not what the build record beside it says: it was changed after it was built",
            file.display()
        );
    }
    Ok(Some(match key {
        Some(key) => format!("build record: signed by the key in {}, and this is the file", key.display()),
        None => "build record: this is the file (who wrote the record was not asked: --key)".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_zeros_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        const MIB: u64 = 1 << 20;
        // Data in the middle, at the very end, over a chunk's border, and a hole at the end; sizes of no whole chunks.
        let shapes: [(u64, &[(u64, usize)]); 6] = [
            (0, &[]),
            (1, &[]),
            (5 * MIB, &[]),
            (9 * MIB + 17, &[(3 * MIB, 100_000), (9 * MIB + 10, 7)]),
            (4 * MIB, &[(MIB - 4096, 8192)]),
            (8 * MIB, &[(0, 4096), (5 * MIB + 4096, 4096)]),
        ];
        for (bytes, runs) in shapes {
            let file = File::create(&path).unwrap();
            file.set_len(bytes).unwrap();
            for &(at, len) in runs {
                file.write_all_at(&vec![0xa5; len], at).unwrap();
            }
            let whole = fs::read(&path).unwrap();
            let digests: Vec<u8> = whole.chunks(1 << 20).flat_map(|c| Sha256::digest(c).to_vec()).collect();
            let plain = Sha256::digest(&digests).into();
            assert_eq!(chunks_sha256(&path).unwrap(), (bytes, plain), "{bytes} {runs:?}");
            fs::write(&path, &whole).unwrap();
            assert_eq!(chunks_sha256(&path).unwrap(), (bytes, plain), "without holes: {bytes} {runs:?}");
        }
    }
}
