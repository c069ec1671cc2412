//! Bytes as hexadecimal digits, for `serde(with)`.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], out: S) -> Result<S::Ok, S::Error> {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    out.serialize_str(&text)
}

pub(crate) fn deserialize<'a, D: Deserializer<'a>, const N: usize>(from: D) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(from)?;
    let digit = |at: usize| u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..N).map(digit).collect();
    bytes
        .filter(|_| text.len() == 2 * N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not {} hexadecimal digits", 2 * N)))
}
