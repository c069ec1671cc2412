//! deb822 control data: stanzas of `Name: value` fields, parsed in place.

use memchr::{memchr, memchr_iter};

/// A stanza larger than this is refused: the largest real one (a Release file) is a fifth of it.
pub const STANZA_BYTES_MAX: usize = 4 << 20;

/// A text that is not control data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ControlError {
    /// Line of the text, from 1.
    pub line: usize,
    /// What is wrong there and what was expected.
    pub problem: String,
}

/// Iterates over the stanzas of a text; they are separated by empty lines.
#[derive(Debug, Clone)]
pub struct Stanzas<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

/// One stanza: its bytes and the line and offset at which it starts.
#[derive(Debug, Clone, Copy)]
pub struct Stanza<'a> {
    /// Its lines.
    pub text: &'a [u8],
    /// Line of its first field in the whole text, from 1.
    pub line: usize,
    /// Offset of its first byte in the whole text.
    pub offset: usize,
}

/// One field of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as written; compare without regard to case.
    pub name: &'a [u8],
    /// Value without surrounding blanks; continuation lines keep their leading blank.
    pub value: &'a [u8],
    /// Line of the field in the whole text, from 1.
    pub line: usize,
}

/// The stanzas of `text`.
pub fn stanzas(text: &[u8]) -> Stanzas<'_> {
    Stanzas { text, at: 0, line: 1 }
}

/// Length of the line at the start of `text`, with its newline.
fn line_len(text: &[u8]) -> usize {
    memchr(b'\n', text).map_or(text.len(), |end| end + 1)
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|c| matches!(c, b' ' | b'\t' | b'\r' | b'\n'))
}

impl<'a> Iterator for Stanzas<'a> {
    type Item = Result<Stanza<'a>, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.text.len() {
            let len = line_len(&self.text[self.at..]);
            if !is_blank(&self.text[self.at..self.at + len]) {
                break;
            }
            self.at += len;
            self.line += 1;
        }
        let (offset, line) = (self.at, self.line);
        while self.at < self.text.len() {
            let len = line_len(&self.text[self.at..]);
            if is_blank(&self.text[self.at..self.at + len]) {
                break;
            }
            self.at += len;
            self.line += 1;
            if self.at - offset > STANZA_BYTES_MAX {
                self.at = self.text.len();
                let problem = format!("a stanza is larger than {STANZA_BYTES_MAX} bytes");
                return Some(Err(ControlError { line, problem }));
            }
        }
        (self.at > offset).then(|| Ok(Stanza { text: &self.text[offset..self.at], line, offset }))
    }
}

impl<'a> Stanza<'a> {
    /// The fields in order. Comment lines (`#`) are left out.
    pub fn fields(&self) -> Fields<'a> {
        Fields { text: self.text, line: self.line }
    }

    /// The value of one field as text.
    ///
    /// # Errors
    /// Malformed stanza, the field twice, or a value that is not UTF-8.
    pub fn get(&self, name: &str) -> Result<Option<&'a str>, ControlError> {
        let mut found = None;
        for field in self.fields() {
            let field = field?;
            if !field.name.eq_ignore_ascii_case(name.as_bytes()) {
                continue;
            }
            if found.is_some() {
                return Err(ControlError {
                    line: field.line,
                    problem: format!("field {name} stands here twice"),
                });
            }
            found = Some(std::str::from_utf8(field.value).map_err(|_| ControlError {
                line: field.line,
                problem: format!("the value of {name} is not UTF-8"),
            })?);
        }
        Ok(found)
    }
}

/// Iterates over the fields of one stanza.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    text: &'a [u8],
    line: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.text.first() == Some(&b'#') {
            self.text = &self.text[line_len(self.text)..];
            self.line += 1;
        }
        if self.text.is_empty() {
            return None;
        }
        let mut len = line_len(self.text);
        while matches!(self.text.get(len), Some(b' ' | b'\t')) {
            len += line_len(&self.text[len..]);
        }
        let (field, rest) = self.text.split_at(len);
        let line = self.line;
        self.text = rest;
        self.line += memchr_iter(b'\n', field).count();
        let first = &field[..line_len(field)];
        let name_len = memchr(b':', first).unwrap_or(0);
        let name = &first[..name_len];
        if name.is_empty() || name.iter().any(|&c| c <= b' ' || c >= 0x7f) {
            self.text = &[];
            let shown = String::from_utf8_lossy(&first[..first.len().min(60)]).trim_end().to_owned();
            let problem = format!(
                "{shown:?} is not a field; expected `Name: value` or a line that starts with a blank"
            );
            return Some(Err(ControlError { line, problem }));
        }
        Some(Ok(Field { name, value: field[name_len + 1..].trim_ascii(), line }))
    }
}
