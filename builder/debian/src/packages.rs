//! Packages indexes, kept as text with the place of each field that matters.

use crate::control::{self, ControlError, Field};
use crate::digest::Digest;
use crate::relation::{RelationError, parse_provides};
use crate::release::is_relative_path;
use crate::version;

/// Where an index came from; every package of it inherits this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Codename of the suite (`bookworm-security`).
    pub suite: String,
    /// Component (`main`).
    pub component: String,
}

/// Number of an index in its universe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexId(u16);

/// Number of a package in its universe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageId(u32);

/// A Packages index that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Packages index of {suite}/{component}, {problem}")]
pub struct IndexError {
    /// Suite of the index.
    pub suite: String,
    /// Component of the index.
    pub component: String,
    /// What is wrong.
    pub problem: IndexProblem,
}

/// What is wrong with an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexProblem {
    /// Not control data.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Not UTF-8, or larger than 4 GiB.
    #[error("the text is {0}")]
    Text(&'static str),
    /// A field is missing, twice there, or has a form that it must not have.
    #[error("stanza of {package:?} at line {line}: field {field} {problem}")]
    Field {
        /// Package name, empty when it is the missing field.
        package: String,
        /// Line of the stanza.
        line: usize,
        /// Field name.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A Provides field that cannot be read.
    #[error("stanza of {package:?} at line {line}: {source}")]
    Provides {
        /// Package name.
        package: String,
        /// Line of the stanza.
        line: usize,
        /// What is wrong.
        source: RelationError,
    },
}

/// Priorities, most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// `required`
    Required,
    /// `important`
    Important,
    /// `standard`
    Standard,
    /// `optional`
    Optional,
    /// `extra`, or none stated.
    Extra,
}

/// The Multi-Arch field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiArch {
    /// Not stated, or `no`.
    No,
    /// `same`
    Same,
    /// `foreign`
    Foreign,
    /// `allowed`: a dependency on `NAME:any` is satisfied.
    Allowed,
}

const FIELDS: [&str; 15] = [
    "Package",
    "Version",
    "Architecture",
    "Source",
    "Pre-Depends",
    "Depends",
    "Conflicts",
    "Breaks",
    "Provides",
    "Filename",
    "Size",
    "SHA256",
    "Essential",
    "Multi-Arch",
    "Priority",
];
const NAME: usize = 0;
const VERSION: usize = 1;
const ARCHITECTURE: usize = 2;
const SOURCE: usize = 3;
const PRE_DEPENDS: usize = 4;
const DEPENDS: usize = 5;
const CONFLICTS: usize = 6;
const BREAKS: usize = 7;
const PROVIDES: usize = 8;
const FILENAME: usize = 9;
/// Fields from here on are decoded when the index is read and not kept as text.
const SPANS: usize = 10;
const SIZE: usize = 10;
const SHA256: usize = 11;
const ESSENTIAL: usize = 12;
const MULTI_ARCH: usize = 13;
const PRIORITY: usize = 14;

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
}

#[derive(Debug)]
struct Entry {
    index: IndexId,
    spans: [Span; SPANS],
    size: u64,
    sha256: Digest,
    essential: bool,
    multi_arch: MultiArch,
    priority: Priority,
}

#[derive(Debug)]
struct Index {
    origin: Origin,
    text: String,
}

#[derive(Debug, Clone, Copy)]
struct Provided {
    index: IndexId,
    name: Span,
    version: Option<Span>,
    by: PackageId,
}

/// All packages that a resolution may choose from, for one architecture.
#[derive(Debug)]
pub struct Universe {
    arch: String,
    indexes: Vec<Index>,
    entries: Vec<Entry>,
    /// By name, then highest version first, then the index added first.
    by_name: Vec<PackageId>,
    /// By provided name, then in the order of the entries.
    provided: Vec<Provided>,
}

/// One package, as a view into its index.
#[derive(Debug, Clone, Copy)]
pub struct Package<'u> {
    /// Number of this package.
    pub id: PackageId,
    /// Name.
    pub name: &'u str,
    /// Version.
    pub version: &'u str,
    /// Architecture, possibly `all`.
    pub architecture: &'u str,
    /// Source package, with its version in parentheses where that differs; empty when it has this package's name.
    pub source: &'u str,
    /// Pre-Depends as written.
    pub pre_depends: &'u str,
    /// Depends as written.
    pub depends: &'u str,
    /// Conflicts as written.
    pub conflicts: &'u str,
    /// Breaks as written.
    pub breaks: &'u str,
    /// Provides as written.
    pub provides: &'u str,
    /// Path of the file below the archive's base.
    pub filename: &'u str,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// Whether it is marked essential.
    pub essential: bool,
    /// The Multi-Arch field.
    pub multi_arch: MultiArch,
    /// The Priority field.
    pub priority: Priority,
    /// The index it stands in.
    pub origin: &'u Origin,
}

impl Universe {
    /// An empty universe for the architecture `arch` (and `all`).
    pub fn new(arch: &str) -> Self {
        let arch = arch.to_owned();
        Self { arch, indexes: Vec::new(), entries: Vec::new(), by_name: Vec::new(), provided: Vec::new() }
    }

    /// The architecture.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// How many packages there are, every version counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an index; packages for other architectures are left out. On equal versions the index added first wins.
    ///
    /// # Errors
    /// Names the stanza that is wrong; the universe is then unchanged.
    pub fn add(&mut self, origin: Origin, text: Vec<u8>) -> Result<(), IndexError> {
        let (first_entry, first_provided) = (self.entries.len(), self.provided.len());
        let (suite, component) = (origin.suite.clone(), origin.component.clone());
        self.read_index(origin, text).map_err(|problem| {
            self.entries.truncate(first_entry);
            self.provided.truncate(first_provided);
            IndexError { suite, component, problem }
        })?;
        self.sort();
        Ok(())
    }

    fn read_index(&mut self, origin: Origin, text: Vec<u8>) -> Result<(), IndexProblem> {
        if u32::try_from(text.len()).is_err() {
            return Err(IndexProblem::Text("larger than 4 GiB"));
        }
        let text = String::from_utf8(text).map_err(|_| IndexProblem::Text("not UTF-8"))?;
        let index =
            u16::try_from(self.indexes.len()).map_err(|_| IndexProblem::Text("one index too many"))?;
        for stanza in control::stanzas(text.as_bytes()) {
            let stanza = stanza?;
            let Some(entry) = read_stanza(&text, stanza, IndexId(index), &self.arch)? else {
                continue;
            };
            let by = PackageId(self.entries.len() as u32);
            self.provided.extend(read_provides(&text, stanza.line, &entry, by)?);
            self.entries.push(entry);
        }
        self.indexes.push(Index { origin, text });
        Ok(())
    }

    fn sort(&mut self) {
        let mut by_name: Vec<_> = (0..self.entries.len() as u32).map(PackageId).collect();
        by_name.sort_by(|&a, &b| {
            let by_version = || version::compare(self.field(b, VERSION), self.field(a, VERSION));
            self.field(a, NAME).cmp(self.field(b, NAME)).then_with(by_version)
        });
        self.by_name = by_name;
        let mut provided = std::mem::take(&mut self.provided);
        provided.sort_by(|a, b| {
            self.text(a.index, a.name).cmp(self.text(b.index, b.name)).then_with(|| a.by.cmp(&b.by))
        });
        self.provided = provided;
    }

    fn text(&self, index: IndexId, span: Span) -> &str {
        &self.indexes[index.0 as usize].text[span.start as usize..(span.start + span.len) as usize]
    }

    fn field(&self, id: PackageId, field: usize) -> &str {
        let entry = &self.entries[id.0 as usize];
        self.text(entry.index, entry.spans[field])
    }

    /// The package with this number.
    pub fn package(&self, id: PackageId) -> Package<'_> {
        let entry = &self.entries[id.0 as usize];
        let field = |number: usize| self.text(entry.index, entry.spans[number]);
        Package {
            id,
            name: field(NAME),
            version: field(VERSION),
            architecture: field(ARCHITECTURE),
            source: field(SOURCE),
            pre_depends: field(PRE_DEPENDS),
            depends: field(DEPENDS),
            conflicts: field(CONFLICTS),
            breaks: field(BREAKS),
            provides: field(PROVIDES),
            filename: field(FILENAME),
            size: entry.size,
            sha256: entry.sha256,
            essential: entry.essential,
            multi_arch: entry.multi_arch,
            priority: entry.priority,
            origin: &self.indexes[entry.index.0 as usize].origin,
        }
    }

    /// Every version of the package of that name, highest first.
    pub fn versions(&self, name: &str) -> impl Iterator<Item = Package<'_>> {
        let first = self.by_name.partition_point(|&id| self.field(id, NAME) < name);
        self.by_name[first..]
            .iter()
            .map(|&id| self.package(id))
            .take_while(move |package| package.name == name)
    }

    /// The packages that provide `name`, with the version they provide it at, in the order of the indexes.
    pub fn providers(&self, name: &str) -> impl Iterator<Item = (Package<'_>, Option<&str>)> {
        let first = self.provided.partition_point(|p| self.text(p.index, p.name) < name);
        self.provided[first..]
            .iter()
            .take_while(move |p| self.text(p.index, p.name) == name)
            .map(|p| (self.package(p.by), p.version.map(|span| self.text(p.index, span))))
    }

    /// The packages marked essential, highest version of each.
    pub fn essential(&self) -> impl Iterator<Item = Package<'_>> {
        let is_candidate =
            |id: PackageId| self.versions(self.field(id, NAME)).next().is_some_and(|p| p.id == id);
        let marked = self.by_name.iter().filter(|id| self.entries[id.0 as usize].essential);
        marked.filter(move |id| is_candidate(**id)).map(|&id| self.package(id))
    }

    /// The suites of the indexes, in the order added.
    pub fn suites(&self) -> impl Iterator<Item = &str> {
        self.indexes.iter().map(|index| index.origin.suite.as_str())
    }

    /// All package names, sorted, each once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut last = "";
        self.by_name.iter().map(|&id| self.field(id, NAME)).filter(move |name| {
            let new = *name != last;
            last = name;
            new
        })
    }
}

fn read_stanza(
    text: &str,
    stanza: control::Stanza<'_>,
    index: IndexId,
    arch: &str,
) -> Result<Option<Entry>, IndexProblem> {
    let mut values: [Option<&[u8]>; FIELDS.len()] = [None; FIELDS.len()];
    for field in stanza.fields() {
        let Field { name, value, .. } = field?;
        let Some(number) = FIELDS.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name)) else {
            continue;
        };
        if values[number].replace(value).is_some() {
            return Err(field_problem(&values, stanza.line, number, "stands there twice"));
        }
    }
    let known = values.map(|value| value.unwrap_or_default());
    let required = [NAME, VERSION, ARCHITECTURE, FILENAME, SIZE, SHA256];
    if let Some(missing) = required.into_iter().find(|&number| known[number].is_empty()) {
        return Err(field_problem(&values, stanza.line, missing, "is missing"));
    }
    if known[ARCHITECTURE] != arch.as_bytes() && known[ARCHITECTURE] != b"all" {
        return Ok(None);
    }
    let wrong = |number, problem| field_problem(&values, stanza.line, number, problem);
    // Every value is part of `text`, so it is UTF-8 and its place is the distance between the two pointers.
    let span = |value: &[u8]| match value.is_empty() {
        true => Span::default(),
        false => {
            Span { start: (value.as_ptr() as usize - text.as_ptr() as usize) as u32, len: value.len() as u32 }
        }
    };
    let string = |number: usize| std::str::from_utf8(known[number]).unwrap_or_default();
    check_identity(string(NAME), string(VERSION), string(FILENAME))
        .map_err(|(n, problem)| wrong(n, problem))?;
    let mut spans = [Span::default(); SPANS];
    for (place, value) in spans.iter_mut().zip(known) {
        *place = span(value);
    }
    Ok(Some(Entry {
        index,
        spans,
        size: string(SIZE).parse().map_err(|_| wrong(SIZE, "is not a number of bytes"))?,
        sha256: string(SHA256).parse().map_err(|_| wrong(SHA256, "is not 64 hexadecimal digits"))?,
        essential: known[ESSENTIAL] == b"yes",
        multi_arch: match known[MULTI_ARCH] {
            b"same" => MultiArch::Same,
            b"foreign" => MultiArch::Foreign,
            b"allowed" => MultiArch::Allowed,
            _ => MultiArch::No,
        },
        priority: match known[PRIORITY] {
            b"required" => Priority::Required,
            b"important" => Priority::Important,
            b"standard" => Priority::Standard,
            b"optional" => Priority::Optional,
            _ => Priority::Extra,
        },
    }))
}

/// Names, versions and paths reach messages, file names and URLs, so their form is checked here once.
fn check_identity(name: &str, version: &str, filename: &str) -> Result<(), (usize, &'static str)> {
    let plain =
        |text: &str, extra: &[u8]| text.bytes().all(|c| c.is_ascii_alphanumeric() || extra.contains(&c));
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !plain(name, b"+-._") {
        return Err((NAME, "has characters outside a-z 0-9 + - ."));
    }
    if !plain(version, b".-+~:") {
        return Err((VERSION, "has characters outside A-Z a-z 0-9 . - + ~ :"));
    }
    if !is_relative_path(filename) {
        return Err((FILENAME, "is not a path below the archive's base"));
    }
    Ok(())
}

fn field_problem(values: &[Option<&[u8]>], line: usize, field: usize, problem: &'static str) -> IndexProblem {
    let name = String::from_utf8_lossy(values[NAME].unwrap_or_default());
    IndexProblem::Field { package: name.chars().take(80).collect(), line, field: FIELDS[field], problem }
}

fn read_provides(
    text: &str,
    line: usize,
    entry: &Entry,
    by: PackageId,
) -> Result<impl Iterator<Item = Provided>, IndexProblem> {
    let slice = |span: Span| &text[span.start as usize..(span.start + span.len) as usize];
    let provided = parse_provides(slice(entry.spans[PROVIDES])).map_err(|source| IndexProblem::Provides {
        package: slice(entry.spans[NAME]).to_owned(),
        line,
        source,
    })?;
    let base = text.as_ptr() as usize;
    let span =
        move |part: &str| Span { start: (part.as_ptr() as usize - base) as u32, len: part.len() as u32 };
    let index = entry.index;
    let provided: Vec<_> = provided
        .into_iter()
        .map(|(name, version)| Provided { index, name: span(name), version: version.map(span), by })
        .collect();
    Ok(provided.into_iter())
}
