//! One program for all targets: `DYAD_FUZZ_TARGET` names the one to run.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<dyad_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("DYAD_FUZZ_TARGET").unwrap_or_default();
    dyad_fuzz::target(&name).unwrap_or_else(|| {
        let known: Vec<&str> = dyad_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
        panic!("DYAD_FUZZ_TARGET={name:?} is none of {}", known.join(", "))
    })
});

fuzz_target!(|data: &[u8]| (*TARGET)(data));
