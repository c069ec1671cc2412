//! Dependency relations: `a (>= 1) | b:any [amd64], c`.

use std::cmp::Ordering;
use std::fmt;

use crate::version;

/// A field with more clauses than this is refused; the longest in Debian has some 800.
const CLAUSES_MAX: usize = 20_000;

/// A relation field that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{clause:?} is not a dependency relation: {problem}; expected NAME[:ARCH] [(OP VERSION)] [ARCHITECTURES], alternatives separated by |"
)]
pub struct RelationError {
    /// The part that is wrong, at most 120 characters of it.
    pub clause: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// How a version must relate to the one named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `<<`
    Less,
    /// `<=`
    LessEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterEqual,
    /// `>>`
    Greater,
}

/// A version constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constraint<'a> {
    /// The relation.
    pub op: Op,
    /// The version on its right side.
    pub version: &'a str,
}

/// One alternative of a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternative<'a> {
    /// Package name, real or virtual.
    pub name: &'a str,
    /// `any`, `native` or an architecture after the colon.
    pub qualifier: Option<&'a str>,
    /// The version wanted, if any.
    pub constraint: Option<Constraint<'a>>,
}

/// Alternatives of which one is enough. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause<'a> {
    /// In the order written.
    pub alternatives: Vec<Alternative<'a>>,
}

impl Op {
    /// Whether `left OP right` holds for versions ordered so.
    fn holds(self, order: Ordering) -> bool {
        match self {
            Op::Less => order == Ordering::Less,
            Op::LessEqual => order != Ordering::Greater,
            Op::Equal => order == Ordering::Equal,
            Op::GreaterEqual => order != Ordering::Less,
            Op::Greater => order == Ordering::Greater,
        }
    }
}

impl Constraint<'_> {
    /// Whether `version` satisfies the constraint.
    pub fn accepts(&self, version: &str) -> bool {
        self.op.holds(version::compare(version, self.version))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Less => "<<",
            Op::LessEqual => "<=",
            Op::Equal => "=",
            Op::GreaterEqual => ">=",
            Op::Greater => ">>",
        })
    }
}

impl fmt::Display for Alternative<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        match self.constraint {
            Some(Constraint { op, version }) => write!(f, " ({op} {version})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Clause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, alternative) in self.alternatives.iter().enumerate() {
            write!(f, "{}{alternative}", if index == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

/// Reads a relation field for one architecture; clauses that are restricted to others are left out.
///
/// # Errors
/// Names the clause that cannot be read.
pub fn parse_relations<'a>(field: &'a str, arch: &str) -> Result<Vec<Clause<'a>>, RelationError> {
    let mut clauses = Vec::new();
    for clause in field.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
        let mut alternatives = Vec::new();
        for alternative in clause.split('|') {
            let (alternative, applies) = parse_alternative(alternative.trim(), arch)?;
            if applies {
                alternatives.push(alternative);
            }
        }
        if !alternatives.is_empty() {
            clauses.push(Clause { alternatives });
        }
        if clauses.len() > CLAUSES_MAX {
            return Err(wrong(clause, "the field has more than 20000 clauses"));
        }
    }
    Ok(clauses)
}

/// Reads a Provides field: names with an optional exact version.
///
/// # Errors
/// Names the clause that cannot be read.
pub fn parse_provides(field: &str) -> Result<Vec<(&str, Option<&str>)>, RelationError> {
    let mut provided = Vec::new();
    for clause in field.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
        let (alternative, _) = parse_alternative(clause, "")?;
        match alternative.constraint {
            None => provided.push((alternative.name, None)),
            Some(Constraint { op: Op::Equal, version }) => provided.push((alternative.name, Some(version))),
            Some(_) => return Err(wrong(clause, "only = may stand before a provided version")),
        }
        if provided.len() > CLAUSES_MAX {
            return Err(wrong(clause, "the field has more than 20000 clauses"));
        }
    }
    Ok(provided)
}

fn wrong(clause: &str, problem: &'static str) -> RelationError {
    RelationError { clause: clause.chars().take(120).collect(), problem }
}

/// Policy 5.6.1, plus capitals and `_`, which dpkg reads and a few third-party packages use.
fn is_package_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-._".contains(&c))
}

/// One alternative, and whether it applies to `arch`.
fn parse_alternative<'a>(text: &'a str, arch: &str) -> Result<(Alternative<'a>, bool), RelationError> {
    let name_end = text.find(|c: char| c.is_ascii_whitespace() || "([<".contains(c)).unwrap_or(text.len());
    let (name, mut rest) = (&text[..name_end], text[name_end..].trim_start());
    let (name, qualifier) = match name.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name, None),
    };
    if !is_package_name(name) {
        return Err(wrong(text, "the package name is missing or has characters outside a-z 0-9 + - ."));
    }
    if qualifier.is_some_and(|q| q.is_empty() || !q.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')) {
        return Err(wrong(text, "the architecture after ':' is malformed"));
    }
    let mut constraint = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let (inner, after) = inner.split_once(')').ok_or_else(|| wrong(text, "')' is missing"))?;
        constraint =
            Some(parse_constraint(inner.trim()).ok_or_else(|| wrong(text, "the version is malformed"))?);
        rest = after.trim_start();
    }
    let mut applies = true;
    if let Some(inner) = rest.strip_prefix('[') {
        let (inner, after) = inner.split_once(']').ok_or_else(|| wrong(text, "']' is missing"))?;
        applies = arch_list_matches(inner, arch);
        rest = after.trim_start();
    }
    if !rest.is_empty() {
        return Err(wrong(text, "text follows the relation"));
    }
    Ok((Alternative { name, qualifier, constraint }, applies))
}

fn parse_constraint(text: &str) -> Option<Constraint<'_>> {
    // Single `<` and `>` are obsolete and mean `<=` and `>=`.
    const OPS: [(&str, Op); 7] = [
        ("<<", Op::Less),
        ("<=", Op::LessEqual),
        (">=", Op::GreaterEqual),
        (">>", Op::Greater),
        ("=", Op::Equal),
        ("<", Op::LessEqual),
        (">", Op::GreaterEqual),
    ];
    let (op, version) = OPS.iter().find_map(|(sign, op)| Some((*op, text.strip_prefix(sign)?.trim())))?;
    let plain =
        !version.is_empty() && version.bytes().all(|c| c.is_ascii_alphanumeric() || b".-+~:".contains(&c));
    plain.then_some(Constraint { op, version })
}

/// `amd64 i386` means one of these, `!hurd-any` means none of these.
fn arch_list_matches(list: &str, arch: &str) -> bool {
    let mut positive = false;
    for word in list.split_ascii_whitespace() {
        match word.strip_prefix('!') {
            Some(word) if arch_matches(word, arch) => return false,
            Some(_) => {}
            None if arch_matches(word, arch) => return true,
            None => positive = true,
        }
    }
    !positive
}

/// Wildcards over the architectures of Linux, whose names have no operating system part.
fn arch_matches(wildcard: &str, arch: &str) -> bool {
    match wildcard.split_once('-') {
        None => wildcard == "any" || wildcard == arch,
        Some(("linux" | "any", cpu)) => cpu == "any" || cpu == arch,
        Some(_) => false,
    }
}
