//! dm-verity, format 1: SHA-256, 4096-byte blocks, superblock in front of the hash tree (what `veritysetup` makes).

use std::io::{self, Read, Seek, SeekFrom, Write};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::field;

/// Bytes of data and hash blocks.
pub const BLOCK_BYTES: usize = 4096;
/// Longest salt of the format.
pub const SALT_BYTES_MAX: usize = 256;

const DIGEST_BYTES: usize = 32;
const PER_BLOCK: usize = BLOCK_BYTES / DIGEST_BYTES;
/// Data read and hashed in one go: large enough to keep every core busy, small enough to forget about.
const CHUNK_BYTES: usize = 8 << 20;

/// Root hash of a tree.
pub type RootHash = [u8; DIGEST_BYTES];

/// Why hashing or checking stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input or output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a whole number of blocks.
    #[error("dm-verity: {0} bytes of data: a positive multiple of {BLOCK_BYTES} is accepted")]
    DataSize(u64),
    /// The data ended early.
    #[error("dm-verity: the data ends after {found} of {wanted} bytes")]
    ShortData {
        /// Bytes promised.
        wanted: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Salt too long.
    #[error("dm-verity: a salt of {0} bytes: at most {SALT_BYTES_MAX} are accepted")]
    Salt(usize),
    /// The superblock is not one, or not of the only kind that is written here.
    #[error("dm-verity superblock: {0}")]
    Superblock(&'static str),
    /// The hash area ends early.
    #[error("dm-verity: the hash area ends before block {0}")]
    ShortHashes(u64),
    /// The root hash does not belong to this tree.
    #[error("dm-verity: root hash is {found}, expected {wanted}")]
    Root {
        /// What was asked for.
        wanted: String,
        /// What the tree has.
        found: String,
    },
    /// A block of the tree itself is damaged.
    #[error("dm-verity: hash block {0} is damaged")]
    HashBlock(u64),
    /// A block of the data is damaged.
    #[error("dm-verity: data block {0} is damaged")]
    DataBlock(u64),
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The head of a hash partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the tree, in text order.
    pub uuid: [u8; 16],
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Hashed in front of every block.
    pub salt: Vec<u8>,
}

impl Superblock {
    /// One block.
    pub fn encode(&self) -> Result<[u8; BLOCK_BYTES], Error> {
        if self.salt.len() > SALT_BYTES_MAX {
            return Err(Error::Salt(self.salt.len()));
        }
        let mut b = [0u8; BLOCK_BYTES];
        b[0..8].copy_from_slice(b"verity\0\0");
        b[8..12].copy_from_slice(&1u32.to_le_bytes()); // superblock version
        b[12..16].copy_from_slice(&1u32.to_le_bytes()); // hash type: salt first
        b[16..32].copy_from_slice(&self.uuid);
        b[32..38].copy_from_slice(b"sha256");
        b[64..68].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        b[68..72].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        b[72..80].copy_from_slice(&self.data_blocks.to_le_bytes());
        b[80..82].copy_from_slice(&(self.salt.len() as u16).to_le_bytes());
        b[88..88 + self.salt.len()].copy_from_slice(&self.salt);
        Ok(b)
    }

    /// Reads the first 512 bytes of a hash partition.
    pub fn decode(b: &[u8]) -> Result<Self, Error> {
        let short = Error::Superblock("shorter than 512 bytes");
        let b = b.get(..512).ok_or(short)?;
        let word = |at| field::u32_le(b, at).unwrap_or(0);
        if &b[..8] != b"verity\0\0" {
            return Err(Error::Superblock("has no signature \"verity\""));
        }
        if word(8) != 1 || word(12) != 1 {
            return Err(Error::Superblock("version and hash type 1 are accepted"));
        }
        if &b[32..64] != b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
            return Err(Error::Superblock("hash algorithm sha256 is accepted"));
        }
        if word(64) as usize != BLOCK_BYTES || word(68) as usize != BLOCK_BYTES {
            return Err(Error::Superblock("block sizes of 4096 bytes are accepted"));
        }
        let data_blocks = field::u64_le(b, 72).unwrap_or(0);
        if data_blocks == 0 || data_blocks > u64::MAX / BLOCK_BYTES as u64 / 2 {
            return Err(Error::Superblock("has an impossible number of data blocks"));
        }
        let salt_bytes = usize::from(field::u16_le(b, 80).unwrap_or(0));
        let salt = b[88..88 + SALT_BYTES_MAX].get(..salt_bytes).ok_or(Error::Salt(salt_bytes))?.to_vec();
        Ok(Superblock { uuid: field::bytes(b, 16).unwrap_or_default(), data_blocks, salt })
    }

    /// Bytes of superblock and tree together: what the hash partition must hold.
    pub fn hash_bytes(&self) -> u64 {
        let blocks: u64 = level_blocks(self.data_blocks).iter().sum();
        (blocks + 1) * BLOCK_BYTES as u64
    }
}

/// What a partition of `data_bytes` needs for its hashes, superblock included.
pub fn hash_bytes(data_bytes: u64) -> u64 {
    let data_blocks = data_bytes.div_ceil(BLOCK_BYTES as u64);
    Superblock { uuid: [0; 16], data_blocks, salt: Vec::new() }.hash_bytes()
}

/// Blocks of every level, from the one above the data to the top. Empty for one data block: its hash is the root.
fn level_blocks(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(PER_BLOCK as u64);
        levels.push(blocks);
    }
    levels
}

/// Salted hashes, one block after another.
struct Hasher(Sha256);

impl Hasher {
    fn new(salt: &[u8]) -> Self {
        Hasher(Sha256::new_with_prefix(salt))
    }

    fn block(&self, block: &[u8]) -> RootHash {
        let mut h = self.0.clone();
        h.update(block);
        h.finalize().into()
    }

    /// The digests of whole blocks, in order, computed on every core.
    fn blocks(&self, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; data.len() / BLOCK_BYTES * DIGEST_BYTES];
        out.par_chunks_mut(DIGEST_BYTES)
            .zip(data.par_chunks(BLOCK_BYTES))
            .with_min_len(64)
            .for_each(|(digest, block)| digest.copy_from_slice(&self.block(block)));
        out
    }
}

/// Feeds `data` to `each` in chunks of whole blocks: (offset, chunk).
fn for_chunks<E: From<Error>>(
    data: &mut impl Read,
    data_bytes: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buf = vec![0u8; CHUNK_BYTES.min(data_bytes as usize)];
    let mut done = 0;
    while done < data_bytes {
        let want = (data_bytes - done).min(buf.len() as u64) as usize;
        let got = field::read_full(data, &mut buf[..want]).map_err(Error::Io)?;
        if got < want {
            return Err(Error::ShortData { wanted: data_bytes, found: done + got as u64 }.into());
        }
        each(done, &buf[..want])?;
        done += want as u64;
    }
    Ok(())
}

/// Hashes `data_bytes` of `data` and writes superblock and tree. Returns the root hash.
///
/// Holds 1/128 of the data in memory. Equal data, salt and uuid give equal bytes for any number of threads.
pub fn write(
    data: &mut impl Read,
    data_bytes: u64,
    salt: &[u8],
    uuid: [u8; 16],
    out: &mut impl Write,
) -> Result<RootHash, Error> {
    if data_bytes == 0 || data_bytes % BLOCK_BYTES as u64 != 0 {
        return Err(Error::DataSize(data_bytes));
    }
    let superblock = Superblock { uuid, data_blocks: data_bytes / BLOCK_BYTES as u64, salt: salt.to_vec() };
    out.write_all(&superblock.encode()?)?;

    let hasher = Hasher::new(salt);
    let mut digests = Vec::with_capacity((data_bytes / PER_BLOCK as u64) as usize + BLOCK_BYTES);
    for_chunks(data, data_bytes, |_, chunk| {
        digests.extend(hasher.blocks(chunk));
        Ok::<(), Error>(())
    })?;
    let mut levels = Vec::new();
    while digests.len() > DIGEST_BYTES {
        digests.resize(digests.len().next_multiple_of(BLOCK_BYTES), 0);
        let above = hasher.blocks(&digests);
        levels.push(digests);
        digests = above;
    }
    for level in levels.iter().rev() {
        out.write_all(level)?;
    }
    let mut root = RootHash::default();
    root.copy_from_slice(&digests);
    Ok(root)
}

/// Checks every hash block and every data block against a root hash. Both readers start at their partition's start;
/// `hashes` is positioned freely. The first damaged block is named.
pub fn verify(
    data: &mut impl Read,
    hashes: &mut (impl Read + Seek),
    root: &RootHash,
) -> Result<Superblock, Error> {
    let mut first = [0u8; 512];
    hashes.seek(SeekFrom::Start(0))?;
    if field::read_full(hashes, &mut first)? < first.len() {
        return Err(Error::ShortHashes(0));
    }
    let superblock = Superblock::decode(&first)?;
    let hasher = Hasher::new(&superblock.salt);
    let mismatch = |found: &[u8]| Error::Root { wanted: hex(root), found: hex(found) };

    let levels = level_blocks(superblock.data_blocks);
    let mut expected = root.to_vec();
    let mut at_block = 1u64;
    for (depth, &blocks) in levels.iter().rev().enumerate() {
        let level = read_level(hashes, at_block, blocks)?;
        let actual = hasher.blocks(&level);
        if let Some(bad) = first_difference(&expected, &actual) {
            return Err(if depth == 0 { mismatch(&actual) } else { Error::HashBlock(at_block + bad as u64) });
        }
        expected = level;
        at_block += blocks;
    }
    let mut position = 0usize;
    for_chunks(data, superblock.data_blocks * BLOCK_BYTES as u64, |offset, chunk| {
        let actual = hasher.blocks(chunk);
        let want = &expected[position..position + actual.len()];
        if let Some(bad) = first_difference(want, &actual) {
            if levels.is_empty() {
                return Err(mismatch(&actual));
            }
            return Err(Error::DataBlock(offset / BLOCK_BYTES as u64 + bad as u64));
        }
        position += actual.len();
        Ok(())
    })?;
    // Nothing vouches for what pads the last hash block but the hash above it, which covered it already.
    Ok(superblock)
}

fn read_level(hashes: &mut (impl Read + Seek), at_block: u64, blocks: u64) -> Result<Vec<u8>, Error> {
    hashes.seek(SeekFrom::Start(at_block * BLOCK_BYTES as u64))?;
    let wanted = blocks * BLOCK_BYTES as u64;
    // `take` + `read_to_end` grows with what is there: a lying superblock cannot reserve memory.
    let mut level = Vec::new();
    hashes.by_ref().take(wanted).read_to_end(&mut level)?;
    if (level.len() as u64) < wanted {
        return Err(Error::ShortHashes(at_block + (level.len() / BLOCK_BYTES) as u64));
    }
    Ok(level)
}

/// Index of the first digest that differs. `expected` may be longer: its padding is not a digest.
fn first_difference(expected: &[u8], actual: &[u8]) -> Option<usize> {
    expected.chunks(DIGEST_BYTES).zip(actual.chunks(DIGEST_BYTES)).position(|(a, b)| a != b)
}
