//! Progress lines: to the kernel's log, which the console and later the journal show.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Facility daemon (3), level info (6).
const PREFIX: &str = "<30>dyad-storage: ";
/// The kernel cuts a record near 1,000 bytes.
const LINE_BYTES_MAX: usize = 900;

/// Where progress lines go. A line that cannot be written is dropped: no phase fails for its log.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
}

impl Log {
    /// The kernel's log.
    pub fn kernel() -> Self {
        Self::to(Path::new("/dev/kmsg"))
    }

    /// Another file, one line a write.
    pub fn to(path: &Path) -> Self {
        Self { file: File::options().append(true).open(path).ok() }
    }

    /// Nowhere.
    pub fn silent() -> Self {
        Self::default()
    }

    pub(crate) fn line(&self, text: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        let cut =
            (0..=text.len().min(LINE_BYTES_MAX)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let line = format!("{PREFIX}{}\n", text[..cut].replace('\n', " | "));
        let _ = file.write_all(line.as_bytes());
    }
}
