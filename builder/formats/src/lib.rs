//! The formats that decide an image's bits: writers that are deterministic by construction, and readers for all of them.
//!
//! Nothing here opens a file, reads a clock or asks the host anything: bytes in, bytes out.

pub mod cpio;
pub mod disk;
pub mod fat;
pub mod squashfs;
pub mod tar;
pub mod tree;
pub mod uki;
pub mod verity;

mod field;

/// One zstd frame with a checksum, made by one thread: equal input and level give equal bytes.
///
/// The window is at most 8 MiB, which the kernel's initrd decompressor always accepts.
pub fn zstd_frame(data: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    use std::io::Write;

    let mut encoder = zstd::stream::Encoder::new(Vec::with_capacity(data.len() / 3), level)?;
    encoder.include_checksum(true)?;
    encoder.window_log(ZSTD_WINDOW_LOG)?;
    encoder.write_all(data)?;
    encoder.finish()
}

const ZSTD_WINDOW_LOG: u32 = 23;

/// Version of the zstd library inside: equal input gives equal bytes for one version only, so a cache of compressed
/// data keeps versions apart.
pub fn zstd_version() -> &'static str {
    zstd::zstd_safe::version_string()
}

/// Unpacks a zstd frame of at most `bytes_max` bytes.
pub fn zstd_unframe(data: &[u8], bytes_max: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;

    let mut decoder = zstd::stream::Decoder::with_buffer(data)?;
    decoder.window_log_max(27)?;
    let mut out = Vec::new();
    decoder.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > bytes_max {
        return Err(std::io::Error::other(format!("the zstd frame holds more than {bytes_max} bytes")));
    }
    Ok(out)
}
