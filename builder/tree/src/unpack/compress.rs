//! The compressions that deb(5) allows.

use std::io::Read;

use bytes::Bytes;

use super::xz::{self, XzError};
use super::{Limits, UnpackError};

/// Splits `data.tar.xz` into its stem and decodes by suffix; `stem` without a suffix is stored plainly.
pub(super) fn decode(
    name: &str,
    stem: &str,
    data: &Bytes,
    max: u64,
    limits: &Limits,
) -> Result<Bytes, UnpackError> {
    let damaged = |format, what: String| UnpackError::Damaged { part: name.to_owned(), format, what };
    let too_large = || UnpackError::TooLarge { part: name.to_owned(), limit: max };
    match name.strip_prefix(stem) {
        Some("") if data.len() as u64 > max => Err(too_large()),
        Some("") => Ok(data.clone()),
        Some(".xz") => match xz::decode(data, max, limits) {
            Ok(out) => Ok(Bytes::from(out)),
            Err(XzError::TooLarge) => Err(too_large()),
            Err(XzError::Damaged(what)) => Err(damaged("xz", what)),
        },
        Some(".zst") => {
            let reader = zstd::stream::read::Decoder::with_buffer(&data[..])
                .map_err(|e| damaged("zstd", e.to_string()))?;
            bounded(reader, max).map_err(|e| damaged("zstd", e.to_string()))?.ok_or_else(too_large)
        }
        Some(".gz") => {
            let reader = flate2::bufread::MultiGzDecoder::new(&data[..]);
            bounded(reader, max).map_err(|e| damaged("gzip", e.to_string()))?.ok_or_else(too_large)
        }
        _ => Err(UnpackError::Layout(format!("member {name:?} has an unknown compression"))),
    }
}

/// Reads to the end, or `None` past `max` bytes.
fn bounded(reader: impl Read, max: u64) -> std::io::Result<Option<Bytes>> {
    let mut out = Vec::new();
    reader.take(max.saturating_add(1)).read_to_end(&mut out)?;
    Ok(if out.len() as u64 > max { None } else { Some(Bytes::from(out)) })
}
