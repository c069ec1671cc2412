//! Parallel .xz decoding.
//!
//! An .xz stream ends in an index of its blocks, and blocks do not refer to each other. Each block is decoded on its
//! own by giving the library a stream made of the original header, that one block, and an index of one record; the
//! library then checks sizes and checksums as it would for a whole file. Output goes straight to its final place.

use liblzma::stream::{Action, Status, Stream};
use rayon::prelude::*;

use super::Limits;

const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const FRAME: usize = 12;

struct Block<'a> {
    header: &'a [u8],
    body: &'a [u8],
    unpadded: u64,
    size: u64,
}

/// Why a stream was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum XzError {
    /// The index promises more than `limit`.
    TooLarge,
    /// Anything else.
    Damaged(String),
}

fn damaged<T>(what: impl Into<String>) -> Result<T, XzError> {
    Err(XzError::Damaged(what.into()))
}

/// Decodes all blocks of all streams of an .xz file.
pub(super) fn decode(input: &[u8], size_max: u64, limits: &Limits) -> Result<Vec<u8>, XzError> {
    let blocks = index(input)?;
    let total = blocks.iter().try_fold(0u64, |sum, b| sum.checked_add(b.size)).unwrap_or(u64::MAX);
    if total > size_max {
        return Err(XzError::TooLarge);
    }
    let mut output = vec![0u8; total as usize];
    let mut parts = Vec::with_capacity(blocks.len());
    let mut rest = output.as_mut_slice();
    for block in &blocks {
        let (part, tail) = rest.split_at_mut(block.size as usize);
        parts.push((block, part));
        rest = tail;
    }
    parts
        .into_par_iter()
        .try_for_each(|(block, part)| decode_block(block, part, limits.decoder_bytes_max))?;
    Ok(output)
}

fn decode_block(block: &Block<'_>, output: &mut [u8], memory_max: u64) -> Result<(), XzError> {
    let flags = [block.header[6], block.header[7]];
    let tail = one_record_index(block.unpadded, block.size, flags);
    let mut stream =
        Stream::new_stream_decoder(memory_max, 0).map_err(|e| XzError::Damaged(e.to_string()))?;
    let mut done = 0usize;
    for (part, last) in [(block.header, false), (block.body, false), (&tail[..], true)] {
        let start = stream.total_in();
        loop {
            let used = (stream.total_in() - start) as usize;
            if used == part.len() && !last {
                break;
            }
            let before = (stream.total_in(), stream.total_out());
            let status = stream
                .process(&part[used..], &mut output[done..], if last { Action::Finish } else { Action::Run })
                .map_err(|e| XzError::Damaged(e.to_string()))?;
            done = stream.total_out() as usize;
            match status {
                Status::StreamEnd if last && done == output.len() => return Ok(()),
                Status::StreamEnd => return damaged("a block ends before its index record says"),
                _ if before == (stream.total_in(), stream.total_out()) => {
                    return damaged("a block is longer than its index record says");
                }
                _ => {}
            }
        }
    }
    damaged("a block does not end")
}

fn one_record_index(unpadded: u64, size: u64, flags: [u8; 2]) -> Vec<u8> {
    let mut out = vec![0, 1];
    put_vli(&mut out, unpadded);
    put_vli(&mut out, size);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(crc32(&out).to_le_bytes());
    let backward = (out.len() / 4 - 1) as u32;
    let mut fields = backward.to_le_bytes().to_vec();
    fields.extend(flags);
    out.extend(crc32(&fields).to_le_bytes());
    out.extend(&fields);
    out.extend(b"YZ");
    out
}

/// Walks the streams from the end, where their indexes are, and returns the blocks in file order.
fn index(input: &[u8]) -> Result<Vec<Block<'_>>, XzError> {
    let mut streams = Vec::new();
    let mut end = input.len();
    while end > 0 {
        if streams.is_empty() || !input[..end].ends_with(&[0; 4]) {
            let (start, blocks) = stream(&input[..end])?;
            streams.push(blocks);
            end = start;
        } else {
            end -= 4; // stream padding
        }
    }
    if streams.is_empty() {
        return damaged("empty file");
    }
    Ok(streams.into_iter().rev().flatten().collect())
}

/// The stream that ends where `input` ends: its start and its blocks.
fn stream(input: &[u8]) -> Result<(usize, Vec<Block<'_>>), XzError> {
    let Some(footer_at) = input.len().checked_sub(FRAME).filter(|at| *at >= FRAME) else {
        return damaged("shorter than an xz header and footer");
    };
    let footer = &input[footer_at..];
    if &footer[10..] != b"YZ" || crc32(&footer[4..10]) != word(footer) {
        return damaged("the footer is missing (truncated?)");
    }
    let index_len = (word(&footer[4..]) as usize + 1) * 4;
    let Some(index_at) = footer_at.checked_sub(index_len).filter(|at| *at >= FRAME) else {
        return damaged("the index does not fit the file");
    };
    let records = read_index(&input[index_at..footer_at])?;
    let body: u64 = records.iter().map(|(unpadded, _)| unpadded.next_multiple_of(4)).sum();
    let start = (index_at as u64).checked_sub(body).and_then(|at| at.checked_sub(FRAME as u64));
    let Some(start) = start.map(|s| s as usize) else {
        return damaged("the index names more data than the file has");
    };
    let header = &input[start..start + FRAME];
    if header[..6] != MAGIC || crc32(&header[6..8]) != word(&header[8..]) || header[6..8] != footer[8..10] {
        return damaged("the header does not fit the footer");
    }
    let mut at = start + FRAME;
    let mut blocks = Vec::with_capacity(records.len());
    for (unpadded, size) in records {
        let next = at + unpadded.next_multiple_of(4) as usize;
        blocks.push(Block { header, body: &input[at..next], unpadded, size });
        at = next;
    }
    Ok((start, blocks))
}

fn read_index(index: &[u8]) -> Result<Vec<(u64, u64)>, XzError> {
    let (body, sum) = index.split_at(index.len() - 4);
    if crc32(body) != word(sum) || body.first() != Some(&0) {
        return damaged("the index is damaged");
    }
    let mut rest = &body[1..];
    let Some(count) = get_vli(&mut rest) else { return damaged("the index is damaged") };
    let mut records = Vec::new();
    for _ in 0..count {
        let (Some(unpadded), Some(size)) = (get_vli(&mut rest), get_vli(&mut rest)) else {
            return damaged("the index is short");
        };
        // The smallest block has 5 bytes; the bound keeps sums of these far from overflow.
        if !(5..1 << 48).contains(&unpadded) || size >= 1 << 48 || records.len() >= 1 << 20 {
            return damaged("the index has an impossible record");
        }
        records.push((unpadded, size));
    }
    if rest.len() > 3 || rest.iter().any(|&b| b != 0) {
        return damaged("the index has extra bytes");
    }
    Ok(records)
}

fn get_vli(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..9 {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return if byte == 0 && i > 0 { None } else { Some(value) };
        }
    }
    None
}

fn put_vli(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use liblzma::stream::{Check, MtStreamBuilder};
    use liblzma::write::XzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn encode(data: &[u8], block: u64) -> Vec<u8> {
        let stream =
            MtStreamBuilder::new().threads(1).block_size(block).preset(1).check(Check::Crc64).encoder();
        let mut encoder = XzEncoder::new_stream(Vec::new(), stream.unwrap());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len as u32)
            .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> (i % 23)).to_le_bytes())
            .take(len)
            .collect()
    }

    #[test]
    fn decodes_many_blocks_and_streams() {
        let data = sample(300_000);
        let mut file = encode(&data, 40_000);
        assert!(index(&file).unwrap().len() > 5);
        assert_eq!(decode(&file, 300_000, &Limits::default()).unwrap(), data);
        file.extend([0; 8]);
        let second = encode(&data[..1000], 1 << 20);
        file.extend(&second);
        assert_eq!(decode(&file, 301_000, &Limits::default()).unwrap().len(), 301_000);
        assert_eq!(decode(&file, 300_999, &Limits::default()), Err(XzError::TooLarge));
        assert_eq!(decode(&encode(b"", 4096), 0, &Limits::default()).unwrap(), b"");
    }

    #[test]
    fn every_truncation_is_refused() {
        let file = encode(&sample(5000), 2000);
        for cut in 0..file.len() {
            assert!(decode(&file[..cut], 1 << 20, &Limits::default()).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..4000, bit in 0u8..8) {
            let data = sample(9000);
            let mut file = encode(&data, 4000);
            let at = at % file.len();
            file[at] ^= 1 << bit;
            match decode(&file, 1 << 20, &Limits::default()) {
                Ok(out) => prop_assert_eq!(out, data, "a flip changed the output unnoticed"),
                Err(XzError::Damaged(_) | XzError::TooLarge) => {}
            }
        }

        #[test]
        fn noise_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&data, 1 << 20, &Limits::default()).is_err());
        }
    }
}
