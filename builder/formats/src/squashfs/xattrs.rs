//! Extended attributes: lists of pairs, each different list stored once.

use std::collections::{BTreeMap, HashMap};

use super::meta::{MetaWriter, Tail};
use super::{Error, NONE_U32};

/// Name spaces by their number on disk.
pub(super) const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Every list in use.
#[derive(Default)]
pub(super) struct Xattrs {
    lists: Vec<List>,
    known: HashMap<Vec<u8>, u32>,
}

struct List {
    encoded: Vec<u8>,
    pairs: u32,
}

impl Xattrs {
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The number of a list; "none" for an empty one.
    pub(super) fn intern(&mut self, path: &[u8], pairs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<u32, Error> {
        if pairs.is_empty() {
            return Ok(NONE_U32);
        }
        let mut encoded = Vec::new();
        for (name, value) in pairs {
            let (space, rest) = PREFIXES
                .iter()
                .enumerate()
                .find_map(|(i, prefix)| Some((i as u16, name.strip_prefix(*prefix)?)))
                .filter(|(_, rest)| !rest.is_empty() && rest.len() <= 255 && value.len() <= 65_536)
                .ok_or_else(|| Error::Xattr {
                    path: String::from_utf8_lossy(path).into_owned(),
                    name: String::from_utf8_lossy(name).into_owned(),
                })?;
            encoded.extend(space.to_le_bytes());
            encoded.extend((rest.len() as u16).to_le_bytes());
            encoded.extend(rest);
            encoded.extend((value.len() as u32).to_le_bytes());
            encoded.extend(value);
        }
        let next = self.lists.len() as u32;
        let number = *self.known.entry(encoded.clone()).or_insert(next);
        if number == next {
            self.lists.push(List { encoded, pairs: pairs.len() as u32 });
        }
        Ok(number)
    }

    /// Writes pairs, list table and its head; returns the head's position.
    pub(super) fn write(&self, tail: &mut Tail) -> Result<u64, Error> {
        let mut pairs = MetaWriter::new(tail.level());
        let mut table = Vec::new();
        for list in &self.lists {
            table.extend(pairs.reference().to_le_bytes());
            table.extend(list.pairs.to_le_bytes());
            table.extend((list.encoded.len() as u32).to_le_bytes());
            pairs.write(&list.encoded)?;
        }
        let pairs_start = tail.position();
        tail.raw(&pairs.finish()?);
        let starts = tail.blocks(&table)?;
        let head = tail.position();
        tail.raw(&pairs_start.to_le_bytes());
        tail.raw(&(self.lists.len() as u32).to_le_bytes());
        tail.raw(&[0u8; 4]);
        for start in starts {
            tail.raw(&start.to_le_bytes());
        }
        Ok(head)
    }
}
