//! Packages and overlays to a root file system in memory, without running a line of what they bring.
//!
//! [`build`] is the stage `Blobs -> Tree`: unpack in parallel, lay in an order that depends on names only, derive what
//! maintainer scripts would have made, select kernel modules, prune, and finish. Nothing here opens a file.

mod accounts;
mod build;
mod derive;
mod finish;
mod initrd;
mod lay;
mod libraries;
mod lookup;
mod modules;
mod open;
mod path;
mod report;
mod rules;
pub mod unpack;

pub use accounts::{Accounts, Group, User};
pub use build::{Built, Inputs, OverlayContent, OverlayFile, PackageInput, PayloadFile, build};
pub use modules::{CLASSES, read_module};
pub use open::{Deb, PackageCache};
pub use report::{Dropped, PackageSize, Report, why};

use dyad_formats::tree::TreeError;

use unpack::UnpackError;

/// Why a tree was not built. Each names the file, package or rule at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A package file was refused.
    #[error("package {package}: {error}")]
    Unpack {
        /// `NAME VERSION` as locked.
        package: String,
        /// The rule it broke.
        error: UnpackError,
    },
    /// A package file cannot be read.
    #[error("package {package}: {error}")]
    Read {
        /// `NAME VERSION` as locked.
        package: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The list that an earlier build remembered is another than the package's file gives.
    #[error(
        "package {0}: what an earlier build remembered of it does not fit its file: remove the cache of packages"
    )]
    Remembered(String),
    /// A package file is not the package that the lock names.
    #[error("package {expected}: the file says it is {found}")]
    WrongPackage {
        /// `NAME VERSION ARCH` as locked.
        expected: String,
        /// The same as its control file says.
        found: String,
    },
    /// One package twice among the inputs.
    #[error("package {0} is given twice")]
    TwicePackage(String),
    /// Two packages ship one path, with different content and without `Replaces`.
    #[error("{path}: shipped by both {first} and {second}, and neither replaces the other")]
    SamePath {
        /// The path.
        path: String,
        /// One package.
        first: String,
        /// The other.
        second: String,
    },
    /// Two overlays lay one path.
    #[error("{path}: laid by both overlay {first} and overlay {second}; one of them must give way")]
    SameOverlayPath {
        /// The path.
        path: String,
        /// One overlay.
        first: String,
        /// The other.
        second: String,
    },
    /// An overlay's file has a name that an image cannot have.
    #[error("overlay {overlay}: file {path:?}: {what}")]
    OverlayPath {
        /// The overlay.
        overlay: String,
        /// The path.
        path: String,
        /// The broken rule.
        what: String,
    },
    /// A symbolic link that members are laid through leaves the root.
    #[error("package {package}: link {path} leads out of the image, and other packages have files below it")]
    LinkEscapes {
        /// The link.
        path: String,
        /// Its package.
        package: String,
    },
    /// Symbolic links that lead to each other.
    #[error("{0}: symbolic links form a loop")]
    LinkLoop(String),
    /// Users and groups do not fit together.
    #[error("accounts: {0}")]
    Accounts(String),
    /// A package that every image needs is missing.
    #[error("{path} is missing: the image needs package {package}")]
    Needs {
        /// What was looked for.
        path: String,
        /// The package that ships it.
        package: &'static str,
    },
    /// No kernel.
    #[error(
        "no kernel: /usr/lib/modules is empty; the definition's kernel package is missing or is a meta package"
    )]
    NoKernel,
    /// More than one kernel.
    #[error("more than one kernel: {0}; an image has exactly one")]
    ManyKernels(String),
    /// A module file is damaged or lacks a dependency.
    #[error("{path}: {what}")]
    Module {
        /// The module file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A module that the kernel does not have.
    #[error("kernel {kernel} has no module {name} (nearest: {near})")]
    NoModule {
        /// As asked for.
        name: String,
        /// Kernel release.
        kernel: String,
        /// Known names.
        near: String,
    },
    /// A class that does not exist.
    #[error("there is no module class @{class} (known: {known})")]
    NoClass {
        /// As asked for.
        class: String,
        /// All classes.
        known: String,
    },
    /// A program in the image needs a library that the image does not have.
    #[error("{path} needs {library}, which {why}")]
    NoLibrary {
        /// The program.
        path: String,
        /// Its DT_NEEDED entry.
        library: String,
        /// `no package ships` or the rule that dropped it.
        why: String,
    },
    /// Something that must never be in an image that many machines share.
    #[error("{path}: {what}; it would be the same on every machine")]
    Secret {
        /// The path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A file that something names is not in the tree.
    #[error("{who} names {path}, which is not in the image")]
    NoFile {
        /// `overlay X`, `service Y`.
        who: String,
        /// The path.
        path: String,
    },
    /// An account that nobody defines.
    #[error(transparent)]
    Compile(#[from] dyad_spec::compile::CompileError),
    /// The tree refused a path.
    #[error(transparent)]
    Tree(#[from] TreeError),
}
