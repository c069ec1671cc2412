//! Raw disk files with holes where the disk is zero.

use std::io::{Seek, SeekFrom, Write};

use super::{DiskImage, Error, Input, is_zero};

const CHUNK_BYTES: u64 = 4 << 20;
/// Zeros are left out in this unit: the block size of the file systems that images lie on.
const HOLE_BYTES: usize = 4096;

/// Writes a raw image into an empty file: zeros are skipped by seeking, and the last byte is always written, so that
/// the file gets its full size. Returns how many bytes were written.
pub fn write(
    image: &DiskImage,
    inputs: &mut [&mut dyn Input],
    out: &mut (impl Write + Seek),
) -> Result<u64, Error> {
    let mut buf = vec![0u8; CHUNK_BYTES as usize];
    let mut written = 0;
    for (start, source) in image.extents() {
        let end = start + source.len();
        let mut at = *start;
        while at < end {
            // Chunks end on multiples of their size, so that holes are found on the file's own blocks.
            let len = (end - at).min(CHUNK_BYTES - at % CHUNK_BYTES) as usize;
            image.read_at(inputs, at, &mut buf[..len])?;
            written += write_chunk(out, at, &buf[..len])?;
            at += len as u64;
        }
    }
    if image.size() > 0 {
        let mut last = [0u8];
        image.read_at(inputs, image.size() - 1, &mut last)?;
        out.seek(SeekFrom::Start(image.size() - 1))?;
        out.write_all(&last)?;
    }
    Ok(written)
}

fn write_chunk(out: &mut (impl Write + Seek), at: u64, chunk: &[u8]) -> Result<u64, Error> {
    let head = (at.next_multiple_of(HOLE_BYTES as u64) - at).min(chunk.len() as u64) as usize;
    let mut pieces = vec![&chunk[..head]];
    pieces.extend(chunk[head..].chunks(HOLE_BYTES));
    let mut position = at;
    let mut run: Option<(u64, usize)> = None; // start on the disk, length
    let mut written = 0;
    for piece in pieces {
        match (&mut run, is_zero(piece)) {
            (Some((_, len)), false) => *len += piece.len(),
            (None, false) => run = Some((position, piece.len())),
            (Some(_), true) => written += flush(out, at, chunk, run.take())?,
            (None, true) => {}
        }
        position += piece.len() as u64;
    }
    Ok(written + flush(out, at, chunk, run)?)
}

fn flush(
    out: &mut (impl Write + Seek),
    base: u64,
    chunk: &[u8],
    run: Option<(u64, usize)>,
) -> Result<u64, Error> {
    let Some((start, len)) = run else { return Ok(0) };
    out.seek(SeekFrom::Start(start))?;
    let from = (start - base) as usize;
    out.write_all(&chunk[from..from + len])?;
    Ok(len as u64)
}
