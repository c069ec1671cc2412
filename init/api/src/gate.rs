//! The gate of the virtual addresses: nftables sets that the supervisor fills with elements of limited life, and that PID 1
//! empties when the dead-man's deadline passes. An address whose element is gone is neither answered for nor used.
//!
//! Both speak to the packet filter in its own messages (nfnetlink): no program, no memory that is not there already.

use std::net::IpAddr;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
const ATTRIBUTE_TABLE: u16 = 1;
const ATTRIBUTE_SET: u16 = 2;
const ATTRIBUTE_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;
const ERROR: u16 = 2;

/// A set of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSet {
    /// Protocol family of its table: `NFPROTO_INET` (1) or `NFPROTO_ARP` (3).
    pub family: u8,
    /// Table.
    pub table: &'static str,
    /// Set.
    pub set: &'static str,
}

/// All sets of the gate.
pub const SETS: [GateSet; 3] = [
    GateSet { family: 1, table: "dyad_gate", set: "vip4" },
    GateSet { family: 1, table: "dyad_gate", set: "vip6" },
    GateSet { family: 3, table: "dyad_gate", set: "vip4" },
];

/// The sets that an address is in while it may answer.
pub fn sets_of(address: IpAddr) -> &'static [GateSet] {
    const FOUR: [GateSet; 2] = [SETS[0], SETS[2]];
    const SIX: [GateSet; 1] = [SETS[1]];
    match address {
        IpAddr::V4(_) => &FOUR,
        IpAddr::V6(_) => &SIX,
    }
}

/// A transaction, and how many acknowledgements it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The messages.
    pub bytes: Vec<u8>,
    /// One for each change.
    pub answers: usize,
}

/// Deletes all elements of some sets; fails when one of them is not there.
pub fn flush(sets: &[GateSet]) -> Batch {
    batch(sets.iter().map(|set| (DELETE_ELEMENTS, 0, *set, Vec::new())))
}

/// Lets an address answer for so many milliseconds; what is open is not prolonged by this.
pub fn open(address: IpAddr, life_ms: u64) -> Batch {
    batch(sets_of(address).iter().map(|set| (NEW_ELEMENTS, CREATE, *set, element(address, Some(life_ms)))))
}

/// The same for an address that is open: its element is replaced without a moment in which it is not there. Fails when
/// it is not open.
pub fn prolong(address: IpAddr, life_ms: u64) -> Batch {
    batch(sets_of(address).iter().flat_map(|set| {
        let delete = (DELETE_ELEMENTS, 0, *set, element(address, None));
        [delete, (NEW_ELEMENTS, CREATE, *set, element(address, Some(life_ms)))]
    }))
}

/// Ends it at once; fails when it is not open.
pub fn close(address: IpAddr) -> Batch {
    batch(sets_of(address).iter().map(|set| (DELETE_ELEMENTS, 0, *set, element(address, None))))
}

/// Whether an answer of the kernel is an acknowledgement (`nlmsghdr | error`, 0), or the error's number.
pub fn answered(answer: &[u8]) -> Result<(), i32> {
    let number = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (answer.get(4..6) == Some(&ERROR.to_ne_bytes()), number) {
        (true, Some(0)) => Ok(()),
        (true, Some(number)) => Err(-number),
        (true, None) | (false, _) => Err(0),
    }
}

fn batch(changes: impl Iterator<Item = (u16, u16, GateSet, Vec<u8>)>) -> Batch {
    let mut bytes = Vec::new();
    let mut answers = 0;
    message(&mut bytes, BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
    for (kind, flags, set, elements) in changes {
        let mut attributes = Vec::new();
        attribute(&mut attributes, ATTRIBUTE_TABLE, &text(set.table));
        attribute(&mut attributes, ATTRIBUTE_SET, &text(set.set));
        attributes.extend_from_slice(&elements);
        message(&mut bytes, kind, flags | ACKNOWLEDGE, set.family, 0, &attributes);
        answers += 1;
    }
    message(&mut bytes, BATCH_END, 0, 0, SUBSYSTEM, &[]);
    Batch { bytes, answers }
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
    out.extend_from_slice(&(20 + attributes.len() as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    // Sequence and port.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attributes);
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    attribute(&mut out, kind | NESTED, value);
    out
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn element(address: IpAddr, life_ms: Option<u64>) -> Vec<u8> {
    let mut value = Vec::new();
    match address {
        IpAddr::V4(address) => attribute(&mut value, DATA_VALUE, &address.octets()),
        IpAddr::V6(address) => attribute(&mut value, DATA_VALUE, &address.octets()),
    }
    let mut inside = nested(ELEMENT_KEY, &value);
    if let Some(life_ms) = life_ms {
        attribute(&mut inside, ELEMENT_TIMEOUT, &life_ms.to_be_bytes());
    }
    nested(ATTRIBUTE_ELEMENTS, &nested(LIST_ELEMENT, &inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut answer = [0; 36];
        answer[4] = 2;
        assert_eq!(answered(&answer), Ok(()));
        answer[16..20].copy_from_slice(&(-2i32).to_ne_bytes());
        assert_eq!(answered(&answer), Err(2));
        assert_eq!(answered(&[]), Err(0));
    }
}
