//! Metadata blocks: 8 KiB each before compression, with a 16-bit length in front.

use super::Error;

/// Bytes of a metadata block before compression.
pub(super) const META_BYTES: usize = 8192;
/// In the length: stored as it is.
pub(super) const META_STORED: u16 = 0x8000;

/// A run of metadata blocks under construction, and references into it.
pub(super) struct MetaWriter {
    level: i32,
    done: Vec<u8>,
    open: Vec<u8>,
}

impl MetaWriter {
    pub(super) fn new(level: i32) -> Self {
        MetaWriter { level, done: Vec::new(), open: Vec::with_capacity(META_BYTES) }
    }

    /// Where the next byte goes: (start of its block in the finished run, offset within the block).
    pub(super) fn position(&self) -> (u64, u16) {
        (self.done.len() as u64, self.open.len() as u16)
    }

    /// [`MetaWriter::position`] as the format's reference.
    pub(super) fn reference(&self) -> u64 {
        let (block, offset) = self.position();
        block << 16 | u64::from(offset)
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            let len = data.len().min(META_BYTES - self.open.len());
            self.open.extend(&data[..len]);
            data = &data[len..];
            // At once, so that a position never points behind the end of a block.
            if self.open.len() == META_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        let packed = zstd::bulk::compress(&self.open, self.level)?;
        if packed.len() < self.open.len() {
            self.done.extend((packed.len() as u16).to_le_bytes());
            self.done.extend(packed);
        } else {
            self.done.extend((self.open.len() as u16 | META_STORED).to_le_bytes());
            self.done.extend(&self.open);
        }
        self.open.clear();
        Ok(())
    }

    /// The finished run.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Error> {
        self.flush()?;
        Ok(self.done)
    }
}

/// Everything behind the data, collected in memory: tables are small and refer to positions of each other.
pub(super) struct Tail {
    start: u64,
    level: i32,
    bytes: Vec<u8>,
}

impl Tail {
    pub(super) fn new(start: u64, level: i32) -> Self {
        Tail { start, level, bytes: Vec::new() }
    }

    /// Position in the image.
    pub(super) fn position(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// zstd level of the tables.
    pub(super) fn level(&self) -> i32 {
        self.level
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Metadata blocks, each a page of the table; returns where each one starts.
    pub(super) fn blocks(&mut self, content: &[u8]) -> Result<Vec<u64>, Error> {
        let mut starts = Vec::new();
        for page in content.chunks(META_BYTES) {
            starts.push(self.position());
            let mut writer = MetaWriter::new(self.level);
            writer.write(page)?;
            self.bytes.extend(writer.finish()?);
        }
        Ok(starts)
    }

    /// Metadata blocks and behind them the list of where they start; returns the position of that list.
    pub(super) fn lookup_table(&mut self, content: &[u8]) -> Result<u64, Error> {
        let starts = self.blocks(content)?;
        let position = self.position();
        for start in starts {
            self.bytes.extend(start.to_le_bytes());
        }
        Ok(position)
    }

    pub(super) fn pad(&mut self, multiple: u64) {
        let end = self.position().next_multiple_of(multiple);
        self.bytes.resize((end - self.start) as usize, 0);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
