//! The dependency closure: which packages are needed for those asked for, and why each is there.

mod error;
mod search;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::lock::LockedPackage;
use crate::packages::{Package, Universe};
use crate::version;

pub use error::ResolveError;

/// What to resolve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The packages asked for, in order: as with apt, the order decides between equal ways.
    pub packages: Vec<Wanted>,
    /// Whether every package marked essential belongs to the set too.
    pub essential: bool,
    /// Packages left out: dependencies that they would meet count as met, and what only they need stays out too.
    pub omit: BTreeSet<String>,
}

/// A package asked for: `NAME` or `NAME=VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The version, when it must be a certain one.
    pub version: Option<String>,
}

/// A text that does not name a package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not name a package: {problem}; expected NAME or NAME=VERSION")]
pub struct WantedError {
    /// What stood there.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(text: &str) -> Result<Self, WantedError> {
        let wrong = |problem: String| WantedError { text: text.chars().take(80).collect(), problem };
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            || !name.chars().all(plain)
        {
            return Err(wrong(
                "a name is lower-case letters, digits, + - . and starts with a letter or digit".into(),
            ));
        }
        if let Some(version) = version {
            version::check(version).map_err(|e| wrong(e.problem.to_owned()))?;
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

/// Which field made one package need another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DependencyKind {
    /// Pre-Depends
    PreDepends,
    /// Depends
    Depends,
}

impl fmt::Display for DependencyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreDepends => "pre-depends on",
            Self::Depends => "depends on",
        })
    }
}

/// Why a package is in the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It was asked for.
    Requested,
    /// It is marked essential and the request wants those.
    Essential,
    /// Another package needs it; this is the first clause that did.
    Dependency {
        /// The package that needs it.
        by: String,
        /// The field.
        kind: DependencyKind,
        /// The clause as written (`a (>= 1) | b`).
        clause: String,
    },
}

/// One package of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture, possibly `all`.
    pub arch: String,
    /// Source package name.
    pub source: String,
    /// Codename of the suite it was found in.
    pub suite: String,
    /// Path of the file below the archive's base.
    pub path: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// Why it is there.
    pub reason: Reason,
}

impl Selected {
    fn new(package: &Package<'_>, reason: Reason) -> Self {
        let source = package.source.split_ascii_whitespace().next().unwrap_or(package.name);
        Self {
            name: package.name.to_owned(),
            version: package.version.to_owned(),
            arch: package.architecture.to_owned(),
            source: source.to_owned(),
            suite: package.origin.suite.clone(),
            path: package.filename.to_owned(),
            size: package.size,
            sha256: package.sha256,
            reason,
        }
    }

    /// The form that lock files and downloads use.
    pub fn to_locked(&self) -> LockedPackage {
        LockedPackage {
            name: self.name.clone(),
            version: self.version.clone(),
            arch: self.arch.clone(),
            suite: self.suite.clone(),
            path: self.path.clone(),
            size: self.size,
            sha256: self.sha256,
        }
    }
}

/// A closed set of packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Sorted by name.
    pub packages: Vec<Selected>,
}

impl Resolution {
    /// The package of that name.
    pub fn get(&self, name: &str) -> Option<&Selected> {
        self.packages.binary_search_by(|p| p.name.as_str().cmp(name)).ok().map(|at| &self.packages[at])
    }

    /// Why a package is there: one line a step, from what was asked for down to it. Empty when it is not there.
    pub fn why(&self, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = self.get(name);
        // Every reason names a package selected earlier, so this ends; the bound is for a hand-made Resolution.
        while let Some(package) = at.filter(|_| lines.len() <= self.packages.len()) {
            at = match &package.reason {
                Reason::Requested => {
                    lines.push(format!("{} was asked for", package.name));
                    None
                }
                Reason::Essential => {
                    lines.push(format!("{} is essential", package.name));
                    None
                }
                Reason::Dependency { by, kind, clause } => {
                    let taken = if clause_names(clause, &package.name) {
                        String::new()
                    } else {
                        format!(" (provided by {})", package.name)
                    };
                    lines.push(format!("{by} {kind} {clause}{taken}"));
                    self.get(by)
                }
            };
        }
        lines.reverse();
        lines
    }
}

/// Whether an alternative of the clause is that name itself.
fn clause_names(clause: &str, name: &str) -> bool {
    clause.split('|').any(|part| part.trim().split([' ', ':']).next() == Some(name))
}

/// Resolves a request as `apt-get install --no-install-recommends` does on an empty system: the highest version of
/// each package, the first alternative that can be satisfied, Pre-Depends and Depends only. Where apt would give up, alternatives are
/// tried until a set without conflicts is found.
///
/// # Errors
/// See `ResolveError`: each says who asked for what.
pub fn resolve(universe: &Universe, request: &Request) -> Result<Resolution, ResolveError> {
    search::run(universe, request)
}
