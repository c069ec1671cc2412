//! What people write (definitions, overlays, site files) and what PID 1 reads: one schema for builder and appliance.
//!
//! Everything is a function of text: nothing here opens a file. Files go Raw (as written) -> Merged (an image of one
//! definition and its overlays) -> compiled (numbers only); a site file goes Raw -> [`site::Site`].

pub mod compile;
pub mod compiled;
mod decode;
mod definition;
mod diagnostic;
mod glob;
pub mod image;
pub mod merge;
mod overlay;
mod scalar;
#[cfg(feature = "schema")]
pub mod schema;
pub mod site;
mod syscall;

pub use diagnostic::{Diagnostic, Diagnostics, Source};
pub use glob::PathGlob;
pub use scalar::{
    Architecture, ByteSize, IpNet, Mac, ModuleClass, ModuleName, ModuleSelector, OutputFormat, Suite,
};
