//! GUIDs: text and RFC 4122 byte order inside, mixed endian on disk.

use std::fmt;
use std::str::FromStr;

/// A GUID, held in the order of its text form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid([u8; 16]);

/// A text that is not a GUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a GUID: xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal is accepted")]
pub struct BadGuid(pub String);

impl Guid {
    /// The all-zero GUID: as a type it marks an unused entry.
    pub const ZERO: Guid = Guid([0; 16]);

    /// From the text form written as one number (`0xc12a7328_f81f_...`).
    pub const fn from_u128(value: u128) -> Self {
        Guid(value.to_be_bytes())
    }

    /// From 16 bytes in text order: half of a verity root hash becomes a PARTUUID this way.
    pub const fn from_text_order(bytes: [u8; 16]) -> Self {
        Guid(bytes)
    }

    /// The 16 bytes in text order.
    pub const fn text_order(self) -> [u8; 16] {
        self.0
    }

    /// From the bytes on disk: the first three groups are little endian there.
    pub const fn from_disk(d: [u8; 16]) -> Self {
        Guid(swap(d))
    }

    /// The bytes on disk.
    pub const fn to_disk(self) -> [u8; 16] {
        swap(self.0)
    }

    /// Whether all bits are zero.
    pub fn is_zero(self) -> bool {
        self == Guid::ZERO
    }
}

/// Its own inverse.
const fn swap(d: [u8; 16]) -> [u8; 16] {
    [d[3], d[2], d[1], d[0], d[5], d[4], d[7], d[6], d[8], d[9], d[10], d[11], d[12], d[13], d[14], d[15]]
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

impl FromStr for Guid {
    type Err = BadGuid;

    fn from_str(text: &str) -> Result<Self, BadGuid> {
        let bad = || BadGuid(text.to_owned());
        let raw = text.as_bytes();
        if raw.len() != 36 {
            return Err(bad());
        }
        let mut out = [0u8; 16];
        let mut nibbles = 0;
        for (i, &c) in raw.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if c != b'-' {
                    return Err(bad());
                }
                continue;
            }
            let digit = char::from(c).to_digit(16).ok_or_else(bad)? as u8;
            out[nibbles / 2] |= if nibbles % 2 == 0 { digit << 4 } else { digit };
            nibbles += 1;
        }
        Ok(Guid(out))
    }
}

/// Partition types of the Discoverable Partitions Specification (x86-64) that Dyad uses.
pub mod types {
    use super::Guid;

    /// EFI system partition.
    pub const ESP: Guid = Guid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);
    /// Root file system, x86-64.
    pub const ROOT_X86_64: Guid = Guid::from_u128(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);
    /// Verity hashes of a root file system, x86-64.
    pub const ROOT_X86_64_VERITY: Guid = Guid::from_u128(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5);
    /// Any Linux file system: the state partition.
    pub const LINUX: Guid = Guid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4);
    /// LVM physical volume: the data partition.
    pub const LVM: Guid = Guid::from_u128(0xe6d6d379_f507_44c2_a23c_238f2a3df928);
}
