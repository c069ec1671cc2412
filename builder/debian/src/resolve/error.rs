use std::fmt;

use crate::relation::RelationError;

/// Why there is no such set of packages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A package asked for does not exist.
    #[error("package {name:?} is not in {suites}{}", hint(.similar))]
    Unknown {
        /// Its name.
        name: String,
        /// The suites searched.
        suites: String,
        /// Names close to it.
        similar: Vec<String>,
    },
    /// A package asked for exists, but not in that version.
    #[error("package {name:?} has no version {wanted}; available: {}", .available.join(", "))]
    NoVersion {
        /// Its name.
        name: String,
        /// The version asked for.
        wanted: String,
        /// The versions there are.
        available: Vec<String>,
    },
    /// A name asked for is only virtual and several packages provide it.
    #[error("{name:?} is a virtual package; name one of the packages that provide it: {}", .providers.join(", "))]
    Virtual {
        /// The name.
        name: String,
        /// Who provides it.
        providers: Vec<String>,
    },
    /// A dependency that no package satisfies.
    #[error("{}, but {problem}", Chain(.chain))]
    Unsatisfiable {
        /// Who asked for whom, one step a line, from what was asked for.
        chain: Vec<String>,
        /// What is missing.
        problem: String,
    },
    /// Two packages that must both be there exclude each other.
    #[error("{conflict}\n  {}\n  {}", Chain(.left), Chain(.right))]
    Conflict {
        /// Which excludes which (`a 1 conflicts with b (<< 2), and b 1 is needed`).
        conflict: String,
        /// Why the one is there.
        left: Vec<String>,
        /// Why the other is there.
        right: Vec<String>,
    },
    /// A relation field that cannot be read.
    #[error("package {package}: field {field}: {source}")]
    Relation {
        /// Package with version.
        package: String,
        /// Field name.
        field: &'static str,
        /// What is wrong.
        source: RelationError,
    },
    /// The search was cut off.
    #[error("no set without conflicts was found in {steps} steps; the first conflict was: {first}")]
    TooHard {
        /// Steps taken.
        steps: usize,
        /// The first conflict met.
        first: Box<ResolveError>,
    },
}

struct Chain<'a>(&'a [String]);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

fn hint(similar: &[String]) -> String {
    match similar {
        [] => String::new(),
        names => format!("; similar names: {}", names.join(", ")),
    }
}
