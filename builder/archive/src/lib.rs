//! Where packages come from: the host's apt configuration, verified Release files, a content-addressed cache,
//! resumable downloads. Also the one subprocess wrapper of the builder.

pub mod clock;
pub mod process;
