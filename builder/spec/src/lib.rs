//! What people write (definitions, overlays, site files) and what PID 1 reads: one schema for builder and appliance.

pub mod compiled;
