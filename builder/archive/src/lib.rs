//! Where packages come from: the host's apt configuration, verified Release files, a content-addressed cache,
//! resumable downloads. Also the one subprocess wrapper of the builder.

mod apt;
mod cache;
pub mod clock;
mod error;
mod fetch;
mod gpgv;
mod http;
pub mod process;
mod progress;
mod refresh;
mod sources;

pub use apt::{Entry, HostApt};
pub use cache::Cache;
pub use error::ArchiveError;
pub use fetch::Fetch;
pub use gpgv::{Keyring, VerifyError};
pub use http::Proxies;
pub use progress::{Progress, Silent, Stage};
pub use refresh::{Indexes, Refresh};
pub use sources::{Archive, Environment, Overrides, Sources};
