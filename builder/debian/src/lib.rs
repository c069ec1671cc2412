//! Debian's texts and rules, without any I/O: version order, control data, Release files, Packages indexes,
//! dependency relations, the dependency closure and the lock file.

pub mod control;
mod date;
mod digest;
pub mod lock;
mod packages;
mod relation;
mod release;
mod resolve;
pub mod version;

pub use date::{format_utc, parse_date};
pub use digest::{Digest, DigestError};
pub use lock::{Lock, LockError, LockedPackage};
pub use packages::{IndexError, IndexId, MultiArch, Origin, Package, PackageId, Priority, Universe};
pub use relation::{Alternative, Clause, Constraint, Op, RelationError, parse_provides, parse_relations};
pub use release::{Release, ReleaseError, check_clearsign};
pub use resolve::{
    DependencyKind, Reason, Request, Resolution, ResolveError, Selected, Wanted, WantedError, resolve,
};
