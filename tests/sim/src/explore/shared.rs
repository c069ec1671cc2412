//! Parts of worlds that most moves leave alone: shared between worlds, and hashed once.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

/// A shared value that remembers its own fingerprint.
pub(crate) struct Shared<T>(Rc<(T, Cell<u128>)>);

impl<T: std::fmt::Debug> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.0.fmt(f)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(Rc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

impl<T: Clone + Hash> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Shared(Rc::new((value, Cell::new(0))))
    }

    /// The value to be changed; the fingerprint is forgotten.
    pub(crate) fn change(&mut self) -> &mut T {
        if Rc::get_mut(&mut self.0).is_none() {
            self.0 = Rc::new((self.0.0.clone(), Cell::new(0)));
        }
        let inner = Rc::get_mut(&mut self.0).expect("it was just made to be the only one");
        inner.1.set(0);
        &mut inner.0
    }

    pub(crate) fn fingerprint(&self) -> u128 {
        if self.0.1.get() == 0 {
            self.0.1.set(fingerprint(&self.0.0));
        }
        self.0.1.get()
    }
}

impl<T: Clone + Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.fingerprint());
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || self.0.0 == other.0.0
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: PartialOrd> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.0.0.partial_cmp(&other.0.0)
    }
}

impl<T: Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if Rc::ptr_eq(&self.0, &other.0) { std::cmp::Ordering::Equal } else { self.0.0.cmp(&other.0.0) }
    }
}

/// 128 bits of a value's hash: two 64-bit lanes of multiply and fold, never 0. At ten million worlds the chance that
/// any two share one is below 10^-24.
pub(crate) fn fingerprint(value: &impl Hash) -> u128 {
    let mut lanes = Lanes(0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
    value.hash(&mut lanes);
    ((u128::from(lanes.finish()) << 64) | u128::from(lanes.0 ^ lanes.1.rotate_left(29))).max(1)
}

struct Lanes(u64, u64);

impl Lanes {
    fn mix(&mut self, word: u64) {
        let fold = |lane: u64, key: u64| {
            let wide = u128::from(lane ^ word) * u128::from(key);
            (wide as u64) ^ ((wide >> 64) as u64)
        };
        self.0 = fold(self.0, 0xA076_1D64_78BD_642F).wrapping_add(0xE703_7ED1_A0B4_28DB);
        self.1 = fold(self.1.rotate_left(23), 0x8EBC_6AF0_9C88_C6E3).wrapping_add(0x5899_65CC_7537_4CC3);
    }
}

impl Hasher for Lanes {
    fn finish(&self) -> u64 {
        self.1 ^ self.0.rotate_left(32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 59));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }

    fn write_u128(&mut self, word: u128) {
        self.mix(word as u64);
        self.mix((word >> 64) as u64);
    }
}
