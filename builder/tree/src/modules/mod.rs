//! Kernel modules: what each file says about itself, which of them an image needs, and the index that PID 1 reads.

mod classes;
mod info;
mod select;

pub use classes::CLASSES;
pub use info::read_module;
pub(crate) use info::{Catalogue, facts, is_module, kernel_release};
