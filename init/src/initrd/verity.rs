//! The verified root: root hash, verity superblock, device-mapper target.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use dyad_sys::dm::{DeviceMapper, DmError, Target};
use rustix::fs::{FileType, Mode};

use super::slot::Pair;

/// The device node of the opened root.
pub(super) const DEVICE: &str = "/dev/mapper/root";
const NAME: &str = "root";
/// Bytes of the superblock that are used.
const SUPERBLOCK_BYTES: usize = 512;
const OPTION: &str = "dyad.root=";

/// A dm-verity root hash (SHA-256).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RootHash([u8; 32]);

/// Why the command line names no root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    /// No such option.
    #[error("the kernel command line has no {OPTION}HASH (64 hexadecimal digits, the verity root hash)")]
    Missing,
    /// Not a hash.
    #[error("{OPTION}{0:?} on the kernel command line is not 64 hexadecimal digits")]
    Digits(String),
}

impl RootHash {
    /// From `dyad.root=HEX64`.
    pub(crate) fn from_cmdline(cmdline: &str) -> Result<Self, HashError> {
        let word = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(OPTION));
        let text = word.ok_or(HashError::Missing)?;
        let refused = || HashError::Digits(text.to_owned());
        if text.len() != 64 || !text.is_ascii() {
            return Err(refused());
        }
        let mut hash = [0; 32];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|_| refused())?;
        }
        Ok(Self(hash))
    }

    /// The unique GUIDs, in text order, of the root and the verity partition.
    pub(super) fn halves(&self) -> ([u8; 16], [u8; 16]) {
        let (mut first, mut last) = ([0; 16], [0; 16]);
        first.copy_from_slice(&self.0[..16]);
        last.copy_from_slice(&self.0[16..]);
        (first, last)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the root was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerityError {
    #[error("cannot read the verity superblock of {device} (root hash {hash}): {source}")]
    Read { device: PathBuf, hash: RootHash, source: std::io::Error },
    #[error("{device} (root hash {hash}): {source}")]
    Superblock { device: PathBuf, hash: RootHash, source: SuperblockError },
    #[error("verity of {device} with root hash {hash}: {source}")]
    Map { device: PathBuf, hash: RootHash, source: DmError },
    #[error("cannot make the node {DEVICE}: {0}")]
    Node(#[source] std::io::Error),
}

/// Why bytes are no superblock that this stage accepts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SuperblockError {
    #[error("no verity superblock: it begins with {0:02x?}, not with \"verity\"")]
    Magic([u8; 8]),
    #[error("verity superblock version {version}, hash type {kind}: accepted are 1 and 1")]
    Version { version: u32, kind: u32 },
    #[error("verity hash algorithm {0:?}: accepted is sha256")]
    Algorithm(String),
    #[error("verity block sizes {data} and {hash}: accepted are powers of two from 512 to 65536")]
    Blocks { data: u32, hash: u32 },
    #[error("verity salt of {0} bytes: accepted are at most 256")]
    Salt(u16),
}

/// What the superblock says. It is not trusted: wrong values give hashes that do not match the root hash.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    data_block_bytes: u32,
    hash_block_bytes: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    fn parse(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self, SuperblockError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut magic = [0; 8];
        magic.copy_from_slice(&bytes[..8]);
        if &magic != b"verity\0\0" {
            return Err(SuperblockError::Magic(magic));
        }
        let (version, kind) = (word(8), word(12));
        if (version, kind) != (1, 1) {
            return Err(SuperblockError::Version { version, kind });
        }
        let algorithm = String::from_utf8_lossy(&bytes[32..64]).trim_end_matches('\0').to_owned();
        if algorithm != "sha256" {
            return Err(SuperblockError::Algorithm(algorithm));
        }
        let (data, hash) = (word(64), word(68));
        if ![data, hash].iter().all(|b| b.is_power_of_two() && (512..=65_536).contains(b)) {
            return Err(SuperblockError::Blocks { data, hash });
        }
        let salt_bytes = u16::from_le_bytes([bytes[80], bytes[81]]);
        let salt = bytes.get(88..88 + usize::from(salt_bytes)).filter(|_| salt_bytes <= 256);
        Ok(Self {
            data_block_bytes: data,
            hash_block_bytes: hash,
            data_blocks: u64::from(word(72)) | (u64::from(word(76)) << 32),
            salt: salt.ok_or(SuperblockError::Salt(salt_bytes))?.to_vec(),
        })
    }

    fn sectors(&self) -> u64 {
        self.data_blocks.saturating_mul(u64::from(self.data_block_bytes) / 512)
    }

    fn params(&self, pair: &Pair, hash: &RootHash) -> String {
        let mut salt: String = self.salt.iter().map(|byte| format!("{byte:02x}")).collect();
        if salt.is_empty() {
            salt.push('-');
        }
        // The hash tree starts in the block after the superblock.
        format!(
            "1 {} {} {} {} {} 1 sha256 {hash} {salt}",
            pair.data.display(),
            pair.verity.display(),
            self.data_block_bytes,
            self.hash_block_bytes,
            self.data_blocks,
        )
    }
}

/// Opens the root as [`DEVICE`].
pub(super) fn open(pair: &Pair, hash: &RootHash) -> Result<(), VerityError> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let (device, hash) = (pair.verity.clone(), hash.clone());
    let read = File::open(&device).and_then(|mut file| file.read_exact(&mut bytes));
    if let Err(source) = read {
        return Err(VerityError::Read { device, hash, source });
    }
    let superblock = match Superblock::parse(&bytes) {
        Ok(superblock) => superblock,
        Err(source) => return Err(VerityError::Superblock { device, hash, source }),
    };
    let params = superblock.params(pair, &hash);
    let target = Target { kind: "verity", sectors: superblock.sectors(), params: &params };
    let dev = DeviceMapper::open()
        .and_then(|mapper| mapper.create(NAME, &target, true))
        .map_err(|source| VerityError::Map { device: pair.data.clone(), hash, source })?;
    let _ = std::fs::remove_file(DEVICE);
    rustix::fs::mknodat(rustix::fs::CWD, DEVICE, FileType::BlockDevice, Mode::from_raw_mode(0o600), dev)
        .map_err(|errno| VerityError::Node(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initrd::slot::Origin;

    fn superblock() -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..6].copy_from_slice(b"verity");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[65] = 0x10;
        bytes[69] = 0x10;
        bytes[72] = 9;
        bytes[80] = 2;
        bytes[88] = 0xab;
        bytes[89] = 0x01;
        bytes
    }

    #[test]
    fn table_line() {
        let parsed = Superblock::parse(&superblock()).expect("a good superblock");
        let hash =
            RootHash::from_cmdline(&format!("quiet dyad.root={} ro", "0f".repeat(32))).expect("a hash");
        let pair =
            Pair { data: "/dev/vda2".into(), verity: "/dev/vda3".into(), origin: Origin::Partition(2) };
        assert_eq!(parsed.sectors(), 72);
        assert_eq!(
            parsed.params(&pair, &hash),
            format!("1 /dev/vda2 /dev/vda3 4096 4096 9 1 sha256 {} ab01", "0f".repeat(32))
        );
    }

    #[test]
    fn refusals_name_what_was_seen() {
        let mut bytes = superblock();
        bytes[80..82].copy_from_slice(&300u16.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), Err(SuperblockError::Salt(300)));
        bytes = superblock();
        bytes[32..38].copy_from_slice(b"sha512");
        assert_eq!(Superblock::parse(&bytes), Err(SuperblockError::Algorithm("sha512".into())));
        bytes[0] = 0;
        assert!(matches!(Superblock::parse(&bytes), Err(SuperblockError::Magic(_))));
        for bad in ["", "dyad.root=12", &format!("dyad.root={}", "zz".repeat(32)), "dyad.root=é"] {
            assert!(RootHash::from_cmdline(bad).is_err(), "{bad}");
        }
    }
}
