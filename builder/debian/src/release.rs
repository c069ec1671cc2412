//! Release files (the signed text of an InRelease) and the framing of a clear-signed file.

use std::collections::BTreeMap;

use crate::control::{self, ControlError};
use crate::date::parse_date;
use crate::digest::Digest;

/// What a Release file says of one index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEntry {
    /// Its digest.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The fields of a Release file that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Who publishes the archive (`Debian`), empty when not stated.
    pub origin: String,
    /// `oldstable`, `stable-security`, ...
    pub suite: String,
    /// `bookworm`, `bookworm-updates`, ...
    pub codename: String,
    /// When it was made, in seconds since 1970.
    pub date: u64,
    /// When it stops being valid, in seconds since 1970, if stated.
    pub valid_until: Option<u64>,
    /// Whether indexes can be fetched under their digest.
    pub acquire_by_hash: bool,
    /// Architectures offered.
    pub architectures: Vec<String>,
    /// Components offered; may be prefixed (`updates/main`).
    pub components: Vec<String>,
    /// Whether packages of architecture `all` have an index of their own.
    pub separate_all: bool,
    /// Index files by path relative to the Release file.
    pub files: BTreeMap<String, FileEntry>,
}

/// A Release file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Not control data.
    #[error("not control data: {0}")]
    Control(#[from] ControlError),
    /// It holds no stanza or more than one.
    #[error("it has {0} stanzas; expected one")]
    Stanzas(usize),
    /// A field that must be there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A date in another form.
    #[error("field {field}: {value:?} is not a date; expected the form `Sat, 11 Jul 2026 10:17:11 UTC`")]
    Date {
        /// Field name.
        field: &'static str,
        /// What stood there.
        value: String,
    },
    /// A line of the SHA256 table in another form.
    #[error(
        "SHA256 table: {line:?} is not an entry; expected DIGEST SIZE PATH, with a relative path and each path once"
    )]
    Entry {
        /// The line.
        line: String,
    },
    /// Not a clear-signed file at all.
    #[error("not a clear-signed file: {0}")]
    Framing(&'static str),
}

impl Release {
    /// Reads the text that the signature covers.
    ///
    /// # Errors
    /// See `ReleaseError`; nothing is guessed.
    pub fn parse(text: &[u8]) -> Result<Self, ReleaseError> {
        let stanzas = control::stanzas(text).take(3).collect::<Result<Vec<_>, _>>()?;
        let [stanza] = stanzas.as_slice() else {
            return Err(ReleaseError::Stanzas(stanzas.len()));
        };
        let text_of = |name| Ok::<_, ReleaseError>(stanza.get(name)?.unwrap_or_default().to_owned());
        let words_of = |name| {
            let words = stanza.get(name)?.unwrap_or_default().split_ascii_whitespace().map(str::to_owned);
            Ok::<_, ReleaseError>(words.collect::<Vec<_>>())
        };
        let date_of = |field: &'static str| match stanza.get(field)? {
            None => Ok(None),
            Some(value) => match parse_date(value) {
                Some(date) => Ok(Some(date)),
                None => Err(ReleaseError::Date { field, value: value.chars().take(80).collect() }),
            },
        };
        let no_all = words_of("No-Support-for-Architecture-all")?;
        let architectures = words_of("Architectures")?;
        Ok(Self {
            origin: text_of("Origin")?,
            suite: text_of("Suite")?,
            codename: text_of("Codename")?,
            date: date_of("Date")?.ok_or(ReleaseError::Missing("Date"))?,
            valid_until: date_of("Valid-Until")?,
            acquire_by_hash: stanza.get("Acquire-By-Hash")?.is_some_and(|v| v.eq_ignore_ascii_case("yes")),
            components: words_of("Components")?,
            separate_all: architectures.iter().any(|a| a == "all") && !no_all.iter().any(|a| a == "Packages"),
            architectures,
            files: parse_table(stanza.get("SHA256")?.ok_or(ReleaseError::Missing("SHA256"))?)?,
        })
    }

    /// The component's path in this Release file: `main`, or `updates/main` where the archive prefixes it.
    pub fn offers_component(&self, component: &str) -> bool {
        self.components.iter().any(|c| c == component || c.rsplit('/').next() == Some(component))
    }
}

fn parse_table(table: &str) -> Result<BTreeMap<String, FileEntry>, ReleaseError> {
    let mut files = BTreeMap::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let wrong = || ReleaseError::Entry { line: line.chars().take(160).collect() };
        let mut words = line.split_ascii_whitespace();
        let (Some(digest), Some(size), Some(path), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong());
        };
        let sha256 = digest.parse().map_err(|_| wrong())?;
        let size = size.parse().map_err(|_| wrong())?;
        if !is_relative_path(path) || files.insert(path.to_owned(), FileEntry { sha256, size }).is_some() {
            return Err(wrong());
        }
    }
    Ok(files)
}

/// A path below its base: no leading slash, no `.` or `..`, nothing that a URL would read otherwise.
pub(crate) fn is_relative_path(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && path.bytes().all(|c| c.is_ascii_graphic() && !b"?#\\".contains(&c))
}

/// Checks that `file` is one clear-signed message and nothing else, so that a captive portal's page or a file cut
/// short is named as such. What the signature covers is decided by gpgv alone, never by this check.
///
/// # Errors
/// `ReleaseError::Framing` says what is wrong.
pub fn check_clearsign(file: &[u8]) -> Result<(), ReleaseError> {
    const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
    const SIGNATURE: &[u8] = b"-----BEGIN PGP SIGNATURE-----";
    const END: &[u8] = b"-----END PGP SIGNATURE-----";
    let wrong = |problem| Err(ReleaseError::Framing(problem));
    let (mut begins, mut signatures, mut ends, mut after_end) = (0, 0, 0, false);
    for (number, line) in file.split(|&c| c == b'\n').enumerate() {
        let line = line.trim_ascii_end();
        if line.contains(&0) {
            return wrong("it has a NUL byte");
        }
        match line {
            BEGIN if number != 0 => return wrong("a second signed message begins in it"),
            BEGIN => begins += 1,
            SIGNATURE => signatures += 1,
            END => ends += 1,
            _ if number == 0 => return wrong("its first line is not -----BEGIN PGP SIGNED MESSAGE-----"),
            _ => after_end |= ends > 0 && !line.is_empty(),
        }
    }
    match (begins, signatures, ends, after_end) {
        (1, 1, 1, false) => Ok(()),
        (1, 1, 1, true) => wrong("text follows the signature"),
        (1, _, 0, _) => wrong("it is cut short: -----END PGP SIGNATURE----- is missing"),
        _ => wrong("it has more than one signature block"),
    }
}
