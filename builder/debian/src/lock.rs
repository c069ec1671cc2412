//! Lock files: the packages of an image, each pinned by digest.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::digest::Digest;
use crate::release::is_relative_path;

/// The only format so far.
const FORMAT: u32 = 1;

/// A resolved set of packages. Writing the same set always gives the same text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// Codename of the main suite (`bookworm`).
    pub suite: String,
    /// Architecture (`amd64`).
    pub arch: String,
    /// The packages asked for, sorted: another list means that the lock is stale.
    pub request: Vec<String>,
    /// The packages, sorted by name.
    #[serde(rename = "package", default)]
    pub packages: Vec<LockedPackage>,
}

/// One package, enough to fetch and check it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture, possibly `all`.
    pub arch: String,
    /// Codename of the suite it was found in; says which mirror has it.
    pub suite: String,
    /// Path of the file below the archive's base.
    pub path: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

/// A lock file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Not the TOML that `Lock::to_toml` writes.
    #[error("not a lock file: {0}")]
    Toml(String),
    /// Written by another release of this program.
    #[error("format {0} is not known; expected {FORMAT}: write the lock file anew with `dyad lock --update`")]
    Format(u32),
    /// A package entry that must not be.
    #[error("package {name:?}: {problem}")]
    Package {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl Lock {
    /// A lock of these packages, sorted.
    pub fn new(suite: &str, arch: &str, mut request: Vec<String>, mut packages: Vec<LockedPackage>) -> Self {
        packages.sort();
        request.sort();
        request.dedup();
        Self { format: FORMAT, suite: suite.to_owned(), arch: arch.to_owned(), request, packages }
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// See `LockError`.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let lock: Self = toml::from_str(text).map_err(|e| LockError::Toml(e.to_string()))?;
        if lock.format != FORMAT {
            return Err(LockError::Format(lock.format));
        }
        for pair in lock.packages.windows(2) {
            if pair[0].name >= pair[1].name {
                let problem = "entries are not sorted by name, each name once";
                return Err(LockError::Package { name: pair[1].name.clone(), problem });
            }
        }
        if let Some(package) = lock.packages.iter().find(|package| !is_relative_path(&package.path)) {
            let problem = "its path is not a path below the archive's base";
            return Err(LockError::Package { name: package.name.clone(), problem });
        }
        Ok(lock)
    }

    /// The text of the lock file.
    pub fn to_toml(&self) -> String {
        let mut text =
            String::from("# Written by `dyad lock`: every package of the image, pinned by digest.\n");
        // `{:?}` of the printable ASCII that names, versions and paths are made of is TOML's basic string.
        let request = self.request.iter().map(|name| format!("    {name:?},\n")).collect::<String>();
        let _ = write!(
            text,
            "format = {}\nsuite = {:?}\narch = {:?}\nrequest = [\n{request}]\n",
            self.format, self.suite, self.arch
        );
        for package in &self.packages {
            let LockedPackage { name, version, arch, suite, path, size, sha256 } = package;
            let _ = write!(
                text,
                "\n[[package]]\nname = {name:?}\nversion = {version:?}\narch = {arch:?}\nsuite = {suite:?}\n\
                 path = {path:?}\nsize = {size}\nsha256 = \"{sha256}\"\n"
            );
        }
        text
    }
}
