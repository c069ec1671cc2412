//! Lines out of a byte stream, bounded: a stream that never ends its line costs [`LINE_MAX`] bytes and no more.

/// Longest line in bytes, without its end, in either direction.
pub const LINE_MAX: usize = 1024 * 1024;

/// A line longer than the bound; it was dropped up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {LINE_MAX} bytes; one JSON object a line is accepted")]
pub struct TooLong;

/// Collects bytes and gives back whole lines.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
    /// Bytes of `pending` already known to hold no line end.
    scanned: usize,
    /// Inside a line that was too long, until its end comes.
    dropping: bool,
}

impl Lines {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole line without its end (`\n` or `\r\n`); empty lines are skipped.
    pub fn next_line(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        loop {
            let end = self.pending[self.scanned..].iter().position(|&byte| byte == b'\n');
            let Some(end) = end.map(|at| self.scanned + at) else {
                if self.pending.len() > LINE_MAX || self.dropping {
                    self.pending.clear();
                    self.dropping = true;
                }
                self.scanned = self.pending.len();
                return None;
            };
            let mut line: Vec<u8> = self.pending.drain(..=end).collect();
            self.scanned = 0;
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if std::mem::take(&mut self.dropping) || line.len() > LINE_MAX {
                return Some(Err(TooLong));
            }
            if !line.is_empty() {
                return Some(Ok(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_without_end_costs_a_bounded_buffer() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            lines.push(&[b'x'; 64 * 1024]);
            assert!(lines.next_line().is_none());
            assert!(lines.pending.len() <= LINE_MAX + 64 * 1024);
        }
        lines.push(b"tail\n{}\r\n\n");
        assert_eq!(lines.next_line(), Some(Err(TooLong)));
        assert_eq!(lines.next_line(), Some(Ok(b"{}".to_vec())));
        assert_eq!(lines.next_line(), None);
    }

    proptest! {
        #[test]
        fn cutting_the_stream_anywhere_gives_the_same_lines(
            texts in prop::collection::vec("[a-z{}\" ]{1,40}", 0..20),
            cuts in prop::collection::vec(1usize..50, 1..40),
        ) {
            let stream: Vec<u8> = texts.iter().flat_map(|text| format!("{text}\n").into_bytes()).collect();
            let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                lines.push(now);
                rest = later;
                while let Some(line) = lines.next_line() {
                    got.push(String::from_utf8(line.unwrap()).unwrap());
                }
            }
            prop_assert_eq!(got, texts);
        }
    }
}
