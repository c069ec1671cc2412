//! The worlds in which the decision core is proven.

pub mod calibrate;
pub mod explore;
pub mod matrix;
pub mod mutate;
pub mod report;
pub mod scenario;
pub mod sim;
pub mod volume;
