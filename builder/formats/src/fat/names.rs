//! Long names and the short names that stand for them.

use std::collections::BTreeSet;

use super::{ATTR_LONG_NAME, ENTRY_BYTES};

/// UTF-16 units of one long-name record.
pub(super) const UNITS_PER_RECORD: usize = 13;
/// UTF-16 units of the longest name.
pub(super) const UNITS_MAX: usize = 255;

/// Base and extension, padded with spaces.
pub(super) type Short = [u8; 11];

fn short_char(c: u8) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&c)
}

/// What is wrong with a name, if anything.
pub(super) fn refuse(name: &str) -> Option<&'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Some("an empty, \".\" or \"..\" component");
    }
    if name.chars().any(|c| c.is_control() || "\"*/:<>?\\|".contains(c)) {
        return Some("control characters and \" * / : < > ? \\ | are not accepted");
    }
    if name.ends_with([' ', '.']) {
        return Some("a name must not end with a space or a dot");
    }
    if name.encode_utf16().count() > UNITS_MAX {
        return Some("a name has at most 255 UTF-16 units");
    }
    None
}

/// The name as a short name, if it is one exactly.
fn exact(name: &str) -> Option<Short> {
    let (base, ext) = name.split_once('.').unwrap_or((name, ""));
    let fits = |s: &str, max: usize| s.len() <= max && s.bytes().all(short_char);
    if base.is_empty() || !fits(base, 8) || !fits(ext, 3) || name.ends_with('.') {
        return None;
    }
    Some(join(base.as_bytes(), ext.as_bytes()))
}

fn join(base: &[u8], ext: &[u8]) -> Short {
    let mut out = [b' '; 11];
    out[..base.len()].copy_from_slice(base);
    out[8..8 + ext.len()].copy_from_slice(ext);
    out
}

/// Upper case, without spaces and dots, `_` for what a short name cannot hold.
fn squeeze(part: &str, max: usize) -> Vec<u8> {
    part.chars()
        .filter(|c| *c != ' ' && *c != '.')
        .map(|c| {
            let up = c.to_ascii_uppercase();
            if up.is_ascii() && short_char(up as u8) { up as u8 } else { b'_' }
        })
        .take(max)
        .collect()
}

/// A short name that the directory does not have yet, and whether the long name must be stored beside it.
/// `None` when the directory has run out of short names.
pub(super) fn assign(name: &str, taken: &mut BTreeSet<Short>) -> Option<(Short, bool)> {
    if let Some(short) = exact(name) {
        if taken.insert(short) {
            return Some((short, false));
        }
    }
    let (base, ext) = match name.rfind('.') {
        Some(dot) if dot > 0 => (&name[..dot], &name[dot + 1..]),
        _ => (name, ""),
    };
    let (base, ext) = (squeeze(base, 8), squeeze(ext, 3));
    for number in 1..1_000_000u32 {
        let tail = format!("~{number}");
        let mut stem = base.clone();
        stem.truncate(8 - tail.len());
        stem.extend(tail.bytes());
        let short = join(&stem, &ext);
        if taken.insert(short) {
            return Some((short, true));
        }
    }
    None
}

/// Ties long-name records to their short name.
pub(super) fn checksum(short: &Short) -> u8 {
    short.iter().fold(0u8, |sum, &c| sum.rotate_right(1).wrapping_add(c))
}

/// Byte offsets of the units in a record.
const UNIT_OFFSETS: [usize; UNITS_PER_RECORD] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// The records of a long name in the order of the disk: last part first.
pub(super) fn long_records(name: &str, short: &Short) -> Vec<[u8; ENTRY_BYTES]> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if units.len() % UNITS_PER_RECORD != 0 {
        units.push(0);
    }
    let parts = units.len().div_ceil(UNITS_PER_RECORD);
    units.resize(parts * UNITS_PER_RECORD, 0xffff);
    let mut records: Vec<_> = units
        .chunks_exact(UNITS_PER_RECORD)
        .enumerate()
        .map(|(i, part)| {
            let mut r = [0u8; ENTRY_BYTES];
            r[0] = i as u8 + 1 + if i + 1 == parts { 0x40 } else { 0 };
            r[11] = ATTR_LONG_NAME;
            r[13] = checksum(short);
            for (&at, unit) in UNIT_OFFSETS.iter().zip(part) {
                r[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            r
        })
        .collect();
    records.reverse();
    records
}

/// Collects long-name records until their short entry comes.
#[derive(Default)]
pub(super) struct LongName {
    units: Vec<u16>,
    next: u8,
    checksum: u8,
}

impl LongName {
    /// Takes a record; anything out of order drops what was collected.
    pub(super) fn push(&mut self, record: &[u8]) {
        let number = record[0] & 0x3f;
        if record[0] & 0x40 != 0 {
            *self = LongName { units: Vec::new(), next: number, checksum: record[13] };
        }
        if number == 0
            || number != self.next
            || record[13] != self.checksum
            || usize::from(number) > UNITS_MAX.div_ceil(UNITS_PER_RECORD)
        {
            *self = LongName::default();
            return;
        }
        self.next -= 1;
        let units = UNIT_OFFSETS.iter().map(|&at| u16::from_le_bytes([record[at], record[at + 1]]));
        self.units.splice(0..0, units);
    }

    /// The name, if it is whole and belongs to this short name.
    pub(super) fn take(&mut self, short: &Short) -> Option<String> {
        let done = std::mem::take(self);
        if done.next != 0 || done.units.is_empty() || done.checksum != checksum(short) {
            return None;
        }
        let end = done.units.iter().position(|&u| u == 0).unwrap_or(done.units.len());
        Some(String::from_utf16_lossy(&done.units[..end]))
    }
}

/// A short name as text; bits 3 and 4 of `case` say lower case (as Windows and Linux write it).
pub(super) fn short_text(short: &Short, case: u8) -> String {
    let part = |raw: &[u8], lower: bool| {
        let text: String =
            raw.iter().map(|&c| if c.is_ascii() { char::from(c) } else { '\u{fffd}' }).collect();
        let text = text.trim_end_matches(' ').to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let (base, ext) = (part(&short[..8], case & 0x08 != 0), part(&short[8..], case & 0x10 != 0));
    if ext.is_empty() { base } else { format!("{base}.{ext}") }
}
